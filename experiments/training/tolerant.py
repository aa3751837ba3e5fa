"""Loggers whose failures stop them, but never the training."""

from collections.abc import Iterator
from contextlib import contextmanager


class Tolerant:
    """A part of a logger that reports its first failure, and is silent from then on.

    Attributes:
        title: name for the report.
        failure: reason why logging has stopped, or None.
    """

    title: str
    failure: str | None = None

    @contextmanager
    def failures_caught(self) -> Iterator[None]:
        """Report an error of the code inside, instead of raising it."""
        try:
            yield
        except Exception as error:  # servers and libraries raise many types
            self.failure = f"{self.title} stopped logging ({error!r})"
            print(f"\nwarning: {self.failure}. Training continues without it.", flush=True)
