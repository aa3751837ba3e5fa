"""`bench=head_step`: forward, backward and update of a head, beside what others do.

`dense` is plain autograd over all classes: F.linear, cross_entropy, torch.optim.SGD. `indexed` picks the
sampled rows of a Parameter by indexing, as PartialFC implementations do: its gradient and its SGD step
are as large as all classes. The floor is the matrix products that the step cannot do without, alone.
"""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear, normalize

import heads.softmax
from heads import CosFace, FullFC, PartialFC

from .measure import Step, Subject, interleave, median_and_spread, ratio, timed

SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
PARTS = ("forward", "backward", "update")


def head_step(
    heads: list[str],
    num_classes: list[int],
    sample_rate: list[float],
    batch: list[int],
    embedding_size: list[int],
    logits_budget_mb: list[float],
    baselines: bool,
    device: str,
    warmup: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """A line of figures for each combination; CosFace, SGD with momentum, float32."""
    unknown = set(heads) - {"full", "pfc"}
    if unknown:
        raise ValueError(f"bench.heads={sorted(unknown)}: must be among full, pfc")
    lines = []
    for name, C, N, D, budget in product(heads, num_classes, batch, embedding_size, logits_budget_mb):
        for rate in sample_rate if name == "pfc" else [1.0]:
            case = {"head": name, "num_classes": int(C), "sample_rate": rate, "batch": N, "embedding_size": D}
            lines.append(
                {**case, "logits_budget_mb": budget, **_measure(case, budget, baselines, device, warmup, repeats)}
            )
    return lines


def _measure(
    case: Mapping[str, Any], budget: float, baselines: bool, device: str, warmup: int, repeats: int
) -> dict[str, Any]:
    options = {"device": device, **case}
    subjects = {"ours": Subject(ours, logits_budget_mb=budget, **options)}
    baseline = "dense" if case["head"] == "full" else "indexed"
    if baselines:
        subjects[baseline] = Subject(dense if baseline == "dense" else indexed, **options)
    interleave(subjects, warmup, repeats)
    figures: dict[str, Any] = {"active": active(case["sample_rate"], case["num_classes"])}
    totals = {}
    for name, subject in subjects.items():
        totals[name] = [sum(times) for times in zip(*(subject.parts[part] for part in PARTS), strict=True)]
        prefix = "" if name == "ours" else "baseline_"
        for part in PARTS:
            figures[f"{prefix}{part}_ms"] = median_and_spread(subject.parts[part])[0]
        figures[f"{prefix}step_ms"], figures[f"{prefix}spread_ms"] = median_and_spread(totals[name])
    figures["over_floor"] = ratio(totals["ours"], subjects["ours"].parts["floor"])
    for name, subject in subjects.items():
        figures["peak_bytes" if name == "ours" else "baseline_peak_bytes"] = subject.close()
    if baselines:
        figures |= {"baseline": baseline, "speedup": ratio(totals[baseline], totals["ours"])}
    return figures


def active(sample_rate: float, num_classes: int) -> int:
    return max(1, round(sample_rate * num_classes))


def ours(
    head: str,
    num_classes: int,
    sample_rate: float,
    batch: int,
    embedding_size: int,
    device: str,
    logits_budget_mb: float,
) -> Step:
    """A head of this project; "floor" is the time of its matrix products alone."""
    options: dict[str, Any] = {"margin": CosFace(), "logits_budget_mb": logits_budget_mb, "device": device}
    if head == "pfc":
        options["sample_rate"] = sample_rate
    built = (PartialFC if head == "pfc" else FullFC)(num_classes, embedding_size, **options)
    optimizer = built.optimizer(**SGD)
    num_active = active(sample_rate, num_classes)
    kept = num_active * batch * 4 <= logits_budget_mb * 2**20
    floor = products(num_active, batch, embedding_size, 3 if kept else 5, device)

    def forward(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = built(embeddings, labels)
        return loss

    step = three_parts(forward, _update(optimizer), num_classes, batch, embedding_size, device)
    return lambda: {**step(), "floor": timed(floor, device)[0]}


def dense(head: str, num_classes: int, sample_rate: float, batch: int, embedding_size: int, device: str) -> Step:
    """Plain autograd over all rows."""
    rows = torch.nn.Parameter(torch.randn(num_classes, embedding_size, device=device).mul_(0.01))
    optimizer = torch.optim.SGD([rows], **SGD)

    def forward(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = linear(normalize(embeddings), normalize(rows))
        logits[torch.arange(len(labels)), labels] -= 0.4
        return cross_entropy(64 * logits, labels)

    return three_parts(forward, _update(optimizer), num_classes, batch, embedding_size, device)


def indexed(head: str, num_classes: int, sample_rate: float, batch: int, embedding_size: int, device: str) -> Step:
    """Sampled rows by indexing a Parameter: dense gradient, dense step."""
    rows = torch.nn.Parameter(torch.randn(num_classes, embedding_size, device=device).mul_(0.01))
    optimizer = torch.optim.SGD([rows], **SGD)
    num_active = active(sample_rate, num_classes)

    def forward(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ids = by_topk(num_classes, num_active, labels)
        logits = linear(normalize(embeddings), normalize(rows[ids]))
        targets = torch.searchsorted(ids, labels)
        logits[torch.arange(len(labels)), targets] -= 0.4
        return cross_entropy(64 * logits, targets)

    return three_parts(forward, _update(optimizer), num_classes, batch, embedding_size, device)


def by_topk(num_classes: int, count: int, labels: torch.Tensor) -> torch.Tensor:
    """PartialFC's classes as its implementations choose them: by a random number for every class, O(C)."""
    draw = torch.rand(num_classes, device=labels.device)
    draw[labels] = 2
    return draw.topk(max(count, len(torch.unique(labels)))).indices.sort().values


def _update(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update


def three_parts(
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    update: Callable[[], None],
    num_classes: int,
    batch: int,
    embedding_size: int,
    device: str,
) -> Step:
    """A step on fresh random embeddings and labels, timed part by part."""

    def step() -> dict[str, float]:
        embeddings = torch.randn(batch, embedding_size, device=device, requires_grad=True)
        labels = torch.randint(num_classes, (batch,), device=device)
        forward_ms, loss = timed(lambda: forward(embeddings, labels), device)
        backward_ms, _ = timed(loss.backward, device)
        update_ms, _ = timed(update, device)
        return {"forward": forward_ms, "backward": backward_ms, "update": update_ms}

    return step


def products(num_rows: int, batch: int, embedding_size: int, times: int, device: str) -> Callable[[], None]:
    """`times` products of all active rows with the batch, in chunks as the head has them."""
    size = min(num_rows, heads.softmax.CHUNK_ROWS)
    rows = torch.randn(size, embedding_size, device=device)
    columns = torch.randn(embedding_size, batch, device=device)
    out = torch.empty(size, batch, device=device)

    def run() -> None:
        for _ in range(times * -(-num_rows // size)):
            torch.mm(rows, columns, out=out)

    return run
