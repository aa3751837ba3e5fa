"""SphereFace2 against its formula in float64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from heads import ArcFace, CosFace, FullFC, HashingForest, PartialFC, RowAdagrad, RowAdamW, SphereFace2
from heads.indexes import Exact
from tests import conformance
from tests.conformance import Case, with_margins
from tests.heads.margins.table import MARGINS, NUM_CLASSES
from tests.heads.objectives import checks
from tests.heads.test_full import ADAMW
from tests.reference import Batch, Rule


def sphereface2(batch: Batch, rule: Rule, m: float = 0.4, share: float = 0.7, t: float = 3.0) -> Tensor:
    """Wen et al., ICLR 2022, variant C, with the gradient of its code: d z / d cos = r."""
    r = rule.s
    g = 2 * ((batch.cos + 1) / 2) ** t - 1
    value = torch.where(batch.own, g - m, g + m)
    z = r * (batch.cos + (value - batch.cos).detach()) + batch.bias
    if rule.max_negative_cosine is not None:
        z = torch.where(~batch.own & (batch.cos > rule.max_negative_cosine), -torch.inf, z)
    return -50 / r * torch.where(batch.own, share * logsigmoid(z), (1 - share) * logsigmoid(-z)).sum(1)


def start(active_classes: float, r: float = 64, m: float = 0.4, share: float = 0.7, t: float = 3.0) -> float:
    """The initial bias of the published code."""
    z = share / ((1 - share) * (active_classes - 1))
    a_y, a_i = r * (2 * 0.5**t - 1 - m), r * (2 * 0.5**t - 1 + m)
    return math.log(2 * z) - a_i - math.log(1 - z + math.sqrt((1 - z) ** 2 + 4 * z * math.exp(a_y - a_i)))


REFUSED = [name for name, (margin, _) in MARGINS.items() if not isinstance(margin, CosFace)]
FULL = Case(FullFC, objective=SphereFace2(), formula=sphereface2, shared_bias=start(NUM_CLASSES))
HALF = replace(FULL, head=PartialFC, options={"sample_rate": 0.5}, shared_bias=start(NUM_CLASSES / 2))
WITH_MARGINS = with_margins(FULL, refused=REFUSED)
PLAIN = WITH_MARGINS["cosface"]
CASES = {
    **WITH_MARGINS,
    **with_margins(replace(HALF, weighted=True), refused=REFUSED, recomputing=True),
    "published": replace(PLAIN, margin=CosFace(s=40, m=0.4), rule=Rule(s=40), shared_bias=start(NUM_CLASSES, r=40)),
    "published for MS1M": replace(
        PLAIN,
        margin=CosFace(s=64, m=0.5),
        objective=SphereFace2(positive_share=0.8),
        formula=lambda batch, rule: sphereface2(batch, rule, m=0.5, share=0.8),
        shared_bias=start(NUM_CLASSES, m=0.5, share=0.8),
    ),
    "half the weight, t = 2": replace(
        PLAIN,
        objective=SphereFace2(weight=25, t=2),
        formula=lambda batch, rule: sphereface2(batch, rule, t=2) / 2,
        shared_bias=start(NUM_CLASSES, t=2),
    ),
    "published for MS1M at first": replace(
        PLAIN,
        margin=CosFace(s={0: 64, 1: 40}, m={0: 0.5, 1: 0.4}),
        later_rules={1: Rule(s=40)},
        formula=lambda batch, rule: sphereface2(batch, rule, m=0.5 if rule.s == 64 else 0.4),
        shared_bias=start(NUM_CLASSES, m=0.5),
    ),
    "recomputing": replace(PLAIN, options={"logits_budget_mb": 0}),
    "double": replace(PLAIN, dtype=torch.float64),
    "forest": replace(
        PLAIN,
        head=HashingForest,
        options={"num_active": 20, "interval": 1, "build": "blocking", "index": Exact()},
        shared_bias=start(20),
    ),
    "adamw": replace(PLAIN, optimizer=RowAdamW, optimizer_options=ADAMW),
    "adagrad": replace(PLAIN, optimizer=RowAdagrad, optimizer_options={"lr": 0.1}),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_behaviour_of_any_objective(check):
    check(PLAIN)


@pytest.mark.parametrize("name", REFUSED)
def test_margins_of_another_form_are_refused(name):
    with pytest.raises(ValueError, match=f"margin={type(MARGINS[name][0]).__name__} "):
        FullFC(NUM_CLASSES, 8, margin=MARGINS[name][0], objective=SphereFace2(), class_counts=[1] * NUM_CLASSES)


def test_a_margin_assigned_later_is_refused_too():
    head = FullFC(7, 8, objective=SphereFace2())
    head.margin = ArcFace()
    with pytest.raises(ValueError, match="margin=ArcFace cannot be used with objective=SphereFace2"):
        head(torch.randn(2, 8), torch.tensor([0, 3]))


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("active_classes", [3, 1000])
def test_the_initial_bias_minimizes_the_loss_at_a_cosine_of_zero(active_classes, share):
    head = FullFC(active_classes, 2, margin=CosFace(s=8), objective=SphereFace2(positive_share=share), dtype="fp64")
    head.centers.rows[:] = torch.tensor([1.0, 0])
    embedding, label = torch.tensor([[0, 1.0]], dtype=torch.float64), torch.tensor([0])
    optimizer = head.optimizer(lr=1.0, momentum=0, weight_decay=0)
    before = float(head.shared_bias.value)
    head(embedding, label).backward()
    optimizer.step()
    assert float(head.shared_bias.value) == pytest.approx(before, abs=1e-12)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SphereFace2(positive_share=1), "positive_share=1 must be in"),
        (lambda: SphereFace2(t=0.5), r"t=0\.5"),
        (lambda: SphereFace2(weight=0), "weight=0 must be above 0"),
    ],
)
def test_bad_options_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
