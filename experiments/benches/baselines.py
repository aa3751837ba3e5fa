"""Training steps of plain implementations of the CosFace softmax, s = 64 and m = 0.4, for `bench=head_step`.

Each keeps its rows in a Parameter, which torch.optim.SGD updates.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy, linear, normalize

from .measure import Step, timed

SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
SCALE, MARGIN = 64, 0.4
Forward = Callable[[Tensor, Tensor], Tensor]  # embeddings (N, D) and labels (N,) -> loss


def dense(rows: Tensor, num_active: int) -> Forward:
    """Return the loss over all rows by plain autograd."""

    def forward(embeddings: Tensor, labels: Tensor) -> Tensor:
        logits = linear(normalize(embeddings), normalize(rows))
        logits[torch.arange(len(labels)), labels] -= MARGIN
        return cross_entropy(SCALE * logits, labels)

    return forward


def indexed(rows: Tensor, num_active: int) -> Forward:
    """Return the loss over sampled rows by indexing a Parameter. Gradient and update are dense."""

    def forward(embeddings: Tensor, labels: Tensor) -> Tensor:
        ids = by_topk(len(rows), num_active, labels)
        logits = linear(normalize(embeddings), normalize(rows[ids]))
        targets = torch.searchsorted(ids, labels)
        logits[torch.arange(len(labels)), targets] -= MARGIN
        return cross_entropy(SCALE * logits, targets)

    return forward


def linear_cross_entropy(rows: Tensor, num_active: int) -> Forward:
    """Return the loss over all rows by torch's function of this name, without chunks.

    That was its fastest setting for a batch of 128 and 512 columns on two cores. The function knows no margin, but its
    losses of single samples without margin are enough to compute those with it.
    """

    def forward(embeddings: Tensor, labels: Tensor) -> Tensor:
        scaled = SCALE * normalize(embeddings)
        return with_margin(LINEAR_CROSS_ENTROPY(scaled, normalize(rows), labels, reduction="none")).mean()

    return forward


def linear_cross_entropy_chunked(rows: Tensor, num_active: int) -> Forward:
    """Return the loss *without margin* by torch's function, with the batch as one chunk."""
    return without_margin(rows, nn.LinearCrossEntropyOptions(chunking_method=None, acc_policy="compact"))


def linear_cross_entropy_auto(rows: Tensor, num_active: int) -> Forward:
    """Return the loss *without margin* by torch's function, in the chunks that it chooses itself."""
    return without_margin(rows, nn.LinearCrossEntropyOptions())


def without_margin(rows: Tensor, options: Any) -> Forward:
    """Return the mean loss in chunks, whose gradients are computed in the forward pass.

    The losses of single samples, which the margin needs, would cost one more matrix product.
    """

    def forward(embeddings: Tensor, labels: Tensor) -> Tensor:
        scaled = SCALE * normalize(embeddings)
        loss: Tensor = LINEAR_CROSS_ENTROPY(scaled, normalize(rows), labels, options=options)
        return loss

    return forward


def with_margin(losses: Tensor) -> Tensor:
    """Return the softmax losses (N,) of samples whose target logit is lower by the margin, from those without it.

    A loss L means that the target has the probability p = exp(-L). A target logit lower by d changes the sum of the
    exponentials by the factor 1 - p + p exp(-d). If p is 1 up to rounding, the result is as inexact as L: this is for
    measurements of time, not for training.
    """
    d = SCALE * MARGIN
    return losses + d + (-torch.expm1(-losses) + torch.exp(-losses - d)).log()


LINEAR_CROSS_ENTROPY: Any = getattr(functional, "linear_cross_entropy", None)  # since torch 2.13
BASELINES: dict[str, dict[str, Callable[[Tensor, int], Forward]]] = {  # head -> name -> loss
    "full": {
        "dense": dense,
        "linear_cross_entropy": linear_cross_entropy,
        "linear_cross_entropy_chunked": linear_cross_entropy_chunked,
        "linear_cross_entropy_auto": linear_cross_entropy_auto,
    },
    "pfc": {"indexed": indexed},
}


def missing(name: str) -> bool:
    """Return whether this version of torch lacks the function of a baseline."""
    return name.startswith("linear_cross_entropy") and LINEAR_CROSS_ENTROPY is None


def baseline(name: str, num_classes: int, num_active: int, batch: int, embedding_size: int, device: str) -> Step:
    """Return the step of a baseline."""
    rows = nn.Parameter(torch.randn(num_classes, embedding_size, device=device).mul_(0.01))
    (loss,) = (losses[name] for losses in BASELINES.values() if name in losses)
    update = update_with(torch.optim.SGD([rows], **SGD))
    return three_parts(loss(rows, num_active), update, num_classes, batch, embedding_size, device)


def by_topk(num_classes: int, count: int, labels: Tensor) -> Tensor:
    """Return PartialFC's classes as its implementations choose them: by a random number for every class, O(C)."""
    draw = torch.rand(num_classes, device=labels.device)
    draw[labels] = 2
    return draw.topk(max(count, len(torch.unique(labels)))).indices.sort().values


def update_with(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update


def three_parts(
    forward: Forward, update: Callable[[], None], num_classes: int, batch: int, embedding_size: int, device: str
) -> Step:
    """Return a step on new random embeddings and labels that times each part."""

    def step() -> dict[str, float]:
        embeddings = torch.randn(batch, embedding_size, device=device, requires_grad=True)
        labels = torch.randint(num_classes, (batch,), device=device)
        forward_ms, loss = timed(lambda: forward(embeddings, labels), device)
        backward_ms, _ = timed(loss.backward, device)
        update_ms, _ = timed(update, device)
        return {"forward": forward_ms, "backward": backward_ms, "update": update_ms}

    return step
