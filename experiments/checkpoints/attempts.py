"""Repeated attempts to reach storage, and the error of the process that failed first."""

import time
import warnings
from collections.abc import Callable
from typing import Any

from torch.distributed.checkpoint import CheckpointException

from .manifest import DamageError
from .storage import CheckpointStore


class CheckpointError(Exception):
    """A checkpoint cannot be written or read. The message names the checkpoint, the reason and what remains."""


def attempt_on_all(attempt: Callable[[], None], failed: str, store: CheckpointStore) -> None:
    """Attempt a save or load, repeatedly where the store allows it. An attempt fails on all processes or on none.

    Args:
        failed: what failed, as the beginning of a message.

    Raises:
        CheckpointError: all attempts failed.
        DamageError: the checkpoint is damaged.
    """
    try:
        retry(attempt, store)
    except (CheckpointException, OSError) as error:
        cause = _cause(error)
        if isinstance(cause, KeyboardInterrupt | DamageError):
            raise cause from error
        raise CheckpointError(f"{failed} ({cause if isinstance(cause, OSError) else repr(cause)})") from error


def retry(attempt: Callable[[], Any], store: CheckpointStore) -> Any:
    """Return the result of the first attempt that succeeds, with the waits of the store between attempts."""
    for wait in store.retry_seconds:
        try:
            return attempt()
        except (CheckpointException, OSError) as error:
            if isinstance(_cause(error), FileNotFoundError | PermissionError | KeyboardInterrupt | DamageError):
                raise  # waiting does not help
        time.sleep(wait)
    return attempt()


def no_group_warning() -> warnings.catch_warnings:
    """Ignore torch's warning about a missing process group: one process needs none."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _cause(error: BaseException) -> BaseException:
    """Return the original error, on the first process that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        error = error.failures[min(error.failures)][0]
    deeper: BaseException | None = error
    while deeper is not None and not isinstance(deeper, OSError | KeyboardInterrupt | DamageError):
        deeper = deeper.__cause__ or deeper.__context__
    return deeper or error
