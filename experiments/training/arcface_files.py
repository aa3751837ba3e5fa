"""The files that insightface's arcface_torch writes: a backbone, and the class centers of each of its processes."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**16  # classes read at a time
BACKBONES = ("model.pt", "backbone.pth")
SHARDS = (r"checkpoint_gpu_(\d+)\.pt", r"softmax_fc_gpu_(\d+)\.pt", r"rank[_:](\d+)_softmax_weight\.pt")


def open_arcface(path: Path) -> "ArcfaceFiles | None":
    """Return a backbone file, or the files in a folder; None for a folder without any.

    Raises:
        ValueError: the class centers of a process, or the backbone, are missing.
    """
    if path.is_file():
        return ArcfaceFiles(path, [])
    files = sorted(path.iterdir()) if path.is_dir() else []
    for pattern in SHARDS:
        ranks = {int(match[1]): file for file in files if (match := re.fullmatch(pattern, file.name))}
        if not ranks:
            continue
        if missing := sorted(set(range(max(ranks) + 1)) - set(ranks)):
            raise ValueError(
                f"warm_start.checkpoint={path} holds the class centers of processes {sorted(ranks)}, and those of "
                f"{missing} are missing; copy all files of the training"
            )
        whole_state = [ranks[0]] if pattern == SHARDS[0] else []  # which holds the backbone too
        backbones = [*(path / name for name in BACKBONES if (path / name).exists()), *whole_state]
        if not backbones:
            raise ValueError(f"warm_start.checkpoint={path} holds no {' or '.join(BACKBONES)}; copy it into the folder")
        return ArcfaceFiles(backbones[0], [ranks[rank] for rank in range(len(ranks))])
    return None


class ArcfaceFiles:
    """A warm-start source that reads the files of any version of arcface_torch.

    A shard file holds the rows (classes of the process, D) plainly, as `weight`, or in `state_dict_softmax_fc` of a
    whole state. Processes hold consecutive classes.
    """

    class_names: Sequence[str] = ()
    objective: str | None = None  # the softmax

    def __init__(self, backbone: Path, shards: Sequence[Path]):
        self.backbone_file, self.shards = backbone, shards
        self.num_classes = sum(len(self._shard(path)) for path in shards)

    @cached_property
    def backbone_state(self) -> dict[str, Tensor]:
        """Weights of the backbone by name."""
        state = self._load(self.backbone_file)
        weights = state.get("state_dict_backbone", state) if isinstance(state, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
            raise ValueError(
                f"warm_start.checkpoint={self.backbone_file} holds no weights of a backbone by name; give a file of "
                "arcface_torch or a checkpoint of this program"
            )
        return {name.removeprefix("module."): weight for name, weight in weights.items()}

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the class ids (k,) and the rows (k, D) of each block."""
        first_class = 0
        for path in self.shards:
            rows = self._shard(path)
            for start in range(0, len(rows), BLOCK):
                block = rows[start : start + BLOCK].float()
                yield torch.arange(len(block)) + first_class + start, block
            first_class += len(rows)

    def shared_bias(self) -> float | None:
        """Return None: the softmax has no such bias."""
        return None

    def _shard(self, path: Path) -> Tensor:
        state = self._load(path)
        if isinstance(state, dict):
            inner = state.get("state_dict_softmax_fc", state)
            state = inner.get("weight") if isinstance(inner, dict) else None
        if not isinstance(state, Tensor) or state.ndim != 2:
            raise ValueError(f"warm_start.checkpoint={path} holds no class centers (classes, embedding size)")
        return state

    def _load(self, path: Path) -> Any:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise ValueError(f"warm_start.checkpoint={path} cannot be read ({error})") from error
