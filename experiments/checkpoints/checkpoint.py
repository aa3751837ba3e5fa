"""What a checkpoint holds, and how it is written and read: by torch.distributed.checkpoint, all processes together.

Lightning's own file would hold the first process's rows only. Here the rows and row state of the head are tensors of
their own, in blocks which every process writes for itself and reads as it needs them. So a checkpoint loads on any
number of processes, and neither saving nor loading needs much memory beside what is trained. All else is JSON with
tensors aside (`state.py`): reading a checkpoint runs nothing of it.
"""

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from heads.rows.initial import initial_rows

from ..launching.processes import Processes
from .blocks import BLOCK_BYTES, InBlocks, Stretch
from .files import Reader, Writer, metadata_of
from .manifest import Block, DamageError, manifest_of, wrong_sizes
from .state import packed, unpacked
from .storage import CheckpointStore, open_store

SHARED = "lightning"
CENTERS = "head.centers."  # tensors of all classes begin so: rows and row state
ROWS = f"{CENTERS}rows"


class CheckpointError(Exception):
    """A checkpoint could not be written or read; one sentence that says which, why, and what is left."""


def write(
    shared: Any,
    own: Any,
    rows: dict[str, Tensor],
    to: CheckpointStore,
    name: str,
    processes: Processes,
    initial: dict[str, int] | None = None,
) -> None:
    """Writes a checkpoint: it is there in full on return.

    Args:
        shared: what all processes hold alike; the first one's is kept.
        own: what is this process's alone.
        rows: tensors of all processes' classes, as `Head.sharded_state` has them.
        initial: seed and embedding_size of the class centers, by which rows that were never written are drawn.

    Raises:
        CheckpointError: on all processes; what was there before stays.
    """
    state, failure = rows, None
    try:
        state = {
            **rows,
            **packed(own, own_name(processes)),
            **(packed(shared, SHARED) if processes.is_rank_zero else {}),
        }
    except ValueError as error:
        failure = str(error)
    if failures := [each for each in processes.gather(failure) if each]:
        raise CheckpointError(f"checkpoint.dir={to}: {name} could not be written ({failures[0]})")
    write_tensors(state, to, name, processes, initial)


def write_tensors(
    tensors: dict[str, Tensor],
    to: CheckpointStore,
    name: str,
    processes: Processes,
    initial: dict[str, int] | None = None,
) -> None:
    """Writes a checkpoint of these tensors, each process its own and its part of those of all."""

    def attempt() -> None:
        processes.rank_zero_call(lambda: to.begin(name))
        with quiet():
            dcp.save(
                tensors,
                storage_writer=Writer(to, name, processes.rank, initial),
                planner=InBlocks(),
                process_group=processes.control,
                no_dist=processes.world_size == 1,
            )
        processes.rank_zero_call(lambda: to.commit(name))
        processes.rank_zero_call(lambda: to.set_alias("latest", name))

    try:
        _persistently(attempt, f"checkpoint.dir={to}: {name} could not be written", to)
    except CheckpointError:
        processes.rank_zero_call(lambda: to.abandon(name))  # on a full disk, logs need the room
        raise


class Stored:
    """A checkpoint on disk, looked at before it is read.

    Args:
        option: that names it, for errors.

    Attributes:
        tensors: it holds, by name: shape, dtype, and who wrote what of them.

    Raises:
        ValueError: it is missing, damaged or no checkpoint.
    """

    def __init__(self, path: str, option: str = "resume"):
        self.path, self.option = path, option
        folder, _, self.name = path.rstrip("/").rpartition("/")
        self.place = open_store(folder)
        try:
            manifest = _retried(lambda: manifest_of(self.place, self.name), self.place)
            self.initial = manifest.initial
            self.metadata = metadata_of(manifest)
            for _, sentence in wrong_sizes(manifest, self.place.sizes(self.name)):
                raise DamageError(sentence)
            if SHARED not in manifest.tensors:
                raise DamageError("it is no checkpoint of a training")
        except (DamageError, ValueError, OSError) as error:
            raise self.refused(error) from error
        found = self.metadata.state_dict_metadata.items()
        self.tensors = {name: each for name, each in found if isinstance(each, TensorStorageMetadata)}

    def shared(self, processes: Processes | None = None) -> Any:
        """Return what `write` got as shared. With `processes` all of them call."""
        tensors = self._blank(SHARED)
        self.load(tensors, processes)
        try:
            shared = unpacked(tensors, SHARED)
            weights = shared["state_dict"].items()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self.refused(error) from error
        for name, each in weights:
            if isinstance(each, Tensor) and each.is_floating_point() and each.isnan().any():
                raise self.refused(_diverged(name))
        return shared

    def local(self, processes: Processes) -> Any:
        """Return what `write` got of this process, or of the first if another number of them wrote it."""
        mine = own_name(processes)
        if mine not in self.tensors:
            mine = next(key for key in self.tensors if key.startswith("process-0-of-") and "/" not in key)
        tensors = self._blank(mine, in_file=True)
        self.load(tensors, processes)
        try:
            return unpacked(tensors, mine)
        except ValueError as error:
            raise self.refused(error) from error

    def fill(self, rows: dict[str, Tensor], processes: Processes) -> None:
        """Fills the rows and row state of a head in place. Nothing is touched if names or shapes do not fit."""
        kept = {name for name in self.tensors if name.startswith("head.")}
        if kept != set(rows):
            there, wanted = (sorted(key.rpartition(".")[2] for key in names) for names in (kept, rows))
            raise ValueError(
                f"{self.option}={self.path}: holds the row state {there}, and this run's head and optimizer keep "
                f"{wanted}; resume with those it was trained with"
            )
        for name, tensor in rows.items():
            if self.tensors[name].size != tensor.shape:
                raise ValueError(
                    f"{self.option}={self.path}: its class centers are {list(self.tensors[name].size)} (classes, "
                    f"embedding size), this run's {list(tensor.shape)}; resume with the same data and embedding_size"
                )
        self.load(rows, processes)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, whoever wrote them."""
        stored = self.tensors[name]
        rows = torch.empty((stop - start, *stored.size[1:]), dtype=stored.properties.dtype)
        self.load({name: rows}, planner=Stretch(name, start, rows))
        return rows

    def load(
        self, tensors: Mapping[str, Tensor], processes: Processes | None = None, planner: dcp.LoadPlanner | None = None
    ) -> None:
        """Fills tensors in place. With `processes` all of them call, and where it fails for one it fails for all."""

        def attempt() -> None:
            with quiet():
                dcp.load(
                    dict(tensors),
                    storage_reader=Reader(self.place, self.name, self.metadata, self._mend),
                    planner=planner,
                    process_group=processes.control if processes else None,
                    no_dist=processes is None or processes.world_size == 1,
                )

        try:
            _persistently(attempt, f"{self.option}={self.path}: could not be read", self.place)
        except CheckpointError as error:
            raise ValueError(f"{error}{self._others()}") from error
        except DamageError as error:
            raise self.refused(error) from error

    def refused(self, reason: object) -> ValueError:
        return ValueError(f"{self.option}={self.path}: {reason}{self._others()}")

    def _mend(self, name: str, block: Block, values: Tensor) -> None:
        """Refuse a block of class centers with NaN or Inf; draw the rows that were never written, which are zeros.

        All that reads rows of a checkpoint reads them through here.
        """
        if not name.startswith(CENTERS) or not values.is_floating_point():
            return
        if not math.isfinite(values.sum()) and not values.isfinite().all():  # finite numbers may have no finite sum
            wrong = int((~values.flatten(1).isfinite()).any(1).nonzero()[0]) + block.offsets[0]
            raise DamageError(_diverged(f"{name} of class {wrong:,}"))
        if name == ROWS and self.initial is not None and (values[:, 0] == 0).any():
            blank = (values == 0).all(dim=1)
            classes = torch.arange(block.offsets[0], block.offsets[0] + len(values))[blank]
            D = self.initial["embedding_size"]
            values[blank, :D] = initial_rows(classes, D, self.initial["seed"]).to(values)

    def _blank(self, prefix: str, *, in_file: bool = False) -> dict[str, Tensor]:
        """Room for the tensors that `packed` made under this prefix; large ones in a file, where that is enough."""
        blank = {}
        for name, each in self.tensors.items():
            if name == prefix or name.startswith(f"{prefix}/"):
                dtype, size = each.properties.dtype, each.size
                if in_file and size.numel() * dtype.itemsize > BLOCK_BYTES:
                    with tempfile.NamedTemporaryFile(prefix="headcount-") as file:
                        blank[name] = torch.from_file(file.name, True, size.numel(), dtype=dtype).view(size)
                else:
                    blank[name] = torch.empty(size, dtype=dtype)
        return blank

    def _others(self) -> str:
        others = [name for name in self.place.complete() if name != self.name]
        if not others:
            return "; there is no other beside it"
        return f"; remove it, and go on with {self.option}={self.place}/{others[-1]}"


def own_name(processes: Processes) -> str:
    """What a process keeps for itself alone."""
    return f"process-{processes.rank}-of-{processes.world_size}"


def _diverged(what: str) -> str:
    return (
        f"{what} holds NaN or Inf, and did when it was written: the training had diverged by then, or its memory was "
        "faulty"
    )


def _persistently(attempt: Callable[[], None], failed: str, where: CheckpointStore) -> None:
    """Attempts again where it may help; of all processes, since it fails on all alike."""
    try:
        _retried(attempt, where)
    except (CheckpointException, OSError) as error:
        cause = _cause(error)
        if isinstance(cause, KeyboardInterrupt | DamageError):
            raise cause from error
        raise CheckpointError(f"{failed} ({cause if isinstance(cause, OSError) else repr(cause)})") from error


def _retried(attempt: Callable[[], Any], where: CheckpointStore) -> Any:
    for wait in where.retry_seconds:
        try:
            return attempt()
        except (CheckpointException, OSError) as error:
            if isinstance(_cause(error), FileNotFoundError | PermissionError | KeyboardInterrupt | DamageError):
                raise  # waiting changes nothing
        time.sleep(wait)
    return attempt()


def quiet() -> warnings.catch_warnings:
    """One process needs no process group, of which torch warns."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _cause(error: BaseException) -> BaseException:
    """What went wrong first, on the process where it did."""
    if isinstance(error, CheckpointException) and error.failures:
        error = error.failures[min(error.failures)][0]
    deeper: BaseException | None = error
    while deeper is not None and not isinstance(deeper, OSError | KeyboardInterrupt | DamageError):
        deeper = deeper.__cause__ or deeper.__context__
    return deeper or error
