"""The folder of a run: one training at a time uses it, and it belongs to a training once that starts."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from ..checkpoints.finding import checkpoint_dir
from ..checkpoints.storage import Folder
from ..launching.launch_config import CONFIG
from ..launching.lock import locked
from ..launching.processes import Processes


@contextmanager
def exclusive_access(processes: Processes, config: DictConfig, folder: Path) -> Iterator[None]:
    """Hold the locks of the run's folder and its checkpoints. Raise ValueError on all processes if one is taken."""
    refusal = None
    with ExitStack() as locks:
        if processes.is_rank_zero:
            try:
                locks.enter_context(locked(folder, "hydra.run.dir"))
                if isinstance(store := checkpoint_dir(folder, config.checkpoint.dir), Folder):
                    locks.enter_context(locked(store.path, "checkpoint.dir"))
            except ValueError as error:
                refusal = str(error)
        if (refusal := processes.gather(refusal)[0]) is not None:
            raise ValueError(refusal)
        yield


class FolderClaim(L.Callback):
    """A callback that gives the folder to this run when training starts; a refused run leaves it unchanged."""

    _has_started = False

    def __init__(self, folder: Path, config_name: str, is_rank_zero: bool):
        self.folder, self.config_name, self.is_rank_zero = folder, config_name, is_rank_zero
        self._was_used = (folder / "metrics.csv").exists()

    @property
    def is_refused(self) -> bool:
        """True if the folder belongs to an earlier run, and this run must not write to it."""
        return self._was_used and not self._has_started

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._has_started = True
        if self.is_rank_zero and self.config_name != CONFIG:
            os.replace(self.folder / self.config_name, self.folder / CONFIG)
