"""Images that lie in files of their own, without classes: by path, or all below a folder."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import read_file
from ..records import Indices
from .encoded import UnreadableError, text
from .image_lists import ENDINGS, images_below

ANY = b"*"  # at the end of a path: whatever ending the image has


@dataclass(frozen=True)
class ImageFiles:
    """Encoded images in files."""

    paths: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.paths)

    def read_all(self, indices: Indices) -> Iterator[bytes]:
        for index in indices:
            try:
                yield _read(self.paths[index])
            except (OSError, ValueError) as error:  # ValueError: a null byte in its name
                reason = error.strerror if isinstance(error, OSError) else None
                raise UnreadableError(reason or str(error), self.name(int(index))) from None

    def name(self, index: int) -> str:
        return text(self.paths[index])


def _read(path: bytes) -> bytes:
    if path.endswith(ANY):
        for ending in ENDINGS:
            with suppress(FileNotFoundError):
                return read_file(path.removesuffix(ANY) + ending.encode())
    return read_file(path)


def has_images(folder: str) -> bool:
    """Whether there are images in it, not in folders."""
    with os.scandir(folder) as entries:
        return any(each.name.lower().endswith(ENDINGS) and not each.is_dir() for each in entries)


def has_folders(folder: str) -> bool:
    """Hidden ones, of thumbnails say, do not count."""
    with os.scandir(folder) as entries:
        return any(each.is_dir() and not each.name.startswith(".") for each in entries)


class UnlabeledImages:
    """All images below a folder, which tells nothing of classes: they count as one. Hidden folders are left out."""

    def __init__(self, folder: str):
        found = (os.path.relpath(path, folder) for path in images_below(folder))
        shown = sorted(path for path in found if not any(part.startswith(".") for part in Path(path).parts[:-1]))
        self.folder = folder
        self.files = ImageFiles([os.path.join(os.fsencode(folder), os.fsencode(path)) for path in shown])  # noqa: PTH118
        if not len(self.files):
            raise ValueError(f"{folder}: there is no image in it")
        self.labels: NDArray[np.int64] = np.zeros(len(self.files), np.int64)
        self.names: Sequence[str] = [os.path.basename(folder)]  # noqa: PTH119

    def __len__(self) -> int:
        return len(self.files)

    def read_all(self, indices: Indices) -> Iterator[bytes]:
        return self.files.read_all(indices)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def key(self, index: int) -> str:
        """Its path, from the folder on."""
        return os.path.relpath(text(self.files.paths[index]), self.folder)

    @property
    def fingerprint(self) -> str:
        told = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in self.files.paths]  # noqa: PTH116
        return hashlib.sha256(repr(told).encode()).hexdigest()
