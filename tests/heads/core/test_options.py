"""Options: their declaration, their documentation, and former names."""

import inspect
import re
from dataclasses import FrozenInstanceError, dataclass

import pytest

import heads
from heads import FFC, ArcFace, CenterHead, CosFace, FullFC, HashingForest, Margin, PartialFC, Softmax, SVSoftmax
from heads.core.options import documented, option, option_fields, options_of

CLASSES = [getattr(heads, name) for name in heads.__all__ if isinstance(getattr(heads, name), type)]
WITH_OPTIONS = [owner for owner in CLASSES if option_fields(owner)]


def test_heads_margins_indexes_and_row_optimizers_declare_options():
    assert {FullFC, PartialFC, HashingForest, FFC, CosFace, ArcFace, SVSoftmax} <= set(WITH_OPTIONS)
    assert {heads.Annoy, heads.IVF, heads.RowSGD, heads.RowAdamW, heads.RowAdagrad} <= set(WITH_OPTIONS)
    assert not option_fields(Softmax) and not option_fields(heads.Selection)
    assert options_of(CosFace) is CosFace and options_of(FullFC) is FullFC.Options and options_of(heads.Head) is None


@pytest.mark.parametrize("owner", WITH_OPTIONS, ids=lambda owner: owner.__name__)
def test_help_lists_every_option_with_type_default_and_meaning(owner):
    text, parameters = " ".join(owner.__doc__.split()), inspect.signature(owner).parameters
    for name, field in option_fields(owner).items():
        assert parameters[name].default == field.default
        help = field.metadata["help"]
        assert re.search(rf" {name} \([^:]+\): {re.escape(help)} Default: {re.escape(repr(field.default))}\.", text)
        assert help[0].isupper() or help[0] == '"', name
        assert help.endswith("."), name


@pytest.mark.parametrize("owner", [FullFC, PartialFC, HashingForest, FFC])
def test_help_of_a_head_lists_arguments_that_are_not_options(owner):
    names = list(inspect.signature(owner).parameters)
    assert names[:2] == ["num_classes", "embedding_size"] and {"process_group", "device"} <= set(names)
    assert all(f"    {name} (" in owner.__doc__ for name in names)


@pytest.mark.parametrize("owner", CLASSES, ids=lambda owner: owner.__name__)
def test_every_public_class_has_help(owner):
    assert owner.__doc__ and len(owner.__doc__.split("\n")[0]) > 20


def test_options_cannot_be_changed_after_their_checks():
    head = PartialFC(10, 4, sample_rate=0.5)
    assert head.options == PartialFC.Options(sample_rate=0.5)
    with pytest.raises(FrozenInstanceError):
        head.options.sample_rate = 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PartialFC(10, 4, filter_below=0.1), r"PartialFC\(\) .* 'filter_below'; its options are num_classes"),
        (lambda: CosFace(margn=0.4), r"CosFace\(\) got an unexpected keyword argument 'margn'"),
        (lambda: ArcFace(max_negative_cosin=0.4), "did you mean 'max_negative_cosine'"),
        (lambda: heads.Annoy(num_tres=5), r"Annoy\(\) .* 'num_tres'; did you mean 'num_trees'"),
        (lambda: Softmax(s=2), r"Softmax\(\) got an unexpected keyword argument 's'; it has no options"),
    ],
)
def test_unknown_option_names_are_answered(make, words):
    with pytest.raises(TypeError, match=words):
        make()


def test_former_option_names_are_accepted_with_a_warning():
    with pytest.warns(FutureWarning, match="filter_below of FullFC is now named min_probability; write") as caught:
        head = FullFC(10, 4, filter_below=0.1)
    assert head.min_probability == 0.1 and caught[0].filename == __file__
    with pytest.warns(FutureWarning, match="filter_above of CosFace is now named max_negative_cosine") as caught:
        margin = CosFace(16, filter_above=0.4)
    assert margin == CosFace(16, max_negative_cosine=0.4) and caught[0].filename == __file__ and len(caught) == 1
    with pytest.raises(TypeError, match="two names of one option; drop 'filter_below'"):
        FullFC(10, 4, filter_below=0.1, min_probability=0.2)


@pytest.mark.parametrize(("former", "name"), [("select", "select_classes"), ("selected", "on_selected")])
def test_a_head_that_overrides_a_method_by_its_former_name_is_refused(former, name):
    with pytest.raises(TypeError, match=f"Own.{former} is now named {name}; rename the method"):
        type("Own", (CenterHead,), {former: lambda self, embeddings, labels: None})


@pytest.mark.parametrize(("former", "name"), [("blank", "empty_copy"), ("successor", "rebuilt")])
def test_an_index_that_overrides_a_method_by_its_former_name_is_refused(former, name):
    with pytest.raises(TypeError, match=f"Own.{former} is now named {name}; rename the method"):
        type("Own", (heads.Exact,), {former: lambda self: None})


def test_options_of_a_head_of_your_own():
    """A subclass declares further options, and may have arguments of its own."""

    @dataclass(frozen=True, kw_only=True)
    class NearOptions(PartialFC.Options):
        near: int = option(3, "Nearest classes.")

    class Near(PartialFC):
        """A head."""

        Options = NearOptions

        def __init__(self, num_classes, embedding_size, *, scale=1.0, **options):
            super().__init__(num_classes, embedding_size, **options)
            self.scale = scale

    head = Near(10, 4, near=5, scale=2.0, sample_rate=0.5)
    assert (head.options.near, head.options.sample_rate, head.scale) == (5, 0.5, 2.0)
    assert {"near", "scale", "sample_rate", "seed"} <= set(inspect.signature(Near).parameters)
    assert "near (int): Nearest classes. Default: 3." in Near.__doc__
    with pytest.raises(TypeError, match=r"Near\(\) .* 'sacle'; did you mean 'scale'"):
        Near(10, 4, sacle=2)


def test_a_margin_of_your_own():
    @documented
    @dataclass
    class Half(Margin):
        """A margin."""

        m: float = option(0.5, "Factor on the target's cosine.")

        def target(self, cos):
            return self.m * cos

    class Plain(Margin):
        def __init__(self, m=0.5):
            super().__init__(s=2)
            self.m = m

    assert Half(16, 0.25, max_negative_cosine=0.9) == Half(s=16, m=0.25, max_negative_cosine=0.9)
    assert "m (float): Factor on the target's cosine. Default: 0.5." in Half.__doc__ and Plain(m=0.1).s == 2
    with pytest.raises(TypeError, match="did you mean"):
        Half(max_negative_cosin=1)
