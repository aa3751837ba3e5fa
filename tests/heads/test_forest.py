"""The hashing forest: the same tester as the full head, its selection, its renewals, its state."""

import pytest

from heads import HashingForest, Softmax
from heads.index import IVF, Annoy, Exact
from tests import conformance
from tests.conformance import Case
from tests.reference import Rule

OPTIONS = {"num_active": 40, "interval": 2, "build": "blocking", "index": Annoy(num_trees=4)}
CASES = {
    "annoy": Case(HashingForest, OPTIONS),
    "ivf": Case(HashingForest, {**OPTIONS, "index": IVF(nprobe=2)}, num_classes=1000),
    "exact": Case(HashingForest, {**OPTIONS, "index": Exact()}),
    "exact renewed every step": Case(HashingForest, {**OPTIONS, "index": Exact(), "interval": 1}),
    "half uniform, log q": Case(HashingForest, {**OPTIONS, "neighbours_share": 0.5, "log_q": True}),
    "recomputing": Case(HashingForest, {**OPTIONS, "logits_budget_mb": 0, "log_q": True}),
    "seven": Case(HashingForest, {**OPTIONS, "num_active": 6}, num_classes=7),
    "all": Case(HashingForest, {**OPTIONS, "num_active": 1.0}),
    "softmax": Case(HashingForest, OPTIONS, margin=Softmax(), rule=Rule(s=1.0, normalized=False)),
    "probed, with a target": Case(HashingForest, {**OPTIONS, "probe_interval": 1, "target_mass": 0.5}),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])
