"""Starts a training from what another learned of other classes: its backbone, and the rows of classes known to both.

Takes a checkpoint of this program, or what insightface's arcface_torch leaves: model.pt or backbone.pth, and the class
centers that each of its processes wrote.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

from heads import CenterHead
from heads.group.collectives import sum_over_processes
from heads.rows.centers import ClassCenters
from heads.rows.initial import INIT_STD

from ..models.trained import Trained
from .class_means import class_means
from .evaluation import model_in
from .module import HeadModule

BLOCK = 2**16  # classes at a time
BACKBONES = ("model.pt", "backbone.pth")
SHARDS = (r"checkpoint_gpu_(\d+)\.pt", r"softmax_fc_gpu_(\d+)\.pt", r"rank[_:](\d+)_softmax_weight\.pt")


class Source(Protocol):
    """What another training left."""

    num_classes: int  # 0 where it kept no class centers
    class_names: Sequence[str]  # empty where they have none

    @property
    def backbone_state(self) -> dict[str, Tensor]:
        """Weights by name."""
        ...

    def rows(self) -> Iterator[tuple[int, Tensor]]:
        """First class and rows (k, width) of each block, in order."""
        ...


class WarmStart(L.Callback):
    """Puts `warm_start.checkpoint` into a module that has not trained yet."""

    def __init__(self, config: DictConfig):
        self.config = config
        self.source = opened(config.checkpoint)

    def load_backbone(self, backbone: nn.Module) -> None:
        """Before the head sees it: one that copies the backbone copies what it learned."""
        try:
            backbone.load_state_dict(self.source.backbone_state)
        except RuntimeError as error:
            raise ValueError(
                f"warm_start.checkpoint={self.config.checkpoint}: its backbone is another than backbone=: {error}"
            ) from error

    @torch.no_grad()
    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        head, first = module.head, module.processes.is_rank_zero
        if not isinstance(head, CenterHead) or not self.source.num_classes:
            if first:
                print("Warm start: the backbone; there are no class centers to take over", flush=True)
            return
        new_of_old = self._known(module.data.class_names, module.data.train.num_classes)
        norm = self._take_over(new_of_old, head.centers)
        known = np.zeros(module.data.train.num_classes, dtype=bool)
        known[new_of_old[new_of_old >= 0]] = True
        averaged = self._average(trainer, module, ~known, norm) if self.config.rows == "mean" else 0
        if first:
            kept = int(known.sum())
            print(
                f"Warm start: the backbone and the rows of {kept:,} classes known by {self.config.classes}; new are "
                f"{averaged:,} rows from the mean of their images and {len(known) - kept - averaged:,} at random; "
                f"{self.source.num_classes - kept:,} classes are dropped",
                flush=True,
            )

    def _known(self, names: Sequence[str], num_classes: int) -> NDArray[np.int64]:
        """The class here of each class there (C,), -1 for those that are not known."""
        there = self.source.class_names
        if self.config.classes == "id":
            old = np.arange(self.source.num_classes)
            return np.where(old < num_classes, old, -1)
        for what, these in (("the checkpoint", there), ("the data set", names)):
            if not len(these):
                raise ValueError(
                    f"warm_start.classes=name: {what} has no class names; warm_start.classes=id takes class i for i"
                )
            if len(set(these)) < len(these):
                raise ValueError(f"warm_start.classes=name: names repeat in {what}; warm_start.classes=id needs none")
        here = {name: place for place, name in enumerate(names)}
        return np.array([here.get(name, -1) for name in there], dtype=np.int64)

    def _take_over(self, new_of_old: NDArray[np.int64], centers: ClassCenters) -> float:
        """Writes the known rows of this process; the mean length of those of all."""
        total = torch.zeros(2, dtype=torch.float64)
        for start, rows in self.source.rows():
            if rows.shape[1] != centers.width:
                raise ValueError(
                    f"warm_start.checkpoint={self.config.checkpoint}: its rows have {rows.shape[1]} columns, this "
                    f"head's {centers.width}; start with the embedding_size and margin they were trained with"
                )
            local = centers.shard.local(torch.from_numpy(new_of_old[start : start + len(rows)]))
            ids, order = local.sort()
            order = order[ids >= 0]
            chosen = rows[order].to(centers.like)
            centers.write(local[order].to(centers.like.device), "rows", chosen)
            total += torch.tensor([chosen[:, : centers.embedding_size].norm(dim=1).double().sum(), len(chosen)])
        centers.version += 1
        total = sum_over_processes(total.to(centers.like.device), centers.process_group)
        return float(total[0] / total[1]) if total[1] else INIT_STD * centers.embedding_size**0.5

    def _average(self, trainer: L.Trainer, module: HeadModule, new: NDArray[np.bool_], norm: float) -> int:
        """Writes rows of new classes, of this length, toward the mean of their images; how many over all processes."""
        assert isinstance(module.head, CenterHead)
        centers = module.head.centers
        model = model_in(trainer, module)
        own, means, counts = class_means(model, module.data, new, centers.shard, self.config.images, "new classes")
        seen = (counts > 0).to(centers.like.device)
        rows = torch.zeros(int(seen.sum()), centers.width, device=centers.like.device)
        rows[:, : centers.embedding_size] = norm * means.to(rows)[seen]
        centers.write(torch.from_numpy(own).to(seen.device)[seen], "rows", rows.to(centers.like))
        centers.version += 1
        return int(sum_over_processes(seen.sum(), centers.process_group))


def opened(path: str) -> Source:
    folder = Path(path)
    if folder.is_file():
        return Arcface(folder, [])
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for pattern in SHARDS:
        ranks = {int(match[1]): file for file in files if (match := re.fullmatch(pattern, file.name))}
        if ranks:
            missing = sorted(set(range(max(ranks) + 1)) - set(ranks))
            if missing:
                raise ValueError(
                    f"warm_start.checkpoint={path}: holds the class centers of processes {sorted(ranks)}, those of "
                    f"{missing} are missing"
                )
            whole = [ranks[0]] if pattern == SHARDS[0] else []  # holds the backbone too
            backbones = [*(folder / name for name in BACKBONES if (folder / name).exists()), *whole]
            if not backbones:
                raise ValueError(f"warm_start.checkpoint={path}: holds no {' or '.join(BACKBONES)}")
            return Arcface(backbones[0], [ranks[rank] for rank in range(len(ranks))])
    return Trained(path, "warm_start.checkpoint")


class Arcface:
    """Files of arcface_torch, of any of its versions: a backbone, and rows (classes of the process, D) of each process
    in their order, plain or as `weight`, or `state_dict_softmax_fc` in a whole state."""

    class_names: Sequence[str] = ()

    def __init__(self, backbone: Path, shards: Sequence[Path]):
        self.backbone_file, self.shards = backbone, shards
        self.num_classes = sum(len(self._shard(path)) for path in shards)

    @cached_property
    def backbone_state(self) -> dict[str, Tensor]:
        state = self._loaded(self.backbone_file)
        weights = state.get("state_dict_backbone", state) if isinstance(state, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
            raise ValueError(f"warm_start.checkpoint={self.backbone_file}: holds no weights of a backbone by name")
        return {name.removeprefix("module."): each for name, each in weights.items()}

    def rows(self) -> Iterator[tuple[int, Tensor]]:
        first = 0
        for path in self.shards:
            rows = self._shard(path)
            for start in range(0, len(rows), BLOCK):
                yield first + start, rows[start : start + BLOCK].float()
            first += len(rows)

    def _shard(self, path: Path) -> Tensor:
        state = self._loaded(path)
        if isinstance(state, dict):
            inner = state.get("state_dict_softmax_fc", state)
            state = inner.get("weight") if isinstance(inner, dict) else None
        if not isinstance(state, Tensor) or state.ndim != 2:
            raise ValueError(f"warm_start.checkpoint={path}: holds no class centers (classes, embedding size)")
        return state

    def _loaded(self, path: Path) -> Any:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise ValueError(f"warm_start.checkpoint={path}: cannot be read ({error})") from error
