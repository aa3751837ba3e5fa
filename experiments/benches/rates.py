"""Rates of the machine: matrix products, contiguous copies, gathers of single rows.

Ratios of two programs depend on these rates, because one may be bound by arithmetic and the other by memory.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch

import heads.objectives.softmax

from .measure import timed

BATCH, EMBEDDING_SIZE = 128, 512
TABLE_ROWS, COPIED_ROWS = 2**17, 2**15  # tables of 256 and 64 MiB, which caches do not hold


def machine_rates(device: str = "cpu", repeats: int = 5) -> dict[str, float]:
    """Return the rates at which this process computes and moves float32 numbers, the medians of some repeats.

    Returns:
        gflop_per_second: of the product of a chunk of rows with a batch, in 10^9 additions and multiplications.
        copy_gb_per_second: of a copy of adjacent rows from one table to another, in 10^9 bytes read and written.
        gather_gb_per_second: of a copy of as many single rows from random places of the table.
    """
    table = torch.ones(TABLE_ROWS, EMBEDDING_SIZE, device=device)  # zeros might share one page of memory
    copied = torch.zeros(COPIED_ROWS, EMBEDDING_SIZE, device=device)
    ids = torch.randperm(TABLE_ROWS, device=device)[:COPIED_ROWS].sort().values
    work: dict[str, tuple[Callable[[], Any], int]] = {
        "gflop_per_second": (
            products(COPIED_ROWS, BATCH, EMBEDDING_SIZE, 1, device),
            2 * COPIED_ROWS * BATCH * EMBEDDING_SIZE,
        ),
        "copy_gb_per_second": (lambda: copied.copy_(table[:COPIED_ROWS]), 2 * copied.nbytes),
        "gather_gb_per_second": (lambda: torch.index_select(table, 0, ids, out=copied), 2 * copied.nbytes),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, (function, _) in work.items():
            milliseconds = timed(function, device)[0]
            if repeat:
                times[name].append(milliseconds)
    return {name: 1e-6 * amount / statistics.median(times[name]) for name, (_, amount) in work.items()}


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
