"""The end of a training before its last step: all processes stop after the same step."""

import signal
from contextlib import suppress
from types import FrameType
from typing import Any

import lightning as L

from ..launching.processes import Processes
from .module import HeadModule


class GracefulStop(L.Callback):
    """A callback that ends the training after the current step on Ctrl-C, SIGTERM or a failure of any process.

    A failure is a condition that would raise an error in the next step. Ending before that step saves all steps so far.
    A second Ctrl-C stops at once.

    Attributes:
        status: 128 + the signal's number once a signal has arrived, otherwise 0.
        failure: reason why a process cannot continue, the same on all processes; or None.
    """

    status = 0
    failure: str | None = None
    _has_handlers = _received_signal = False

    def __init__(self, processes: Processes):
        self.processes = processes

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        # A signal or a failure may have reached any process: all stop after the same step.
        if module.step_is_complete and self.processes.any(bool(self.status) or module.failure is not None):
            self.failure = next((failure for failure in self.processes.gather(module.failure) if failure), None)
            self.status = self.status or 128 + signal.SIGTERM
            trainer.should_stop = True

    def restore_handlers(self) -> None:
        """Restore the default handlers, once everything is written.

        Another process's signal may have ended the training before this process receives its own.
        """
        if self._has_handlers:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            if self._received_signal:
                if number == signal.SIGINT:
                    raise KeyboardInterrupt
                return  # launchers may send SIGTERM more than once
            self._received_signal, self.status = True, 128 + number
            if self.processes.is_rank_zero:
                with suppress(RuntimeError):  # the signal arrived during another print
                    print("\nInterrupted: finishing this step; press Ctrl-C again to stop at once.", flush=True)

        self._has_handlers = True
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
