"""The Weights & Biases run of a training, from its first step to its summary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from ..head_name import head_name
from .tolerant import Tolerant


class WandbRun(L.Callback):
    """A callback that starts the run with the training, so that a refused training leaves none; process 0 has it.

    The run's id is in the checkpoint: a resumed training continues the run.
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
            self.logger._wandb_init["id"] = self.id  # None starts a new run
            self.id = self.logger.experiment.id
            self.began = True
            trainer.loggers.append(self.logger)

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        if self.logger is not None and self.began:
            self.logger.end(summary, exit_code)


class WeightsAndBiases(Tolerant, WandbLogger):
    """Lightning's logger, whose failures stop logging but never the training."""

    title = "Weights & Biases"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.failure is None:
            with self.failures_caught():
                super().log_metrics(metrics, step)

    def end(self, summary: dict[str, Any], exit_code: int) -> None:
        with self.failures_caught():
            self.experiment.summary.update(summary)
            self.experiment.finish(exit_code=exit_code)


def wandb_logger(config: DictConfig, folder: Path) -> WeightsAndBiases | None:
    """Return the logger that `logger.wandb` configures; None if it is disabled."""
    options = config.logger.wandb
    if options.mode == "disabled":
        return None
    logger = WeightsAndBiases(
        project=options.project,
        entity=options.entity,
        group=options.group,
        name=run_name(config, folder),
        job_type=head_name(config),
        tags=list(options.tags),
        offline=options.mode == "offline",
        save_dir=str(folder),
        config=OmegaConf.to_container(config, resolve=True, throw_on_missing=True),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it unasked, and wandb warns about it
    return logger


def run_name(config: DictConfig, folder: Path) -> str:
    """Return the name of a run in all trackers: the given one, or its head and the ends of its folder."""
    return str(config.logger.wandb.name or f"{head_name(config)}-{folder.parent.name}-{folder.name}")
