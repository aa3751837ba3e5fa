"""A training's checkpoint, read for its model alone: what goes on from it is `experiments.checkpoints.checkpoint`'s."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from yaml import YAMLError

from data.preprocessing import Preprocessing
from data.records import DataSet

from ..checkpoints.checkpoint import ROWS, Stored
from ..checkpoints.finding import find
from ..instantiate import instantiate
from ..launching.processes import Processes
from . import targets
from .backbone import autocast, build_backbone, check_precision
from .fingerprint import difference
from .model import BLOCK, Centers, Model

READ = 16 * BLOCK  # rows read together


def about(config: DictConfig, shape: Sequence[int], preprocessing: Preprocessing | None) -> dict[str, Any]:
    """What a checkpoint tells of its model, so that it can be used without its data."""
    return {
        "config": OmegaConf.to_yaml(config, resolve=True),
        "shape": list(shape),
        "preprocessing": asdict(preprocessing) if preprocessing else None,
    }


class Trained:
    """
    Args:
        path: of a run's folder, or one of its checkpoints, or a URL.
        option: that names it, for errors.
        trust: classes and functions that its config may name, besides those of this project's conf/.

    Attributes:
        config: of the training, resolved.
        preprocessing: of images; None where it trained on vectors.
        shape: of an example.
        num_classes: 0 where it kept no class centers.
        class_names: empty where they have none.
        backbone_state: weights by name.

    Raises:
        ValueError: no readable checkpoint of this program.
    """

    ROWS = ROWS

    def __init__(self, path: str, option: str = "checkpoint", trust: Collection[str] = ()):
        if path == "auto" or (found := find(path, Path(), None, option)) is None:
            raise ValueError(f"{option}={path}: the folder of a run, or one of its checkpoints, is needed")
        self.path, self.trust = found, trust
        self.stored = Stored(self.path, option)
        shared: dict[str, Any] = self.stored.shared()
        self.num_classes = self.stored.tensors[self.ROWS].size[0] if self.ROWS in self.stored.tensors else 0
        weights = shared["state_dict"].items()
        self.backbone_state = {name.removeprefix("backbone."): w for name, w in weights if name.startswith("backbone.")}
        try:
            self._names: bytes = shared["class_names"]
            self._about_data: Any = shared.get("data")  # imported ones have none
            self.class_names: Sequence[str] = json.loads(self._names)
            model = shared["model"]  # as `about` has it
            self.config: DictConfig = OmegaConf.create(model["config"])  # type: ignore[assignment]
            self.shape: tuple[int, ...] = tuple(model["shape"])
            told = model["preprocessing"]
            self.preprocessing = Preprocessing.from_dict(told) if told else None
            targets.check_resolved(self.config, "config")
        except (ValueError, TypeError, KeyError, YAMLError) as error:
            raise self.stored.refused(f"it does not tell of its model ({error!r})") from error

    def __str__(self) -> str:
        backbone = str(OmegaConf.select(self.config, "backbone._target_")).rpartition(".")[2]
        of = f", {self.num_classes:,} class centers" if self.num_classes else ""
        return f"{backbone} with embeddings of {self.config.embedding_size}{of}: {self.path}"

    def backbone(self) -> nn.Module:
        """Built and filled, in eval mode."""
        self.check_targets("backbone")
        backbone = build_backbone(self.config, self.shape)
        backbone.load_state_dict(self.backbone_state)
        return backbone.eval()

    def data(self) -> DataSet:
        """Built as it was trained on. Raises ValueError where the files have changed since."""
        self.check_targets("noise", "data")
        made: DataSet = instantiate(self.config.noise, _partial_=True)(instantiate(self.config.data))
        if (told := difference(self._about_data, self._names, made)) is not None:
            raise ValueError(f"{self.stored.option}={self.path}: its own data have changed: {told}; name others to use")
        return made

    def check_targets(self, *names: str) -> None:
        """Raise ValueError unless these parts of its config may be built."""
        for name in names:
            targets.check(self.config[name], name, self.trust, f"{self.stored.option}={self.path}")

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """First class and rows (k, width), in order."""
        stop = self.num_classes if stop is None else stop
        for first in range(start, stop, READ):
            yield first, self.stored.read_rows(self.ROWS, first, min(first + READ, stop))

    @property
    def normalize(self) -> bool:
        """Whether embeddings and rows are brought to unit length; otherwise the rows' last column is a bias. Of a head
        with class centers only."""
        self.check_targets("margin")
        return bool(instantiate(self.config.margin).normalize)


class StoredCenters:
    """Of a checkpoint, read a few at a time."""

    def __init__(self, trained: Trained, processes: Processes):
        self.trained, self.processes = trained, processes
        self.num_classes, self.class_names = trained.num_classes, trained.class_names
        self.normalize = trained.normalize

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        rank, world_size = self.processes.rank, self.processes.world_size
        for number in range(rank, -(-self.num_classes // READ), world_size):
            start = number * READ
            for first, rows in self.trained.rows(start, min(start + READ, self.num_classes)):
                for at in range(0, len(rows), BLOCK):
                    yield first + at, rows[at : at + BLOCK].float().to(self.processes.device)


def _no_data() -> DataSet:
    raise ValueError("this checkpoint was imported, and has no data of its own")


def model_of(
    trained: Trained, processes: Processes, precision: str, num_workers: int = 0, batch_size: int = 512
) -> Model:
    """To be judged or used, on the device of this process."""
    centers: Centers | None = StoredCenters(trained, processes) if trained.num_classes else None
    check_precision(precision)
    if trained.config.data is None:
        data: Callable[[], DataSet] = _no_data
    else:
        data = cache(trained.data)

    return Model(
        trained.backbone().to(processes.device),
        trained.config.embedding_size,
        processes,
        partial(autocast, precision, processes.device),
        trained.preprocessing,
        data,
        centers,
        num_workers,
        batch_size,
        trained.path,
    )
