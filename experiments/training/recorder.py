"""What a run measures: training time without pauses, throughput, memory; and its summary at the end."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.table import Table

from data.files import write_whole

from .. import provenance
from ..comparing.runs import Run
from ..head_name import head_name
from ..launching.processes import Processes
from ..tables import console, readable
from .module import HeadModule

WARMUP_BATCHES = 5  # the first ones pay for allocation and set-up


class Recorder(L.Callback):
    """Times the training, logs every `log_interval` steps, and writes summary.json.

    Must come before other callbacks that act at a batch's end, so that what they do is theirs to pause.

    Attributes:
        failure: why summary.json could not be written, or None.
    """

    failure: str | None = None

    def __init__(self, folder: Path, log_interval: int, processes: Processes):
        self.folder, self.log_interval, self.processes = folder, log_interval, processes
        self.latest: dict[str, float] = {}
        self.step_of: dict[str, int] = {}  # the step at which each was measured
        # Since the first step, also of what a resumed training did before; None where its checkpoint does not tell.
        self.trained_seconds: float | None = 0.0
        self._resumed = False
        self.seconds = 0.0  # of training since warm-up
        self.images = 0  # in these seconds
        self._batches = 0
        self._peak_bytes = 0.0  # until the last pause
        self._mark = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: neither its time counts nor its memory."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what is under way is training
        self._peak_bytes = self.peak_bytes()
        begin = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            forget_peak()
            self._mark += time.perf_counter() - begin

    def peak_bytes(self) -> float:
        """Of this process, pauses left out."""
        return max(self._peak_bytes, peak_bytes())

    def record(self, trainer: L.Trainer, metrics: dict[str, float], step: int) -> None:
        self.latest.update(metrics)
        self.step_of.update(dict.fromkeys(metrics, step))
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)

    def measured_at(self, step: int, prefix: str) -> dict[str, float]:
        """The metrics of this step whose names begin so."""
        return {
            name: value for name, value in self.latest.items() if name.startswith(prefix) and self.step_of[name] == step
        }

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"trained_seconds": self.trained_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trained_seconds, self._resumed = state["trained_seconds"], True

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        if module.step and not self._resumed:
            self.trained_seconds = None
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        now = time.perf_counter()
        if self.trained_seconds is not None:
            self.trained_seconds += now - self._mark
        self._batches += 1
        warm = self._batches > min(WARMUP_BATCHES, module.loader.num_batches - 1)
        if warm:
            self.seconds += now - self._mark
            self.images += module.config.batch_size
        else:
            module.head.timer.reset()
        self._mark = now
        if module.between_steps and (module.step % self.log_interval == 0 or module.ends):
            self.record(trainer, self.measure(module), module.step)

    def measure(self, module: HeadModule) -> dict[str, float]:
        stats = dict(module.head.stats())
        of_memory = {"memory/head_bytes": float(stats.pop("memory_bytes"))} if "memory_bytes" in stats else {}
        return {
            "train/loss": float(module.last_loss),
            **({"train/skipped_steps": module.skipped_steps} if module.loss_scale else {}),
            **({} if self.trained_seconds is None else {"train/seconds": self.trained_seconds}),
            "train/lr": module.last_lr,
            "throughput/images_per_second": self.images_per_second,
            **{f"head/{name}": float(value) for name, value in stats.items()},
            **of_memory,
            "memory/peak_bytes": self.peak_bytes(),
        }

    def write_summary(self, module: HeadModule, status: str) -> dict[str, Any]:
        """Write summary.json, whole or not at all, and return it; one that is there stays if nothing was trained.

        A failure to write is told and noted.
        """
        path = self.folder / "summary.json"
        if self._batches == 0 and path.exists():
            existing: dict[str, Any] = json.loads(path.read_text())
            return existing
        if self._batches:
            measured = {**self.latest, **self.measure(module)}
        else:  # nothing was left to train, and a kill came before the summary
            measured = {name: float(values[-1]) for name, (_, values) in Run(self.folder, {}, {}).curves.items()}
        summary = {
            "status": status,
            "head": head_name(module.config),
            "num_classes": module.data.train.num_classes,
            "embedding_size": module.config.embedding_size,
            "world_size": self.processes.world_size,
            "seed": module.config.seed,
            "steps": module.step,
            "epochs": round(module.epoch, 3),
            **provenance.about(),
            **dict(sorted(measured.items())),
        }
        try:
            write_whole(path, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            self.failure = f"{path} could not be written ({error})"
            print(f"\nwarning: {self.failure}", flush=True)
        return summary


def peak_bytes() -> float:
    """The allocator's peak on CUDA, else this process's peak resident memory."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    import resource  # of Unix alone

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def forget_peak() -> None:
    """From here on `peak_bytes` is of what follows; where the system does not offer that, of all since the start."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory, see proc(5)


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    table = Table(title=f"{summary['head']}: {summary['status']}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in summary.items():
        if name != "status" and value is not None:
            table.add_row(name, readable(name, value))
    screen = console()
    screen.print(table)
    checkpoints = ", checkpoints/" if (folder / "checkpoints").exists() else ""
    screen.print(f"In {folder}: config.yaml, metrics.csv, summary.json{checkpoints}", soft_wrap=True)
