"""`bench=head_step`: forward pass, backward pass and update of a head, compared with plain implementations.

`dense` is plain autograd over all classes: F.linear, cross_entropy, torch.optim.SGD. `indexed` selects the sampled rows
of a Parameter by indexing, as PartialFC implementations do: its gradient and its SGD step have the size of all classes.
The floor is the time of the necessary matrix products alone. The limit adds one copy of the active rows and of their
state, there and back.
"""

import shutil
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear, normalize

import heads.objectives.softmax
from heads import CenterHead, CosFace, FullFC, PartialFC, RowAdagrad

from .measure import Step, Subject, interleave, median_and_spread, ratio, timed

SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "momentum": SGD,
    "momentum-bf16": {**SGD, "momentum_dtype": "bf16"},
    "sgd": {"lr": 0.1, "momentum": 0, "weight_decay": 5e-4},
    "adagrad": {"rule": RowAdagrad, "lr": 0.1},
}
HEADS: dict[str, type[CenterHead]] = {"full": FullFC, "pfc": PartialFC}
PARTS = ("forward", "backward", "update")


def head_step(
    heads: list[str],
    num_classes: list[int],
    sample_rate: list[float],
    batch: list[int],
    embedding_size: list[int],
    baselines: bool,
    device: str,
    warmup: int,
    repeats: int,
    store_dir: str,
    **options: list[Any],
) -> list[dict[str, Any]]:
    """Return a line of figures for each combination; the margin is CosFace.

    Args:
        sample_rate: share of the classes that pfc samples, or above 1 their number.
        baselines: also measure `dense` for full and `indexed` for pfc.
        options: further lists: dtype, store, compute, optimizer, logits_budget_mb, and min_probability for full.
    """
    _known("heads", heads, HEADS)
    _known("optimizer", options["optimizer"], OPTIMIZERS)
    lines = []
    for name, C, N, D, *others in product(heads, num_classes, batch, embedding_size, *options.values()):
        case = {"head": name, "num_classes": int(C), "batch": N, "embedding_size": D}
        case |= dict(zip(options, others, strict=True))
        for rate in sample_rate if name == "pfc" else [1.0]:
            case["sample_rate"] = rate / case["num_classes"] if rate > 1 else rate
            files = {"store_dir": store_dir} if case["store"] == "disk" else {}
            lines.append({**case, **_measure({**case, **files}, baselines, device, warmup, repeats)})
            shutil.rmtree(store_dir, ignore_errors=True)
    return lines


def _known(option: str, values: list[str], known: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"bench.{option}={unknown} must be among {', '.join(known)}")


def _measure(case: Mapping[str, Any], baselines: bool, device: str, warmup: int, repeats: int) -> dict[str, Any]:
    subjects = {"ours": Subject(ours, device=device, **case)}
    baseline = "dense" if case["head"] == "full" else "indexed"
    if baselines:
        plain = {name: case[name] for name in ("num_classes", "sample_rate", "batch", "embedding_size")}
        subjects[baseline] = Subject(dense if baseline == "dense" else indexed, device=device, **plain)
    interleave(subjects, warmup, repeats)
    figures: dict[str, Any] = {"active": active(case["sample_rate"], case["num_classes"])}
    totals = {}
    for name, subject in subjects.items():
        totals[name] = [sum(times) for times in zip(*(subject.parts[part] for part in PARTS), strict=True)]
        prefix = "" if name == "ours" else "baseline_"
        for part in PARTS:
            figures[f"{prefix}{part}_ms"] = median_and_spread(subject.parts[part])[0]
        figures[f"{prefix}step_ms"], figures[f"{prefix}spread_ms"] = median_and_spread(totals[name])
    for limit in ("floor", "limit"):
        figures[f"over_{limit}"] = ratio(totals["ours"], subjects["ours"].parts[limit])
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
    optimizer: str,
    logits_budget_mb: float,
    min_probability: float,
    **options: Any,
) -> Step:
    """Return the step of a head of this project, which also measures "floor" and "limit"."""
    options |= {"sample_rate": sample_rate} if head == "pfc" else {"min_probability": min_probability}
    built = HEADS[head](
        num_classes,
        embedding_size,
        margin=CosFace(),
        device=device,
        logits_budget_mb=logits_budget_mb,
        **options,
    )
    rows = built.optimizer(**OPTIMIZERS[optimizer])
    if options["store"] != "disk":
        allocate_state(built)
    num_active = active(sample_rate, num_classes)
    kept = num_active * batch * 4 <= logits_budget_mb * 2**20
    floor = products(num_active, batch, embedding_size, 3 if kept else 5, device)
    kinds = [(table.shape[1], table.dtype) for table in built.sharded_state().values()]
    by_kind = {kind: copies(num_active, *kind, device) for kind in set(kinds)}
    copying = [by_kind[kind] for kind in kinds]

    step = three_parts(built, update_with(rows), num_classes, batch, embedding_size, device)

    def with_limits() -> dict[str, float]:
        parts = step()
        floor_ms = timed(floor, device)[0]
        return {**parts, "floor": floor_ms, "limit": floor_ms + sum(timed(copy, device)[0] for copy in copying)}

    return with_limits


def allocate_state(head: CenterHead) -> None:
    """Allocate the memory of the row state, which the first steps would do otherwise."""
    for table in head.centers.state.values():
        table.zero_()


def dense(num_classes: int, sample_rate: float, batch: int, embedding_size: int, device: str) -> Step:
    """Return the step of plain autograd over all rows."""
    rows = torch.nn.Parameter(torch.randn(num_classes, embedding_size, device=device).mul_(0.01))
    optimizer = torch.optim.SGD([rows], **SGD)

    def forward(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = linear(normalize(embeddings), normalize(rows))
        logits[torch.arange(len(labels)), labels] -= 0.4
        return cross_entropy(64 * logits, labels)

    return three_parts(forward, update_with(optimizer), num_classes, batch, embedding_size, device)


def indexed(num_classes: int, sample_rate: float, batch: int, embedding_size: int, device: str) -> Step:
    """Return the step of sampled rows by indexing a Parameter, with dense gradient and dense update."""
    rows = torch.nn.Parameter(torch.randn(num_classes, embedding_size, device=device).mul_(0.01))
    optimizer = torch.optim.SGD([rows], **SGD)
    num_active = active(sample_rate, num_classes)

    def forward(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ids = by_topk(num_classes, num_active, labels)
        logits = linear(normalize(embeddings), normalize(rows[ids]))
        targets = torch.searchsorted(ids, labels)
        logits[torch.arange(len(labels)), targets] -= 0.4
        return cross_entropy(64 * logits, targets)

    return three_parts(forward, update_with(optimizer), num_classes, batch, embedding_size, device)


def by_topk(num_classes: int, count: int, labels: torch.Tensor) -> torch.Tensor:
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
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    update: Callable[[], None],
    num_classes: int,
    batch: int,
    embedding_size: int,
    device: str,
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


def products(num_rows: int, batch: int, embedding_size: int, times: int, device: str) -> Callable[[], None]:
    """Return a function of `times` products of all active rows with the batch, in chunks as in the head."""
    size = min(num_rows, heads.objectives.softmax.CHUNK_ROWS)
    rows = torch.randn(size, embedding_size, device=device)
    columns = torch.randn(embedding_size, batch, device=device)
    out = torch.empty(size, batch, device=device)

    def run() -> None:
        for _ in range(times * -(-num_rows // size)):
            torch.mm(rows, columns, out=out)

    return run


def copies(num_rows: int, width: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """Return a function that copies all rows into a chunk and back, of a table too large for the caches."""
    size = min(num_rows, heads.objectives.softmax.CHUNK_ROWS)
    table = torch.zeros(min(num_rows, 16 * size), width, dtype=dtype, device=device)
    chunk = torch.empty(size, width, dtype=dtype, device=device)

    def run() -> None:
        for number in range(-(-num_rows // size)):
            a = number * size % (len(table) - size + 1)
            chunk.copy_(table[a : a + size])
            table[a : a + size].copy_(chunk)

    return run
