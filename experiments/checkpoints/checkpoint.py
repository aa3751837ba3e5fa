"""What a checkpoint holds, and how it is written and read: by torch.distributed.checkpoint, all processes together.

Lightning's own file would hold the first process's rows only. Here the rows and row state of the head are tensors of
their own, in blocks which every process writes for itself and reads as it needs them. So a checkpoint loads on any
number of processes, and neither saving nor loading needs much memory beside what is trained.
"""

import io
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ..processes import Processes
from .blocks import BLOCK_BYTES, InBlocks, Stretch
from .storage import COMPLETE, Folder, Place, place

SHARED = "lightning"


class CheckpointError(Exception):
    """A checkpoint could not be written or read; one sentence that says which, why, and what is left."""


def write(shared: Any, own: Any, rows: dict[str, Tensor], to: Place, name: str, processes: Processes) -> None:
    """Writes a checkpoint: it is there in full on return.

    Args:
        shared: what all processes hold alike; the first one's is kept.
        own: what is this process's alone.
        rows: tensors of all processes' classes, as `Head.sharded_state` has them.

    Raises:
        CheckpointError: on all processes; what was there before stays.
    """
    state = {**rows, **packed(own, own_name(processes))}
    if processes.first:
        state |= packed(shared, SHARED)

    def attempt() -> None:
        processes.by_first(lambda: to.begin(name))
        with quiet():
            dcp.save(
                state,
                storage_writer=to.writer(name),
                planner=InBlocks(),
                process_group=processes.control,
                no_dist=processes.world_size == 1,
            )
        processes.by_first(lambda: to.commit(name))
        processes.by_first(lambda: to.point("latest", name))

    _persistently(attempt, f"checkpoint.dir={to}: {name} could not be written", to)


def read(path: str, rows: dict[str, Tensor], processes: Processes) -> tuple[Any, Any]:
    """Fills `rows` in place and returns what `write` got as shared and own, which is the first process's if another
    number of them wrote it. Nothing is touched if the shapes do not fit.
    """
    stored = Stored(path)
    kept = {name for name in stored.tensors if name.startswith("head.")}
    if kept != set(rows):
        there, wanted = (sorted(key.rpartition(".")[2] for key in names) for names in (kept, rows))
        raise ValueError(
            f"resume={path}: holds the row state {there}, and this run's head and optimizer keep {wanted}; resume with "
            "those it was trained with"
        )
    for name, tensor in rows.items():
        if stored.tensors[name].size != tensor.shape:
            raise ValueError(
                f"resume={path}: its class centers are {list(stored.tensors[name].size)} (classes, embedding size), "
                f"this run's {list(tensor.shape)}; resume with the same data and embedding_size"
            )
    mine = own_name(processes)
    if mine not in stored.tensors:
        mine = next(key for key in stored.tensors if key.startswith("process-0-of-") and "/" not in key)
    tensors = {**rows, **stored.blank(SHARED), **stored.blank(mine, in_file=True)}
    stored.load(tensors, processes)
    return unpacked(tensors, SHARED), unpacked(tensors, mine)


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
        self.place = place(folder)
        try:
            self.metadata: Metadata = _retried(self.place.reader(self.name).read_metadata, self.place)
            tensors = self.metadata.state_dict_metadata.items()
            self.tensors = {name: each for name, each in tensors if isinstance(each, TensorStorageMetadata)}
            if SHARED not in self.tensors:
                raise KeyError(SHARED)
        except Exception as error:
            raise ValueError(
                f"{option}={path}: not a readable checkpoint of this program ({error!r}){self._others()}"
            ) from error
        self._check_files()

    def blank(self, prefix: str, *, in_file: bool = False) -> dict[str, Tensor]:
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

    def load(
        self, tensors: dict[str, Tensor], processes: Processes | None = None, planner: dcp.LoadPlanner | None = None
    ) -> None:
        """Fills tensors in place. With `processes` all of them call, and where it fails for one it fails for all."""

        def attempt() -> None:
            with quiet():
                dcp.load(
                    dict(tensors),
                    storage_reader=self.place.reader(self.name),
                    planner=planner,
                    process_group=processes.control if processes else None,
                    no_dist=processes is None or processes.world_size == 1,
                )

        try:
            _persistently(attempt, f"{self.option}={self.path}: could not be read", self.place)
        except CheckpointError as error:
            raise ValueError(f"{error}{self._others()}") from error

    def stretch(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, whoever wrote them."""
        stored = self.tensors[name]
        rows = torch.empty((stop - start, *stored.size[1:]), dtype=stored.properties.dtype)
        self.load({name: rows}, planner=Stretch(name, start, rows))
        return rows

    def _check_files(self) -> None:
        """A file that was cut short, before anything is read into live rows."""
        ends: dict[str, int] = {}
        for info in self.metadata.storage_data.values():
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
        sizes = self.place.sizes(self.name)
        for file, end in ends.items():
            size = sizes.get(file, -1)
            if size < end:
                found = "is missing" if size < 0 else f"has {size:,} bytes"
                raise ValueError(
                    f"{self.option}={self.path}: damaged, its file {file} of {end:,} bytes {found}{self._others()}"
                )

    def _others(self) -> str:
        others = [name for name in self.place.complete() if name != self.name]
        if not others:
            return "; there is no other beside it"
        return f"; remove it, and go on with {self.option}={self.place}/{others[-1]}"


def find(resume: str | None, run_folder: Path, checkpoint_dir: str | None, option: str = "resume") -> str | None:
    """The checkpoint that `resume=` names, as a path or URL: auto, a run's folder, a folder of checkpoints, or one."""
    if resume is None:
        return None
    if resume == "auto":
        return _newest(home(run_folder, checkpoint_dir))
    if isinstance(resume, bool) or not isinstance(resume, str | int):
        raise ValueError(f"{option}={resume}: one run's folder, or one checkpoint, is needed")
    resume = str(resume).rstrip("/")
    if "://" not in resume:
        path = Path(resume).resolve()
        if (settings := path / "config.yaml").exists():
            written_to = OmegaConf.select(OmegaConf.load(settings), "checkpoint.dir")
            if newest := _newest(home(path, written_to)):
                return newest
        resume = str(path)
    folder, _, name = resume.rpartition("/")
    above = place(folder)
    if COMPLETE in above.sizes(name):
        return resume
    if pointed := above.pointed(name):  # latest, best
        return f"{folder}/{pointed}"
    for inside in (f"{resume}/checkpoints", resume):
        if newest := _newest(place(inside)):
            return newest
    raise ValueError(f"{option}={resume}: holds no checkpoint; give a run's folder or one of its checkpoints/step-*")


def home(run_folder: Path, checkpoint_dir: str | None) -> Place:
    """Where the checkpoints of a run lie."""
    return place(checkpoint_dir) if checkpoint_dir else Folder(run_folder / "checkpoints")


def _newest(where: Place) -> str | None:
    complete = where.complete()
    return f"{where}/{complete[-1]}" if complete else None


def own_name(processes: Processes) -> str:
    """What a process keeps for itself alone."""
    return f"process-{processes.rank}-of-{processes.world_size}"


def packed(state: Any, prefix: str) -> dict[str, Tensor]:
    """As tensors: those in it as they are, not copied, and all else pickled into one."""
    tensors: list[Tensor] = []
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)

    def aside(value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        tensors.append(value.detach())
        return len(tensors) - 1

    pickler.persistent_id = aside  # type: ignore[method-assign, assignment]
    pickler.dump(state)
    rest = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    return {prefix: rest, **{f"{prefix}/{number}": tensor for number, tensor in enumerate(tensors)}}


def unpacked(tensors: dict[str, Tensor], prefix: str) -> Any:
    unpickler = pickle.Unpickler(io.BytesIO(tensors[prefix].numpy()))  # type: ignore[arg-type]
    unpickler.persistent_load = lambda number: tensors[f"{prefix}/{number}"]  # type: ignore[method-assign, misc]
    return unpickler.load()


def _persistently(attempt: Callable[[], None], failed: str, where: Place) -> None:
    """Attempts again where it may help; of all processes, since it fails on all alike."""
    try:
        _retried(attempt, where)
    except (CheckpointException, OSError) as error:
        cause = _cause(error)
        if isinstance(cause, KeyboardInterrupt):
            raise cause from error
        raise CheckpointError(f"{failed} ({cause if isinstance(cause, OSError) else repr(cause)})") from error


def _retried(attempt: Callable[[], Any], where: Place) -> Any:
    for wait in where.retry_seconds:
        try:
            return attempt()
        except (CheckpointException, OSError) as error:
            if isinstance(_cause(error), FileNotFoundError | PermissionError | KeyboardInterrupt):
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
    while deeper is not None and not isinstance(deeper, OSError | KeyboardInterrupt):
        deeper = deeper.__cause__ or deeper.__context__  # torch.save ends in an error of its own
    return deeper or error
