"""Margins and heads whose numbers change at given steps."""

import copy
import pickle
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

from heads import (
    BCE,
    FFC,
    CosFace,
    ElasticFace,
    FullFC,
    HashingForest,
    MagFace,
    Margin,
    PartialFC,
    SphereFace2,
    UniFace,
)
from heads.core.cost import Case as Size
from heads.core.cost import Cost
from heads.fidelity import loss_fidelity
from heads.indexes import IVF, Annoy, Exact
from tests import conformance, reference
from tests.conformance import Case
from tests.heads.margins.table import CLASS_COUNTS, MARGINS, NUM_CLASSES
from tests.heads.objectives.test_sphereface2 import start
from tests.reference import Rule

D = 8
SCHEDULED = CosFace(s={0: 64, 2: 30}, m={0: 0.1, 1: 0.4}, max_negative_cosine={0: None, 2: 0.1})
CASE = Case(
    FullFC,
    margin=SCHEDULED,
    rule=Rule(lambda cos: reference.cosface(cos, 0.1)),
    later_rules={1: Rule(reference.cosface), 2: Rule(reference.cosface, s=30, max_negative_cosine=0.1)},
)


def train(head: Any, num_steps: int, optimizer: Any = None) -> list[Any]:
    """Return the losses of some steps, and the rows and their momentum afterwards."""
    optimizer = optimizer or head.optimizer(lr=0.1)
    losses = []
    for _ in range(num_steps):
        generator = torch.Generator().manual_seed(head.step)
        embeddings, labels = (
            torch.randn(6, D, generator=generator),
            torch.randint(NUM_CLASSES, (6,), generator=generator),
        )
        loss = head(embeddings.requires_grad_(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return [losses, head.centers.rows.tolist(), head.centers.state["momentum"].tolist()]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_step_matches_the_reference(world_size, workers):
    conformance.check(workers(world_size), CASE)


@pytest.mark.parametrize("name", MARGINS)
def test_any_number_of_a_margin_may_be_a_schedule(name):
    """Schedules of one value change nothing, and those of two values are two margins one after the other."""
    margin, counts = MARGINS[name][0], CLASS_COUNTS if MARGINS[name][0].uses_class_counts else None
    numbers = {
        each.name: getattr(margin, each.name)
        for each in fields(margin)
        if each.init and type(getattr(margin, each.name)) in (float, int)
    }
    same = copy.deepcopy(margin).fixed(**{name: {0: value, 1: value} for name, value in numbers.items()})
    same.__post_init__()
    assert set(same.schedules) == set(numbers) and same.at(0) == same.at(7) == margin
    results = [train(FullFC(NUM_CLASSES, D, margin=each, class_counts=counts), 3) for each in (margin, same)]
    assert results[0] == results[1]


def test_a_schedule_is_one_margin_after_the_other():
    head, by_hand = FullFC(NUM_CLASSES, D, margin=SCHEDULED), FullFC(NUM_CLASSES, D)
    optimizer, results = by_hand.optimizer(lr=0.1), []
    for step in range(4):
        by_hand.margin = CosFace(
            s=30 if step >= 2 else 64, m=0.4 if step >= 1 else 0.1, max_negative_cosine=0.1 if step >= 2 else None
        )
        results.append(train(by_hand, 1, optimizer))
    assert train(head, 4)[1:] == results[-1][1:]
    assert SCHEDULED.at(3) == by_hand.margin and SCHEDULED.schedules.keys() == {"s", "m", "max_negative_cosine"}
    assert pickle.loads(pickle.dumps(SCHEDULED)) == SCHEDULED == copy.deepcopy(SCHEDULED)
    assert CosFace().at(3) is not None and CosFace().schedules == {}


def test_sampled_then_exact_is_the_full_head_with_the_same_rows_and_momentum():
    head, full = PartialFC(NUM_CLASSES, D, sample_rate={0: 0.3, 3: 1}), FullFC(NUM_CLASSES, D)
    optimizers = [each.optimizer(lr=0.1) for each in (head, full)]
    train(head, 3, optimizers[0])
    assert head.stats()["active_classes"] == round(0.3 * NUM_CLASSES)
    full.load_state_dict(copy.deepcopy(head.state_dict()))
    assert train(head, 2, optimizers[0]) == train(full, 2, optimizers[1])
    assert head.stats()["active_classes"] == NUM_CLASSES


def test_a_margin_of_your_own_may_have_schedules():
    @dataclass
    class Curved(Margin):
        m: float = 0.2

        def target(self, cos: torch.Tensor) -> torch.Tensor:
            return cos - self.m * (1 - cos * cos)

    head = FullFC(NUM_CLASSES, D, margin=Curved(m={0: 0.1, 2: 0.3}))
    plain = FullFC(NUM_CLASSES, D, margin=Curved(m=0.1))
    assert train(head, 2) == train(plain, 2)
    plain.margin = Curved(m=0.3)
    assert train(head, 2) == train(plain, 2)


def test_ffc_takes_the_margin_of_its_step():
    def loss(head: FFC) -> float:
        generator = torch.Generator().manual_seed(0)
        x = [torch.randn(4, D, generator=generator) for _ in range(2)]
        return float(head(x[0], torch.arange(4), x[1], torch.arange(4), keep=False))

    head = FFC(50, D, queue_size=10, margin=CosFace(s=32, m={0: 0.1, 1: 0.4}))
    first, later = (FFC(50, D, queue_size=10, margin=CosFace(s=32, m=m)) for m in (0.1, 0.4))
    assert loss(head) == loss(first)
    head.advance()
    assert loss(head) == loss(later) != loss(first)


def test_a_bias_starts_with_the_values_of_step_0():
    rate, margin = {0: 0.1, 1: 1}, CosFace(s={0: 64, 5: 40}, m={0: 0.4, 5: 0.2})
    for objective, bias in ((UniFace(), torch.tensor(41.0).log()), (SphereFace2(), start(4.1))):
        head = PartialFC(NUM_CLASSES, D, sample_rate=rate, objective=objective, margin=margin)
        assert float(head.shared_bias.value) == pytest.approx(float(bias))
    head = HashingForest(NUM_CLASSES, D, num_active={0: 0.1, 1: 1.0}, objective=BCE(), index=Exact())
    assert float(head.centers.rows[0, -1]) == pytest.approx(-float(torch.tensor(40.0).log()))


def test_values_in_force_are_named():
    head = PartialFC(NUM_CLASSES, D, sample_rate={0: 0.1, 5: 1}, margin=SCHEDULED)
    assert head.scheduled(0) == {"sample_rate": 0.1, "margin_s": 64, "margin_m": 0.1}
    assert head.scheduled(5) == {
        "sample_rate": 1,
        "margin_s": 30,
        "margin_m": 0.4,
        "margin_max_negative_cosine": 0.1,
    }
    forest = HashingForest(NUM_CLASSES, D, num_active={0: 10, 5: 20}, interval={0: 2}, index=Exact())
    assert forest.scheduled(7) == {"num_active": 20, "interval": 2} and FullFC(7, D).scheduled(0) == {}


def test_the_cost_is_that_of_the_dearest_step():
    """Each part has its own: a step over all classes keeps no copy of their rows and may need less memory."""
    size = Size(100_000, 64, 32)

    def cost(kind: Any, **options: Any) -> Cost:
        return kind.cost(size, kind.Options(**options), row_state={})

    stages = [cost(PartialFC, sample_rate=rate) for rate in (0.1, 0.95, 1)]
    assert stages[1].work_bytes > stages[2].work_bytes
    expected = {each.name: max(getattr(stage, each.name) for stage in stages) for each in fields(Cost)}
    assert vars(cost(PartialFC, sample_rate={0: 0.1, 5: 0.95, 9: 1})) == expected
    dearest = cost(HashingForest, num_active=0.5, index=Annoy(num_trees=90))
    assert cost(HashingForest, num_active={0: 10, 5: 0.5, 9: 7}, index=Annoy(num_trees={0: 90, 5: 1})) == dearest
    dearest = cost(HashingForest, index=IVF(nprobe=90))
    assert cost(HashingForest, index=IVF(nprobe={0: 3, 5: 90})) == dearest


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CosFace(m={5: 0.1}), r"margin m={5: 0\.1} must have whole numbers as steps and begin at step 0"),
        (lambda: CosFace(m={0: 0.1, 5: float("nan")}), "margin m=nan must be a finite number"),
        (lambda: CosFace(s={0: 64, 5: 0}), "margin s=0 must be positive"),
        (lambda: CosFace(m={0: None}), "margin m=None must be a number"),
        (lambda: CosFace(max_negative_cosine={0: None, 5: 2}), "max_negative_cosine=2 must be in"),
        (lambda: MagFace(shortest={0: 10, 5: 200}), "longest=110 must be above shortest=200"),
        (lambda: ElasticFace(m={0: None, 5: 2}), "margin m=2 with kind='arc' must be in"),
        (lambda: ElasticFace(kind={0: "arc"}), "margin kind={0: 'arc'} must be 'arc' or 'cos'"),
        (lambda: PartialFC(7, D, sample_rate={1: 0.1}), "sample_rate={1: 0.1} must have whole numbers as steps"),
    ],
)
def test_bad_schedules_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_margin_with_schedules_is_of_no_use_without_a_step():
    """Computations fail instead of taking some of its values."""
    with pytest.raises(TypeError):
        SCHEDULED.target_logits(torch.zeros(3))
    embeddings = torch.randn(4, D, requires_grad=True)
    known = {"means": torch.randn(7, D), "held": torch.arange(3), "num_classes": 7}
    with pytest.raises(ValueError, match=r"margin=CosFace\(s={0: 64, .* has schedules; pass margin\.at\(step\)"):
        loss_fidelity(embeddings.sum(), embeddings, torch.arange(4), margin=SCHEDULED, **known)
    loss_fidelity(embeddings.sum(), embeddings, torch.arange(4), margin=SCHEDULED.at(0), **known)
