"""Locks of folders, so that two trainings never write to the same one.

The operating system releases a lock when its holder dies, and child processes do not inherit it (POSIX record locks).
Other machines see the lock on network folders that support such locks: NFS, and Lustre mounted with `flock`. Object
stores have none.
"""

import errno
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILE = ".lock"
PATIENCE = 2.0  # seconds until a killed holder has released its lock
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it is missing.

    Args:
        option: names the folder in messages.

    Raises:
        ValueError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"{option}={folder} cannot be written ({error}); choose another folder") from None
    try:
        if not _taken(descriptor, folder, option):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            raise ValueError(
                f"{option}={folder} is in use: {holder} is training there; wait until it ends, or choose another folder"
            )
        with suppress(OSError):  # the disk is full
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check_free(folder: Path, option: str) -> None:
    """Raise ValueError if another process holds the folder's lock. Keep no lock."""
    if (folder / FILE).exists():
        with locked(folder, option):
            pass


def _taken(descriptor: int, folder: Path, option: str) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in UNSUPPORTED:
                warnings.warn(
                    f"{option}={folder} cannot be locked, because its file system supports no locks ({error}); start "
                    "no second training in this folder",
                    stacklevel=4,
                )
                return True
            if time.monotonic() > deadline:
                return False
        time.sleep(0.05)
