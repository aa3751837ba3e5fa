"""Class names in a file, one per line, read by memory mapping."""

import mmap
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 2**16  # names written together


class ClassNames(Sequence[str]):
    """Names in `names.txt`, whose line ends `names.bin` locates."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ends = np.memmap(folder / "names.bin", np.int64, "r")
        with (folder / "names.txt").open("rb") as file:
            self.lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return ClassNames, (self.folder,)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        with (self.folder / "names.txt").open("rb") as file:
            for line in file:
                yield line[:-1].decode("utf-8", "surrogateescape")

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) + 1 if index else 0
        return self.lines[start : int(self.ends[index])].decode("utf-8", "surrogateescape")


def write_class_names(folder: Path, names: Iterator[str]) -> None:
    """Write `names.txt` and `names.bin`."""
    with (folder / "names.txt").open("wb") as lines, (folder / "names.bin").open("wb") as ends:
        while block := list(islice(names, BLOCK)):
            encoded = [name.encode("utf-8", "surrogateescape") for name in block]
            lengths = np.array([len(name) + 1 for name in encoded], np.int64)
            (lines.tell() + np.cumsum(lengths) - 1).tofile(ends)
            lines.write(b"\n".join(encoded) + b"\n")
