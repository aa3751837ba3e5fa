"""Files read at any place, lines of large text files by the byte they begin at, and small files written whole.

Imports no torch: the launcher writes too.
"""

import codecs
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

FIRST = 2**9  # bytes read at first: most lines are shorter
CHUNK = 2**22


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
            self._descriptor = os.open(self.path, os.O_RDONLY)
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
        with open(self.path, "rb", buffering=CHUNK) as file:  # noqa: PTH123
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
    with aside.open("w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
