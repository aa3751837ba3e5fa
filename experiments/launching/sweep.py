"""The sweep that a command runs, wherever its runs are: remembered when it starts, to compare them at its end."""

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import basic_sweeper
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ..command_line.arguments import covering

folder: Path | None = None


class Remember(Callback):
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global folder
        folder = Path(config.hydra.sweep.dir).resolve()
        compose_each_word_once(basic_sweeper.BasicSweeper)  # by now the class that Hydra's plugins made of it


def compose_each_word_once(kind: Any) -> None:
    """Have Hydra's sweeper compose each word of its runs once before the first run starts, and not every run."""
    validate = kind.validate_batch_is_legal
    kind.validate_batch_is_legal = lambda self, batch: validate(self, list(covering(map(tuple, batch))))
