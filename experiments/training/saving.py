"""When checkpoints are written, and which of them stay."""

import time
from typing import Any

import lightning as L
from omegaconf import DictConfig

from ..checkpoints.checkpoint import CheckpointError
from ..checkpoints.storage import CheckpointStore
from .module import HeadModule
from .recorder import Recorder


class Saving(L.Callback):
    """Writes a checkpoint every so many steps or minutes, when a metric was never better, and at the end.

    All but the newest `keep` and the best are removed. One that cannot be written is told of, and training goes on;
    at the end it is an error.
    """

    def __init__(self, config: DictConfig, place: CheckpointStore, recorder: Recorder):
        self.interval, self.minutes, self.keep = config.interval, config.minutes, config.keep
        self.best, self.sign = config.best, 1 if config.best_mode == "max" else -1
        self.place, self.recorder = place, recorder
        self.saved_step, self.saved_time = -1, time.monotonic()
        self.best_value: float | None = None
        self.failure: str | None = None  # to tell what is best, at the last evaluation; of the first process

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "value": self.best_value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["best"] == self.best:
            self.best_value = state["value"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        complete = module.processes.rank_zero_call(self.place.complete)
        if self._name(module) in complete:  # this training goes on from it
            self.saved_step = module.step
        self.saved_time = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        if not module.between_steps:
            return
        better = self._is_better(module)
        if better or self._is_late(module) or (self.interval and module.step % self.interval == 0):
            try:
                self.save(trainer, module, better)
            except CheckpointError as error:
                self.saved_time = time.monotonic()
                if module.processes.is_rank_zero:
                    print(f"\nwarning: {error}; {self.left()}. Training goes on without it.", flush=True)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        try:
            if module.between_steps:
                self.save(trainer, module)
        except CheckpointError as error:
            raise ValueError(f"{error}; {self.left()}. Make room or name another checkpoint.dir") from error

    def save(self, trainer: L.Trainer, module: HeadModule, better: bool = False) -> None:
        """Raises CheckpointError on all processes."""
        if module.step in (0, self.saved_step):
            return
        processes = module.processes
        with self.recorder.paused():
            module.share_buffers()
            try:
                name = self._name(module)
                trainer.save_checkpoint(f"{self.place}/{name}")
                self.saved_step, self.saved_time = module.step, time.monotonic()
                if better:
                    self.best_value = self.recorder.latest.get(self.best)  # the first process's decides
                processes.rank_zero_call(lambda: self._tidy(name, better))
            except OSError as error:
                raise CheckpointError(f"checkpoint.dir={self.place}: {error}") from error

    def _is_late(self, module: HeadModule) -> bool:
        """By the clock of the first process; the same on all."""
        if self.minutes is None:
            return False
        return module.processes.any(
            module.processes.is_rank_zero and time.monotonic() - self.saved_time >= 60 * self.minutes
        )

    def _is_better(self, module: HeadModule) -> bool:
        """Whether the metric that decides was measured in this step, and is better than ever; the same on all."""
        if self.best is None:
            return False
        better, failure = False, None
        if module.processes.is_rank_zero and (measured := self.recorder.measured_at(module.step, "val/")):
            if self.best in measured:
                better = self.best_value is None or self.sign * (measured[self.best] - self.best_value) > 0
            else:
                failure = f"checkpoint.best={self.best}: was not measured; what was: {', '.join(measured)}"
                if failure != self.failure:
                    print(f"\nwarning: {failure}. Training goes on without it.", flush=True)
            self.failure = failure
        return module.processes.any(better)

    def _tidy(self, newest: str, better: bool) -> None:
        if better:
            self.place.set_alias("best", newest)
        stay = {newest, self.place.resolve_alias("best")}
        for name in self.place.complete()[: -self.keep]:
            if name not in stay:
                self.place.remove(name)

    def _name(self, module: HeadModule) -> str:
        return f"step-{module.step:08d}"

    def left(self) -> str:
        """Return what a training can go on from, as the end of a sentence."""
        try:
            complete = self.place.complete()
        except (OSError, ValueError) as error:
            return f"what is complete cannot be told now ({error})"
        return f"resume={self.place}/{complete[-1]} is complete" if complete else "no checkpoint is complete yet"
