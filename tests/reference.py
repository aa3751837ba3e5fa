"""The computation of the heads, in a few lines of plain dense torch that a reader can check by eye.

It is the reference in float64. In float32 it is the naive implementation, whose error is the yardstick.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

TargetRule = Callable[[Tensor], Tensor]


def cosface(cos: Tensor, m: float = 0.4) -> Tensor:
    return cos - m


def arcface(cos: Tensor, m: float = 0.5) -> Tensor:
    theta = torch.acos(cos)
    return torch.where(theta + m < math.pi, torch.cos(theta + m), cos - m * math.sin(m))


def combined(cos: Tensor, m1: float = 1.2, m2: float = 0.3, m3: float = 0.2) -> Tensor:
    theta = torch.acos(cos)
    last = (math.pi - m2) / m1
    beyond = -1 - (math.cos(last) - cos)
    return torch.where(theta < last, torch.cos(m1 * theta + m2), beyond) - m3


def sv_target(cos: Tensor, m: float = 0.4) -> Tensor:
    return torch.where(cos > m, cos - m, cos)


def sv_negative(cos: Tensor, target_cos: Tensor, m: float = 0.4, t: float = 1.2) -> Tensor:
    return torch.where(cos > target_cos - m, t * cos + t - 1, cos)


def unchanged(cos: Tensor, target_cos: Tensor) -> Tensor:
    return cos


def plain(cos: Tensor) -> Tensor:
    return cos


@dataclass(frozen=True)
class Rule:
    """The formula of a margin."""

    target: TargetRule = plain
    negative: Callable[[Tensor, Tensor], Tensor] = unchanged
    s: float = 64.0
    normalized: bool = True
    max_negative_cosine: float | None = None
    min_probability: float = 0.0


def loss(rule: Rule, rows: Tensor, embeddings: Tensor, targets: Tensor, weight: Tensor, log_q: Tensor | None) -> Tensor:
    """Return the mean loss of the batch; `rows` are the active rows, and `targets` are positions among them."""
    if rule.normalized:
        cos = normalize(embeddings) @ normalize(rows).T
    else:
        cos = embeddings @ rows[:, :-1].T + rows[:, -1]
    own = torch.nn.functional.one_hot(targets, len(rows)).bool()
    target_cos = (cos * own).sum(1, keepdim=True).detach()
    logits = rule.s * torch.where(own, rule.target(cos), rule.negative(cos, target_cos))
    if rule.max_negative_cosine is not None:
        logits = torch.where(~own & (cos > rule.max_negative_cosine), -torch.inf, logits)
    if log_q is not None:
        logits = logits - log_q
    if rule.min_probability:
        negligible = (logits.softmax(1).amax(0) < rule.min_probability) & ~own.any(0)
        logits = torch.where(negligible, logits.detach(), logits)  # part of the loss, but not of its gradient
    losses = cross_entropy(logits, targets, reduction="none")
    return (weight * losses).sum() / weight.sum()


def close(ours: Tensor, exact: Tensor, naive: Tensor, what: str) -> None:
    """Assert that the error is at most twice the largest naive error, plus 4 ulp of the largest value."""
    error, allowed = largest(ours.double() - exact), 2 * largest(naive.double() - exact)
    if ours.dtype == torch.float64:
        allowed = 1e-13 * largest(exact)  # the precision of the reference itself
    ulp = torch.finfo(ours.dtype).eps * 2 ** math.floor(math.log2(max(largest(exact), 1e-30)))
    assert error <= allowed + 4 * ulp, f"{what}: error {error:.3g}, naive {allowed / 2:.3g}, ulp {ulp:.3g}"


def largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
