"""Label smoothing, compared with torch's cross-entropy in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from heads import CosFace, CrossEntropy, FullFC, MagFace, PartialFC, Softmax, SVSoftmax
from tests import reference, several
from tests.several import Batch, Case, D

SMOOTH = CrossEntropy(label_smoothing=0.2)


def smoothed(case: Case, rows: Tensor, x: Tensor, labels: Tensor, weight: Tensor, **unused: Any) -> Tensor:
    y, length = labels.amax(1), x.norm(dim=1)
    cos = normalize(x) @ normalize(rows[:, :D]).T if case.margin.normalize else x @ rows[:, :D].T + rows[:, D]
    target = torch.stack([case.target(cos[i, y[i]], Batch(int(y[i]), i, length, {})) for i in range(len(x))])
    own = torch.nn.functional.one_hot(y, len(rows)).bool()
    negative = cos
    if isinstance(case.margin, SVSoftmax):
        negative = reference.sv_negative(cos, cos[own].detach()[:, None])
    logits = case.margin.s * torch.where(own, target[:, None], negative)
    losses = cross_entropy(logits, y, reduction="none", label_smoothing=0.2) + case.penalty(length)
    return (weight * losses).sum() / weight.sum()


CASES = {
    "cosface": Case(objective=SMOOTH, widths=(1,)),
    "pfc with all classes": Case(PartialFC, {"sample_rate": 1}, objective=SMOOTH, widths=(1,), weighted=False),
    "magface, recomputed": Case(
        options={"logits_budget_mb": 0},
        objective=SMOOTH,
        margin=MagFace(s=16),
        target=several.magface,
        penalty=several.magface_penalty,
        widths=(1,),
    ),
    "sv": Case(objective=SMOOTH, margin=SVSoftmax(s=16), target=lambda cos, _: reference.sv_target(cos), widths=(1,)),
    "softmax": Case(objective=SMOOTH, margin=Softmax(), target=lambda cos, _: cos, num_classes=7, widths=(1,)),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_conformance(workers, name, world_size):
    several.check(workers(world_size), CASES[name], smoothed)


def test_zero_is_the_softmax():
    x, labels = torch.randn(3, 8), torch.tensor([1, 2, 3])
    assert FullFC(41, 8, objective=CrossEntropy(label_smoothing=0))(x, labels) == FullFC(41, 8)(x, labels)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (PartialFC, {}, "label_smoothing=0.2 needs the logits of all classes .* a head that samples classes; set"),
        (FullFC, {"min_probability": 0.1}, "cannot be used with min_probability=0.1"),
        (FullFC, {"margin": CosFace(max_negative_cosine=0.5)}, "cannot be used with max_negative_cosine=0.5"),
    ],
)
def test_refused(head, options, message):
    with pytest.raises(ValueError, match=message):
        head(100, 4, objective=SMOOTH, **options)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_out_of_range(value):
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossEntropy(label_smoothing=value)
