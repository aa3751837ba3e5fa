"""An index in force, and its successor in the making: in the background, or while training waits."""

import atexit
import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from .index import Index

NICENESS = 5  # of the thread in the background, and of processes that it starts
ATTEMPTS = 3  # to make an index, one after the other


class IndexRefresh:
    """
    Args:
        background: make successors in a thread; the one in force serves meanwhile.

    Attributes:
        index: in force; None until the first is there.
        as_of: the step whose rows it holds; with `background`, the step at which reading them began.
        seconds: that making it took.
        failures: in a row. With `background` they are reported and the index in force serves on; without one,
            `ATTEMPTS` of them are the end.
        lost: whether an attempt has failed since whoever clears this last looked.
        broken: why the next step will raise, or None.
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
        self._started = (0, 0.0)  # step, seconds

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the index in force; what is in the making stays with the original, and the copy makes it again."""
        return {**self.__dict__, "_thread": None, "_result": None, "failed": self.failed or self.running}

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self, step: int, make: Callable[[], Index]) -> None:
        """Begins with the next index; without `background` it is in force on return."""
        assert not self.running
        begun = time.perf_counter()

        def work() -> None:
            try:
                if self.background:
                    _step_back()
                made: Index | BaseException = make()
            except BaseException as error:
                made = error
            self._started = step, time.perf_counter() - begun
            self._result = made  # last: it tells that the rest is there

        if self.background:
            self._thread = threading.Thread(target=work, name="index", daemon=True)
            self._thread.start()
            # A thread that comes back from a library while the interpreter ends would take it down.
            atexit.register(self._thread.join)
        else:
            work()
            self.collect()

    def collect(self) -> None:
        """Puts a finished index in force.

        Raises:
            RuntimeError: making it failed, without `background`.
        """
        if self._result is None:
            return
        made, self._result = self._result, None
        if self._thread is not None:
            atexit.unregister(self._thread.join)
            self._thread = None
        if isinstance(made, BaseException):
            self.failed = True
            self._report(made)
            return
        self.current, self.failures = made, 0
        self.as_of, self.seconds = self._started

    def _report(self, error: BaseException) -> None:
        told = f"the index of nearest classes could not be built: {str(error) or repr(error)}"
        if not self.background:
            raise RuntimeError(told) from error
        self.failures += 1
        if self.current is None and self.failures >= ATTEMPTS:
            self.error = f"{told} ({self.failures} times in a row)"
            return
        goes_on = "the one before serves on" if self.current is not None else "negatives are uniform until there is one"
        warnings.warn(f"{told}; {goes_on}, and it is built again", RuntimeWarning, stacklevel=3)

    def wait(self) -> None:
        """Until what is under way is done, and in force."""
        if self._thread is not None:
            self._thread.join()
        self.collect()


def _step_back() -> None:
    """Training comes first."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
