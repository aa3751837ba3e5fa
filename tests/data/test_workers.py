"""Worker processes: results come in order, deaths are detected, and workers die with their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data.workers import ended_by, map_in_order


def doubled(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return 2 * number


def failing(number: int) -> int:
    if number == 3:
        raise ValueError(f"no {number}")
    return number


def ending(how: tuple[int, bool]) -> bytes:
    """End by a signal: at once, or in the middle of sending the result."""
    number, half = how

    def write_half(self: Connection, message: bytes, write: Callable[[int, bytes], int] = os.write) -> None:
        write(self.fileno(), bytes(message[: len(message) // 2]))
        os.kill(os.getpid(), number)

    if half:
        Connection._send = write_half  # in this worker only
    elif number:
        os.kill(os.getpid(), number)
    return bytes(1000)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_chunks(workers):
    assert list(map_in_order(doubled, range(20), workers)) == [(number, 2 * number) for number in range(20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_work_are_raised_in_order(workers):
    results = map_in_order(failing, range(9), workers)
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(ValueError, match=r"^no 3(\n|$)"):
        next(results)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, r"signal 9 \(SIGKILL\), perhaps because memory ran out; run the same command to resume"),
        (signal.SIGBUS, r"signal 7 \(SIGBUS\), perhaps because faces\.lmdb is damaged"),
    ],
)
def test_a_worker_that_dies_is_detected(number, message, half):
    """The test waits forever if the death is not detected."""
    chunks = [(0, False), (0, False), (number, half), *[(0, False)] * 9]
    with pytest.raises(ValueError, match=f"a worker process was ended by {message}"):
        list(map_in_order(ending, chunks, 2, "faces.lmdb"))


def test_signals_are_named():
    assert ended_by(signal.SIGSEGV, "").endswith("(SIGSEGV)") and "unknown" in ended_by(99, "x")


PARENT = """
import multiprocessing, time
from data.workers import map_in_order

def chunks():
    yield 0.0
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    yield 1000.0

list(map_in_order(time.sleep, chunks(), 2))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_their_parent(number):
    """One worker is at work, and the other waits for work."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(number)
    while any(alive(worker) for worker in workers):
        time.sleep(0.01)


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
