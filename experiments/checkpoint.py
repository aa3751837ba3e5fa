"""Checkpoints: directories written by torch.distributed.checkpoint, whole or not there at all.

Lightning's own file would hold the first process's rows only. Here what Lightning collects goes in as
one item and the head's rows and row state as tensors of their own, which every process writes for
itself. A checkpoint is written aside, flushed, renamed, and only then does `latest` point to it.
"""

import io
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from omegaconf import DictConfig
from torch import Tensor

from .module import HeadModule
from .processes import Processes
from .recorder import Recorder

LATEST = "latest"
LIGHTNING = "lightning"


class ShardedCheckpointMixin:
    """For a Lightning strategy: saves and loads the rows of the head as tensors of their own."""

    restore_checkpoint_after_setup = True  # the row state exists once the optimizers do

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        module = self.lightning_module  # type: ignore[attr-defined]
        rows = rows_of(module)
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key not in rows}
        if module.processes.first:
            state = {LIGHTNING: _packed(checkpoint), **rows}
        else:  # of what Lightning collects, what is this process's alone
            own = {key: checkpoint["state_dict"][key] for key in own_state_keys(module)}
            packed = bytearray(_packed({"random": checkpoint["random"], "state_dict": own}))
            state = {own_name(module.processes): torch.frombuffer(packed, dtype=torch.uint8), **rows}
        write(state, Path(filepath), module.processes)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads straight into the live rows, once their shapes are known to fit."""
        module = self.lightning_module  # type: ignore[attr-defined]
        rows = rows_of(module)
        stored = read(Path(checkpoint_path), rows, own_name(module.processes))
        checkpoint: dict[str, Any] = torch.load(io.BytesIO(stored[LIGHTNING]), weights_only=False, map_location="cpu")
        if (own := stored.get(own_name(module.processes))) is not None:
            mine = torch.load(io.BytesIO(own.numpy().tobytes()), weights_only=False, map_location="cpu")
            checkpoint["random"] = mine["random"]
            checkpoint["state_dict"].update(mine["state_dict"])
        checkpoint["state_dict"].update(rows)
        return checkpoint


class SingleDevice(ShardedCheckpointMixin, SingleDeviceStrategy):
    pass


class DDP(ShardedCheckpointMixin, DDPStrategy):
    pass


def strategy_for(processes: Processes) -> SingleDevice | DDP:
    return SingleDevice(processes.device) if processes.world_size == 1 else DDP()


class Checkpoints(L.Callback):
    """Writes a checkpoint every `interval` steps and at the end, and removes all but the newest `keep`."""

    def __init__(self, config: DictConfig, folder: Path, recorder: Recorder):
        if config.keep < 1 or (config.interval is not None and config.interval < 1):
            raise ValueError(
                f"checkpoint.interval={config.interval}, checkpoint.keep={config.keep}: must be at least 1"
            )
        self.interval, self.keep = config.interval, config.keep
        self.folder, self.recorder = folder, recorder
        self.saved_step = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        if self.interval and module.step % self.interval == 0:
            self.save(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        self.save(trainer, module)

    def save(self, trainer: L.Trainer, module: HeadModule) -> None:
        if module.step in (0, self.saved_step) or not module.between_steps:
            return
        with self.recorder.paused():
            module.share_buffers()
            trainer.save_checkpoint(self.folder / f"step-{module.step:08d}")
            if module.processes.first:
                for old in checkpoints_in(self.folder)[: -self.keep]:
                    shutil.rmtree(old)
        self.saved_step = module.step


def rows_of(module: HeadModule) -> dict[str, Tensor]:
    """The rows and row state of the head, by their names in the module's state dict."""
    return {f"head.{name}": tensor for name, tensor in module.head.sharded_state().items()}


def own_name(processes: Processes) -> str:
    """What a process other than the first keeps for itself alone."""
    return f"process-{processes.rank}-of-{processes.world_size}"


def own_state_keys(module: HeadModule) -> list[str]:
    return ["head._extra_state"] if module.head.state_differs else []


def write(state: dict[str, Any], path: Path, processes: Processes) -> None:
    """Atomically, all processes together; `path` must be new, or is replaced by an equal training's same step."""
    aside = path.with_name(f".{path.name}.partial")
    if processes.first:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
    processes.wait()
    with quiet():
        writer = dcp.FileSystemWriter(aside, sync_files=True)
        dcp.save(state, storage_writer=writer, no_dist=processes.world_size == 1)
    if processes.first:
        _put_in_place(aside, path)
    processes.wait()


def _put_in_place(aside: Path, path: Path) -> None:
    flush(aside)
    if path.exists():
        replaced = aside.with_name(f"{aside.name}.replaced")
        path.rename(replaced)
        aside.rename(path)
        shutil.rmtree(replaced)
    else:
        aside.rename(path)
    flush(path.parent)
    link = path.with_name(f".{LATEST}.{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, path.with_name(LATEST))
    flush(path.parent)


def read(path: Path, rows: dict[str, Tensor], own: str = "") -> dict[str, Any]:
    """Fills `rows` in place and returns them with Lightning's bytes and, if there, the bytes named `own`; nothing is
    touched if they do not fit."""
    try:
        reader = dcp.FileSystemReader(path)
        stored = reader.read_metadata().state_dict_metadata
    except Exception as error:
        raise ValueError(
            f"resume={path}: not a readable checkpoint ({error}); an older one may be beside it"
        ) from error
    for name, tensor in rows.items():
        if name not in stored:
            kept = sorted(key.rpartition(".")[2] for key in stored if key.startswith("head."))
            raise ValueError(
                f"resume={path}: holds the row state {kept} but not {name.rpartition('.')[2]!r}; "
                "resume with the head and optimizer it was trained with"
            )
        size = list(stored[name].size)  # type: ignore[union-attr]
        if size != list(tensor.shape):
            raise ValueError(
                f"resume={path}: its class centers are {size} (classes, embedding size), this run's "
                f"{list(tensor.shape)}; resume with the same data and embedding_size"
            )
    state: dict[str, Any] = {LIGHTNING: b"", **rows}
    if own in stored:
        state[own] = torch.empty(stored[own].size, dtype=torch.uint8)  # type: ignore[union-attr]
    with quiet():
        dcp.load(state, storage_reader=reader, no_dist=not dist.is_initialized())
    return state


def _packed(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def find(resume: str | None, run_folder: Path) -> Path | None:
    """The checkpoint that `resume=` names: auto, a run's folder, its checkpoints folder, or a checkpoint."""
    if resume is None:
        return None
    if resume == "auto":
        saved = checkpoints_in(run_folder / "checkpoints")
        return saved[-1] if saved else None
    path = Path(resume)
    if (path / ".metadata").exists():
        return path.resolve()
    for folder in (path / "checkpoints", path):
        if saved := checkpoints_in(folder):
            return saved[-1]
    raise ValueError(f"resume={resume}: holds no checkpoint; give a run's folder or one of its checkpoints/step-*")


def checkpoints_in(folder: Path) -> list[Path]:
    """The complete ones, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / ".metadata").exists())


def step_of(checkpoint: Path | None) -> int:
    """The step that its name tells; 0 for none, or one that was renamed."""
    named = re.fullmatch(r"step-(\d+)", checkpoint.name) if checkpoint else None
    return int(named[1]) if named else 0


def flush(folder: Path) -> None:
    """Names in a folder are safe from a crash once the folder itself is flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def quiet() -> warnings.catch_warnings:
    """One process needs no process group, of which torch warns."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
