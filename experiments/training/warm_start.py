"""Warm start: a training that begins with another training's backbone, and its rows of the classes that both have.

The rows may come from a file instead.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

from heads import CenterHead
from heads.group.collectives import sum_over_processes
from heads.rows.class_rows import ClassRows
from heads.rows.initial import INIT_STD

from ..models.trained import Trained
from .arcface_files import open_arcface
from .class_means import class_means
from .evaluation import live_model
from .module import HeadModule
from .row_file import RowFile, is_file

SOFTMAX = "heads.objectives.CrossEntropy"


class Source(Protocol):
    """The result of another training.

    Attributes:
        num_classes: 0 without class centers.
        class_names: empty for classes without names.
    """

    num_classes: int
    class_names: Sequence[str]

    @property
    def objective(self) -> str | None:
        """Class of its objective, with its module; None for the softmax."""
        ...

    @property
    def backbone_state(self) -> dict[str, Tensor]:
        """Weights of the backbone by name."""
        ...

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the class ids (k,) and the rows (k, width) of each block."""
        ...

    def shared_bias(self) -> float | None:
        """Return the bias that all classes share; None without one."""
        ...


def open_source(path: str) -> Source:
    """Open files of arcface_torch or a checkpoint of this program.

    Raises:
        ValueError: neither can be read there.
    """
    return open_arcface(Path(path)) or Trained(path, "warm_start.checkpoint")


class WarmStart(L.Callback):
    """A callback that loads `warm_start.checkpoint` and `warm_start.rows` into a module that has not trained yet.

    Args:
        config: the options; a checkpoint or a file of rows is given.
        num_classes, embedding_size: C and D of the head.
    """

    def __init__(self, config: DictConfig, num_classes: int, embedding_size: int):
        self.config = config
        self.source = open_source(config.checkpoint) if config.checkpoint is not None else None
        self.row_file = RowFile(config.rows, num_classes, embedding_size) if is_file(config.rows) else None

    def load_backbone(self, backbone: nn.Module) -> None:
        """Load the weights. Call this before the head is prepared: a head may copy the backbone."""
        if self.source is None:
            return
        try:
            backbone.load_state_dict(self.source.backbone_state)
        except RuntimeError as error:
            raise ValueError(
                f"warm_start.checkpoint={self.config.checkpoint} has weights of another backbone than backbone=; use "
                f"the backbone it was trained with: {error}"
            ) from error

    @torch.no_grad()
    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        head, is_rank_zero = module.head, module.processes.is_rank_zero
        centers = head.class_centers if head.class_centers is not None and head.class_centers.learned else None
        if self.row_file is not None:
            if centers is None or centers.rows_per_class > 1:
                has = "none" if centers is None else f"{centers.rows_per_class} rows a class"
                raise ValueError(
                    f"warm_start.rows={self.config.rows} needs a head that stores one row a class, and "
                    f"{type(head).__name__} stores {has}; use head=full, pfc or forest"
                )
            report = self.row_file.load(centers, module.processes)
            if is_rank_zero:
                print(f"Warm start: {'the backbone was loaded; ' if self.source else ''}{report}", flush=True)
            return
        assert self.source is not None
        if isinstance(head, CenterHead) and centers is not None and self.source.num_classes:
            self._load_centers(trainer, module, head, self.source)
            return
        bias = ""
        if isinstance(head, CenterHead):
            bias = self._load_bias(self.source, head, self._has_objective_of(self.source, module))
        if is_rank_zero:
            print(f"Warm start: the backbone was loaded; there are no class centers to load{bias}", flush=True)

    def _load_centers(self, trainer: L.Trainer, module: HeadModule, head: CenterHead, source: Source) -> None:
        """Load the source's rows of known classes, and begin new classes at their mean images. Print a report."""
        new_of_old = self._match(source, module.data.class_names, module.data.train.num_classes)
        same_objective = self._has_objective_of(source, module)
        norm = self._load_rows(source, new_of_old, head.centers, same_objective)
        bias = self._load_bias(source, head, same_objective)
        known = np.zeros(module.data.train.num_classes, dtype=bool)
        known[new_of_old[new_of_old >= 0]] = True
        averaged = self._average(trainer, module, ~known, norm) if self.config.rows == "mean" else 0
        if module.processes.is_rank_zero:
            kept = int(known.sum())
            print(
                f"Warm start: the backbone and the rows of {kept:,} classes were loaded, matched by "
                f"{self.config.classes}; new classes have {averaged:,} rows from the mean of their images and "
                f"{len(known) - kept - averaged:,} random rows; {source.num_classes - kept:,} classes are dropped"
                f"{bias}",
                flush=True,
            )

    def _match(self, source: Source, names: Sequence[str], num_classes: int) -> NDArray[np.int64]:
        """Return the new number of each old class (C,), -1 for classes that are unknown here."""
        old_names = source.class_names
        if self.config.classes == "id":
            old = np.arange(source.num_classes)
            return np.where(old < num_classes, old, -1)
        for owner, class_names in (("the checkpoint", old_names), ("the data set", names)):
            if not len(class_names):
                raise ValueError(
                    f"warm_start.classes=name cannot match classes, because {owner} has no class names; "
                    "warm_start.classes=id matches class i to class i"
                )
            if len(set(class_names)) < len(class_names):
                raise ValueError(
                    f"warm_start.classes=name cannot match classes, because {owner} has duplicate class names; "
                    "warm_start.classes=id matches class i to class i"
                )
        number_of = {name: number for number, name in enumerate(names)}
        return np.array([number_of.get(name, -1) for name in old_names], dtype=np.int64)

    def _has_objective_of(self, source: Source, module: HeadModule) -> bool:
        """Return whether source and training have the same objective, whose biases therefore mean the same."""
        here = module.origin.config.get("objective", {}).get("_target_")
        return (source.objective or SOFTMAX) == (here or SOFTMAX)

    def _load_bias(self, source: Source, head: CenterHead, same_objective: bool) -> str:
        """Load the bias that all classes share, if both trainings have the same one. Return a clause for the report."""
        if head.shared_bias is None:
            return ""
        value = source.shared_bias() if same_objective else None
        if value is None:
            return "; the bias of all classes starts at its initial value"
        head.shared_bias.value.fill_(value)
        return "; the bias of all classes was loaded"

    def _load_rows(
        self, source: Source, new_of_old: NDArray[np.int64], centers: ClassRows, same_objective: bool
    ) -> float:
        """Write this process's known rows; return the mean norm of the known rows of all processes."""
        total = torch.zeros(2, dtype=torch.float64)
        for classes, rows in source.rows():
            rows_per_class, columns = rows[0].numel() // rows.shape[-1], rows.shape[-1]
            if rows_per_class != centers.rows_per_class:
                raise ValueError(
                    f"warm_start.checkpoint={self.config.checkpoint} has {rows_per_class} rows a class, and this head "
                    f"{centers.rows_per_class}; use as many, or the rows that python -m experiments.subcenters writes"
                )
            if columns != centers.width or (columns > centers.embedding_size and not same_objective):
                raise ValueError(
                    f"warm_start.checkpoint={self.config.checkpoint} has rows of {columns} columns for "
                    f"{_name(source.objective)}, and this head's have {centers.width}; use the embedding_size, "
                    "margin and objective it was trained with"
                )
            local = centers.local(torch.from_numpy(new_of_old[classes.numpy()]))
            ids, order = local.sort()
            order = order[ids >= 0]
            chosen = rows[order].to(centers.like).view(-1, columns)
            centers.write(local[order].to(centers.like.device), "rows", chosen)
            total += torch.tensor([chosen[:, : centers.embedding_size].norm(dim=1).double().sum(), len(chosen)])
        centers.version += 1
        total = sum_over_processes(total.to(centers.like.device), centers.process_group)
        return float(total[0] / total[1]) if total[1] else INIT_STD * centers.embedding_size**0.5

    def _average(self, trainer: L.Trainer, module: HeadModule, new: NDArray[np.bool_], norm: float) -> int:
        """Write rows of this norm in the direction of the mean image of each new class; return their number.

        Of several rows a class, the others remain as they were drawn.
        """
        assert isinstance(module.head, CenterHead)
        centers = module.head.centers
        model = live_model(trainer, module)
        wanted = np.flatnonzero(new)
        local = centers.local(torch.from_numpy(wanted))
        own = local >= 0
        means, counts = class_means(model, module.data, wanted[own.numpy()], self.config.images, "new classes")
        seen = (counts > 0).cpu()
        index, order = local[own][seen].sort()
        index = index.to(centers.like.device)
        rows = centers.read(index)
        rows[:: centers.rows_per_class, : centers.embedding_size] = norm * means.to(rows)[seen][order]
        centers.write(index, "rows", rows)
        centers.version += 1
        return int(sum_over_processes(seen.sum(), centers.process_group))


def _name(objective: str | None) -> str:
    """Return the name of an objective's class."""
    return f"objective={(objective or SOFTMAX).rpartition('.')[2]}"
