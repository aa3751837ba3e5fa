"""The sweep that a command runs, wherever its runs are: remembered when it starts, to compare them at its end."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

folder: Path | None = None


class Remember(Callback):
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global folder
        folder = Path(config.hydra.sweep.dir).resolve()
