"""A limit on the time of a training, `trainer.max_time`; the training ends as a finished one does."""

import re
import time
from typing import Any

import lightning as L

from .module import HeadModule

UNITS = (1, 60, 3600, 86400)  # seconds, minutes, hours, days


class TimeLimit(L.Callback):
    """A callback that ends the training after the step in which the time is over, on all processes.

    Time counts from the start of this process's training: a resumed training has the full time again. The callback must
    come before those that act at the last step.
    """

    def __init__(self, limit: str | float | None):
        self.seconds = parse_seconds(limit)
        self.begin = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.begin = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        if self.seconds is None or not module.step_is_complete:
            return
        processes = module.processes
        if processes.any(processes.is_rank_zero and time.monotonic() - self.begin >= self.seconds):
            module.out_of_time = trainer.should_stop = True


def parse_seconds(limit: str | float | None) -> float | None:
    """Return the seconds of HH:MM:SS, DD:HH:MM:SS or a number of seconds; None for no limit."""
    if limit is None:
        return None
    if isinstance(limit, str) and re.fullmatch(r"(\d+:)?\d+:\d\d:\d\d", limit):
        seconds = float(sum(unit * int(part) for unit, part in zip(UNITS, reversed(limit.split(":")), strict=False)))
    else:
        seconds = float(limit) if isinstance(limit, int | float) and not isinstance(limit, bool) else 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(
            f"trainer.max_time={limit} must be HH:MM:SS, DD:HH:MM:SS or seconds, and above 0; null is no limit"
        )
    return seconds
