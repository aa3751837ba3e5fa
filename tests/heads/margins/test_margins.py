"""Margins: finite differences, the ends of the range of the cosine, the continuation beyond theta + m = pi."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from heads import (
    FFC,
    AdaFace,
    ArcFace,
    ClassMargin,
    CombinedMargin,
    CosFace,
    CurricularFace,
    ElasticFace,
    FixedAdaCos,
    FullFC,
    MagFace,
    Margin,
    Softmax,
    SphereFace,
    SVSoftmax,
)
from heads.margins import MarginBatch
from tests.heads.margins.table import MARGINS as TABLE
from tests.heads.margins.table import NUM_CLASSES
from tests.reference import Batch, Rule

MARGINS = [
    CosFace(m=0.4),
    ArcFace(m=0.5),
    ArcFace(m=0),
    CombinedMargin(m1=1, m2=0.3, m3=0.2),
    CombinedMargin(m1=1.3, m2=0.2, m3=0.1),
    CombinedMargin(m1=4),
    Margin(),
]


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_gradient_agrees_with_finite_differences(margin):
    cos = torch.linspace(-0.999, 0.999, 401, dtype=torch.float64)
    m1, m2 = {CombinedMargin: lambda m: (m.m1, m.m2), ArcFace: lambda m: (1, m.m)}.get(type(margin), lambda m: (1, 0))(
        margin
    )
    kink = math.cos((math.pi - m2) / m1)
    cos = cos[(cos - kink).abs() > 1e-3].requires_grad_()
    (slope,) = torch.autograd.grad(margin.target(cos).sum(), cos)
    step = 1e-6
    difference = (margin.target(cos.detach() + step) - margin.target(cos.detach() - step)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_target_never_falls_when_the_cosine_rises(margin):
    cos = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    assert (margin.target(cos).diff() >= -1e-12).all()


@pytest.mark.parametrize("m", [2.0, 2.33, 2.4, 2.8, 3.1])
def test_arcface_never_falls_for_any_margin(m):
    cos = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    assert (ArcFace(m=m).target(cos).diff() >= -1e-12).all()


N = 64
LENGTHS = torch.linspace(1e-4, 140, N, dtype=torch.float64)
COUNTS = torch.arange(N)  # the class of the first sample has no training example


def begun(margin: Margin, state: dict[str, torch.Tensor], target_cos: torch.Tensor) -> tuple[Margin, MarginBatch]:
    """Return the margin of a batch of many lengths, and the batch."""
    labels = torch.zeros(N, dtype=torch.int64)
    batch = MarginBatch(LENGTHS.to(target_cos), labels, NUM_CLASSES, state, (0, 1, 2), COUNTS)
    return margin.begin(batch, target_cos), batch


@pytest.mark.parametrize("name", TABLE)
def test_formulas(name):
    """Three batches one after the other, each with carried numbers of the one before."""
    margin, rule = TABLE[name]
    ours = {key: torch.tensor(value, dtype=torch.float64) for key, value in margin.initial_state.items()}
    theirs = {}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        cos = 2 * torch.rand(N, N, generator=generator, dtype=torch.float64) - 1
        target_cos = cos.diagonal()
        once, batch = begun(margin, ours, target_cos)
        normal = batch.normal("elastic margin")
        own = torch.eye(N, dtype=torch.bool)
        exact = Batch(cos, own, LENGTHS, torch.zeros(1), count=COUNTS.double(), normal=normal, state=theirs)
        right = rule if isinstance(rule, Rule) else rule(exact)
        torch.testing.assert_close(once.s * once.target(target_cos), right.s * right.target(target_cos))
        torch.testing.assert_close(once.negative(cos.T, target_cos).T, right.negative(cos, target_cos[:, None]))
        penalty = once.penalty()
        torch.testing.assert_close(torch.zeros(N).double() if penalty is None else penalty, right.penalty + 0 * LENGTHS)
        ours, theirs = dict(once.state or {}), dict(right.state)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [*MARGINS, *(margin for margin, _ in TABLE.values())], ids=str)
def test_finite_at_the_ends_and_slightly_beyond(margin, dtype):
    ends = [1.0, -1.0, 1 + 1e-6, -1 - 1e-6, 1 - 1e-7, -1 + 1e-7, 0.0, 0.5]
    cos = torch.tensor(ends, dtype=dtype).repeat(N // len(ends)).requires_grad_()
    state = {name: torch.tensor(value, dtype=dtype) for name, value in margin.initial_state.items()}
    once, _ = begun(margin, state, cos.detach())
    for result in (once.target(cos), once.negative(cos[:, None], cos.detach())):
        (slope,) = torch.autograd.grad(result.sum(), cos)
        assert torch.isfinite(result).all() and torch.isfinite(slope).all()


def test_arcface_beyond_pi_continues_to_fall():
    """The uncontinued formula puts cos -0.90 below cos -0.99."""
    target = ArcFace(m=0.5).target(torch.tensor([-0.99, -0.90], dtype=torch.float64))
    assert target[0] < target[1]
    torch.testing.assert_close(target[0], torch.tensor(-0.99 - 0.5 * math.sin(0.5), dtype=torch.float64))


def test_combined_contains_the_others():
    cos = torch.linspace(-1, 1, 1001)
    assert torch.equal(CombinedMargin(m2=0.5).target(cos), ArcFace(m=0.5).target(cos))
    torch.testing.assert_close(CombinedMargin(m3=0.4).target(cos), CosFace(m=0.4).target(cos))


def test_combined_applies_m1_and_m2_also_with_m3():
    cos = torch.tensor([0.3])
    both, subtracted = CombinedMargin(m1=1.1, m2=0.2, m3=0.1), CombinedMargin(m3=0.1)
    assert both.target(cos) < subtracted.target(cos) - 0.05


def test_max_negative_cosine_masks_instead_of_setting_to_zero():
    cos = torch.tensor([[0.5], [0.3]])
    logits = CosFace(s=2, max_negative_cosine=0.4).negative_logits(cos, torch.tensor([0.9]))
    assert logits.flatten().tolist() == pytest.approx([-math.inf, 0.6])


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_with_all_negatives_filtered_gives_zero_not_nan(world_size, workers):
    """The same holds if all rows of one process are filtered."""
    for loss, gradient in workers(world_size).run(_all_filtered):
        assert loss == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def _all_filtered() -> tuple[torch.Tensor, torch.Tensor]:
    head = FullFC(6, 4, margin=CosFace(max_negative_cosine=-0.9999999))
    head.centers.rows[:] = torch.tensor([1.0, 0, 0, 0])
    embeddings = torch.tensor([[1.0, 0.2, 0, 0]], requires_grad=True)
    loss = head(embeddings, torch.tensor([0]))
    loss.backward()
    return loss.detach(), embeddings.grad


def test_margin_inside_the_log_sum_exp():
    """A correction of the log-sum-exp afterwards is wrong here in float32: s = 64, m = 0.4, cos = 0.5."""
    head = FullFC(1000, 2, margin=CosFace(s=64, m=0.4))
    head.centers.rows[:] = torch.tensor([-1.0, 0])
    head.centers.rows[0] = torch.tensor([0.5, math.sqrt(0.75)])
    head.centers.rows[1] = torch.tensor([0.24, math.sqrt(1 - 0.24**2)])
    loss = head(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    exact = math.log1p(math.exp(64 * (0.24 - 0.1)) + 998 * math.exp(64 * (-1 - 0.1)))
    assert float(loss.detach()) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CosFace(s=0), "s=0"),
        (lambda: CosFace(m=math.nan), "m=nan"),
        (lambda: ArcFace(m=4), "margin m=4"),
        (lambda: CombinedMargin(m1=0), "m1=0"),
        (lambda: CosFace(max_negative_cosine=2), "max_negative_cosine=2"),
        (lambda: ArcFace(gradient="none"), "margin gradient='none' must be 'exact' or 'straight'"),
        (lambda: AdaFace(m=1.6), r"margin m=1\.6"),
        (lambda: AdaFace(h=-1), "margin h=-1"),
        (lambda: AdaFace(t=1.1), r"margin t=1\.1"),
        (lambda: MagFace(shortest=0), "margin shortest=0"),
        (lambda: MagFace(longest=10), "margin longest=10 must be above shortest=10"),
        (lambda: MagFace(largest=3.2), r"margin largest=3\.2"),
        (lambda: MagFace(penalty_weight=-1), "margin penalty_weight=-1"),
        (lambda: CurricularFace(weight=0), "margin weight=0"),
        (lambda: ElasticFace(m=2), "margin m=2 with kind='arc'"),
        (lambda: ElasticFace(std=-1), "margin std=-1"),
        (lambda: ElasticFace(kind="sphere"), "margin kind='sphere' must be 'arc' or 'cos'"),
        (lambda: SphereFace(m=0.9), r"margin m=0\.9"),
        (lambda: SphereFace(variant="v2"), "margin variant='v2' must be 'v0' or 'v1'"),
        (lambda: ClassMargin(k=-1), "margin k=-1"),
        (lambda: ClassMargin(a=3, b=1), "margin a=3, b=1 with kind='arc'"),
        (lambda: FixedAdaCos().begin(MarginBatch(LENGTHS, COUNTS, 2, {}, ()), LENGTHS), "num_classes=2"),
    ],
)
def test_bad_options_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_softmax_has_a_bias():
    head = FullFC(5, 3, margin=Softmax())
    assert head.centers.rows.shape == (5, 4)
    assert torch.equal(head.centers.rows[:, 3], torch.zeros(5))


def test_sv_softmax_raises_hard_negatives_only():
    margin = SVSoftmax(m=0.3, t=1.5)
    cos = torch.tensor([[-0.5], [0.29], [0.31], [0.9]])
    expected = torch.tensor([[-0.5], [0.29], [0.965], [1.85]])
    torch.testing.assert_close(margin.negative(cos, torch.tensor([0.6])), expected)
    torch.testing.assert_close(margin.target(torch.tensor([0.2, 0.5])), torch.tensor([0.2, 0.2]))
    with pytest.raises(ValueError, match=r"t=0\.9"):
        SVSoftmax(t=0.9)


def test_elastic_margins_follow_the_ranks_of_the_cosines_and_not_their_order():
    """The published code gives the sample i the margin of rank order[i]; both agree on permutations of two."""
    cos = torch.tensor([0.3, 0.1, 0.2])
    batch = MarginBatch(torch.ones(3), torch.zeros(3, dtype=torch.int64), 5, {}, (1, 2, 3))
    plain, plus = (ElasticFace(kind="cos", std=0.05, plus=plus).begin(batch, cos) for plus in (False, True))
    assert plus.m_N.argsort().tolist() == [0, 2, 1]
    assert torch.equal(plus.m_N.sort().values, plain.m_N.sort().values)


def test_straight_arcface_is_insightface_s_rule():
    """Its margin is written into the cosines under no_grad, so that the gradient passes unchanged."""
    torch.manual_seed(0)
    head = FullFC(9, 4, margin=ArcFace(m=0.5, gradient="straight"), dtype=torch.float64)
    head.centers.rows[:] = torch.randn(9, 4).double()
    x, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 3, 3, 8, 5, 1])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss = head(ours, labels)
    loss.backward()
    logits = normalize(theirs) @ normalize(head.centers.rows).T
    with torch.no_grad():
        logits[range(6), labels] = torch.cos(logits[range(6), labels].acos() + 0.5)
    expected = cross_entropy(64 * logits, labels)
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [5.0, 50.0, 130.0])
@pytest.mark.parametrize("cos", [0.6, -0.3])
def test_gradient_of_magface_by_the_length_agrees_with_finite_differences(cos, length):
    head = FullFC(9, 4, margin=MagFace(), dtype=torch.float64)
    head.centers.rows[:] = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
    head.centers.rows[2] = torch.tensor([1.0, 0, 0, 0])
    direction = torch.tensor([[cos, math.sqrt(1 - cos**2), 0, 0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)

    def loss(length: torch.Tensor) -> torch.Tensor:
        return head(direction * torch.stack([length, torch.tensor(20.0).double()])[:, None], torch.tensor([2, 4]))

    leaf = torch.tensor(length, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(leaf), leaf)
    difference = (loss(leaf.detach() + 1e-4) - loss(leaf.detach() - 1e-4)).detach() / 2e-4
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-9)
    assert (abs(float(slope)) < 1e-12) == (length != 50)  # no gradient where the length is clipped
    assert length != 50 or (slope > 0) == (cos > 0)  # the softmax shortens, and the penalty lengthens


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (None, "margin=ClassMargin needs class_counts.* pass class_counts with 7 numbers"),
        ([1, 2], r"class_counts of \[2\] torch.int64 must be one whole number for each of the num_classes=7 classes"),
        (torch.ones(7), r"class_counts of \[7\] torch.float32 must be one whole number"),
        ([3, 3, 3, -1, 3, 3, 3], "class_counts has -1"),
    ],
)
@pytest.mark.parametrize("head", [FullFC, FFC])
def test_class_counts_are_checked(head, counts, words):
    with pytest.raises(ValueError, match=words):
        head(7, 4, margin=ClassMargin(), class_counts=counts)


@pytest.mark.parametrize("counts", [np.arange(7), list(range(7)), torch.arange(7), torch.arange(7, dtype=torch.int32)])
def test_class_counts_of_any_whole_numbers(counts):
    head = FullFC(7, 4, margin=ClassMargin(), class_counts=counts)
    loss = head(torch.ones(1, 4), torch.tensor([3]))
    expected = FullFC(7, 4, margin=ArcFace(m=0.5 * 3**-0.25 + 0.05))(torch.ones(1, 4), torch.tensor([3]))
    torch.testing.assert_close(loss, expected)


def test_a_margin_by_class_frequency_assigned_later_needs_class_counts_too():
    head = FullFC(7, 4)
    head.margin = ClassMargin()
    with pytest.raises(ValueError, match="needs class_counts"):
        head(torch.ones(2, 4), torch.tensor([0, 3]))


@pytest.mark.parametrize("margin", [AdaFace(), CurricularFace(), ElasticFace(plus=True)])
def test_ffc_refuses_margins_of_the_whole_batch(margin):
    with pytest.raises(ValueError, match=rf"margin={type(margin).__name__}.* whole batch"):
        FFC(20, 8, margin=margin)
