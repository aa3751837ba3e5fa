"""Lines of large text files, by the byte they begin at."""

import os
from collections.abc import Iterator

FIRST = 2**9  # bytes read at first: most lines are shorter
CHUNK = 2**22


class LineFile:
    """Opened when first read, by each process for itself."""

    def __init__(self, path: str):
        self.path = path
        self._file: int | None = None

    def __getstate__(self) -> dict[str, str]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]

    def size(self) -> int:
        return os.stat(self.path).st_size  # noqa: PTH116

    def line(self, place: int) -> bytes:
        """Without its end; empty past the end of the file."""
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        read = FIRST
        while True:
            found = os.pread(self._file, read, place)
            line, end, _ = found.partition(b"\n")
            if end or len(found) < read:
                return line.removesuffix(b"\r")
            read *= 8

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(place, line without its end), of those that are not empty."""
        place = 0
        with open(self.path, "rb", buffering=CHUNK) as file:  # noqa: PTH123
            for line in file:
                stripped = line.rstrip(b"\r\n")
                if stripped:
                    yield place, stripped
                place += len(line)
