"""`bench=objectives`: forward pass, backward pass and update of a head with each margin and objective.

Each combination is measured in turns with the first one, in two processes, so that a drift of the machine affects both.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch

from heads import Margin

from ..option_tables import classes_of
from .head_step import HEADS, SGD, allocate_state, three_parts, update_with
from .measure import Step, Subject, interleave, median_and_spread, ratio

PARTS = ("forward", "backward", "update")


def objectives(
    head: str,
    margin: list[str],
    objective: list[str],
    logits_budget_mb: list[float],
    num_classes: int,
    embedding_size: int,
    batch: int,
    sample_rate: float,
    device: str,
    warmup: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Return a line of figures for each combination. All options of margins and objectives are their defaults.

    Args:
        head: full or pfc.
        margin, objective: choices of conf/.
        sample_rate: share of the classes that pfc samples.
    """
    for option, values, known in (
        ("head", [head], list(HEADS)),
        ("margin", margin, [name for name, _ in classes_of("margin")]),
        ("objective", objective, [name for name, _ in classes_of("objective")]),
    ):
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"bench.{option}={unknown} must be among {', '.join(known)}")
    sizes = {"num_classes": num_classes, "embedding_size": embedding_size, "batch": batch}
    common = {"head": head, **sizes, "sample_rate": sample_rate if head == "pfc" else 1.0}
    cases = [
        {"margin": one, "objective": other, "logits_budget_mb": budget}
        for one, other, budget in product(margin, objective, logits_budget_mb)
    ]
    first = Subject(step_of, device=device, **common, **cases[0])
    lines = [{**common, **cases[0]}]
    for case in cases[1:]:
        subjects = {"first": first, "other": Subject(step_of, device=device, **common, **case)}
        for subject in subjects.values():
            subject.parts.clear()
        interleave(subjects, warmup, repeats)
        lines.append({**common, **case, **_figures(subjects["other"])})
        lines[-1]["over_first"] = ratio(_totals(subjects["other"]), _totals(first))
    if len(cases) == 1:
        interleave({"first": first}, warmup, repeats)
    lines[0] |= {**_figures(first), "over_first": 1.0}
    return lines


def _totals(subject: Subject) -> list[float]:
    return [sum(times) for times in zip(*(subject.parts[part] for part in PARTS), strict=True)]


def _figures(subject: Subject) -> Mapping[str, float]:
    """Return times and memory of a subject, and end its process."""
    step, spread = median_and_spread(_totals(subject))
    held = subject.parts["held"][0]
    peak = subject.close()
    times = {f"{part}_ms": median_and_spread(subject.parts[part])[0] for part in PARTS}
    return {**times, "step_ms": step, "spread_ms": spread, "peak_bytes": peak, "above_rows_bytes": peak - held}


def step_of(
    head: str,
    margin: str,
    objective: str,
    logits_budget_mb: float,
    num_classes: int,
    embedding_size: int,
    batch: int,
    sample_rate: float,
    device: str,
) -> Step:
    """Return the step of a head, which also tells the bytes of rows and row state as "held"."""
    kind: type[Margin] = dict(classes_of("margin"))[margin]
    options: dict[str, Any] = {"sample_rate": sample_rate} if head == "pfc" else {}
    if kind.uses_class_counts:
        options["class_counts"] = torch.full((num_classes,), 10)
    built = HEADS[head](
        num_classes,
        embedding_size,
        margin=kind(),
        objective=dict(classes_of("objective"))[objective](),
        logits_budget_mb=logits_budget_mb,
        device=device,
        **options,
    )
    rows = built.optimizer(**SGD)
    allocate_state(built)
    held = built.stats()["memory_bytes"]
    step = three_parts(built, update_with(rows), num_classes, batch, embedding_size, device)
    return lambda: {**step(), "held": held}
