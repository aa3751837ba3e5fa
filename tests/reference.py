"""The computation of the heads, in a few lines of plain dense torch that a reader can check by eye.

It is the reference in float64. In float32 it is the naive implementation, whose error is the yardstick.

A `Rule` is the formula of a margin. The rule of a margin that depends on more than cosines is a function that makes a
`Rule` from a `Batch`; `tests/heads/margins/table.py` contains those. The formula of an objective turns a `Batch` and a
`Rule` into the losses of the samples. That of the softmax is here; `tests/heads/objectives/` contains the others.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


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
    """The formula of a margin.

    Attributes:
        target: cosines (N,) of the samples with their classes -> cosines of the loss.
        negative: (cosines (N, K) with all active classes, target cosines (N, 1)) -> cosines of the loss (N, K).
        penalty: (N,) term of the loss of each sample.
        state: numbers that the next step starts from.
    """

    target: Callable[[Tensor], Tensor] = plain
    negative: Callable[[Tensor, Tensor], Tensor] = unchanged
    s: float = 64.0
    normalized: bool = True
    max_negative_cosine: float | None = None
    min_probability: float = 0.0
    penalty: Tensor | float = 0.0
    state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """A global batch of N samples with its K active classes, as margins and objectives see it."""

    cos: Tensor  # (N, K) cosines; inner products if the rule does not normalize
    own: Tensor  # (N, K) whether the class is that of the sample
    length: Tensor  # (N,) lengths of the embeddings
    bias: Tensor  # (K,) last column of the rows with the opposite sign, or (1,) shared by all classes; else zeros
    log_q: Tensor | None = None  # (K,) log of the probability that the class was drawn
    count: Tensor | None = None  # (N,) number of training examples of the sample's class
    normal: Tensor | None = None  # (N,) standard normal numbers
    state: Mapping[str, Tensor] = field(default_factory=dict)  # `Rule.state` of the last step; none before the first

    @property
    def target_cos(self) -> Tensor:
        """Cosines (N,) of the samples with their classes."""
        return self.cos[self.own]


MarginRule = Rule | Callable[[Batch], Rule]
Objective = Callable[[Batch, Rule], Tensor]


def logits(batch: Batch, rule: Rule) -> Tensor:
    """Return s times the cosines after the margin (N, K)."""
    target = rule.target(batch.target_cos)[:, None]
    negative = rule.negative(batch.cos, batch.target_cos.detach()[:, None])
    z = rule.s * torch.where(batch.own, target, negative)
    if rule.max_negative_cosine is not None:
        z = torch.where(~batch.own & (batch.cos > rule.max_negative_cosine), -torch.inf, z)
    return z


def softmax(batch: Batch, rule: Rule) -> Tensor:
    """Return -log of the probability of each sample's class (N,)."""
    z = logits(batch, rule) - batch.bias
    if batch.log_q is not None:
        z = z - batch.log_q
    return -z.log_softmax(1)[batch.own]


def learns(batch: Batch, rule: Rule) -> Tensor:
    """Return whether each row gets a gradient (K,), with `min_probability`."""
    p = (logits(batch, rule) - batch.bias).softmax(1)
    return (p >= rule.min_probability).any(0) | batch.own.any(0)


def loss_and_state(
    rule: MarginRule,
    objective: Objective,
    rows: Tensor,
    embeddings: Tensor,
    targets: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    rows_per_class: int = 1,
    **known: Any,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return the mean loss of a batch, and the numbers that the margin carries to the next step.

    Args:
        rows: the rows of the active classes (K x rows_per_class, D), or (..., D + 1) with a bias in the last column.
        embeddings: (N, D).
        targets: (N,) positions of the samples' classes among the active rows.
        weight: (N,).
        bias: the bias that all classes share.
        rows_per_class: rows of a class; the nearest one counts.
        known: further fields of `Batch`.
    """
    D = embeddings.shape[1]
    centers, column = rows[:, :D], rows[:, D:]
    if isinstance(rule, Rule) and not rule.normalized:
        cos = embeddings @ centers.T
    else:
        cos = normalize(embeddings) @ normalize(centers).T
    if rows_per_class > 1:
        cos = cos + column.sum(1)  # the bias is one of the row
        cos, column = cos.view(len(cos), -1, rows_per_class).amax(2), rows.new_zeros(len(rows) // rows_per_class, 1)
    own = torch.nn.functional.one_hot(targets, len(rows) // rows_per_class).bool()
    bias = -column.sum(1) if bias is None else bias
    batch = Batch(cos, own, embeddings.norm(dim=1), bias, **known)
    if not isinstance(rule, Rule):
        rule = rule(batch)
    if rule.min_probability:
        learned = torch.where(learns(batch, rule)[:, None], rows, rows.detach())
        exact = replace(rule, min_probability=0.0)
        return loss_and_state(exact, objective, learned, embeddings, targets, weight, **known)
    losses = objective(batch, rule) + rule.penalty
    return (weight * losses).sum() / weight.sum(), rule.state


def loss(rule: Rule, rows: Tensor, embeddings: Tensor, targets: Tensor, weight: Tensor, log_q: Tensor | None) -> Tensor:
    """Return the mean softmax loss of a batch; `rows` are the active rows, and `targets` are positions among them."""
    return loss_and_state(rule, softmax, rows, embeddings, targets, weight, log_q=log_q)[0]


def close(ours: Tensor, exact: Tensor, naive: Tensor, what: str) -> None:
    """Assert that the error is at most twice the largest naive error, plus 4 ulp of the largest value."""
    error, allowed = largest(ours.double() - exact), 2 * largest(naive.double() - exact)
    if ours.dtype == torch.float64:
        allowed = 1e-13 * largest(exact)  # the precision of the reference itself
    ulp = torch.finfo(ours.dtype).eps * 2 ** math.floor(math.log2(max(largest(exact), 1e-30)))
    assert error <= allowed + 4 * ulp, f"{what}: error {error:.3g}, naive {allowed / 2:.3g}, ulp {ulp:.3g}"


def largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
