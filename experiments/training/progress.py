"""The progress of a training: a bar at a terminal, a line now and then elsewhere."""

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .module import HeadModule
from .recorder import Recorder

LINES = 20  # of a whole training, where there is no terminal


class ProgressBar(L.Callback):
    """Loss, images per second, time left, and the latest rank-1."""

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

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        self.task = self.progress.add_task("", total=module.num_steps, completed=module.step, figures="")
        self.progress.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        if self.console.is_terminal:
            due = module.step % min(self.every, 10) == 0
        else:
            due = module.step % max(1, module.num_steps // LINES) == 0
        if not (due or module.step == module.num_steps) or not module.between_steps:
            return
        speed = self.recorder.images_per_second
        figures = f"loss {float(module.last_loss):.3f}"
        if speed:  # known after the first steps
            figures += f"  {speed:,.0f} images/s"
        if (rank1 := self.recorder.latest.get("val/rank1")) is not None:
            figures += f"  rank-1 {rank1:.3f}"
        if self.console.is_terminal:
            self.progress.update(self.task, completed=module.step, figures=figures)
            return
        images_left = (module.num_steps - module.step) * module.accumulate * module.config.batch_size
        left = f"  {images_left / speed:.0f} s left" if speed else ""
        print(f"step {module.step}/{module.num_steps}  {figures}{left}", flush=True)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.progress.stop()
