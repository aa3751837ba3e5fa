"""`trainer.max_time`: a training that ends by the clock, with all that a finished one leaves."""

import re
import time
from typing import Any

import lightning as L

from .module import HeadModule

UNITS = (1, 60, 3600, 86400)  # seconds, minutes, hours, days


class TimeLimit(L.Callback):
    """Ends the training after the step in which the time since its start is over; on all processes after the same.

    A resumed training has the whole time again. Must come before callbacks that act at the last step.
    """

    def __init__(self, given: str | float | None):
        self.seconds = seconds_of(given)
        self.begin = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.begin = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        if self.seconds is None or not module.between_steps:
            return
        processes = module.processes
        if processes.any(processes.is_rank_zero and time.monotonic() - self.begin >= self.seconds):
            module.out_of_time = trainer.should_stop = True


def seconds_of(given: str | float | None) -> float | None:
    """Return the seconds of HH:MM:SS, DD:HH:MM:SS or a number; None for no limit."""
    if given is None:
        return None
    if isinstance(given, str) and re.fullmatch(r"(\d+:)?\d+:\d\d:\d\d", given):
        seconds = float(sum(unit * int(part) for unit, part in zip(UNITS, reversed(given.split(":")), strict=False)))
    else:
        seconds = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(
            f"trainer.max_time={given}: must be HH:MM:SS, DD:HH:MM:SS or seconds, and above 0; null for no limit"
        )
    return seconds
