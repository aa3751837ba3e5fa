"""Losses, gradients and updates of samples with several labels, compared with the float64 reference."""

import pytest
import torch

from heads import (
    BCE,
    AdaFace,
    ClassMargin,
    CosFace,
    Exact,
    HashingForest,
    MagFace,
    PartialFC,
    SphereFace2,
    UniFace,
)
from tests import several
from tests.several import Case

COUNTS = torch.arange(1, 42)
FOREST = {"num_active": 0.4, "index": Exact(), "build": "blocking", "interval": 1}

CASES = {
    "one": Case(widths=(1,)),
    "three": Case(widths=(3,), num_classes=101),
    "mixed": Case(),
    "recomputed": Case(options={"logits_budget_mb": 0}),
    "few classes": Case(num_classes=7, widths=(6, 1, 3)),
    "filter": Case(margin=CosFace(s=16, m=0.3, max_negative_cosine=0.2), highest_negative=0.2),
    "magface": Case(margin=MagFace(s=16), target=several.magface, penalty=several.magface_penalty),
    "adaface": Case(margin=AdaFace(s=16), target=several.adaface, largest_cos=1 - 1e-3),
    "class margin": Case(margin=ClassMargin(s=16), target=several.class_margin, options={"class_counts": COUNTS}),
    "uniface": Case(objective=UniFace(negative_weight=0.5)),
    "uniface, magface": Case(
        objective=UniFace(), margin=MagFace(s=16), target=several.magface, penalty=several.magface_penalty
    ),
    "bce": Case(objective=BCE(), weighted=False),
    "bce, magface, recomputed": Case(
        objective=BCE(),
        margin=MagFace(s=16),
        target=several.magface,
        penalty=several.magface_penalty,
        options={"logits_budget_mb": 0},
    ),
    "sphereface2": Case(objective=SphereFace2()),
    "pfc": Case(PartialFC, {"sample_rate": 0.5}),
    "pfc, log_q": Case(PartialFC, {"sample_rate": 0.7, "log_q": True}, widths=(2, 1)),
    "pfc, uniface": Case(PartialFC, {"sample_rate": 0.5}, objective=UniFace()),
    "forest": Case(HashingForest, FOREST, num_classes=101),
    "forest, bce": Case(HashingForest, FOREST, objective=BCE(), num_classes=101),
    "draw": Case(options={"positives": "draw:2"}, widths=(4, 1, 3, 2)),
    "draw, pfc": Case(PartialFC, {"positives": "draw:1", "sample_rate": 0.5}),
    "draw, uniface": Case(options={"positives": "draw:1"}, objective=UniFace()),
    "draw, pfc, bce": Case(PartialFC, {"positives": "draw:2", "sample_rate": 0.5}, objective=BCE(), widths=(4, 1, 3)),
    "draw, magface": Case(
        options={"positives": "draw:2"}, margin=MagFace(s=16), target=several.magface, penalty=several.magface_penalty
    ),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_conformance(workers, name, world_size):
    several.check(workers(world_size), CASES[name])
