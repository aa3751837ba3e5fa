"""The file metrics.csv, which every run writes."""

import csv
import io
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from data.files import append_whole, write_whole

COLUMNS = ("step", "time", "name", "value")


class MetricsCSV(Logger):
    """A logger that writes metrics.csv in long format: one line per number, so that new metrics may appear at any step.

    Lines are written at once. Before its first line, a resumed run drops the lines beyond its checkpoint; a run that is
    refused earlier leaves the file unchanged. Lines that cannot be written are kept for the next attempt.

    Attributes:
        failure: reason why the last lines could not be written, or None.
    """

    failure: str | None = None

    def __init__(self, folder: Path, resumed_step: int = 0):
        super().__init__()
        self.path, self.resumed_step = folder / "metrics.csv", resumed_step
        self._begun = False
        self._unwritten = ""

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
        """Do nothing: config.yaml holds them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        now, lines = f"{time.time():.3f}", io.StringIO(newline="")
        csv.writer(lines).writerows((step, now, name, repr(float(value))) for name, value in metrics.items())
        self._unwritten += lines.getvalue()
        try:
            if not self._begun:
                self._begin()
            append_whole(self.path, self._unwritten)
            self._unwritten, self.failure = "", None
        except OSError as error:
            if self.failure is None:
                print(f"\nwarning: {self.path} could not be written ({error}). Training continues.", flush=True)
            self.failure = f"{self.path} lacks its last lines ({error})"
