"""FullFC against the float64 reference, on 1, 2 and 3 processes."""

import pytest
import torch

from heads import ArcFace, CombinedMargin, CosFace, FullFC, RowAdamW, Softmax
from tests import conformance, reference
from tests.conformance import Case
from tests.reference import Rule

# With a small eps the sign of a gradient of almost nothing, in which both round, would move a row by lr.
ADAMW = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1.0, "weight_decay": 0.1}

CASES = {
    "keeping": Case(FullFC),
    "recomputing": Case(FullFC, {"logits_budget_mb": 0}),
    "seven": Case(FullFC, num_classes=7),
    "thousand": Case(FullFC, num_classes=1000, chunk_rows=4096),
    "weights": Case(FullFC, weighted=True),
    "double": Case(FullFC, dtype=torch.float64),
    "arcface": Case(FullFC, margin=ArcFace(m=0.5), rule=Rule(reference.arcface)),
    "combined": Case(FullFC, margin=CombinedMargin(m1=1.2, m2=0.3, m3=0.2), rule=Rule(reference.combined)),
    "filter": Case(FullFC, margin=CosFace(filter_above=0.2), rule=Rule(reference.cosface, filter_above=0.2)),
    "softmax": Case(FullFC, margin=Softmax(), rule=Rule(s=1.0, normalized=False)),
    "softmax recomputing": Case(
        FullFC, {"logits_budget_mb": 0}, margin=Softmax(), rule=Rule(s=1.0, normalized=False), weighted=True
    ),
    "adamw": Case(FullFC, optimizer=RowAdamW, optimizer_options=ADAMW),
    "nesterov": Case(FullFC, optimizer_options={"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "plain sgd": Case(FullFC, optimizer_options={"lr": 0.1}),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_state_round_trip(world_size, workers):
    workers(world_size).run(conformance.round_trip, Case(FullFC))
    workers(world_size).run(conformance.round_trip, Case(FullFC, optimizer=RowAdamW, optimizer_options=ADAMW))


@pytest.mark.parametrize("world_size", [1, 2])
def test_abandoned_backward_leaves_no_trace(world_size, workers):
    workers(world_size).run(conformance.abandoned, Case(FullFC))
