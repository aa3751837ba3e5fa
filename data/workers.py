"""Work that other processes do, in order. A worker that dies is noticed at once, and no worker outlives its parent.

Each worker has a pipe of its own, whose ends nobody else holds: when one side dies, however it does, the other reads
the end of the file, even in the middle of a message. Imports no torch.
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

AHEAD = 2  # chunks that each worker has at most; they must fit into a pipe, results need not
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has fewer
DAMAGED = (getattr(signal, "SIGBUS", signal.SIGSEGV), signal.SIGSEGV)  # what reading a damaged file as memory ends in

C = TypeVar("C")
T = TypeVar("T")


def map_in_order(work: Callable[[C], T], chunks: Iterable[C], workers: int, source: str = "") -> Iterator[tuple[C, T]]:
    """Yield (chunk, what the work makes of it) in the order of the chunks.

    Args:
        workers: processes that work; this one does if there are none.
        source: what the work reads, for the error about a worker that died.

    Raises:
        ValueError: a worker died. What the work itself raises is raised here.
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
                first, worker = waiting.popleft()
                yield first, worker.result(source)
            pool[number % workers].begin(chunk, source)
            waiting.append((chunk, pool[number % workers]))
        for first, worker in waiting:
            yield first, worker.result(source)
    finally:
        for worker in pool:
            worker.end()


def ended_by(number: int, source: str) -> str:
    """Say which signal ended a process that read a source, and what the cause may be."""
    name = signal.Signals(number).name if number in {*signal.Signals} else "unknown"
    told = f"signal {number} ({name})"
    if number in DAMAGED and source:
        return f"{told}, perhaps because {source} is damaged: what is read through memory ends a process like that"
    return f"{told}, perhaps because the memory was used up" if number == KILL else told


class _Worker:
    """A process that does work on one chunk after the other."""

    def __init__(self, work: Callable[[Any], Any]):
        context = get_context("spawn")  # which passes on no other files than its own
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, os.getpid()), daemon=True)
        try:
            self.process.start()
        except BrokenPipeError:
            raise ValueError("a worker process died while it was started; the same command goes on") from None
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
        remedy = "" if -status in DAMAGED else "; the same command goes on, and num_workers=1 needs less memory"
        return ValueError(f"a worker process was ended by {how}{remedy}")

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()
        self.process.close()


def _serve(work: Callable[[Any], Any], pipe: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    end_with_parent(KILL)
    if os.getppid() != parent:  # it died before
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
    """Have this process get a signal when the one that started it dies, however it does; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
