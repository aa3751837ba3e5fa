"""Reading of checkpoints, by one process or by all together."""

import math
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from heads.rows.initial import initial_blocks
from heads.rows.layout import Layout

from ..launching.processes import Processes
from .attempts import CheckpointError, attempt_on_all, no_group_warning, retry
from .blocks import BLOCK_BYTES, RowRangePlanner
from .checkpoint import SHARED, local_prefix
from .files import Reader, metadata_of
from .manifest import Block, DamageError, InitialRows, read_manifest, wrong_sizes
from .state import unpack
from .storage import open_store

CENTERS = "head.centers."  # prefix of the tensors of all classes: rows and row state
ROWS = f"{CENTERS}rows"


class Stored:
    """A checkpoint in a store, whose manifest and file sizes are checked before it is read.

    Args:
        path: path or URL of the checkpoint.
        option: option that names the path, for messages.

    Attributes:
        tensors: shape, dtype and blocks of each tensor, by name.
        layout: the order of the class centers; None for that of the class ids.

    Raises:
        ValueError: the checkpoint is missing or damaged, or the path leads to something else.
    """

    def __init__(self, path: str, option: str = "resume"):
        self.path, self.option = path, option
        folder, _, self.name = path.rstrip("/").rpartition("/")
        self.store = open_store(folder)
        try:
            manifest = retry(lambda: read_manifest(self.store, self.name), self.store)
            self.initial = manifest.initial
            self.metadata = metadata_of(manifest)
            for _, sentence in wrong_sizes(manifest, self.store.sizes(self.name)):
                raise DamageError(sentence)
            if SHARED not in manifest.tensors:
                raise DamageError("it is not a checkpoint of a training")
        except (DamageError, ValueError, OSError) as error:
            raise self.refused(error) from error
        metadata = self.metadata.state_dict_metadata.items()
        self.tensors = {name: tensor for name, tensor in metadata if isinstance(tensor, TensorStorageMetadata)}
        self.layout = None
        if self.initial is not None and self.initial.scattered:
            self.layout = Layout(self.tensors[ROWS].size[0], self.initial.seed)

    def slots(self, classes: Tensor) -> Tensor:
        """Return where the rows of class ids are stored."""
        return classes if self.layout is None else self.layout.slots(classes)

    def classes(self, slots: Tensor) -> Tensor:
        """Return the class ids of slots."""
        return slots if self.layout is None else self.layout.classes(slots)

    def shared(self, processes: Processes | None = None) -> Any:
        """Return the state common to all processes. With `processes`, all of them must call this."""
        tensors = self._allocate(SHARED)
        self.load(tensors, processes)
        try:
            shared = unpack(tensors, SHARED)
            weights = shared["state_dict"].items()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self.refused(error) from error
        for name, weight in weights:
            if isinstance(weight, Tensor) and weight.is_floating_point() and weight.isnan().any():
                raise self.refused(_diverged(name))
        return shared

    def local(self, processes: Processes) -> Any:
        """Return the state of this process alone; that of process 0 if another number of processes wrote it."""
        prefix = local_prefix(processes)
        if prefix not in self.tensors:
            prefix = next(key for key in self.tensors if key.startswith("process-0-of-") and "/" not in key)
        tensors = self._allocate(prefix, in_file=True)
        self.load(tensors, processes)
        try:
            return unpack(tensors, prefix)
        except ValueError as error:
            raise self.refused(error) from error

    def fill(self, rows: dict[str, Tensor], processes: Processes) -> None:
        """Fill the rows and row state of a head in place. Nothing is changed if names or shapes do not fit."""
        stored_names = {name for name in self.tensors if name.startswith("head.")}
        if stored_names != set(rows):
            stored, kept = (sorted(key.rpartition(".")[2] for key in names) for names in (stored_names, rows))
            raise ValueError(
                f"{self.option}={self.path} holds the row state {stored}, and this run's head and optimizer keep "
                f"{kept}; resume with the head and the optimizer it was trained with"
            )
        for name, tensor in rows.items():
            if self.tensors[name].size != tensor.shape and not name.startswith(CENTERS):
                raise ValueError(
                    f"{self.option}={self.path} has {name} of shape {list(self.tensors[name].size)}, and this run's is "
                    f"of {list(tensor.shape)}; resume with the same training records"
                )
            if self.tensors[name].size != tensor.shape:
                raise ValueError(
                    f"{self.option}={self.path} has class centers of shape {list(self.tensors[name].size)} (classes, "
                    f"embedding size), and this run's are {list(tensor.shape)}; resume with the same data and "
                    "embedding_size"
                )
        self.load(rows, processes)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` of a tensor, written by any processes."""
        stored = self.tensors[name]
        rows = torch.empty((stop - start, *stored.size[1:]), dtype=stored.properties.dtype)
        self.load({name: rows}, planner=RowRangePlanner(name, start, rows))
        return rows

    def load(
        self, tensors: Mapping[str, Tensor], processes: Processes | None = None, planner: dcp.LoadPlanner | None = None
    ) -> None:
        """Fill tensors in place. With `processes`, all of them must call this, and it fails on all or on none."""

        def attempt() -> None:
            with no_group_warning():
                dcp.load(
                    dict(tensors),
                    storage_reader=Reader(self.store, self.name, self.metadata, self._repair),
                    planner=planner,
                    process_group=processes.control if processes else None,
                    no_dist=processes is None or processes.world_size == 1,
                )

        try:
            attempt_on_all(attempt, f"{self.option}={self.path} could not be read", self.store)
        except CheckpointError as error:
            raise ValueError(f"{error}{self._remedy()}") from error
        except DamageError as error:
            raise self.refused(error) from error

    def refused(self, reason: object) -> ValueError:
        """Return the error that refuses this checkpoint; `reason` is a clause about "it"."""
        return ValueError(f"{self.option}={self.path} cannot be used: {reason}{self._remedy()}")

    def _repair(self, name: str, block: Block, values: Tensor) -> None:
        """Refuse a block of class centers with NaN or Inf; draw the rows that were never written, which are zeros.

        Every read of rows in a checkpoint passes through this method.
        """
        if not name.startswith(CENTERS) or not values.is_floating_point():
            return
        if not math.isfinite(values.sum()) and not values.isfinite().all():  # a sum of finite numbers may overflow
            wrong = (~values.flatten(1).isfinite()).any(1).nonzero()[:1, 0] + block.offsets[0]
            raise DamageError(_diverged(f"{name} of class {int(self.classes(wrong)):,}"))
        if name == ROWS and self.initial is not None and (values[:, 0] == 0).any():
            blank = (values == 0).all(dim=1)
            slots = torch.arange(block.offsets[0], block.offsets[0] + len(values))[blank]
            values[blank] = drawn(self.initial, self.classes(slots), values)

    def _allocate(self, prefix: str, *, in_file: bool = False) -> dict[str, Tensor]:
        """Return empty tensors for those that `pack` made under this prefix.

        Args:
            in_file: whether large tensors may be memory-mapped files.
        """
        empty = {}
        for name, stored in self.tensors.items():
            if name == prefix or name.startswith(f"{prefix}/"):
                dtype, size = stored.properties.dtype, stored.size
                if in_file and size.numel() * dtype.itemsize > BLOCK_BYTES:
                    with tempfile.NamedTemporaryFile(prefix="headcount-") as file:
                        empty[name] = torch.from_file(file.name, True, size.numel(), dtype=dtype).view(size)
                else:
                    empty[name] = torch.empty(size, dtype=dtype)
        return empty

    def _remedy(self) -> str:
        others = [name for name in self.store.complete() if name != self.name]
        if not others:
            return "; there is no other checkpoint in the folder"
        return f"; remove it, and use {self.option}={self.store}/{others[-1]}"


def drawn(initial: InitialRows, classes: Tensor, like: Tensor) -> Tensor:
    """Return the initial rows of classes, one line a class, of the width, dtype and device of `like`."""
    bias = initial.bias if like.shape[1] > initial.rows_per_class * initial.embedding_size else None
    size, rows = initial.embedding_size, initial.rows_per_class
    return initial_blocks(classes, size, initial.seed, rows_per_class=rows, bias=bias, like=like)


def _diverged(name: str) -> str:
    return (
        f"{name} holds NaN or Inf, and did so when it was written: the training had diverged, or the memory was faulty"
    )
