"""The folder of a run: this training's alone, and its own once it has started."""

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
def alone(processes: Processes, config: DictConfig, folder: Path) -> Iterator[None]:
    """Hold the locks of the run's folder and of its checkpoints. Raise ValueError on all processes if one is taken."""
    refusal = None
    with ExitStack() as held:
        if processes.is_rank_zero:
            try:
                held.enter_context(locked(folder, "hydra.run.dir"))
                if isinstance(place := checkpoint_dir(folder, config.checkpoint.dir), Folder):
                    held.enter_context(locked(place.path, "checkpoint.dir"))
            except ValueError as error:
                refusal = str(error)
        if (refusal := processes.gather(refusal)[0]) is not None:
            raise ValueError(refusal)
        yield


class TakesOver(L.Callback):
    """Once training starts, and not if it is refused, the folder is this run's."""

    began = False

    def __init__(self, folder: Path, config_name: str, first: bool):
        self.folder, self.config_name, self.first = folder, config_name, first
        self.was_used = (folder / "metrics.csv").exists()  # by an earlier run

    @property
    def refused(self) -> bool:
        """Whether this run may leave nothing in the folder."""
        return self.was_used and not self.began

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.began = True
        if self.first and self.config_name != CONFIG:
            os.replace(self.folder / self.config_name, self.folder / CONFIG)
