"""The schedule by which checkpoints are written and removed."""

import time
from typing import Any

import lightning as L
from omegaconf import DictConfig

from ..checkpoints.attempts import CheckpointError
from ..checkpoints.storage import CheckpointStore, name_of
from .module import HeadModule
from .recorder import Recorder


class Saving(L.Callback):
    """A callback that saves at intervals of steps or minutes, at a new best value of a metric, and at the end.

    It removes all but the best and the newest `keep` checkpoints. During the training a failed save is reported, and
    training continues; at the end it is an error.

    Attributes:
        failure: reason why the best checkpoint could not be determined at the last evaluation, on process 0; or None.
    """

    failure: str | None = None

    def __init__(self, config: DictConfig, store: CheckpointStore, recorder: Recorder):
        self.interval, self.minutes, self.keep = config.interval, config.minutes, config.keep
        self.best, self.sign = config.best, 1 if config.best_mode == "max" else -1
        self.store, self.recorder = store, recorder
        self.saved_step, self.saved_time = -1, time.monotonic()
        self.best_value: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "value": self.best_value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["best"] == self.best:
            self.best_value = state["value"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        complete = module.processes.rank_zero_call(self.store.complete)
        if name_of(module.step) in complete:  # the training resumes from it
            self.saved_step = module.step
        self.saved_time = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        if not module.step_is_complete:
            return
        is_best = self._is_best(module)
        if is_best or self._is_due_by_clock(module) or (self.interval and module.step % self.interval == 0):
            try:
                self.save(trainer, module, is_best)
            except CheckpointError as error:
                self.saved_time = time.monotonic()
                if module.processes.is_rank_zero:
                    print(f"\nwarning: {error}; {self.state_of_store()}. Training continues.", flush=True)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        try:
            if module.step_is_complete:
                self.save(trainer, module)
        except CheckpointError as error:
            raise ValueError(f"{error}; {self.state_of_store()}. Make room or set another checkpoint.dir") from error

    def save(self, trainer: L.Trainer, module: HeadModule, is_best: bool = False) -> None:
        """Save a checkpoint, unless this step has one. Raise CheckpointError on all processes."""
        if module.step in (0, self.saved_step):
            return
        processes, name = module.processes, name_of(module.step)
        with self.recorder.paused():
            module.share_buffers()
            try:
                trainer.save_checkpoint(f"{self.store}/{name}")
                self.saved_step, self.saved_time = module.step, time.monotonic()
                if is_best:
                    self.best_value = self.recorder.latest.get(self.best)  # the value of process 0 decides
                processes.rank_zero_call(lambda: self._remove_old(name, is_best))
            except OSError as error:
                raise CheckpointError(f"checkpoint.dir={self.store} cannot be written ({error})") from error

    def state_of_store(self) -> str:
        """Return which checkpoint a training can resume from, as a clause of a message."""
        try:
            complete = self.store.complete()
        except (OSError, ValueError) as error:
            return f"the complete checkpoints cannot be listed ({error})"
        return f"resume={self.store}/{complete[-1]} is complete" if complete else "no checkpoint is complete yet"

    def _is_due_by_clock(self, module: HeadModule) -> bool:
        """Return whether `minutes` have passed on the clock of process 0; the same on all processes."""
        if self.minutes is None:
            return False
        is_due = module.processes.is_rank_zero and time.monotonic() - self.saved_time >= 60 * self.minutes
        return module.processes.any(is_due)

    def _is_best(self, module: HeadModule) -> bool:
        """Return whether this step measured a new best value of the metric; the same on all processes."""
        if self.best is None:
            return False
        is_best, failure = False, None
        if module.processes.is_rank_zero and (measured := self.recorder.measured_at(module.step, "val/")):
            if self.best in measured:
                is_best = self.best_value is None or self.sign * (measured[self.best] - self.best_value) > 0
            else:
                failure = f"checkpoint.best={self.best} was not measured; available: {', '.join(measured)}"
                if failure != self.failure:
                    print(f"\nwarning: {failure}. Training continues.", flush=True)
            self.failure = failure
        return module.processes.any(is_best)

    def _remove_old(self, newest: str, is_best: bool) -> None:
        if is_best:
            self.store.set_alias("best", newest)
        kept = {newest, self.store.resolve_alias("best")}
        for name in self.store.complete()[: -self.keep]:
            if name not in kept:
                self.store.remove(name)
