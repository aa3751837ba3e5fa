"""Image files without classes: a list of paths, or all images below a folder."""

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

ANY = b"*"  # end of a path that matches any ending of images


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
            except (OSError, ValueError) as error:  # ValueError: the name contains a null byte
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
    """Return whether a folder directly contains images."""
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(ENDINGS) and not entry.is_dir() for entry in entries)


def has_folders(folder: str) -> bool:
    """Return whether a folder has subfolders. Hidden ones, with thumbnails for example, do not count."""
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)


class UnlabeledImages:
    """All images below a folder, as one class. Hidden folders are skipped."""

    def __init__(self, folder: str):
        paths = (os.path.relpath(path, folder) for path in images_below(folder))
        visible = sorted(path for path in paths if not any(part.startswith(".") for part in Path(path).parts[:-1]))
        self.folder = folder
        self.files = ImageFiles([os.path.join(os.fsencode(folder), os.fsencode(path)) for path in visible])  # noqa: PTH118
        if not len(self.files):
            raise ValueError(f"{folder} contains no image")
        self.labels: NDArray[np.int64] = np.zeros(len(self.files), np.int64)
        self.names: Sequence[str] = [os.path.basename(folder)]  # noqa: PTH119

    def __len__(self) -> int:
        return len(self.files)

    def read_all(self, indices: Indices) -> Iterator[bytes]:
        return self.files.read_all(indices)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def key(self, index: int) -> str:
        """Return the path of an image, relative to the folder."""
        return os.path.relpath(text(self.files.paths[index]), self.folder)

    @property
    def fingerprint(self) -> str:
        states = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in self.files.paths]  # noqa: PTH116
        return hashlib.sha256(repr(states).encode()).hexdigest()
