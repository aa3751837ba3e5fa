"""Trackers of experiments beside Weights & Biases: TensorBoard, MLflow and trackio, with the same names of metrics."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from ..comparing.runs import flatten
from .tolerant import Tolerant
from .wandb_run import run_name


class Trackers(L.Callback):
    """A callback that starts the trackers with the training, so that a refused training leaves none; process 0 has it.

    Ids of runs are in the checkpoint: a resumed training continues them.

    Raises:
        ValueError: the library of a tracker is missing, or refuses its options.
    """

    def __init__(self, config: DictConfig, folder: Path, resumed_step: int):
        self.config, self.folder, self.resumed_step = config, folder, resumed_step
        # Configs of earlier versions have no such options.
        self.trackers = {name: Tracker(name) for name in STARTS if config.logger.get(name)}
        for name in self.trackers:
            if find_spec(name) is None:
                raise ValueError(f"logger.{name}={config.logger[name]} needs its library; {INSTALLS[name]}")
        self.ids: dict[str, str] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.ids)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ids = dict(state)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for name, tracker in self.trackers.items():
            try:
                tracker.logger, self.ids[name] = STARTS[name](self, self.ids.get(name))
            except Exception as error:  # servers and libraries raise many types
                raise ValueError(f"logger.{name}={self.config.logger[name]} cannot start ({error})") from error
            trainer.loggers.append(tracker)

    def finish(self, summary: Mapping[str, Any], is_complete: bool) -> None:
        """Write the options and the last metrics, and end the runs."""
        metrics = {name: value for name, value in summary.items() if isinstance(value, float)}
        for tracker in self.trackers.values():
            tracker.end(self.options, metrics, is_complete)

    @property
    def options(self) -> dict[str, Any]:
        return flatten(OmegaConf.to_container(self.config, resolve=True))


class Tracker(Tolerant, Logger):
    """A logger whose failures stop it, but never the training.

    Attributes:
        logger: the library's logger, from the start of the training on.
    """

    logger: Logger | None = None

    def __init__(self, name: str):
        super().__init__()
        self.title = name

    @property
    def name(self) -> str:
        return self.title

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `end` logs the options."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.logger is not None and self.failure is None:
            with self.failures_caught():
                self.logger.log_metrics(metrics, step)

    def end(self, options: dict[str, Any], metrics: dict[str, float], is_complete: bool) -> None:
        """Log the options of the run, and end it."""
        if self.logger is None or self.failure is not None:
            return
        with self.failures_caught():
            if isinstance(self.logger, TensorBoardLogger):
                # Lightning logs these metrics at step 0, which would be a point of their curves.
                self.logger.log_hyperparams(options, {f"final/{name}": value for name, value in metrics.items()})
            else:
                self.logger.log_hyperparams(options)
            self.logger.finalize("success" if is_complete else "failed")


class Trackio(Logger):
    """The library trackio, which has the functions of wandb."""

    def __init__(self, **options: Any):
        super().__init__()
        import trackio

        self.run = trackio.init(**options)

    @property
    def name(self) -> str:
        return "trackio"

    @property
    def version(self) -> str:
        return str(self.run.name)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.log(metrics, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: trackio gets the options when it starts."""

    def finalize(self, status: str) -> None:
        self.run.finish()


def tensorboard(of: Trackers, known: str | None) -> tuple[Logger, str]:
    """Return the logger and its id. A resumed training hides the points after its checkpoint."""
    purge: dict[str, Any] = {"purge_step": of.resumed_step + 1} if of.resumed_step else {}
    logger = TensorBoardLogger(str(of.folder), name="", version="tensorboard", default_hp_metric=False, **purge)
    return logger, ""


def mlflow(of: Trackers, known: str | None) -> tuple[Logger, str]:
    """Return the logger of a new run, or of the run with the known id, and its id."""
    options = of.config.logger
    logger = MLFlowLogger(
        experiment_name=options.wandb.project,
        run_name=run_name(of.config, of.folder),
        tracking_uri=options.mlflow,
        run_id=known,
    )
    return logger, str(logger.run_id)


def trackio(of: Trackers, known: str | None) -> tuple[Logger, str]:
    """Return the logger of a new run, or of the run with the known name, and its name."""
    name = known or run_name(of.config, of.folder)
    resume = {"resume": "must"} if known else {}
    return Trackio(project=of.config.logger.wandb.project, name=name, config=of.options, **resume), name


INSTALLS = {
    "tensorboard": "pip install -e '.[tensorboard]'",
    "mlflow": "pip install -e '.[mlflow]'",
    "trackio": "pip install trackio",
}
STARTS: dict[str, Callable[[Trackers, str | None], tuple[Logger, str]]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "trackio": trackio,
}
