"""Reference and tester of losses with several labels a sample, in float64.

`losses` computes the loss of one sample after the other, as it is written down: a sample has a set of own classes,
some of which are targets, and its negatives are the active classes that it does not own. `check` trains a head for a
few steps on 1, 2 or 3 processes, and compares losses, gradients, rows and bias with it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

import heads.objectives.softmax
from heads import CenterHead, CosFace, CrossEntropy, FullFC, Margin, Objective, SphereFace2, UniFace
from tests.conformance import part_of
from tests.workers import WorkerGroup, rank_and_world

D = 16
LR = 0.1


@dataclass(frozen=True)
class Batch:
    """Input of a margin: the class and the sample of a target, the lengths (N,) of all samples, and carried numbers."""

    label: int
    sample: int
    length: Tensor
    state: Mapping[str, Tensor]


Target = Callable[[Tensor, Batch], Tensor]  # (cosine with a target, Batch) -> cosine of the loss


def cosface(cos: Tensor, batch: Batch) -> Tensor:
    return cos - 0.3


def no_penalty(length: Tensor) -> Tensor:
    return torch.zeros_like(length)


@dataclass(frozen=True)
class Case:
    """A head, its margin with the formula, and the labels of the global batch of each micro-batch of each step.

    Attributes:
        widths: for each sample in turn, how many labels it has.
        counts: samples of each micro-batch of each step.
    """

    head: type[CenterHead] = FullFC
    options: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = field(default_factory=CrossEntropy)
    margin: Margin = field(default_factory=lambda: CosFace(s=16, m=0.3))
    target: Target = cosface
    penalty: Callable[[Tensor], Tensor] = no_penalty
    largest_cos: float = 1.0
    highest_negative: float = 1.0
    num_classes: int = 41
    widths: tuple[int, ...] = (3, 1, 2, 3)
    counts: tuple[tuple[int, ...], ...] = ((9,), (7, 2))
    weighted: bool = True


def global_batch(case: Case, step: int, micro: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings (N, D) of lengths 2 to 120, labels (N, L) and weights (N,)."""
    size, width = case.counts[step][micro], max(case.widths)
    generator = torch.Generator().manual_seed(1000 * step + micro)
    x = normalize(torch.randn(size, D, generator=generator, dtype=torch.float64))
    x = x * torch.linspace(2, 120, size, dtype=torch.float64)[:, None]
    labels = torch.randint(case.num_classes, (size, width), generator=generator)
    for i in range(size):
        labels[i, case.widths[i % len(case.widths)] :] = -1
    labels[-1, 0] = labels[0, 0]  # two samples with a class in common
    labels[0] = labels[0].flip(0)  # padding may come first
    weight = torch.rand(size, generator=generator, dtype=torch.float64) if case.weighted else torch.ones(size)
    return x, labels, weight.double()


def own_classes(labels: Tensor) -> list[list[int]]:
    """Return the classes of each sample, without padding and repetitions."""
    return [sorted({label for label in row if label != -1}) for row in labels.tolist()]


def loss(
    case: Case,
    rows: Tensor,
    x: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    active: list[int],
    log_q: Mapping[int, float],
    targets: list[list[int]],
    bias: Tensor | None,
    state: Mapping[str, Tensor],
) -> Tensor:
    """Return the weighted mean of the losses of all samples.

    Args:
        rows: (C, D), with a further column -b where each class has a bias.
        active: the active classes.
        log_q: log of the probability that an active class was drawn.
        targets: the classes of each sample that are targets.
        bias: the bias of all classes.
    """
    s, length = case.margin.s, x.norm(dim=1)
    cos = normalize(x) @ normalize(rows[:, :D]).T
    column = rows[:, D] if rows.shape[1] > D else cos.new_zeros(len(rows))
    losses = []
    for i, own in enumerate(own_classes(labels)):
        negatives = [j for j in active if j not in own and cos[i, j] <= case.highest_negative]
        t = torch.stack([s * case.target(cos[i, y], Batch(y, i, length, state)) for y in targets[i]])
        n = s * cos[i, negatives].clamp(max=case.largest_cos)
        o = case.objective
        if isinstance(o, CrossEntropy):
            n = n - n.new_tensor([log_q[j] for j in negatives])
            losses.append(torch.stack([torch.cat([t_y[None], n]).logsumexp(0) - t_y for t_y in t]).mean())
        elif isinstance(o, UniFace):
            b = -column if bias is None else bias[0].expand(len(rows))
            losses.append(softplus(b[targets[i]] - t).sum() + o.negative_weight * softplus(n - b[negatives]).sum())
        elif isinstance(o, SphereFace2):
            t = s * (spread(cos[i, targets[i]], o.t) - case.margin.m) + bias[0]
            n = s * (spread(cos[i, negatives], o.t) + case.margin.m) + bias[0]
            both = o.positive_share * softplus(-t).sum() + (1 - o.positive_share) * softplus(n).sum()
            losses.append(o.weight / s * both)
    return (weight * (torch.stack(losses) + case.penalty(length))).sum() / weight.sum()


def softplus(z: Tensor) -> Tensor:
    return -logsigmoid(-z)


def spread(cos: Tensor, t: float) -> Tensor:
    """Return 2 ((cos + 1) / 2)^t - 1, with the gradient of the cosine."""
    return cos + (2 * ((cos + 1) / 2) ** t - 1 - cos).detach()


def check(group: WorkerGroup, case: Case, loss: Callable[..., Tensor] = loss) -> None:
    """Compare all steps of the case with a reference, `loss`, and the processes with each other."""
    sent = replace(case, target=cosface, penalty=no_penalty)  # a lambda cannot be sent
    results = group.run(train, sent)
    for step, micro_batches in enumerate(case.counts):
        parts = [result[step] for result in results]
        rows = torch.cat([part["before"] for part in parts]).requires_grad_()
        bias = parts[0]["bias"]
        bias = None if bias is None else bias.requires_grad_()
        for micro in range(len(micro_batches)):
            x, labels, weight = global_batch(case, step, micro)
            x.requires_grad_()
            seen = [part["seen"][micro] for part in parts]
            assert all(each["targets"] == seen[0]["targets"] for each in seen), "processes draw other targets"
            expected = loss(
                case,
                rows,
                x,
                labels,
                weight,
                active=[c for each in seen for c in each["active"]],
                log_q={c: q for each in seen for c, q in zip(each["active"], each["log_q"], strict=True)},
                targets=seen[0]["targets"],
                bias=bias,
                state=parts[0]["carried"],
            )
            (expected / len(micro_batches)).backward()
            for part in parts:
                close(part["losses"][micro], expected, f"loss of step {step}")
            ours = torch.cat([part["gradients"][micro] for part in parts])
            close(ours, len(parts) * x.grad, f"gradient of step {step}")
        close(torch.cat([part["after"] for part in parts]), rows - LR * rows.grad, f"rows of step {step}")
        if bias is not None:
            close(parts[0]["bias_after"], bias - LR * bias.grad, f"bias of step {step}")


def close(ours: Tensor, exact: Tensor, what: str) -> None:
    error = float((ours - exact.detach()).abs().max())
    assert error <= 1e-12 * max(1.0, float(exact.detach().abs().max())), f"{what}: error {error:.3g}"


def train(case: Case) -> list[dict[str, Any]]:
    """Run the steps of the case in a worker.

    Each process passes its part of the batch with as many columns of labels as it needs, and one dimension where all
    its samples have one label. The part of the last process may be empty.
    """
    rank, world_size = rank_and_world()
    heads.objectives.softmax.CHUNK_ROWS = 8
    options = {"dtype": "fp64", "margin": case.margin, "objective": case.objective, **case.options}
    head = case.head(case.num_classes, D, **options)
    optimizer = head.optimizer(lr=LR, momentum=0, weight_decay=0)
    seen = recorded(head)
    results = []
    for step, micro_batches in enumerate(case.counts):
        seen.clear()
        bias = head.shared_bias
        result: dict[str, Any] = {"losses": [], "gradients": [], "before": head.centers.rows.clone()}
        result["bias"] = None if bias is None else bias.value.clone()
        result["carried"] = {name: value.clone() for name, value in head.carried.items()}
        graphs = []
        for micro in range(len(micro_batches)):
            x, labels, weight = global_batch(case, step, micro)
            mine = part_of(len(x), rank, world_size)
            x_n = x[mine].clone().requires_grad_()
            graphs.append((head(x_n, narrow(labels[mine]), weight[mine]), x_n))
        for value, x_n in graphs:
            (value / len(micro_batches)).backward()
            result["losses"].append(value.detach())
            result["gradients"].append(x_n.grad)
        optimizer.step()
        optimizer.zero_grad()
        result["seen"], result["after"] = list(seen), head.centers.rows.clone()
        result["bias_after"] = None if bias is None else bias.value.clone()
        results.append(result)
    return results


def narrow(labels: Tensor) -> Tensor:
    """Return labels without columns of padding alone; (n,) if one column is left."""
    labels = labels[:, (labels != -1).any(0)]
    return labels[:, 0] if labels.shape[1] == 1 else labels if len(labels) else labels.new_zeros(0)


def recorded(head: CenterHead) -> list[dict[str, Any]]:
    """Return a list to which each forward pass adds its active classes and targets."""
    seen: list[dict[str, Any]] = []
    inputs_of = head.loss_inputs

    def recording(batch: Any, selection: Any, rows: Any) -> Any:
        ids = torch.arange(head.centers.shard.size) if selection.ids is None else selection.ids
        log_q = [0.0] * len(ids) if selection.log_q is None else selection.log_q.tolist()
        seen.append({
            "active": (ids + head.centers.shard.start).tolist(), "log_q": log_q, "targets": targets_of(batch)
        })  # fmt: skip
        return inputs_of(batch, selection, rows)

    head.loss_inputs = recording  # type: ignore[method-assign]
    return seen


def targets_of(batch: Any) -> list[list[int]]:
    """Return the targets of each sample of a gathered batch."""
    positives, count = batch.positives, len(batch.x_ND)
    if positives.sample_P is None:
        return [[label] for label in positives.labels_P.tolist()]
    return [positives.labels_P[positives.sample_P == i].tolist() for i in range(count)]


def magface(cos: Tensor, batch: Batch) -> Tensor:
    a = batch.length[batch.sample].clamp(10, 110)
    m = 0.45 + (0.8 - 0.45) * (a - 10) / 100
    return torch.cos(torch.acos(cos) + m) if cos > 0 else cos


def magface_penalty(length: Tensor) -> Tensor:
    a = length.clamp(10, 110)
    return 35 * (a / 110**2 + 1 / a)


def adaface(cos: Tensor, batch: Batch) -> Tensor:
    """The statistics are those of the lengths of the samples, each once."""
    length = batch.length.detach().clamp(0.001, 100)
    mean = 0.01 * length.mean() + 0.99 * batch.state["mean"]
    std = 0.01 * length.std() + 0.99 * batch.state["std"]
    z = (0.333 * (length[batch.sample] - mean) / (std + 1e-3)).clamp(-1, 1)
    theta = torch.acos(cos.clamp(-1 + 1e-3, 1 - 1e-3)) - 0.4 * z
    return torch.cos(theta.clamp(1e-3, math.pi - 1e-3)) - (0.4 + 0.4 * z)


def class_margin(cos: Tensor, batch: Batch) -> Tensor:
    return torch.cos(torch.acos(cos) + 0.5 * (1 + batch.label) ** -0.25 + 0.05)
