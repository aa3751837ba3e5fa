"""A training that ends before its last step: after the step at hand, on all processes after the same one."""

import signal
from contextlib import suppress
from types import FrameType
from typing import Any

import lightning as L

from ..launching.processes import Processes
from .module import HeadModule


class StopOnInterrupt(L.Callback):
    """Ctrl-C and SIGTERM end the training after the batch at hand; a second Ctrl-C ends it at once.

    So does what would raise in the next step, on whichever process, so that a checkpoint holds all before it.
    """

    status = 0  # 128 + the signal's number, once one has come
    failure: str | None = None  # why a process cannot go on; the same on all
    installed = got_one = False  # the handler; a signal of this process's own

    def __init__(self, processes: Processes):
        self.processes = processes

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        # All stop after the same step, whichever of them the signal has reached, or cannot go on.
        if module.between_steps and self.processes.any(bool(self.status) or module.failure is not None):
            self.failure = next((each for each in self.processes.gather(module.failure) if each), None)
            self.status = self.status or 128 + signal.SIGTERM
            trainer.should_stop = True

    def restore(self) -> None:
        """Once all is written. Another process's signal may have ended the training before one's own comes."""
        if self.installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            if self.got_one:
                if number == signal.SIGINT:
                    raise KeyboardInterrupt
                return  # launchers may send SIGTERM more than once
            self.got_one, self.status = True, 128 + number
            if self.processes.is_rank_zero:
                with suppress(RuntimeError):  # the signal came while something else was printed
                    print("\nInterrupted: finishing this step; Ctrl-C once more to stop at once.", flush=True)

        self.installed = True
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
