"""The model in a checkpoint, read without its training."""

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from yaml import YAMLError

from data.preprocessing import Preprocessing
from data.records import DataSet
from heads.rows.computed import ComputedCenters
from heads.rows.formulas import described

from ..checkpoints.finding import find
from ..checkpoints.stored import ROWS, Stored
from ..instantiate import instantiate
from ..launching.processes import Processes
from . import targets
from .backbone import autocast, build_backbone, check_precision
from .fingerprint import difference
from .model import BLOCK, Centers, Model, by_class

READ = 16 * BLOCK  # rows read at a time
EXTRA = "head._extra_state"  # state of the head that is not sharded
FORMULA = "head.centers._extra_state"  # description of the formula of computed rows


def describe_model(config: DictConfig, shape: Sequence[int], preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Return the description of a model in a checkpoint, with which it can be used without its data."""
    return {
        "config": OmegaConf.to_yaml(config, resolve=True),
        "shape": list(shape),
        "preprocessing": asdict(preprocessing) if preprocessing else None,
    }


class Trained:
    """A checkpoint, opened for its model.

    Args:
        path: path of a run's folder or of one of its checkpoints, or a URL.
        option: option that names the path, for messages.
        trust: classes and functions that its config may name, in addition to those in this project's conf/.

    Attributes:
        config: resolved config of the training.
        preprocessing: preprocessing of images; None for a model of vectors.
        shape: shape of an example.
        num_classes: 0 without class centers.
        rows_per_class: rows of a class.
        width: columns of a row.
        class_names: empty for classes without names.
        backbone_state: weights by name.

    Raises:
        ValueError: there is no readable checkpoint of this program.
    """

    ROWS = ROWS

    def __init__(self, path: str, option: str = "checkpoint", trust: Collection[str] = ()):
        if path == "auto" or (checkpoint := find(path, Path(), None, option)) is None:
            raise ValueError(f"{option}={path} must be the folder of a run, or one of its checkpoints")
        self.path, self.trust = checkpoint, trust
        self.stored = Stored(self.path, option)
        shared: dict[str, Any] = self.stored.shared()
        weights = shared["state_dict"].items()
        self.backbone_state = {name.removeprefix("backbone."): w for name, w in weights if name.startswith("backbone.")}
        try:
            self._computed = ComputedCenters(described(formula)) if (formula := dict(weights).get(FORMULA)) else None
            self.num_classes, self.rows_per_class, self.width = self._size_of_rows()
            self._names: bytes = shared["class_names"]
            self._data_description: Any = shared.get("data")  # missing in imported checkpoints
            self.class_names: Sequence[str] = json.loads(self._names)
            model = shared["model"]  # result of `describe_model`
            self.config: DictConfig = OmegaConf.create(model["config"])  # type: ignore[assignment]
            self.shape: tuple[int, ...] = tuple(model["shape"])
            preprocessing = model["preprocessing"]
            self.preprocessing = Preprocessing.from_dict(preprocessing) if preprocessing else None
            targets.check_resolved(self.config, "checkpoint")
        except (ValueError, TypeError, KeyError, YAMLError) as error:
            raise self.stored.refused(f"it has no valid description of its model ({error!r})") from error

    def __str__(self) -> str:
        backbone = str(OmegaConf.select(self.config, "backbone._target_")).rpartition(".")[2]
        rows = f" of {self.rows_per_class} rows" if self.rows_per_class > 1 else ""
        centers = f", {self.num_classes:,} class centers{rows}" if self.num_classes else ""
        return f"{backbone} with embeddings of {self.config.embedding_size}{centers}: {self.path}"

    def _size_of_rows(self) -> tuple[int, int, int]:
        if self._computed is not None:
            return self._computed.shard.num_classes, 1, self._computed.width
        initial = self.stored.initial
        if self.ROWS not in self.stored.tensors or (initial is not None and not initial.of_classes):
            return 0, 0, 0
        num_classes, width = self.stored.tensors[self.ROWS].size
        rows_per_class = 1 if initial is None else initial.rows_per_class
        return num_classes, rows_per_class, width // rows_per_class

    def backbone(self) -> nn.Module:
        """Build the backbone, load its weights, and set it to eval mode."""
        self.check_targets("backbone")
        backbone = build_backbone(self.config, self.shape, self.preprocessing)
        backbone.load_state_dict(self.backbone_state)
        return backbone.eval()

    def data(self) -> DataSet:
        """Build the data set of the training. Raise ValueError if its files have changed since."""
        self.check_targets("noise", "data")
        data: DataSet = instantiate(self.config.noise, _partial_=True)(instantiate(self.config.data))
        if (changed := difference(self._data_description, self._names, data)) is not None:
            raise ValueError(f"{self.stored.option}={self.path} cannot use its own data: {changed}; name other data")
        return data

    def check_targets(self, *names: str) -> None:
        """Raise ValueError unless these parts of the config may be built."""
        for name in names:
            targets.check(self.config[name], name, self.trust, f"{self.stored.option}={self.path}")

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the class ids (k,) and the rows of each block: (k, width), or (k, rows_per_class, width).

        Blocks are in the order in which the rows are stored, `Stored.layout`.
        """
        for first, rows in self.stored_rows(0, self.num_classes):
            yield self.stored.classes(torch.arange(first, first + len(rows))), rows

    def rows_by_class(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first class and the rows of each block, in the order of the class ids.

        Rows in another order are first written to a temporary file.
        """
        if self.stored.layout is None:
            yield from self.stored_rows(0, self.num_classes)
            return
        with tempfile.TemporaryFile(prefix="headcount-") as file:
            for classes, rows in self.rows():
                shape, dtype = rows.shape[1:], rows.dtype
                lines = rows.reshape(len(rows), -1).view(torch.uint8).numpy()
                for number, line in zip(classes.tolist(), lines, strict=True):
                    file.seek(number * line.nbytes)
                    file.write(line.tobytes())
            file.seek(0)
            for first in range(0, self.num_classes, READ):
                read = bytearray(file.read(READ * shape.numel() * dtype.itemsize))
                yield first, torch.frombuffer(read, dtype=dtype).view(-1, *shape)

    def stored_rows(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the first slot and the rows of each block of the slots from `start` to `stop`, as `rows` does."""
        for first in range(start, stop, READ):
            end = min(first + READ, stop)
            if self._computed is not None:
                yield first, self._computed.read(slice(first, end))
            else:
                rows = self.stored.read_rows(self.ROWS, first, end)
                yield first, by_class(rows.view(-1, self.width), self.rows_per_class)

    @property
    def normalize(self) -> bool:
        """True if scores are cosines; otherwise they are inner products plus the last column of the rows, a bias.

        Only a head with class centers has this property. With objective=bce rows have a bias too, which is no part of
        the scores.
        """
        self.check_targets("margin")
        return bool(instantiate(self.config.margin).normalize)

    @property
    def objective(self) -> str | None:
        """Class of the objective, with its module; None for a training that states none."""
        target = OmegaConf.select(self.config, "objective._target_")
        return None if target is None else str(target)

    def shared_bias(self) -> float | None:
        """Return the bias that all classes share, which an objective has learned; None without one."""
        try:
            state = self.stored.shared()["state_dict"]
            if EXTRA not in state:  # each process has stored its own
                state = self.stored.local(Processes(0, 1, torch.device("cpu")))["state_dict"]
            bias = state.get(EXTRA, {}).get("shared_bias")
            return None if bias is None else float(bias["value"])
        except (TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise self.stored.refused(f"its bias of all classes cannot be read ({error!r})") from error


class StoredCenters:
    """The class centers in a checkpoint, read in blocks."""

    def __init__(self, trained: Trained, processes: Processes):
        self.trained, self.processes = trained, processes
        self.num_classes, self.class_names = trained.num_classes, trained.class_names
        self.normalize = trained.normalize

    def slots(self, classes: Tensor) -> Tensor:
        return self.trained.stored.slots(classes)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        rank, world_size = self.processes.rank, self.processes.world_size
        for number in range(rank, -(-self.num_classes // READ), world_size):
            start = number * READ
            for first, rows in self.trained.stored_rows(start, min(start + READ, self.num_classes)):
                rows = rows[..., : self.trained.config.embedding_size] if self.normalize else rows
                for offset in range(0, len(rows), BLOCK):
                    yield first + offset, rows[offset : offset + BLOCK].float().to(self.processes.device)


def _no_data() -> DataSet:
    raise ValueError("this checkpoint was imported and has no data of its own; name other data")


def model_of(
    trained: Trained, processes: Processes, precision: str, num_workers: int = 0, batch_size: int = 512
) -> Model:
    """Return the model, ready to use on this process's device."""
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
