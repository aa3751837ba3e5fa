"""Loading of dataset items by worker processes, which are replaced when they die."""

import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .records import Indices, Source
from .workers import end_with_parent

T = TypeVar("T")
ATTEMPTS = 3  # attempts to load one item
DIED = "DataLoader worker (pid"  # beginning of torch's message


def loaded(dataset: Dataset[T], numbers: range, num_workers: int, pin_memory: bool = False) -> Iterator[T]:
    """Yield `dataset[number]` for each number, in order.

    A killed worker process, for example by the system when memory is short, is reported by a warning. New workers
    continue with the item that is due, since an item depends on its number alone.

    Args:
        dataset: items by number.
        num_workers: processes that prepare items ahead; with 0, this process loads the items itself.
        pin_memory: copy tensors into pinned memory.

    Raises:
        ValueError: workers died `ATTEMPTS` times in a row at the same item.
    """
    deaths = 0
    while numbers:
        loader: DataLoader[T] = DataLoader(
            dataset,
            batch_size=None,
            sampler=numbers,  # type: ignore[arg-type]
            num_workers=num_workers,
            # A dying worker also loses the items that it prepared before; without prefetching there are none.
            prefetch_factor=1 if num_workers and deaths == ATTEMPTS - 1 else None,
            pin_memory=pin_memory,
            # Otherwise the iterator would draw from the global generator, which resuming would change.
            generator=torch.Generator(),
            worker_init_fn=_end_with_parent,
        )
        items = iter(loader)
        _poll_for_deaths()
        try:
            for item in items:
                numbers, deaths = numbers[1:], 0
                yield item
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not num_workers or not _is_death(error):
                raise
            deaths += 1
            died = f"num_workers={num_workers}: a process that prepares batches died"
            if deaths == ATTEMPTS:
                raise ValueError(
                    f"{died} {deaths} times at item {numbers[0]:,}; num_workers=0 shows the cause, and fewer workers "
                    "need less memory"
                ) from None
            warnings.warn(f"{died}; new workers continue at item {numbers[0]:,}", RuntimeWarning, stacklevel=2)
            del items  # ends the other workers


def _is_death(error: Exception) -> bool:
    """Return whether a worker died, possibly while it sent an item. Errors of the dataset name the worker process."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(DIED)
    return "in DataLoader worker process" not in str(error)


def _end_with_parent(worker: int) -> None:
    end_with_parent(signal.SIGKILL)


def _poll_for_deaths() -> None:
    """Make torch detect dead workers only while it waits for them. Its signal handler would interrupt the training."""
    handler: Any = signal.getsignal(signal.SIGCHLD)
    of_torch = getattr(handler, "__module__", "").startswith("torch.")
    if of_torch and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class InOrder(Dataset[Tensor | ValueError]):
    """Stored examples in the order of `indices`, `block` at a time."""

    def __init__(self, source: Source, indices: Indices, block: int):
        self.source, self.indices, self.block = source, indices, block

    def __len__(self) -> int:
        return -(-len(self.indices) // self.block)

    def __getitem__(self, number: int) -> Tensor | ValueError:
        indices = self.indices[number * self.block : (number + 1) * self.block]
        if not len(indices):
            raise IndexError(number)
        try:
            return self.source.read(indices)
        except ValueError as error:
            return error
