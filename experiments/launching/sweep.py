"""The folder of the current sweep, stored when the sweep starts so that its runs can be compared at its end."""

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
        compose_each_word_once(basic_sweeper.BasicSweeper)  # Hydra has loaded its plugins by now


def compose_each_word_once(kind: Any) -> None:
    """Make Hydra's sweeper check each word of its runs once before the first run starts, instead of every run."""
    validate = kind.validate_batch_is_legal
    kind.validate_batch_is_legal = lambda self, batch: validate(self, list(covering(map(tuple, batch))))
