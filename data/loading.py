"""Items of a dataset by number, prepared by worker processes that are replaced when they die."""

import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from .workers import end_with_parent

T = TypeVar("T")
ATTEMPTS = 3  # at one item
DIED = "DataLoader worker (pid"  # how torch's message begins


def loaded(dataset: Dataset[T], numbers: range, num_workers: int, pin_memory: bool = False) -> Iterator[T]:
    """Yield `dataset[number]` for each number, in order.

    A worker process that is killed, by the system for want of memory say, is reported, and new ones go on at the item
    that is due: an item depends on its number alone.

    Args:
        num_workers: processes that prepare items ahead; 0 for none but this one.

    Raises:
        ValueError: workers died at the same item `ATTEMPTS` times in a row.
    """
    deaths = 0
    while numbers:
        loader: DataLoader[T] = DataLoader(
            dataset,
            batch_size=None,
            sampler=numbers,  # type: ignore[arg-type]
            num_workers=num_workers,
            # With a worker that dies over a later item, those before are lost too, unless they come one by one.
            prefetch_factor=1 if num_workers and deaths == ATTEMPTS - 1 else None,
            pin_memory=pin_memory,
            # Its iterator would otherwise draw from the global generator, and resuming would change it.
            generator=torch.Generator(),
            worker_init_fn=_end_with_parent,
        )
        items = iter(loader)
        _ask_for_deaths()
        try:
            for item in items:
                numbers, deaths = numbers[1:], 0
                yield item
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not num_workers or not _of_a_death(error):
                raise
            deaths += 1
            told = f"num_workers={num_workers}: a process that prepares batches died"
            if deaths == ATTEMPTS:
                raise ValueError(
                    f"{told} {deaths} times at item {numbers[0]:,}; num_workers=0 shows why, and fewer of them take "
                    "less memory"
                ) from None
            warnings.warn(f"{told}; new ones go on at item {numbers[0]:,}", RuntimeWarning, stacklevel=2)
            del items  # ends the others


def _of_a_death(error: Exception) -> bool:
    """Whether a worker has died, also while it handed over an item. Errors of the dataset name the worker process."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(DIED)
    return "in DataLoader worker process" not in str(error)


def _end_with_parent(worker: int) -> None:
    end_with_parent(signal.SIGKILL)


def _ask_for_deaths() -> None:
    """Have torch find dead workers when it waits for them. Its signal handler raises wherever training just is."""
    handler: Any = signal.getsignal(signal.SIGCHLD)
    of_torch = getattr(handler, "__module__", "").startswith("torch.")
    if of_torch and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
