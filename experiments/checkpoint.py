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
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig
from torch import Tensor

from .module import HeadModule
from .recorder import Recorder

LATEST = "latest"
LIGHTNING = "lightning"


class ShardedCheckpointMixin:
    """For a Lightning strategy: saves and loads the rows of the head as tensors of their own."""

    restore_checkpoint_after_setup = True  # the row state exists once the optimizers do

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        rows = rows_of(self.lightning_module)  # type: ignore[attr-defined]
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key not in rows}
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write({LIGHTNING: buffer.getvalue(), **rows}, Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads straight into the live rows, once their shapes are known to fit."""
        rows = rows_of(self.lightning_module)  # type: ignore[attr-defined]
        stored = read(Path(checkpoint_path), rows)
        checkpoint: dict[str, Any] = torch.load(io.BytesIO(stored[LIGHTNING]), weights_only=False, map_location="cpu")
        checkpoint["state_dict"].update(rows)
        return checkpoint


class SingleDevice(ShardedCheckpointMixin, SingleDeviceStrategy):
    pass


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
            trainer.save_checkpoint(self.folder / f"step-{module.step:08d}")
            for old in checkpoints_in(self.folder)[: -self.keep]:
                shutil.rmtree(old)
        self.saved_step = module.step


def rows_of(module: HeadModule) -> dict[str, Tensor]:
    """The rows and row state of the head, by their names in the module's state dict."""
    return {f"head.{name}": tensor for name, tensor in module.head.sharded_state().items()}


def write(state: dict[str, Any], path: Path) -> None:
    """Atomically; `path` must be new, or is replaced by an equal training's same step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    with quiet():
        dcp.save(state, storage_writer=dcp.FileSystemWriter(aside, sync_files=True), no_dist=True)
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


def read(path: Path, rows: dict[str, Tensor]) -> dict[str, Any]:
    """Fills `rows` in place and returns them with Lightning's bytes; nothing is touched if they do not fit."""
    try:
        reader = dcp.FileSystemReader(path)
        stored = reader.read_metadata().state_dict_metadata
    except Exception as error:
        raise ValueError(
            f"resume={path}: not a readable checkpoint ({error}); an older one may be beside it"
        ) from error
    for name, tensor in rows.items():
        if name not in stored:
            kept = sorted(key.rpartition(".")[2] for key in stored if key != LIGHTNING)
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
    with quiet():
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


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
