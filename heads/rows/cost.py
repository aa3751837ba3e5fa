"""Cost of a step of a head with class centers."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..core.cost import Case, Cost, largest, number_bytes, state_bytes
from ..core.row_state import RowState
from ..objectives.softmax import CHUNK_ROWS
from .options import CenterOptions, LossOptions


def what_fits(logits: float, rows: float, room: float) -> tuple[bool, bool]:
    """Return whether the cosines, and whether the rows, are kept: cosines first, as they save a matrix product.

    Args:
        logits: bytes of the cosines.
        rows: bytes of the gathered rows.
        room: bytes that may be kept.
    """
    return logits <= room, rows <= room - (logits if logits <= room else 0)


def center_cost(
    case: Case,
    options: LossOptions,
    *,
    row_state: Mapping[str, RowState],
    shares: Iterable[float],
    rows_per_class: int = 1,
) -> Cost:
    """Return the cost of a step: of each part, the largest value over the steps of a schedule.

    Args:
        case: numbers of classes, columns, images and processes.
        options: options of the head.
        row_state: what the row optimizer keeps for each row.
        shares: shares of the classes that take part in a step, one for each stage of the training.
        rows_per_class: rows of a class.
    """
    # Each row costs what a class with one row costs.
    case = replace(case, num_classes=case.num_classes * rows_per_class)
    numbers = [min(case.shard, max(1, round(share * case.shard))) for share in shares]
    return largest(
        step_cost(case, options, row_state=row_state, active=active if active < case.shard else None)
        for active in numbers
    )


def step_cost(case: Case, options: LossOptions, *, row_state: Mapping[str, RowState], active: int | None) -> Cost:
    """Return the cost of a step.

    Args:
        case: numbers of classes, columns, images and processes.
        options: options of the head. Without those of stored rows, the rows are computed and do not learn.
        row_state: what the row optimizer keeps for each row.
        active: rows of a process that take part in a step; None for all.
    """
    N, D, K = case.batch, case.embedding_size, case.shard if active is None else active
    row = state = in_place = 0
    if isinstance(options, CenterOptions):
        row, state = D * number_bytes(options.dtype), state_bytes(row_state)
        # Blocks as large as chunks are used in place, as all rows are.
        in_ranges = active is None or getattr(options, "sample_block", 1) % CHUNK_ROWS == 0
        in_place = in_ranges and number_bytes(options.dtype) == 4 and options.store != "disk"
    keeps_logits, keeps_rows = what_fits(4 * K * N, 4 * K * D, options.logits_budget_mb * 2**20)
    kept, kept_rows = 4 * K * N * keeps_logits, 4 * K * D * (keeps_rows and not in_place)
    chunk = 4 * min(CHUNK_ROWS, K) * (2 * N + 2 * D)
    assert options.objective is not None
    passes, (sums_of_sample, sums) = options.objective.passes, options.objective.sums
    # Products for cosines, gradient of the embeddings, gradient of the rows; cosines that are not kept again.
    products = (3 if kept else 3 + passes) if row else (2 if kept else 1 + passes)
    summed = 4 * (N * (D + sums_of_sample) + sums)
    return Cost(
        table_bytes=case.shard * (row + state),
        work_bytes=kept + kept_rows + chunk + 4 * 4 * N * D + 12 * K + N * options.objective.work_bytes,
        # Embeddings, lengths, weights, labels and sizes are gathered.
        sent_bytes=case.sent(gathered=N * (4 * (D + 2) + 8) + 8 * case.world_size, summed=summed),
        multiply_adds=K * N * D * products,
        moved_bytes=K * (row * (2 if kept_rows or in_place else 1 + passes) + 2 * state),
    )
