"""`bench=min_probability`: speed and gradient error of `min_probability` in the full head, before and after training.

A full head and an MLP train on `data=sphere`. At the start and at the end, on one batch, the gradients with each
threshold are compared with those without, and steps are timed with a learning rate of zero.
"""

import itertools
from typing import Any

import torch
from torch import Tensor

from heads import CosFace, FullFC

from .measure import median_and_spread, ratio, timed
from .training import SphereTraining


def min_probability(
    num_classes: int,
    embedding_size: int,
    batch: int,
    thresholds: list[float],
    steps: int,
    lr: float,
    warmup: int,
    repeats: int,
    device: str,
) -> list[dict[str, Any]]:
    """Return a line of figures for each threshold, at the start and after `steps` steps."""
    if any(not 0 < threshold < 1 for threshold in thresholds):
        raise ValueError(f"bench.thresholds={thresholds} must be probabilities in (0, 1)")
    head = FullFC(num_classes, embedding_size, margin=CosFace(), device=device)
    training = SphereTraining(head, batch, lr, steps)
    lines = []
    for number, images, labels in training.batches():
        if number in (0, steps):
            with torch.no_grad():
                embeddings = training.backbone(images)
            for threshold in thresholds:
                figures = _compare(head, training.rows, embeddings, labels, threshold, warmup, repeats, device)
                lines.append({"after_steps": number, "min_probability": threshold, **figures})
        training.step(number, images, labels)
    return lines


def _compare(
    head: FullFC,
    rows: torch.optim.Optimizer,
    embeddings: Tensor,
    labels: Tensor,
    threshold: float,
    warmup: int,
    repeats: int,
    device: str,
) -> dict[str, float]:
    exact_x, exact_rows, exact_loss = _gradients(head, rows, embeddings, labels, 0.0)
    its_x, its_rows, loss = _gradients(head, rows, embeddings, labels, threshold)
    assert loss == exact_loss
    times: dict[float, list[float]] = {0.0: [], threshold: []}
    forward = []
    saved = {name: table.clone() for name, table in head.centers.state.items()}
    (group,) = rows.param_groups
    lr, group["lr"] = group["lr"], 0.0
    for repeat, eps in itertools.product(range(warmup + repeats), times):
        head.min_probability = eps
        forward_ms, loss = timed(lambda: head(embeddings, labels), device)
        backward_ms, _ = timed(loss.backward, device)
        update_ms, _ = timed(lambda: (rows.step(), rows.zero_grad()), device)
        if repeat >= warmup:
            times[eps].append(forward_ms + backward_ms + update_ms)
            forward += [forward_ms] if eps else []
    head.min_probability, group["lr"] = 0.0, lr
    for name, table in saved.items():
        head.centers.state[name].copy_(table)
    return {
        "loss": exact_loss,
        "kept_share": float((its_rows != 0).any(dim=1).float().mean()),
        "embedding_error": float((its_x - exact_x).norm() / exact_x.norm()),
        "row_error": float((its_rows - exact_rows).norm() / exact_rows.norm()),
        "forward_ms": median_and_spread(forward)[0],
        "step_ms": median_and_spread(times[threshold])[0],
        "baseline_step_ms": median_and_spread(times[0.0])[0],
        "speedup": ratio(times[0.0], times[threshold]),
    }


def _gradients(
    head: FullFC, rows: torch.optim.Optimizer, embeddings: Tensor, labels: Tensor, threshold: float
) -> tuple[Tensor, Tensor, float]:
    """Return the gradients of the embeddings and of all rows, and the loss."""
    head.min_probability = threshold
    x = embeddings.clone().requires_grad_()
    loss = head(x, labels)
    loss.backward()
    gradient = torch.zeros_like(head.centers.read(slice(0, head.centers.shard.size)))
    for index, _, chunk in head.pending.stream(head.centers):
        gradient[index] = chunk.dense()
    rows.zero_grad()
    assert x.grad is not None
    return x.grad, gradient, loss.item()
