"""Worker processes that map a function over chunks, in order.

A dead worker is detected at once, and no worker outlives its parent. Each worker has a pipe whose ends no other process
holds: when one side dies for any reason, the other reads the end of the file, even in the middle of a message. The
module does not import torch.
"""

import ctypes
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

AHEAD = 2  # most chunks that a worker has; they must fit into a pipe, but results need not
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has no SIGKILL
DAMAGED = (getattr(signal, "SIGBUS", signal.SIGSEGV), signal.SIGSEGV)  # raised by reading a damaged memory-mapped file

C = TypeVar("C")
T = TypeVar("T")


def map_in_order(work: Callable[[C], T], chunks: Iterable[C], workers: int, source: str = "") -> Iterator[tuple[C, T]]:
    """Yield each chunk with the result of the work on it, in the order of the chunks.

    Args:
        work: a picklable function of one chunk.
        chunks: picklable arguments.
        workers: number of worker processes; with 0, this process does the work.
        source: name of the data that the work reads, for the error about a dead worker.

    Raises:
        ValueError: a worker died.
        Exception: the error that the work raised.
    """
    if not workers:
        for chunk in chunks:
            yield chunk, work(chunk)
        return
    pool: list[_Worker] = []
    waiting: deque[tuple[C, _Worker]] = deque()
    try:
        pool += (_Worker(work) for _ in range(workers))
        for number, chunk in enumerate(chunks):
            if len(waiting) == AHEAD * workers:
                oldest, worker = waiting.popleft()
                yield oldest, worker.result(source)
            pool[number % workers].begin(chunk, source)
            waiting.append((chunk, pool[number % workers]))
        for oldest, worker in waiting:
            yield oldest, worker.result(source)
    finally:
        for worker in pool:
            worker.end()


def ended_by(number: int, source: str) -> str:
    """Describe the signal that ended a process, and its possible cause."""
    name = signal.Signals(number).name if number in {*signal.Signals} else "unknown"
    description = f"signal {number} ({name})"
    if number in DAMAGED and source:
        return (
            f"{description}, perhaps because {source} is damaged: reading a damaged memory-mapped file has this effect"
        )
    return f"{description}, perhaps because memory ran out" if number == KILL else description


class _Worker:
    """A process that works on one chunk after another."""

    def __init__(self, work: Callable[[Any], Any]):
        context = get_context("spawn")  # a forked process would inherit the pipes of the other workers
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, os.getpid()), daemon=True)
        try:
            self.process.start()
        except BrokenPipeError:
            raise ValueError("a worker process died while it was starting; run the same command to resume") from None
        finally:
            theirs.close()

    def begin(self, chunk: Any, source: str) -> None:
        try:
            self.pipe.send(chunk)
        except OSError:
            raise self._died(source) from None

    def result(self, source: str) -> Any:
        try:
            result, error = self.pipe.recv()
        except (EOFError, OSError):
            raise self._died(source) from None
        if error is not None:
            raise error
        return result

    def _died(self, source: str) -> ValueError:
        self.process.join()
        status = self.process.exitcode or 0
        how = ended_by(-status, source) if status < 0 else f"status {status}"
        remedy = "" if -status in DAMAGED else "; run the same command to resume, and num_workers=1 needs less memory"
        return ValueError(f"a worker process was ended by {how}{remedy}")

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()
        self.process.close()


def _serve(work: Callable[[Any], Any], pipe: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    end_with_parent(KILL)
    if os.getppid() != parent:  # the parent died before the call above
        return
    while True:
        try:
            chunk = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[Any, Exception | None] = work(chunk), None
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = None, error
        try:
            pipe.send(answer)
        except OSError:
            return


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Request a signal for this process when its parent dies for any reason; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
