"""Class centers from a .npy file, with which a training begins."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.arrays import floats, mapped
from data.options import absolute
from heads.group.collectives import sum_over_processes
from heads.rows.class_rows import ClassRows

from ..launching.processes import Processes

OPTION = "warm_start.rows"
ENDING = ".npy"
BLOCK = 2**14  # rows read together


def is_file(rows: str) -> bool:
    """Return whether `warm_start.rows` is a file, and not a word."""
    return rows.endswith(ENDING)


class RowFile:
    """An array (C, D) of floats, row i for class i.

    Args:
        path: path of the .npy file, which is memory-mapped.
        num_classes, embedding_size: C and D of the head.

    Raises:
        ValueError: the file cannot be read, or its array has another shape.
    """

    def __init__(self, path: str, num_classes: int, embedding_size: int):
        self.path = absolute(path)
        self.array = mapped(OPTION, self.path, "f", 2)
        if self.array.shape != (num_classes, embedding_size):
            count, width = self.array.shape
            raise ValueError(
                f"{OPTION}={path} has {count:,} rows of {width:,} columns, and the head has {num_classes:,} classes "
                f"with embedding_size={embedding_size}; give a row for each class id, of the size of the embeddings"
            )

    @torch.no_grad()
    def load(self, centers: ClassRows, processes: Processes) -> str:
        """Write this process's rows. A column with a bias keeps its initial values. Return a report.

        Raises:
            ValueError: a row has NaN, Inf or zeros only; on all processes.
        """
        width, size = centers.embedding_size, centers.shard.size
        lengths, failure = torch.zeros(2, dtype=torch.float64), None
        try:
            for start in range(0, size, BLOCK):
                part = slice(start, min(start + BLOCK, size))
                rows = centers.read(part).clone()
                lengths[0] += rows[:, :width].norm(dim=1).double().sum().cpu()
                rows[:, :width] = self._rows(centers.classes(part).cpu().numpy()).to(rows)
                lengths[1] += rows[:, :width].norm(dim=1).double().sum().cpu()
                centers.write(part, "rows", rows)
        except ValueError as error:
            failure = str(error)
        if failures := [each for each in processes.gather(failure) if each]:
            raise ValueError(failures[0])
        centers.version += 1
        total = sum_over_processes(lengths.to(centers.like.device), centers.process_group)
        initial, loaded = (total / centers.shard.num_classes).tolist()
        return (
            f"the rows of {centers.shard.num_classes:,} classes were loaded from {Path(self.path).name}; their mean "
            f"length is {loaded:.3g}, and that of initial rows {initial:.3g}"
        )

    def _rows(self, classes: NDArray[np.int64]) -> Tensor:
        rows = floats(self.array, classes, f"{OPTION}={self.path}")
        if not (has_direction := rows.any(axis=1)).all():
            row = classes[np.argmin(has_direction)]
            raise ValueError(f"{OPTION}={self.path}: row {row:,} has zeros only, and a class center needs a direction")
        return torch.from_numpy(rows)
