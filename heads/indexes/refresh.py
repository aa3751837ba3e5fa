"""The refresh of an index: in a background thread, or while training waits."""

import atexit
import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from .index import Index

NICENESS = 5  # niceness of the background thread and of processes that it starts
ATTEMPTS = 3  # consecutive failures to build an index before training ends


class IndexRefresh:
    """The current index, and the build of the next one.

    Args:
        background: build in a thread, while the current index keeps serving. Otherwise `start` waits for the build.

    Attributes:
        current: the index in use; None until one is built.
        as_of: the step of the rows in the current index. With `background`, reading the rows began at this step.
        seconds: duration of its build.
        failures: consecutive failed builds. With `background` they are reported, and the current index keeps serving.
            Without a current index, `ATTEMPTS` of them end the training.
        failed: whether a build failed since the owner last cleared this flag.
        error: why the next step will raise, or None.
    """

    def __init__(self, *, background: bool):
        self.background = background
        self.current: Index | None = None
        self.as_of = 0
        self.seconds = 0.0
        self.failures = 0
        self.failed = False
        self.error: str | None = None
        self._thread: threading.Thread | None = None
        self._result: Index | BaseException | None = None
        self._started = (0, 0.0)  # step of the build, and its seconds

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which has the current index and repeats a build that is running."""
        return {**self.__dict__, "_thread": None, "_result": None, "failed": self.failed or self.running}

    @property
    def running(self) -> bool:
        """Return whether a build runs in the background."""
        return self._thread is not None

    def start(self, step: int, build: Callable[[], Index]) -> None:
        """Start to build the next index; without `background` it is the current one on return.

        Args:
            step: optimizer step of the rows.
            build: returns the new index.

        Raises:
            RuntimeError: the build failed, without `background`.
        """
        assert not self.running
        begin = time.perf_counter()

        def work() -> None:
            try:
                if self.background:
                    _lower_priority()
                result: Index | BaseException = build()
            except BaseException as error:
                result = error
            self._started = step, time.perf_counter() - begin
            self._result = result  # last, because `collect` takes it as the end of the build

        if self.background:
            self._thread = threading.Thread(target=work, name="index", daemon=True)
            self._thread.start()
            # A thread that returns from a library during the interpreter's exit would crash the process.
            atexit.register(self._thread.join)
        else:
            work()
            self.collect()

    def collect(self) -> None:
        """Make a finished index the current one, or report its failure.

        Raises:
            RuntimeError: the build failed, without `background`.
        """
        if self._result is None:
            return
        result, self._result = self._result, None
        if self._thread is not None:
            atexit.unregister(self._thread.join)
            self._thread = None
        if isinstance(result, BaseException):
            self.failed = True
            self._report(result)
            return
        self.current, self.failures = result, 0
        self.as_of, self.seconds = self._started

    def _report(self, error: BaseException) -> None:
        message = f"the index of nearest classes could not be built: {str(error) or repr(error)}"
        if not self.background:
            raise RuntimeError(message) from error
        self.failures += 1
        if self.current is None and self.failures >= ATTEMPTS:
            self.error = f"{message} ({self.failures} times in a row)"
            return
        meanwhile = "the previous index is used" if self.current is not None else "all negatives are uniform"
        warnings.warn(f"{message}; {meanwhile} until a new build succeeds", RuntimeWarning, stacklevel=3)

    def wait(self) -> None:
        """Wait for a running build and collect its result."""
        if self._thread is not None:
            self._thread.join()
        self.collect()


def _lower_priority() -> None:
    """Give training precedence over this thread."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
