"""Loggers: metrics.csv always, Weights & Biases by config."""

import csv
import io
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from data.files import append_whole, write_whole

from ..head_name import head_name

COLUMNS = ("step", "time", "name", "value")


class MetricsCSV(Logger):
    """metrics.csv in long format: one line a number, so that any metric can join at any step.

    Lines are written as they come. With the first a resumed run drops what the file holds beyond its checkpoint: one
    that is refused before leaves all as it is. Lines that cannot be written are kept for the next attempt.

    Attributes:
        failure: why the last lines could not be written, or None.
    """

    failure: str | None = None

    def __init__(self, folder: Path, resumed_step: int = 0):
        super().__init__()
        self.path, self.resumed_step = folder / "metrics.csv", resumed_step
        self._begun = False
        self._waiting = ""  # lines that are not written yet

    def _begin(self) -> None:
        kept = []
        if self.resumed_step and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS)]  # a kill may have cut the last
                kept = [row for row in rows if row[0].isdigit() and int(row[0]) <= self.resumed_step]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *kept])
        write_whole(self.path, text.getvalue())
        self._begun = True

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        now, lines = f"{time.time():.3f}", io.StringIO(newline="")
        csv.writer(lines).writerows((step, now, name, repr(float(value))) for name, value in metrics.items())
        self._waiting += lines.getvalue()
        try:
            if not self._begun:
                self._begin()
            append_whole(self.path, self._waiting)
            self._waiting, self.failure = "", None
        except OSError as error:
            if self.failure is None:
                print(f"\nwarning: {self.path} could not be written ({error}). Training goes on.", flush=True)
            self.failure = f"{self.path} lacks its last lines ({error})"


class WeightsAndBiases(WandbLogger):
    """Weights & Biases, which may stop logging but never the training.

    Attributes:
        failure: why it has stopped, or None.
    """

    failure: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.failure is None:
            with self._survived():
                super().log_metrics(metrics, step)

    def end(self, summary: dict[str, Any], exit_code: int) -> None:
        with self._survived():
            self.experiment.summary.update(summary)
            self.experiment.finish(exit_code=exit_code)

    @contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # its service may have died, for which its library has many names
            self.failure = f"Weights & Biases stopped logging ({error!r})"
            print(f"\nwarning: {self.failure}. Training goes on without it.", flush=True)


def wandb_logger(config: DictConfig, folder: Path) -> WeightsAndBiases | None:
    """The logger that `logger.wandb` asks for; None if disabled."""
    options = config.logger.wandb
    if options.mode == "disabled":
        return None
    head = head_name(config)
    logger = WeightsAndBiases(
        project=options.project,
        entity=options.entity,
        group=options.group,
        name=options.name or f"{head}-{folder.parent.name}-{folder.name}",
        job_type=head,
        tags=list(options.tags),
        offline=options.mode == "offline",
        save_dir=str(folder),
        config=OmegaConf.to_container(config, resolve=True, throw_on_missing=True),
    )
    logger._wandb_init.pop("anonymous", None)  # wandb warns of it, and Lightning passes it unasked
    return logger
