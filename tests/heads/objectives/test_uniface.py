"""UniFace against its formula in float64, with every margin that it can be combined with."""

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import logsigmoid

from heads import FullFC, HashingForest, PartialFC, RowAdagrad, RowAdamW, UniFace
from heads.indexes import Exact
from tests import conformance, reference
from tests.cases import build
from tests.conformance import SGD, Case, with_margins
from tests.heads.margins.table import MARGINS, NUM_CLASSES
from tests.heads.objectives import checks
from tests.heads.test_full import ADAMW
from tests.reference import Batch, Rule


def uniface(batch: Batch, rule: Rule, negative_weight: float = 1.0) -> Tensor:
    """Zhou et al., ICCV 2023: a binary cross-entropy for each class, with one bias b for all of them."""
    z = reference.logits(batch, rule) - batch.bias
    return -torch.where(batch.own, logsigmoid(z), negative_weight * logsigmoid(-z)).sum(1)


def start(active_classes: float) -> float:
    """Return the initial bias."""
    return math.log(10 * active_classes)


REFUSED = {"softmax": "margin=Softmax does not normalize", "adacos, fixed": "FixedAdaCos derives its scale for"}
FULL = Case(FullFC, objective=UniFace(), formula=uniface, shared_bias=start(NUM_CLASSES))
HALF = replace(FULL, head=PartialFC, options={"sample_rate": 0.5}, shared_bias=start(NUM_CLASSES / 2))
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
        shared_bias=start(20),
    ),
    "lighter negatives": replace(
        PLAIN, objective=UniFace(negative_weight=0.3), formula=lambda batch, rule: uniface(batch, rule, 0.3)
    ),
    "adamw": replace(PLAIN, optimizer=RowAdamW, optimizer_options=ADAMW),
    "adagrad": replace(PLAIN, optimizer=RowAdagrad, optimizer_options={"lr": 0.1}),
    "nesterov": replace(PLAIN, optimizer_options={**SGD, "nesterov": True}),
    "plain sgd": replace(PLAIN, optimizer_options={"lr": 0.1, "momentum": 0, "weight_decay": 0}),
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
        FullFC(7, 8, margin=MARGINS[name][0], objective=UniFace())


def test_options_of_a_softmax_are_refused():
    with pytest.raises(ValueError, match="log_q=True corrects the sum of a sampled softmax"):
        PartialFC(7, 8, objective=UniFace(), log_q=True)
    with pytest.raises(ValueError, match=r"min_probability=0\.1 compares the probabilities of a softmax"):
        FullFC(7, 8, objective=UniFace(), min_probability=0.1)
    with pytest.raises(ValueError, match="negative_weight=-1"):
        UniFace(negative_weight=-1)
    with pytest.raises(ValueError, match="objective='uniface' must be an objective object"):
        FullFC(7, 8, objective="uniface")


def test_one_bias_starts_at_its_formula_and_learns():
    for head, active in ((FullFC(50, 8, objective=UniFace()), 50), (PartialFC(50, 8, objective=UniFace()), 5)):
        assert float(head.shared_bias.value) == pytest.approx(math.log(10 * active))
    optimizer = head.optimizer(lr=0.1)
    head(torch.ones(2, 8), torch.tensor([0, 3])).backward()
    optimizer.step()
    assert float(head.shared_bias.value) != pytest.approx(math.log(10 * active))


def sums_over_processes(case: Case) -> list[int]:
    """Return the numbers of elements that a step sums over processes, in a worker."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def counting(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return all_reduce(tensor, *arguments, **options)

    head = build(case)
    with mock.patch.object(dist, "all_reduce", counting):
        conformance.stepped(case, head, head.optimizer(lr=0.1), 0)
    return sizes


def test_a_step_sums_the_loss_and_one_gradient_over_processes(workers):
    """N = 8 samples and D = 16 columns. The bias needs no sum of its own, and few margins need target cosines."""
    of_margin = {"cosface": [1, 8 * 16 + 1], "adaface": [1, 8 * 16 + 1], "curricularface": [8, 1, 8 * 16 + 1]}
    for name, sizes in of_margin.items():
        assert workers(2).run(sums_over_processes, replace(WITH_MARGINS[name], rule=Rule())) == [sizes, sizes]
    softmax = replace(PLAIN, objective=None, rule=Rule(), formula=reference.softmax)
    assert workers(2).run(sums_over_processes, softmax)[0] == [8, 8, 8, 8 * 16]
