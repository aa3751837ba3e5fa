"""SubCenterFC against the float64 reference, on 1, 2 and 3 processes."""

import tempfile
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from heads import BCE, CosFace, FullFC, PartialFC, RowAdagrad, RowAdamW, Softmax, SphereFace2, SubCenterFC, UniFace
from heads.core.cost import Case as Size
from heads.fidelity import selection_fidelity
from heads.subcenter import SubCenterFCOptions
from tests import conformance
from tests.cases import build, global_batch, part_of, with_margins
from tests.conformance import SGD, Case
from tests.heads.margins.table import NUM_CLASSES
from tests.heads.objectives.test_uniface import REFUSED, start, uniface
from tests.heads.test_full import ADAMW
from tests.workers import rank_and_world

THREE = Case(SubCenterFC, {"centers_per_class": 3}, rows_per_class=3)
SAMPLED = Case(SubCenterFC, {"centers_per_class": 2, "sample_rate": 0.3}, rows_per_class=2)
MARGINS = with_margins(THREE)
CASES = {
    **MARGINS,
    "uniface": replace(
        with_margins(THREE, refused=REFUSED)["cosface"],
        objective=UniFace(),
        formula=uniface,
        shared_bias=start(NUM_CLASSES),
    ),
    "random rows": THREE,
    "recomputing": replace(MARGINS["adaface"], options={"centers_per_class": 3, "logits_budget_mb": 0}),
    "softmax recomputing": replace(MARGINS["softmax"], options={"centers_per_class": 3, "logits_budget_mb": 0}),
    "sampled": SAMPLED,
    "sampled recomputing": replace(SAMPLED, options={**SAMPLED.options, "logits_budget_mb": 0}),
    "log q": replace(SAMPLED, options={**SAMPLED.options, "log_q": True}),
    "weights": replace(SAMPLED, weighted=True),
    "double": replace(MARGINS["arcface"], dtype=torch.float64),
    "seven": replace(THREE, num_classes=7),
    "blocks": Case(SubCenterFC, {"centers_per_class": 2, "sample_rate": 0.4, "sample_block": 4}, rows_per_class=2),
    "one row": Case(SubCenterFC, {"centers_per_class": 1}),
    "adamw": replace(SAMPLED, optimizer=RowAdamW, optimizer_options=ADAMW),
    "adagrad": replace(THREE, optimizer=RowAdagrad, optimizer_options={"lr": 0.1}),
    "nesterov": replace(THREE, optimizer_options={**SGD, "nesterov": True}),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("case", [THREE, replace(SAMPLED, optimizer=RowAdamW, optimizer_options=ADAMW)])
def test_state_round_trip(case, world_size, workers):
    workers(world_size).run(conformance.round_trip, case)


@pytest.mark.parametrize("other", [PartialFC, FullFC])
def test_one_row_a_class_is_the_head_without_sub_centers(other):
    rate = {"sample_rate": 0.5} if other is PartialFC else {}
    results = []
    for head in (SubCenterFC(50, 8, centers_per_class=1, **rate), other(50, 8, **rate)):
        optimizer, generator = head.optimizer(lr=0.1), torch.Generator().manual_seed(0)
        for _ in range(3):
            embeddings = torch.randn(6, 8, generator=generator).requires_grad_()
            loss = head(embeddings, torch.randint(50, (6,), generator=generator))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append((loss.detach(), embeddings.grad, head.centers.rows))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_only_the_nearest_row_of_a_class_gets_a_gradient():
    head = SubCenterFC(20, 8, centers_per_class=3, margin=CosFace(s=4))
    optimizer = head.optimizer(lr=0.1, momentum=0, weight_decay=0)
    before = head.centers.rows.clone().view(20, 3, 8)
    embeddings = torch.randn(1, 8, requires_grad=True)
    head(embeddings, torch.tensor([4])).backward()
    optimizer.step()
    cos = (normalize(before, dim=2) * normalize(embeddings.detach())).sum(2)
    changed = (head.centers.rows.view(20, 3, 8) != before).any(2)
    assert torch.equal(changed, cos == cos.amax(1, keepdim=True))


@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"store": "host"}, {"store": "disk"}], ids=str)
def test_stores_hold_blocks(options):
    """The rows of the stores agree with those of the default one, those in bf16 to its precision."""
    rows = []
    for chosen in ({}, options):
        if chosen.get("store") == "disk":
            chosen = {**chosen, "store_dir": tempfile.mkdtemp()}
        head = SubCenterFC(30, 8, centers_per_class=3, sample_rate=0.5, **chosen)
        optimizer, generator = head.optimizer(lr=0.1), torch.Generator().manual_seed(0)
        for _ in range(3):
            head(torch.randn(5, 8, generator=generator), torch.randint(30, (5,), generator=generator)).backward()
            optimizer.step()
            optimizer.zero_grad()
        rows.append(head.centers.read(slice(0, 30)))
    if "dtype" in options:
        difference = (rows[0] - rows[1]).abs().mean()
        assert 0 < difference < 0.02 * rows[0].abs().mean(), "bf16 has 8 bits"
    else:
        assert torch.equal(*rows)


@pytest.mark.parametrize("margin", [None, Softmax()], ids=str)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_topk_is_that_of_the_nearest_rows(margin, world_size, workers):
    parts = workers(world_size).run(_topk, margin)
    head, embeddings = SubCenterFC(23, 8, centers_per_class=3, margin=margin, dtype="fp64"), _embeddings()
    rows = head.centers.rows.view(23 * 3, -1)
    if margin is None:
        cos = normalize(embeddings) @ normalize(rows).T
    else:
        cos = embeddings @ rows[:, :8].T + rows[:, 8]
    values, classes = cos.view(len(cos), 23, 3).amax(2).topk(5, dim=1)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), values)
    assert torch.equal(torch.cat([part[1] for part in parts]), classes)


def _embeddings() -> torch.Tensor:
    return torch.randn(7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _topk(margin):
    rank, world_size = rank_and_world()
    head = SubCenterFC(23, 8, centers_per_class=3, margin=margin, dtype="fp64")
    return head.topk(_embeddings()[part_of(7, rank, world_size)], 5)


def test_all_classes_have_full_fidelity():
    case = replace(THREE, num_classes=40)
    embeddings, labels, _ = global_batch(case, 0, 0)
    exact = selection_fidelity(build(case), embeddings, labels, probes=8)
    assert exact["mass"] == exact["hardest_recall"] == 1
    assert exact["gradient_cosine"] == pytest.approx(1, abs=1e-6)
    half = build(replace(SAMPLED, num_classes=40, options={**SAMPLED.options, "sample_rate": 0.5}))
    sampled = selection_fidelity(half, embeddings, labels, probes=8)
    assert 0.1 < sampled["mass"] < 0.9
    assert sampled["gradient_cosine"] < 0.99


def test_cost_is_that_of_as_many_rows():
    options, size = SubCenterFCOptions(centers_per_class=3), Size(1000, 16, 8, 2)
    cost = SubCenterFC.cost(size, options, row_state={})
    rows = FullFC.cost(Size(3000, 16, 8, 2), FullFC.Options(), row_state={})
    assert (cost.table_bytes, cost.multiply_adds) == (rows.table_bytes, rows.multiply_adds)
    head = SubCenterFC(1000, 16, centers_per_class=3)
    assert head.stats()["memory_bytes"] == 1000 * 3 * 16 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centers_per_class": 0}, "centers_per_class=0 must be"),
        ({"centers_per_class": 1.5}, "centers_per_class=1.5 must be"),
        ({"sample_rate": 0}, "sample_rate=0"),
        ({"objective": BCE()}, "objective=BCE has a bias for each class and cannot be used with 3 rows a class"),
        ({"objective": SphereFace2(), "margin": Softmax()}, "SphereFace2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SubCenterFC(10, 4, **options)
