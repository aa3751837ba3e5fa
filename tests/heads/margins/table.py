"""All margins, each with its formula: `MARGINS` is what every objective is tested with.

The formulas are those of the papers, for float64 (see `tests/reference.py`). A new margin is one line of `MARGINS`.
"""

import math

import torch
from torch import Tensor

from heads import (
    AdaFace,
    ArcFace,
    ClassMargin,
    CombinedMargin,
    CosFace,
    CurricularFace,
    ElasticFace,
    FixedAdaCos,
    MagFace,
    Margin,
    Softmax,
    SphereFace,
    SVSoftmax,
)
from tests import reference
from tests.reference import Batch, MarginRule, Rule

NUM_CLASSES = 41
# Number of training examples of each class; one class has none.
CLASS_COUNTS = torch.randint(1, 3000, (NUM_CLASSES,), generator=torch.Generator().manual_seed(1)).index_fill(
    0, torch.tensor([5]), 0
)


def adaface(batch: Batch, h: float = 0.333, t: float = 0.01) -> Rule:
    """Kim et al., CVPR 2022. A batch of one has no deviation and leaves the statistics."""
    length = batch.length.detach().clamp(0.001, 100)
    mean, std = batch.state.get("mean", 20.0), batch.state.get("std", 100.0)
    if len(length) > 1:
        mean, std = t * length.mean() + (1 - t) * mean, t * length.std() + (1 - t) * std
    z = (h * (length - mean) / (std + 1e-3)).clamp(-1, 1)
    g_angle, g_add = -0.4 * z, 0.4 * z + 0.4

    def clipped(cos: Tensor) -> Tensor:
        return cos.clamp(-1 + 1e-3, 1 - 1e-3)

    def target(cos: Tensor) -> Tensor:
        return torch.cos((torch.acos(clipped(cos)) + g_angle).clamp(1e-3, math.pi - 1e-3)) - g_add

    return Rule(target, lambda cos, _: clipped(cos), state={"mean": torch.as_tensor(mean), "std": torch.as_tensor(std)})


def magface(batch: Batch, shortest: float = 10.0) -> Rule:
    """Meng et al., CVPR 2021, with the published numbers. The length is differentiated."""
    a = batch.length.clamp(shortest, 110)
    m = 0.45 + (0.8 - 0.45) * (a - shortest) / (110 - shortest)

    def target(cos: Tensor) -> Tensor:
        return torch.where(cos > 0, torch.cos(torch.acos(cos) + m), cos)

    return Rule(target, penalty=35 * (a / 110**2 + 1 / a))


def curricularface(batch: Batch, weight: float = 0.01) -> Rule:
    """Huang et al., CVPR 2020."""
    t = weight * batch.target_cos.detach().mean() + (1 - weight) * batch.state.get("t", 0.0)

    def negative(cos: Tensor, target_cos: Tensor) -> Tensor:
        return torch.where(cos > torch.cos(torch.acos(target_cos) + 0.5), cos * (t + cos), cos)

    return Rule(reference.arcface, negative, state={"t": t})


def each_angle(m: Tensor) -> Rule:
    """ArcFace with a margin for each sample."""
    return Rule(
        lambda cos: torch.where(torch.acos(cos) + m < math.pi, torch.cos(torch.acos(cos) + m), cos - m * m.sin())
    )


def each_cosine(m: Tensor) -> Rule:
    """CosFace with a margin for each sample."""
    return Rule(lambda cos: cos - m)


def class_arc(batch: Batch) -> Rule:
    """Ha et al., 2020: a margin that falls with the number of training examples of the class."""
    assert batch.count is not None
    return each_angle(0.5 * batch.count.clamp(min=1) ** -0.25 + 0.05)


def larger_for_lower(batch: Batch, m: Tensor) -> Tensor:
    """Return the margins in another order: the lowest target cosine gets the largest one (ElasticFace+)."""
    reordered = torch.empty_like(m)
    reordered[batch.target_cos.argsort()] = m.sort(descending=True).values
    return reordered


def straight(cos: Tensor, value: Tensor) -> Tensor:
    """Return a value whose gradient is that of the cosine."""
    return cos + (value - cos).detach()


def sphereface(cos: Tensor, m: float = 1.7) -> Tensor:
    """Liu et al., CVPR 2017: (-1)^k cos(m theta) - 2 k for m theta in [k pi, (k + 1) pi]."""
    k = torch.floor(m * torch.acos(cos) / math.pi)
    return straight(cos, (-1.0) ** k * torch.cos(m * torch.acos(cos)) - 2 * k)


def sphereface_r(cos: Tensor, m: float = 1.7) -> Tensor:
    """Liu et al., TPAMI 2022: cos(min(m theta, pi))."""
    return straight(cos, torch.cos((m * torch.acos(cos)).clamp(max=math.pi)))


MARGINS: dict[str, tuple[Margin, MarginRule]] = {
    "none": (Margin(), Rule()),
    "cosface": (CosFace(), Rule(reference.cosface)),
    "cosface, filter": (CosFace(max_negative_cosine=0.2), Rule(reference.cosface, max_negative_cosine=0.2)),
    "arcface": (ArcFace(), Rule(reference.arcface)),
    "arcface, straight": (ArcFace(gradient="straight"), Rule(lambda cos: straight(cos, (cos.acos() + 0.5).cos()))),
    "combined": (CombinedMargin(m1=1.2, m2=0.3, m3=0.2), Rule(reference.combined)),
    "sv": (SVSoftmax(), Rule(reference.sv_target, reference.sv_negative)),
    "sphereface": (SphereFace(), Rule(sphereface, s=30)),
    "sphereface, v1": (SphereFace(variant="v1"), Rule(sphereface_r, s=30)),
    "adacos, fixed": (FixedAdaCos(), Rule(s=math.sqrt(2) * math.log(NUM_CLASSES - 1))),
    "adaface": (AdaFace(), adaface),
    "adaface, clipped": (AdaFace(h=2, t=0.5), lambda batch: adaface(batch, h=2, t=0.5)),
    "magface": (MagFace(), magface),
    "curricularface": (CurricularFace(), curricularface),
    "curricularface, fast": (CurricularFace(weight=0.6), lambda batch: curricularface(batch, weight=0.6)),
    "elastic arc": (ElasticFace(), lambda batch: each_angle(0.5 + 0.05 * batch.normal)),
    "elastic arc +": (
        ElasticFace(plus=True),
        lambda batch: each_angle(larger_for_lower(batch, 0.5 + 0.0175 * batch.normal)),
    ),
    "elastic cos": (ElasticFace(kind="cos"), lambda batch: each_cosine(0.35 + 0.05 * batch.normal)),
    "elastic cos +": (
        ElasticFace(kind="cos", plus=True),
        lambda batch: each_cosine(larger_for_lower(batch, 0.35 + 0.02 * batch.normal)),
    ),
    "class arc": (ClassMargin(), class_arc),
    "class cos": (
        ClassMargin(a=0.7, kind="cos"),
        lambda batch: each_cosine(0.7 * batch.count.clamp(min=1) ** -0.25 + 0.05),
    ),
    "softmax": (Softmax(), Rule(s=1.0, normalized=False)),
}
