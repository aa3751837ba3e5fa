"""Loggers: metrics.csv always, Weights & Biases by config."""

import csv
import io
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from data.files import write_whole

COLUMNS = ("step", "time", "name", "value")


class MetricsCSV(Logger):
    """metrics.csv in long format: one line a number, so that any metric can join at any step.

    Lines are written as they come. With the first a resumed run drops what the file holds beyond its checkpoint: one
    that is refused before leaves all as it is.
    """

    def __init__(self, folder: Path, resumed_step: int = 0):
        super().__init__()
        self.path, self.resumed_step = folder / "metrics.csv", resumed_step
        self._begun = False

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
        if not self._begun:
            self._begin()
        now = f"{time.time():.3f}"
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows((step, now, name, repr(float(value))) for name, value in metrics.items())


def wandb_logger(config: DictConfig, folder: Path) -> WandbLogger | None:
    """The logger that `logger.wandb` asks for; None if disabled."""
    options = config.logger.wandb
    if options.mode == "disabled":
        return None
    head = config.head._target_.rpartition(".")[2]
    logger = WandbLogger(
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
