"""`bench=objectives`: forward pass, backward pass and update of a head with each margin and objective.

Each combination is measured in turns with the first one, in two processes, so that a drift of the machine affects both.
"""

from functools import partial
from itertools import product
from typing import Any

import torch

from heads import Margin

from ..option_tables import classes_of
from .baselines import SGD, three_parts, update_with
from .head_step import HEADS, allocate_state
from .measure import Step, Subject, compared


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
    builds = [partial(Subject, step_of, device=device, **common, **case) for case in cases]
    lines = []
    for case, measured in zip(cases, compared(builds, warmup, repeats), strict=True):
        above = measured.peak_bytes - measured.parts["held"][0]
        figures = {**measured.figures(), "above_rows_bytes": above, "over_first": measured.over_first}
        lines.append({**common, **case, **figures})
    return lines


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
