"""The sweep that a command runs, wherever its runs are: remembered when it starts, to compare them at its end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from .arguments import covering

_validate = BasicSweeper.validate_batch_is_legal
folder: Path | None = None


class Remember(Callback):
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global folder
        folder = Path(config.hydra.sweep.dir).resolve()
        BasicSweeper.validate_batch_is_legal = _validate_each_word


def _validate_each_word(self: BasicSweeper, batch: Sequence[Sequence[str]]) -> None:
    """Compose each word of the sweep's runs once before the first starts; Hydra composes every run."""
    _validate(self, list(covering(map(tuple, batch))))
