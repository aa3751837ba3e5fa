"""Prototypes against the float64 reference, whose rows come from formulas of their own."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from heads import BCE, AdaFace, CosFace, FullFC, MagFace, Prototypes, RowAdamW, Softmax, SphereFace2, UniFace
from heads.core.cost import Case as Size
from heads.core.cost import TooManyClassesError
from heads.fidelity import selection_fidelity
from heads.objectives.row_gradient import RowGradient
from heads.rows.formulas import Formula, Permutations, Random, Simplex, described
from tests import conformance
from tests.conformance import Case, rows_of
from tests.heads.margins.table import adaface, magface
from tests.heads.objectives.test_sphereface2 import sphereface2
from tests.heads.objectives.test_sphereface2 import start as sphereface2_start
from tests.heads.objectives.test_uniface import start as uniface_start
from tests.heads.objectives.test_uniface import uniface
from tests.heads.test_full import ADAMW
from tests.reference import Rule


def random(num_classes, D):
    return normalize(FullFC(num_classes, D).centers.rows.double())


def simplex(num_classes, D):
    """Return waves over the classes: the C - 1 columns are orthogonal to each other and to a constant one."""
    angle = 2 * math.pi * np.arange(num_classes)[:, None] / num_classes
    waves = [wave(angle * k) for k in range(1, num_classes) for wave in (np.cos, np.sin)]
    table = np.concatenate(waves[: num_classes - 1], axis=1)
    rows = np.zeros((num_classes, D))
    rows[:, : num_classes - 1] = table / np.linalg.norm(table, axis=0)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def permutations(num_classes, D):
    pairs = [(plus, (plus + shift) % D) for shift in range(1, D) for plus in range(D)]
    rows = torch.zeros(num_classes, D, dtype=torch.float64)
    for row, (plus, minus) in zip(rows, pairs, strict=False):
        row[plus], row[minus] = 1, -1
    return rows / math.sqrt(2)


ROWS = {"random": random, "simplex": simplex, "permutations": permutations}


def case(kind="random", num_classes=101, D=32, options=None, **more):
    options = {"kind": kind, "sample_rate": 1, **(options or {})}
    fixed_rows = ROWS[kind](num_classes, D)
    return Case(Prototypes, options, num_classes=num_classes, embedding_size=D, fixed_rows=fixed_rows, **more)


def biased(objective, formula, start, **more):
    """Return a case with a bias of all classes, which is all that the head's optimizer updates."""
    return case(objective=objective, formula=formula, shared_bias=start, **more)


CASES = {
    "random": case(),
    "seven": case(num_classes=7),
    "recomputing": case(options={"logits_budget_mb": 0}),
    "sampled": case(num_classes=1000, options={"sample_rate": 0.1}),
    "sampled recomputing": case(options={"sample_rate": 0.3, "logits_budget_mb": 0}),
    "log q": case(options={"sample_rate": 0.3, "log_q": True}),
    "sampled, then all": case(options={"sample_rate": {0: 0.1, 1: 0.3, 2: 1}}),
    "weights": case(weighted=True),
    "simplex of all columns": case("simplex", 33),
    "simplex of some columns": case("simplex", 20, options={"sample_rate": 0.5}),
    "permutations": case("permutations", 56, 8),
    "some permutations": case("permutations", 101, options={"sample_rate": 0.3}),
    "adaface": case(margin=AdaFace(), rule=adaface),
    "magface": case("permutations", margin=MagFace(), rule=magface),
    "uniface": biased(UniFace(), uniface, uniface_start(101)),
    "uniface, sampled": biased(UniFace(), uniface, uniface_start(50.5), options={"sample_rate": 0.5}, weighted=True),
    "uniface with a simplex": biased(UniFace(), uniface, uniface_start(33), kind="simplex", num_classes=33),
    "uniface with adamw": biased(UniFace(), uniface, uniface_start(101), optimizer=RowAdamW, optimizer_options=ADAMW),
    "sphereface2": biased(
        SphereFace2(), sphereface2, sphereface2_start(101), rule=Rule(), options={"logits_budget_mb": 0}
    ),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", ["sampled, then all", "uniface, sampled", "adaface"])
def test_state_round_trip(name, world_size, workers):
    workers(world_size).run(conformance.round_trip, sendable(CASES[name]))


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_abandoned_backward_changes_nothing(world_size, workers):
    workers(world_size).run(conformance.abandoned, sendable(CASES["uniface, sampled"]))


def sendable(case):
    return Case(Prototypes, case.options, margin=case.margin, objective=case.objective)


@pytest.mark.parametrize("kind", ROWS)
def test_rows_do_not_depend_on_the_processes(kind, workers):
    num_classes = 23
    alone = rows_of(Prototypes(num_classes, 32, kind=kind))
    for world_size in (2, 3):
        assert torch.equal(torch.cat(workers(world_size).run(own_rows, num_classes, kind)), alone)
    some = torch.tensor([3, 4, 22])
    assert torch.equal(Prototypes(num_classes, 32, kind=kind).centers.read(some), alone[some])
    drawn_anew = not torch.equal(rows_of(Prototypes(num_classes, 32, kind=kind, seed=1)), alone)
    assert drawn_anew == (kind == "random")


def own_rows(num_classes, kind):
    return rows_of(Prototypes(num_classes, 32, kind=kind))


@pytest.mark.parametrize("D", [1, 2, 5, 16])
def test_every_two_rows_of_a_simplex_have_the_least_cosine(D):
    for num_classes in range(1, D + 2):
        rows = Simplex(num_classes, D)(torch.arange(num_classes))
        gram = torch.full((num_classes, num_classes), -1 / max(1, num_classes - 1), dtype=torch.float64)
        torch.testing.assert_close(rows @ rows.T, gram.fill_diagonal_(1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("D", [2, 3, 7])
def test_permutations_are_all_roots_and_use_all_columns_alike(D):
    num_classes = D * (D - 1)
    rows = Permutations(num_classes, D)(torch.arange(num_classes))
    assert len(torch.unique(rows.sign(), dim=0)) == num_classes
    cosines = (2 * rows @ rows.T).round(decimals=12)
    assert set(cosines.unique().tolist()) <= {2.0, 1.0, 0.0, -1.0, -2.0}
    assert (cosines == 2).sum() == num_classes
    for some in range(D, num_classes + 1, D):
        assert len(rows[:some].abs().sum(0).round(decimals=12).unique()) == 1


@pytest.mark.parametrize("formula", [Random(10**9, 512), Simplex(513, 512), Permutations(512 * 511, 512)])
def test_rows_have_unit_length(formula):
    classes = torch.randint(formula.num_classes, (500,), generator=torch.Generator().manual_seed(0))
    lengths = formula(classes).float().double().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1.2e-7)
    assert described(formula.description()) == formula


def test_random_rows_are_spread_evenly():
    rows = Random(10**9, 64)(torch.randint(10**9, (4000,), generator=torch.Generator().manual_seed(0))).double()
    cosines = (rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)]
    assert abs(cosines.mean()) < 1e-3 and abs(cosines.std() * 8 - 1) < 0.01


@pytest.mark.parametrize(
    ("kind", "num_classes", "remedy"),
    [
        ("simplex", 18, "which has 17 rows for embedding_size=16; use kind=random or permutations, or a larger"),
        ("permutations", 241, "which has 240 rows for embedding_size=16; use kind=random, or a larger"),
    ],
)
def test_more_classes_than_rows_are_refused(kind, num_classes, remedy):
    Prototypes(num_classes - 1, 16, kind=kind)
    with pytest.raises(ValueError, match=f"num_classes={num_classes} is too large for kind={kind}, {remedy}"):
        Prototypes(num_classes, 16, kind=kind)
    with pytest.raises(TooManyClassesError):
        cost(num_classes, 16, kind=kind)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cube"}, "kind='cube' must be one of random, simplex, permutations"),
        ({"sample_rate": 0}, "sample_rate=0 must be in"),
        ({"objective": BCE()}, "objective=BCE learns a bias for each class, and prototypes store nothing"),
        ({"margin": Softmax()}, "margin=Softmax has a bias for each class, and prototypes store nothing"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Prototypes(10, 16, **options)


@pytest.mark.parametrize("name", ["dtype", "store", "rounding"])
def test_options_of_stored_rows_are_unknown(name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        Prototypes(10, 16, **{name: "fp32"})


def test_nothing_is_stored():
    head = Prototypes(1000, 16, objective=UniFace())
    optimizer = head.optimizer(lr=0.1, rule=RowAdamW)
    head(torch.randn(4, 16, requires_grad=True), torch.arange(4)).backward()
    assert head.pending.kept_bytes == 0  # nothing waits for the step
    optimizer.step()
    assert head.stats()["memory_bytes"] == 0 and head.stats()["active_classes"] == 100
    assert head.sharded_state() == {} and not any(torch.is_tensor(value) for value in head.state_dict().values())
    with pytest.raises(ValueError, match=r"kind=random are computed from the class ids and cannot be written"):
        head.centers.write(slice(0, 1), "rows", torch.ones(1, 16))


def cost(num_classes, D, **options):
    size = Size(num_classes, D, batch=8)
    return Prototypes.cost(size, Prototypes.Options(**options), row_state={})


def test_cost_is_that_of_two_products_over_the_active_classes():
    full = FullFC.cost(Size(1000, 16, batch=8), FullFC.Options(), row_state={})
    assert cost(1000, 16, sample_rate=1).table_bytes == cost(1000, 16, sample_rate=1).moved_bytes == 0
    assert cost(1000, 16, sample_rate=1).multiply_adds == full.multiply_adds * 2 / 3
    assert cost(1000, 16, sample_rate=1, logits_budget_mb=0).multiply_adds == full.multiply_adds
    assert cost(1000, 16, sample_rate=1, logits_budget_mb=0, objective=UniFace()).multiply_adds == (
        full.multiply_adds * 2 / 3
    )
    huge = cost(10**8, 512, sample_rate=1e-5)
    assert huge.table_bytes == 0 and huge.work_bytes < 2**24
    assert huge.multiply_adds == 2 * 1000 * 8 * 512


def test_gradients_of_rows_are_not_computed():
    head = Prototypes(50, 16, objective=UniFace(), sample_rate=0.5)
    optimizer = head.optimizer(lr=0.1)
    bias = head.shared_bias.value.clone()
    with mock.patch.object(RowGradient, "add_to", side_effect=AssertionError):
        for _ in range(2):  # two selections
            head(torch.randn(4, 16, requires_grad=True), torch.arange(4)).backward()
        optimizer.step()
    assert head.shared_bias.value != bias and head.step == 1


def test_the_rows_of_all_classes_are_computed_in_parts():
    head, sizes = Prototypes(5000, 16, sample_rate=1, logits_budget_mb=0), []
    compute = type(head.centers.formula).__call__

    def counted(formula: Formula, classes: torch.Tensor) -> torch.Tensor:
        sizes.append(len(classes))
        return compute(formula, classes)

    with mock.patch.object(Random, "__call__", counted):
        head(torch.randn(4, 16, requires_grad=True), torch.arange(4)).backward()
        head.eval()
        head(torch.randn(4, 16), torch.arange(4))
        head.topk(torch.randn(4, 16), 3)
        head.centers.read(slice(0, 5000))
    assert sum(sizes) > 5 * 5000 and max(sizes) <= 2048


@pytest.mark.parametrize("scale", [2.0**10, 2.0**120])
def test_fp16_unscales_the_gradient_of_the_bias_or_skips_the_step(scale):
    biases = []
    for scaled in (False, True):
        head = Prototypes(50, 16, objective=UniFace())
        optimizer, scaler = head.optimizer(lr=0.1), torch.amp.GradScaler("cpu", init_scale=scale, enabled=scaled)
        embeddings = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        biases.append(head.shared_bias.value.clone())
        scaler.scale(head(embeddings, torch.arange(4))).backward()
        scaler.step(optimizer)
        scaler.update()
        biases.append(head.shared_bias.value.clone())
    start, plain, _, unscaled = biases
    assert plain != start and torch.equal(unscaled, plain if scale < 2.0**64 else start)


def test_evaluation_changes_nothing():
    head = Prototypes(50, 16, margin=AdaFace(), sample_rate=0.3)
    embeddings, labels = torch.randn(4, 16), torch.arange(4)
    exact = Prototypes(50, 16, margin=AdaFace(), sample_rate=1)(embeddings, labels)
    before = head.get_extra_state()
    with torch.no_grad():
        head(embeddings, labels)
    head.eval()
    torch.testing.assert_close(head(embeddings, labels), exact)
    assert head.get_extra_state() == before and head.pending.entries == []


def test_other_rows_are_not_loaded():
    head = Prototypes(9, 16)
    others = [
        (Prototypes(9, 16, seed=1), "got .*'seed': 1"),
        (Prototypes(9, 16, kind="simplex"), "got .*'kind': 'simplex'"),
        (Prototypes(10, 16), "got .*'num_classes': 10"),
        (FullFC(9, 16), "rows: these rows are computed from the class ids, and the state dict holds stored ones"),
    ]
    for other, message in others:
        other.step = 7
        with pytest.raises(RuntimeError, match=message):
            head.load_state_dict(other.state_dict())
        assert head.step == 0
    with pytest.raises(RuntimeError, match="rows: this head stores its rows, and the state dict holds the formula"):
        FullFC(9, 16).load_state_dict(head.state_dict())
    Prototypes(9, 16, kind="simplex").load_state_dict(Prototypes(9, 16, kind="simplex", seed=3).state_dict())


def test_full_state_loads_on_other_numbers_of_processes(workers):
    (state, loss), *_ = workers(2).run(stepped, None)
    for world_size in (1, 3):
        for again, other in workers(world_size).run(stepped, state):
            assert other == pytest.approx(loss, rel=1e-6)
            ours, theirs = (each["_extra_state"]["shared_bias"] for each in (state, again))
            assert ours.keys() == theirs.keys() == {"value", "momentum"}
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def stepped(state):
    """Return the state after two steps, or the given one, and the exact loss of a batch."""
    head = Prototypes(23, 16, objective=UniFace(), sample_rate=1)
    optimizer = head.optimizer(lr=0.1)
    if state is None:
        for step in range(2):
            conformance.stepped(Case(Prototypes, num_classes=23, embedding_size=16), head, optimizer, step)
    else:
        head.load_state_dict(state)
    generator = torch.Generator().manual_seed(3)
    loss = head.eval()(torch.randn(4, 16, generator=generator), torch.arange(4))
    return head.full_state_dict(), float(loss)


def test_topk_finds_the_nearest_rows():
    head, embeddings = Prototypes(50, 16), torch.randn(6, 16)
    values, classes = (normalize(embeddings) @ random(50, 16).float().T).topk(5)
    found, ids = head.topk(embeddings, 5)
    torch.testing.assert_close(found, values)
    assert torch.equal(ids, classes)


def test_fidelity_of_all_classes_is_exact():
    torch.manual_seed(0)
    embeddings, labels = torch.randn(8, 16), torch.arange(8)
    exact, sampled = (
        selection_fidelity(Prototypes(300, 16, sample_rate=rate, margin=CosFace(s=8)), embeddings, labels)
        for rate in (1, 0.1)
    )
    assert exact["mass"] == pytest.approx(1) and exact["gradient_cosine"] == pytest.approx(1)
    assert sampled["mass"] < 0.2 and sampled["gradient_cosine"] < 0.99


def test_several_labels_are_those_of_stored_rows():
    """The loss over random prototypes is that of a full head which stores the same rows."""
    full, head = FullFC(50, 16), Prototypes(50, 16, sample_rate=1)
    assert torch.allclose(normalize(full.centers.rows), rows_of(head), atol=1e-7)
    labels = torch.tensor([[1, 4], [7, -1], [4, 9]])
    gradients = []
    for each in (full, head):
        embeddings = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        each(embeddings, labels).backward()
        gradients.append(embeddings.grad)
    torch.testing.assert_close(*gradients)
