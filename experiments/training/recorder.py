"""Measurements of a run: training time without pauses, throughput and memory."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch

from .module import HeadModule

WARMUP_BATCHES = 5  # the first batches include allocation and set-up


class Recorder(L.Callback):
    """Clock of the training, which logs measurements every `log_interval` steps.

    It must come before other callbacks that act at the end of a batch, so that they can pause it.

    Attributes:
        latest: last value of each metric.
        step_of: step at which each metric was last measured.
        trained_seconds: training time since the first step, including that before a resume; None if the checkpoint
            does not state it.
        seconds: training time since warm-up, in this process.
        images: images trained on in these seconds.
    """

    def __init__(self, log_interval: int, images_per_step: int):
        self.log_interval, self.images_per_step = log_interval, images_per_step
        self.latest: dict[str, float] = {}
        self.step_of: dict[str, int] = {}
        self.trained_seconds: float | None = 0.0
        self.seconds = 0.0
        self.images = 0
        self._resumed = False
        self._batches = 0
        self._peak_bytes = 0.0  # until the last pause
        self._mark = time.perf_counter()

    @property
    def has_trained(self) -> bool:
        """True if this process has trained on a batch."""
        return self._batches > 0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the clock: neither time nor memory inside this context counts as training."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels in flight belong to the training
        self._peak_bytes = self.peak_bytes()
        begin = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            reset_peak_bytes()
            self._mark += time.perf_counter() - begin

    def peak_bytes(self) -> float:
        """Return the peak memory of this process outside pauses."""
        return max(self._peak_bytes, peak_bytes())

    def record(self, trainer: L.Trainer, metrics: dict[str, float], step: int) -> None:
        """Log metrics and keep their latest values. Each line has the number of images, an axis to compare runs on."""
        metrics = {**metrics, "train/images": float(step * self.images_per_step)}
        self.latest.update(metrics)
        self.step_of.update(dict.fromkeys(metrics, step))
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)

    def measured_at(self, step: int, prefix: str) -> dict[str, float]:
        """Return the metrics with this prefix that were measured at this step."""
        return {
            name: value for name, value in self.latest.items() if name.startswith(prefix) and self.step_of[name] == step
        }

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
            self.images += module.loader.batch_size
        else:
            module.head.timer.reset()
        self._mark = now
        if module.step_is_complete and (module.step % self.log_interval == 0 or module.is_last_step):
            self.record(trainer, self.measure(module), module.step)

    def measure(self, module: HeadModule) -> dict[str, float]:
        """Return the current loss, learning rate, speed, memory and the head's own statistics."""
        stats = dict(module.head.stats())
        head_memory = {"memory/head_bytes": float(stats.pop("memory_bytes"))} if "memory_bytes" in stats else {}
        return {
            "train/loss": float(module.last_loss),
            **({"train/skipped_steps": module.skipped_steps} if module.loss_scale else {}),
            **({} if self.trained_seconds is None else {"train/seconds": self.trained_seconds}),
            "train/lr": module.last_lr,
            "throughput/images_per_second": self.images_per_second,
            **{f"head/{name}": float(value) for name, value in stats.items()},
            **{f"head/{name}": float(value) for name, value in module.head.scheduled(module.head.step - 1).items()},
            **head_memory,
            "memory/peak_bytes": self.peak_bytes(),
        }


def peak_bytes() -> float:
    """Return the allocator's peak on CUDA, otherwise the peak resident memory of this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    import resource  # on Unix only

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def reset_peak_bytes() -> None:
    """Restart the measurement of `peak_bytes`. Where the system cannot, the peak since the start remains."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory, see proc(5)
