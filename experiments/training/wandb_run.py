"""The Weights & Biases run of a training, from its first step to its summary."""

from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from .logs import wandb_logger


class WandbRun(L.Callback):
    """Begins the run once training starts, so that a refused training leaves none; on the first process.

    Its id is in the checkpoint: a resumed training continues the run that it began with.
    """

    def __init__(self, config: DictConfig, folder: Path):
        self.logger = wandb_logger(config, folder)
        self.id: str | None = None
        self.began = False

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.id = state["id"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.logger is not None:
            self.logger._wandb_init["id"] = self.id  # None: a new one
            self.id = self.logger.experiment.id
            self.began = True
            trainer.loggers.append(self.logger)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        if self.logger is not None and self.began:
            self.logger.end(summary, exit_code)
