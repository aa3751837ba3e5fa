"""Binary cross-entropy with a bias for each class, against its formula in float64, with every margin."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from heads import BCE, FullFC, HashingForest, PartialFC, RowAdagrad, RowAdamW
from heads.indexes import IVF, Annoy, Exact
from tests import conformance, reference
from tests.cases import build
from tests.conformance import SGD, Case, with_margins
from tests.heads.margins.table import MARGINS
from tests.heads.objectives import checks
from tests.heads.test_full import ADAMW
from tests.reference import Batch, Rule


def bce(batch: Batch, rule: Rule, negative_weight: float = 1.0) -> Tensor:
    """The baseline of Zhou et al., ICCV 2023: a binary cross-entropy for each class, with a bias b_j for each."""
    z = reference.logits(batch, rule) - batch.bias
    return -torch.where(batch.own, logsigmoid(z), negative_weight * logsigmoid(-z)).sum(1)


REFUSED = {"adacos, fixed": "FixedAdaCos derives its scale for"}
FULL = Case(FullFC, objective=BCE(), formula=bce)
HALF = replace(FULL, head=PartialFC, options={"sample_rate": 0.5})
WITH_MARGINS = with_margins(FULL, refused=REFUSED)
PLAIN, ADAFACE = WITH_MARGINS["cosface"], WITH_MARGINS["adaface, clipped"]
CASES = {
    **WITH_MARGINS,
    **with_margins(replace(HALF, weighted=True), refused=REFUSED, recomputing=True),
    "recomputing": replace(ADAFACE, options={"logits_budget_mb": 0}),
    "double": replace(ADAFACE, dtype=torch.float64),
    "forest": replace(
        ADAFACE,
        head=HashingForest,
        options={"num_active": 20, "interval": 1, "build": "blocking", "index": Exact()},
    ),
    "lighter negatives": replace(
        PLAIN, objective=BCE(negative_weight=0.3), formula=lambda batch, rule: bce(batch, rule, 0.3)
    ),
    "adamw": replace(PLAIN, optimizer=RowAdamW, optimizer_options=ADAMW),
    "adagrad": replace(PLAIN, optimizer=RowAdagrad, optimizer_options={"lr": 0.1}),
    "nesterov": replace(PLAIN, optimizer_options={**SGD, "nesterov": True}),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("name", ["cosface", "adaface, clipped", "magface"])
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_behaviour_of_any_objective(check, name):
    check(CASES[name])


@pytest.mark.parametrize("name", REFUSED)
def test_margins_that_make_no_sense_are_refused(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        FullFC(7, 8, margin=MARGINS[name][0], objective=BCE())


@pytest.mark.parametrize("name", ["cosface", "softmax"])
def test_the_last_column_of_the_rows_is_the_bias_with_the_opposite_sign(name):
    for head, active in (
        (FullFC(50, 8, margin=MARGINS[name][0], objective=BCE()), 50),
        (PartialFC(50, 8, margin=MARGINS[name][0], objective=BCE(), sample_rate=0.2), 10),
    ):
        assert head.centers.rows.shape == (50, 9) and head.shared_bias is None
        assert torch.equal(head.centers.rows[:, 8], torch.full((50,), -math.log(10 * active)))
        assert torch.equal(head.centers.rows[:, :8], FullFC(50, 8).centers.rows)


def test_rows_are_the_same_in_any_store(tmp_path):
    results = []
    for options in ({}, {"store": "host"}, {"store": "disk", "store_dir": str(tmp_path)}):
        head = build(replace(HALF, options={**HALF.options, **options}))
        optimizer = head.optimizer(lr=0.1)
        for step in range(2):
            conformance.stepped(HALF, head, optimizer, step)
        results.append(head.centers.read(slice(0, HALF.num_classes)).clone())
    assert not torch.equal(results[0][:, -1], build(HALF).centers.rows[:, -1])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("index", [Annoy(num_trees=4), IVF(num_lists=5, nprobe=5)])
@pytest.mark.parametrize("name", ["cosface", "softmax"])
def test_indexes_leave_out_the_bias_beside_a_direction(name, index):
    """The nearest classes of a margin that normalizes are those of the highest cosine, whatever their biases."""
    options = {"num_active": 30, "interval": 1, "build": "blocking", "index": index, "neighbours_share": 1.0}
    head = HashingForest(200, 8, margin=MARGINS[name][0], objective=BCE(), **options)
    head.centers.rows *= 100
    head.centers.rows[:, 8] = torch.linspace(-9, 0, 200)
    x, labels = torch.randn(1, 8), torch.tensor([3])
    ids = head.select_classes(head.to_rows_space(x), labels).ids
    rows = head.centers.rows
    scores = normalize(x) @ normalize(rows[:, :8]).T if name == "cosface" else x @ rows[:, :8].T + rows[:, 8]
    assert len(set(scores[0].topk(20).indices.tolist()) - set(ids.tolist())) <= (0 if isinstance(index, IVF) else 8)
