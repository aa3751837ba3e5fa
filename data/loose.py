"""Images that lie in files of their own, without classes: by path, or all below a folder."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .encoded import UnreadableError, text
from .image_lists import ENDINGS, images_below, read_file
from .records import Indices

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


class Photos:
    """All images below a folder, which tells nothing of classes: they count as one."""

    def __init__(self, folder: str):
        self.folder, self.files = folder, ImageFiles([os.fsencode(path) for path in sorted(images_below(folder))])
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
        return hashlib.sha256(b"\n".join(self.files.paths)).hexdigest()
