"""The refresh of an index or a graph: in a background thread, or while training waits."""

import atexit
import contextlib
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from .index import Index

NICENESS = 5  # niceness of the background thread and of processes that it starts
ATTEMPTS = 3  # consecutive failures to build an index before training ends

T = TypeVar("T")


def check_build(build: object) -> None:
    """Raise a ValueError for an option `build` out of range."""
    if build not in ("background", "blocking"):
        raise ValueError(f"build={build!r} must be 'background' or 'blocking'")


class Work(Generic[T]):
    """One call, in a thread of low priority, or at once.

    Args:
        function: the work. It gets this object, whose `cancelled` asks it to end early.
        background: run it in a thread. Otherwise it has run when the constructor returns.

    Attributes:
        done: whether the call has ended.
        error: its exception, or None.
        seconds: its duration.
    """

    def __init__(self, function: Callable[["Work[T]"], T], *, background: bool):
        self.cancelled = self.done = False
        self.error: BaseException | None = None
        self.seconds = 0.0
        self._result: T | None = None
        self._thread: threading.Thread | None = None
        if not background:
            self._run(function)
            return
        _in_threads.add(self)
        self._thread = threading.Thread(target=self._run, args=(function, True), name="index", daemon=True)
        self._thread.start()

    @property
    def result(self) -> T:
        """Result of the call, which must have ended without an error."""
        assert self.done and self.error is None
        return self._result  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until the call has ended."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def cancel(self) -> None:
        """Ask the call to end early, and wait until it has ended."""
        self.cancelled = True
        self.wait()

    def _run(self, function: Callable[["Work[T]"], T], in_thread: bool = False) -> None:
        begin = time.perf_counter()
        try:
            if in_thread:
                _lower_priority()
            self._result = function(self)
        except BaseException as error:
            self.error = error
        self.seconds = time.perf_counter() - begin
        self.done = True  # last, because others take it as the end of the call


_in_threads: weakref.WeakSet[Work[Any]] = weakref.WeakSet()


@atexit.register
def _cancel_all() -> None:
    """Wait for all threads: one that returns from a library during the interpreter's exit would crash the process."""
    for work in list(_in_threads):
        work.cancel()


class Refresh(Generic[T]):
    """The index or graph in use, and how the builds of its successors ended.

    Args:
        background: build in a thread, while `current` keeps serving. Otherwise training waits for the build.

    Attributes:
        current: the index or graph in use; None until one is built.
        as_of: the step of the rows in `current`. With `background`, reading the rows began at this step.
        seconds: duration of its build.
        next_refresh: step at which the next build is due.
        failures: consecutive failed builds. With `background` they are reported, and `current` keeps serving.
            If there is none, `ATTEMPTS` of them end the training.
        failed: whether a build failed since the owner last cleared this flag.
        error: why the next step will raise, or None.
    """

    thing: ClassVar[str] = "index"  # its name in messages

    def __init__(self, *, background: bool):
        self.background = background
        self.current: T | None = None
        self.as_of = 0
        self.seconds = 0.0
        self.next_refresh = 0
        self.failures = 0
        self.failed = False
        self.error: str | None = None

    def adopt(self, built: T, step: int, seconds: float) -> None:
        """Make an index or graph, built from the rows of this step, the current one."""
        self.current, self.failures = built, 0
        self.as_of, self.seconds = step, seconds

    def report(self, error: BaseException) -> None:
        """Report that a build failed.

        Raises:
            RuntimeError: without `background`.
        """
        self.failed = True
        message = f"the {self.thing} of nearest classes could not be built: {str(error) or repr(error)}"
        if not self.background:
            raise RuntimeError(message) from error
        self.failures += 1
        if self.current is None and self.failures >= ATTEMPTS:
            self.error = f"{message} ({self.failures} times in a row)"
            return
        meanwhile = f"the previous {self.thing} is used" if self.current is not None else "all negatives are uniform"
        warnings.warn(f"{message}; {meanwhile} until a new build succeeds", RuntimeWarning, stacklevel=3)

    def repeat(self, step: int) -> bool:
        """Return whether a build has failed since the last call; a few times, the next one is due at this step."""
        if not self.failed:
            return False
        self.failed = False
        if self.failures < ATTEMPTS:  # else at the next interval
            self.next_refresh = step
        return True


class IndexRefresh(Refresh[Index]):
    """The current index, and the build of the next one."""

    def __init__(self, *, background: bool):
        super().__init__(background=background)
        self._work: Work[Index] | None = None
        self._step = 0  # of the build

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which has the current index and repeats a build that is running."""
        return {**self.__dict__, "_work": None, "failed": self.failed or self.running}

    @property
    def running(self) -> bool:
        """Return whether a build runs in the background."""
        return self._work is not None

    def start(self, step: int, build: Callable[[], Index]) -> None:
        """Start to build the next index; without `background` it is the current one on return.

        Args:
            step: optimizer step of the rows.
            build: returns the new index.

        Raises:
            RuntimeError: the build failed, without `background`.
        """
        assert not self.running
        self._step = step
        self._work = Work(lambda work: build(), background=self.background)
        if not self.background:
            self.collect()

    def collect(self) -> None:
        """Make a finished index the current one, or report its failure.

        Raises:
            RuntimeError: the build failed, without `background`.
        """
        work = self._work
        if work is None or not work.done:
            return
        work.wait()
        self._work = None
        if work.error is not None:
            self.report(work.error)
        else:
            self.adopt(work.result, self._step, work.seconds)

    def wait(self) -> None:
        """Wait for a running build and collect its result."""
        if self._work is not None:
            self._work.wait()
        self.collect()


def _lower_priority() -> None:
    """Give training precedence over this thread."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
