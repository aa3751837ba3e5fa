"""Files: random access, lines located by their first byte, and atomic writes of small files.

The module does not import torch, since the launcher uses it.
"""

import codecs
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

FIRST_READ = 2**9  # bytes; most lines are shorter
CHUNK = 2**22
LARGEST = 2**29  # bytes of a file that is read whole; decodable images are smaller
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: str | bytes | os.PathLike[str]) -> int:
    """Open a regular file for reading and return its descriptor.

    Other files are refused: reading a named pipe would block, and a device may never end.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    # O_NONBLOCK does not wait for the writer of a pipe. Windows has O_BINARY instead.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {KINDS.get(kind, 'a special file')}, not a regular file", os.fspath(path))
    return descriptor


def check_file(path: str | os.PathLike[str], what: str) -> None:
    """Raise ValueError unless a path is a regular file. `what` names the expected file."""
    if not os.path.exists(path):  # noqa: PTH110
        raise ValueError(f"{os.fspath(path)} does not exist; a {what} is expected there")
    kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116
    if kind != stat.S_IFREG:
        raise ValueError(f"{os.fspath(path)} is {KINDS.get(kind, 'a special file')}, not a {what}")


def read_file(path: str | bytes | os.PathLike[str]) -> bytes:
    """Return the content of a regular file. Raises OSError, also for a file that is too large for an image."""
    with open(open_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST:
            reason = f"it has {size:,} bytes; at most {LARGEST:,} are read as one image"
            raise OSError(errno.EFBIG, reason, os.fspath(path))
        return file.read(LARGEST + 1)


class ReadFile:
    """A file for random access. Each process opens it at its first read; it is pickled as its path."""

    def __init__(self, path: str):
        self.path = path
        self._descriptor: int | None = None

    def __reduce__(self) -> tuple[type["ReadFile"], tuple[str]]:
        return type(self), (self.path,)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]

    def size(self) -> int:
        """Return the size in bytes."""
        return os.stat(self.path).st_size  # noqa: PTH116

    def read(self, place: int, length: int) -> bytes:
        """Return `length` bytes from the byte `place` on; fewer if the file ends before."""
        if self._descriptor is None:
            self._descriptor = open_file(self.path)
        return os.pread(self._descriptor, length, place)


class LineFile(ReadFile):
    """The lines of a text file, without line ends."""

    def line(self, place: int) -> bytes:
        """Return the line that begins at the byte `place`; empty past the end of the file."""
        length = FIRST_READ
        while True:
            content = self.read(place, length)
            line, end, _ = content.partition(b"\n")
            if end or len(content) < length:
                return line.removesuffix(b"\r")
            length *= 8

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (number from 1, place, line) for each line that is not empty."""
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
    """Replace a file atomically: the old content stays until the new content is complete."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # unique, since several machines may write the same file
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
    """Append to a file. If that fails, the file keeps its old content."""
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        rest = memoryview(text.encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise
