"""The progress of a training: a bar on a terminal, regular lines elsewhere."""

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .module import HeadModule
from .recorder import Recorder

# Without a terminal: the number of lines of a whole training, and the longest time between two of them in seconds.
LINES = 20
SECONDS = 30


class ProgressBar(L.Callback):
    """A callback that shows loss, images per second, time left, and the latest rank-1."""

    def __init__(self, recorder: Recorder, every: int):
        self.recorder, self.every = recorder, every
        self.console = Console()
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = TaskID(0)
        self.last_shown = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        self.task = self.progress.add_task("", total=module.num_steps, completed=module.step, figures="")
        self.progress.start()
        self.last_shown = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        is_due = self._is_due(module.step, module.num_steps) or module.is_last_step
        if not module.step_is_complete or not is_due:
            return
        self.last_shown = time.monotonic()
        speed = self.recorder.images_per_second
        figures = f"loss {float(module.last_loss):.3f}"
        if speed:  # known after the first steps
            figures += f"  {speed:,.0f} images/s"
        if (rank1 := self.recorder.latest.get("val/rank1")) is not None:
            figures += f"  rank-1 {rank1:.3f}"
        if self.console.is_terminal:
            self.progress.update(self.task, completed=module.step, figures=figures)
            return
        if speed:
            left = (module.num_steps - module.step) * module.accumulate * module.loader.batch_size / speed
            figures += f"  {left:.0f} s left"
        print(f"step {module.step}/{module.num_steps}  {figures}", flush=True)

    def _is_due(self, step: int, num_steps: int) -> bool:
        if self.console.is_terminal:
            return step % min(self.every, 10) == 0
        return step % max(1, num_steps // LINES) == 0 or time.monotonic() - self.last_shown >= SECONDS

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.progress.stop()
