"""The softmax with every margin, against the float64 reference. `tests/heads/test_full.py` has its other options."""

from dataclasses import replace

import pytest
import torch

from heads import CrossEntropy, FullFC, HashingForest, PartialFC
from heads.indexes import Exact
from tests import conformance
from tests.conformance import Case, with_margins
from tests.heads.objectives import checks

WITH_MARGINS = with_margins(Case(FullFC, objective=CrossEntropy()))
ADAFACE, CURRICULARFACE = WITH_MARGINS["adaface, clipped"], WITH_MARGINS["curricularface, fast"]
CASES = {
    **WITH_MARGINS,
    **with_margins(Case(PartialFC, {"sample_rate": 0.5}, weighted=True), recomputing=True),
    "default objective": replace(ADAFACE, objective=None),
    "recomputing": replace(CURRICULARFACE, options={"logits_budget_mb": 0}),
    "adaface double": replace(ADAFACE, dtype=torch.float64),
    "curricularface double": replace(CURRICULARFACE, dtype=torch.float64),
    "magface double": replace(WITH_MARGINS["magface"], dtype=torch.float64),
    "forest, log q": replace(
        CURRICULARFACE,
        head=HashingForest,
        options={"num_active": 20, "interval": 1, "build": "blocking", "index": Exact(), "log_q": True},
    ),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("name", ["cosface", "adaface, clipped", "magface", "curricularface"])
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_behaviour_of_any_objective(check, name):
    check(CASES[name])
