"""Files read at any place, lines of large text files by the byte they begin at, and small files written whole.

Imports no torch: the launcher writes too.
"""

import codecs
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

FIRST = 2**9  # bytes read at first: most lines are shorter
CHUNK = 2**22
LARGEST = 2**29  # bytes of a file that is read whole; no image that is decoded takes more
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: str | bytes | os.PathLike[str]) -> int:
    """Open a regular file to read and return its descriptor. A named pipe would block, and a device may never end.

    Raises:
        OSError: it cannot be opened, or it is something else than a regular file.
    """
    # Does not wait for the writer of a pipe. Windows has the second flag instead of the first.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {KINDS.get(kind, 'something else')}, not a file", os.fspath(path))
    return descriptor


def check_file(path: str | os.PathLike[str], what: str) -> None:
    """Raise ValueError for a path that is no regular file; `what` names what is needed there."""
    if not os.path.exists(path):  # noqa: PTH110
        raise ValueError(f"{os.fspath(path)}: there is no such {what}")
    kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116
    if kind != stat.S_IFREG:
        raise ValueError(f"{os.fspath(path)}: is {KINDS.get(kind, 'something else')}, not a {what}")


def read_file(path: str | bytes | os.PathLike[str]) -> bytes:
    """Return the content of a regular file. Raises OSError, also for one that is too large for an image."""
    with open(open_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST:
            told = f"it has {size:,} bytes; at most {LARGEST:,} are read as one image"
            raise OSError(errno.EFBIG, told, os.fspath(path))
        return file.read(LARGEST + 1)


class ReadFile:
    """Opened when first read, by each process for itself; pickled as its path."""

    def __init__(self, path: str):
        self.path = path
        self._descriptor: int | None = None

    def __reduce__(self) -> tuple[type["ReadFile"], tuple[str]]:
        return type(self), (self.path,)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]

    def size(self) -> int:
        return os.stat(self.path).st_size  # noqa: PTH116

    def read(self, place: int, length: int) -> bytes:
        """Fewer bytes where the file ends before."""
        if self._descriptor is None:
            self._descriptor = open_file(self.path)
        return os.pread(self._descriptor, length, place)


class LineFile(ReadFile):
    """Its lines, without their ends."""

    def line(self, place: int) -> bytes:
        """Empty past the end of the file."""
        length = FIRST
        while True:
            found = self.read(place, length)
            line, end, _ = found.partition(b"\n")
            if end or len(found) < length:
                return line.removesuffix(b"\r")
            length *= 8

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(number from 1, place, line), of those that are not empty."""
        place = 0
        with open(open_file(self.path), "rb", buffering=CHUNK) as file:
            for number, line in enumerate(file, 1):
                begin = place
                place += len(line)
                if begin == 0 and line.startswith(codecs.BOM_UTF8):
                    begin, line = len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
                if stripped := line.rstrip(b"\r\n"):
                    yield number, begin, stripped


def write_whole(path: Path, text: str) -> None:
    """Puts a file in place of another, which stays until all of the new one is there."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # several machines may write the same
    try:
        with aside.open("w", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def append_whole(path: Path, text: str) -> None:
    """Append to a file, which stays as it was where that fails."""
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        rest = memoryview(text.encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise
