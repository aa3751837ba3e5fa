"""`bench=checkpoint`: time and peak memory of saving and loading the rows, momentum and index of a head."""

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from heads import CenterHead, HashingForest, PartialFC
from heads.indexes import IVF, Annoy

from ..checkpoints.checkpoint import write
from ..checkpoints.storage import Folder
from ..checkpoints.stored import Stored
from ..launching.processes import Processes
from ..training.strategy import rows_of
from .group import on_processes
from .measure import PeakOwn, own_memory, timed

HEADS: dict[str, Callable[..., CenterHead]] = {
    "pfc": PartialFC,
    "forest-annoy": partial(HashingForest, build="blocking", index=Annoy()),
    "forest-ivf": partial(HashingForest, build="blocking", index=IVF()),
}


def checkpoint(
    heads: list[str], num_classes: list[int], embedding_size: int, processes: list[int]
) -> list[dict[str, Any]]:
    """Return a line for each combination, with the figures of the process that needs most.

    `saving_over_held` and `loading_over_held` are the memory of the process relative to that of the head (rows,
    momentum and index). 1 means no additional memory. Mapped files do not count.
    """
    lines = []
    for head, C, W in product(heads, num_classes, processes):
        with tempfile.TemporaryDirectory() as folder:
            figures = on_processes(W, _save_and_load, head, C, embedding_size, folder)
        worst = {name: max(line[name] for line in figures) for name in figures[0]}
        lines.append({"head": head, "num_classes": C, "processes": W, **worst})
    return lines


def _save_and_load(processes: Processes, name: str, C: int, D: int, folder: str) -> dict[str, float]:
    head = HEADS[name](C, D)
    optimizer = head.optimizer(lr=0.1, momentum=0.9)
    head(torch.randn(64, D), torch.arange(64)).backward()
    optimizer.step()
    for state in head.centers.state.values():
        state.normal_()  # so that its memory is allocated
    rows = rows_of(head)
    held = head.stats()["memory_bytes"] + _bytes(head.get_extra_state() if head.state_differs else None)
    place = Folder(Path(folder))

    def save() -> None:
        own = head.get_extra_state() if head.state_differs else None
        write({"state_dict": {}}, own, rows, place, "step-00000001", processes)

    def load() -> None:
        if isinstance(head, HashingForest):
            head.index_refresh.current = None  # as when a training begins
        stored = Stored(f"{place}/step-00000001")
        stored.fill(rows, processes)
        if (state := stored.local(processes)) is not None:
            head.set_extra_state(state)

    line = {"held_bytes": held}
    for what, work in (("saving", save), ("loading", load)):
        before = own_memory()
        with PeakOwn() as memory:
            line[f"{what}_ms"], _ = timed(work)
        line[f"{what}_over_held"] = 1 + (memory.peak - before) / held
    return line


def _bytes(state: Any) -> int:
    """Return the bytes of all tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    return sum(map(_bytes, state.values())) if isinstance(state, dict) else 0
