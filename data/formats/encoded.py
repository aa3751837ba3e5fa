"""Encoded images: the interface of all formats, and their common errors."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..files import open_file

JPEG = b"\xff\xd8"  # first bytes of the file
MOST_LABELS = 1000  # labels of an image; each image takes as much memory as the one with the most labels


class UnreadableError(ValueError):
    """Error for one image that cannot be read; other images may be readable.

    Args:
        reason: why it cannot be read.
        name: name of the image.
    """

    def __init__(self, reason: str, name: str | None = None):
        super().__init__(reason if name is None else f"{name}: {reason}")
        self.reason = reason


class Entry(NamedTuple):
    """An image found by a scan.

    Args:
        place: its position, in the unit of the format.
        label: its label in the file, at least 0; the first one if it has several.
        key: its key, if keys must be unique; None if they may repeat.
        more_labels: its other labels, without repetitions.
    """

    place: int
    label: int
    key: bytes | None = None
    more_labels: tuple[int, ...] = ()


class BadEntry(NamedTuple):
    """An entry found by a scan that is not a readable image.

    Args:
        key: its key or its position, for the user.
        reason: why it cannot be read.
    """

    key: str
    reason: str


class Images(Protocol):
    """Encoded images by number. They must be picklable."""

    def __len__(self) -> int: ...

    def read_all(self, indices: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield encoded images. Raises UnreadableError, which names the current image."""
        ...

    def name(self, index: int) -> str:
        """Return the name of an image, for messages."""
        ...


class Labelled(Images, Protocol):
    """Encoded images of known classes."""

    @property
    def labels(self) -> NDArray[Any]:
        """Class ids (n,); those of the first labels if images have several."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Class names."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest that differs for other images."""
        ...

    def key(self, index: int) -> str:
        """Return the key of an image in its file."""
        ...


class Format(Protocol):
    """Reader of one file, folder or database of encoded images.

    It is pickled with its path only; each process opens its own handles at its first read.
    """

    path: str

    def files(self) -> Sequence[str]:
        """Return the files whose size and time determine whether a catalog is current."""
        ...

    def scan(self) -> Iterator[Entry | BadEntry]:
        """Yield all entries, in file order.

        Raises:
            ValueError: files are missing or of another kind.
        """
        ...

    def class_names(self) -> Sequence[str] | None:
        """Return the class names of the labels 0, 1, ...; None if there are none."""
        ...

    def key(self, place: int) -> str:
        """Return the key of an image in its file."""
        ...

    def read(self, place: int) -> bytes:
        """Return an encoded image. Raises UnreadableError."""
        ...


def read_names(path: Path) -> list[str] | None:
    """Return the class names in a file, one per line; None if the file does not exist."""
    if not path.exists():
        return None
    try:
        with open(open_file(path), encoding="utf-8-sig", errors="surrogateescape") as file:  # noqa: PTH123
            return file.read().removesuffix("\n").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: the class names cannot be read: {error.strerror or error}") from None


def text(raw: bytes) -> str:
    """Return text for messages; bytes that are not UTF-8 become \\xNN."""
    return raw.decode("utf-8", "backslashreplace")


def label_of(raw: bytes) -> int:
    """Return the class id that a text contains. Raises ValueError."""
    if not raw.isdigit() or len(raw) > 18:
        raise ValueError(f"{text(raw[:40])!r} is not a class id; class ids are whole numbers from 0")
    return int(raw)


def labels_of(raw: bytes) -> tuple[int, ...]:
    """Return the class ids that a text contains, separated by commas, each once. Raises ValueError."""
    labels = tuple(dict.fromkeys(label_of(part) for part in raw.split(b",")))
    if len(labels) > MOST_LABELS:
        raise ValueError(f"{len(labels):,} labels are too many; an image may have {MOST_LABELS:,}")
    return labels
