"""`bench=min_probability`: speed and gradient error of `min_probability` in the full head.

The error depends on the centers, so there are three kinds:

- `initial`: random rows, and embeddings of an untrained MLP.
- `trained`: the same after a short training on `data=sphere`.
- `means`: the directions that training on `data=sphere` leads to, without the training, for many classes. Rows are the
  directions of the classes, and embeddings are noisy vectors around them. Both lie in a space of `dimensions`
  dimensions, which decides how many classes are close to a sample.

On one batch, the gradients with each threshold are compared with those without, and steps are timed with a learning
rate of zero.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from heads import CosFace, FullFC
from heads.objectives.softmax import chunks
from heads.rows.centers import ClassCenters

from .head_step import SGD
from .measure import median_and_spread, ratio, timed
from .training import SphereTraining

KINDS = ("initial", "trained", "means")


@dataclass
class Case:
    """A head, the optimizer of its rows, and a batch."""

    head: FullFC
    rows: torch.optim.Optimizer
    embeddings: Tensor
    labels: Tensor


def min_probability(
    centers: list[str],
    num_classes: int,
    embedding_size: int,
    batch: int,
    dimensions: list[int],
    noise: float,
    thresholds: list[float],
    row_error: float,
    steps: int,
    lr: float,
    warmup: int,
    repeats: int,
    device: str,
) -> list[dict[str, Any]]:
    """Return a line of figures for each kind of centers and each threshold.

    Args:
        centers: kinds of centers.
        dimensions: for `means`, the dimensions of the space of the directions.
        noise: for `means`, the length of the noise relative to that of the direction.
        row_error: another threshold is the largest with this error of the rows' gradient; 0 for none.
        steps: training steps before `trained`.
    """
    if any(not 0 < threshold < 1 for threshold in thresholds):
        raise ValueError(f"bench.thresholds={thresholds} must be probabilities in (0, 1)")
    if not 0 <= row_error < 1:
        raise ValueError(f"bench.row_error={row_error} must be in [0, 1); 0 looks for no threshold")
    if unknown := sorted(set(centers) - set(KINDS)):
        raise ValueError(f"bench.centers={unknown} must be among {', '.join(KINDS)}")
    if any(not 2 <= size <= embedding_size for size in dimensions):
        raise ValueError(f"bench.dimensions={dimensions} must be from 2 to embedding_size={embedding_size}")
    head = FullFC(num_classes, embedding_size, margin=CosFace(), device=device)
    lines = []
    for kind, case in itertools.chain(
        _trained(head, centers, batch, steps, lr),
        _means(head, dimensions if "means" in centers else [], batch, noise),
    ):
        found = [_largest(case, row_error)] if row_error else []
        for threshold in sorted({*thresholds, *found}):
            figures = _errors(case, threshold) | _times(case, threshold, warmup, repeats)
            lines.append({**kind, "min_probability": threshold, **figures})
    return lines


def _trained(
    head: FullFC, centers: list[str], batch: int, steps: int, lr: float
) -> Iterator[tuple[dict[str, Any], Case]]:
    """Yield the kinds of a training."""
    wanted = {number: kind for kind, number in (("initial", 0), ("trained", steps)) if kind in centers}
    if not wanted:
        return
    training = SphereTraining(head, batch, lr, max(wanted))
    for number, images, labels in training.batches():
        if number in wanted:
            with torch.no_grad():
                embeddings = training.backbone(images)
            yield {"centers": wanted[number]}, Case(head, training.rows, embeddings, labels)
            for table in head.centers.state.values() if number == 0 else ():
                table.zero_()  # the timed steps have changed the momentum
        training.step(number, images, labels)


def _means(head: FullFC, dimensions: list[int], batch: int, noise: float) -> Iterator[tuple[dict[str, Any], Case]]:
    """Yield the kind "means" for each number of dimensions."""
    shard, device = head.centers.shard, head.centers.like.device
    assert isinstance(head.centers, ClassCenters)
    for size in dimensions:
        generator = torch.Generator(device).manual_seed(0)
        rows = head.centers.rows.normal_(generator=generator)
        rows[:, size:] = 0
        labels = torch.randint(shard.num_classes, (batch,), generator=generator, device=device)
        vectors = torch.randn(batch, size, generator=generator, device=device) * (noise / math.sqrt(size))
        embeddings = normalize(rows[labels]) + pad(vectors, (0, rows.shape[1] - size))
        yield {"centers": "means", "dimensions": size}, Case(head, head.optimizer(**SGD), embeddings, labels)


def _largest(case: Case, row_error: float) -> float:
    """Return the largest threshold with at most this error of the rows' gradient, rounded down."""
    p_K, square_K = _largest_probabilities(case), torch.zeros(case.head.centers.shard.size)
    case.head(case.embeddings, case.labels).backward()
    for index, _, gradient in case.head.pending.stream(case.head.centers):
        square_K[index] = gradient.dense().square().sum(1).cpu()
    case.rows.zero_grad()
    p_K, order = p_K.cpu().sort()
    squares = square_K[order].double().cumsum(0)
    left_out = int((squares <= row_error**2 * squares[-1]).sum())
    digits = 10 ** (math.floor(math.log10(p_K[left_out])) - 2)
    return float(f"{math.floor(p_K[left_out] / digits) * digits:.3g}")


@torch.no_grad()
def _largest_probabilities(case: Case) -> Tensor:
    """Return the largest probability of each class over the batch (C,), and 1 for a class of the batch."""
    head, margin, x_ND = case.head, case.head.margin, normalize(case.embeddings)
    assert isinstance(margin, CosFace)

    def logits(a: int, b: int) -> Tensor:
        rows = normalize(head.centers.read(slice(a, b)))
        own = case.labels == torch.arange(a, b, device=rows.device)[:, None]
        return margin.s * (rows @ x_ND.T - margin.m * own)

    log_sum_N = torch.full_like(x_ND[:, 0], -torch.inf)
    bounds = list(chunks(head.centers.shard.size))
    for a, b in bounds:
        log_sum_N = torch.logaddexp(log_sum_N, logits(a, b).logsumexp(0))
    p_K = torch.cat([(logits(a, b) - log_sum_N).exp().amax(1) for a, b in bounds])
    p_K[case.labels] = 1
    return p_K


def _errors(case: Case, threshold: float) -> dict[str, float]:
    """Return the errors of the gradients, relative in norm, and figures of the batch."""
    head, centers = case.head, case.head.centers
    gradients = []
    for head.min_probability in (0.0, threshold):
        x = case.embeddings.clone().requires_grad_()
        loss = head(x, case.labels)
        loss.backward()
        gradients.append(x.grad)
    head.min_probability = 0.0
    (_, exact), (active, filtered) = head.pending.entries
    ids = torch.arange(centers.shard.size, device=centers.like.device) if active.ids is None else active.ids
    square = error = 0.0
    for a, b in chunks(centers.shard.size):
        rows = centers.read(slice(a, b))
        gradient = exact.add_to(torch.zeros_like(rows), a, b, rows)
        square += float(gradient.square().sum())
        i, j = torch.searchsorted(ids, ids.new_tensor([a, b])).tolist()
        own = ids[i:j] - a
        gradient[own] -= filtered.add_to(torch.zeros_like(rows[own]), i, j, rows[own])
        error += float(gradient.square().sum())
    case.rows.zero_grad()
    exact_x, its_x = gradients
    assert exact_x is not None and its_x is not None
    return {
        "loss": loss.item(),
        "kept_share": len(ids) / centers.shard.size,
        "embedding_error": float((its_x - exact_x).norm() / exact_x.norm()),
        "row_error": math.sqrt(error / square),
    }


def _times(case: Case, threshold: float, warmup: int, repeats: int) -> dict[str, float]:
    """Return the times of a step with and without the threshold, measured alternately."""
    head, device = case.head, str(case.head.centers.like.device)
    times: dict[float, list[float]] = {0.0: [], threshold: []}
    forward = []
    (group,) = case.rows.param_groups
    lr, group["lr"] = group["lr"], 0.0
    for repeat, head.min_probability in itertools.product(range(warmup + repeats), times):
        forward_ms, loss = timed(lambda: head(case.embeddings, case.labels), device)
        backward_ms, _ = timed(loss.backward, device)
        update_ms, _ = timed(lambda: (case.rows.step(), case.rows.zero_grad()), device)
        if repeat >= warmup:
            times[head.min_probability].append(forward_ms + backward_ms + update_ms)
            forward += [forward_ms] if head.min_probability else []
    head.min_probability, group["lr"] = 0.0, lr
    return {
        "forward_ms": median_and_spread(forward)[0],
        "step_ms": median_and_spread(times[threshold])[0],
        "baseline_step_ms": median_and_spread(times[0.0])[0],
        "speedup": ratio(times[0.0], times[threshold]),
    }
