"""Encoded images in files of others: what every format gives, and the errors they share."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..files import open_file

JPEG = b"\xff\xd8"  # the first bytes


class UnreadableError(ValueError):
    """One image cannot be had; the others may be fine.

    Args:
        reason: why.
        name: which.
    """

    def __init__(self, reason: str, name: str | None = None):
        super().__init__(reason if name is None else f"{name}: {reason}")
        self.reason = reason


class Entry(NamedTuple):
    """An image, as a scan finds it.

    Args:
        place: where it lies, in whatever unit the format counts.
        label: as the file has it, at least 0.
        key: which must not repeat; None where it may.
    """

    place: int
    label: int
    key: bytes | None = None


class BadEntry(NamedTuple):
    """What a scan finds instead of an image."""

    key: str
    reason: str


class Images(Protocol):
    """Encoded images by number. Must survive pickling."""

    def __len__(self) -> int: ...

    def read_all(self, indices: NDArray[np.int64]) -> Iterator[bytes]:
        """One after the other. Raises UnreadableError, naming the one it is at."""
        ...

    def name(self, index: int) -> str:
        """Of an image, for people."""
        ...


class Labelled(Images, Protocol):
    """Images of known classes."""

    @property
    def labels(self) -> NDArray[Any]:
        """Class ids (n,)."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Of the classes."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of other images it is another."""
        ...

    def key(self, index: int) -> str:
        """What its file calls an image."""
        ...


class Format(Protocol):
    """One file, folder or database of encoded images.

    Is pickled with its path only: each process opens its own handles, when it first reads.
    """

    path: str

    def files(self) -> Sequence[str]:
        """Where the size or time of one of these changes, it is scanned anew."""
        ...

    def scan(self) -> Iterator[Entry | BadEntry]:
        """All images, in file order.

        Raises:
            ValueError: files that are missing or of another kind.
        """
        ...

    def class_names(self) -> Sequence[str] | None:
        """Of the labels 0, 1, ...; None where it has none."""
        ...

    def key(self, place: int) -> str:
        """What its file calls an image."""
        ...

    def read(self, place: int) -> bytes:
        """The encoded image. Raises UnreadableError."""
        ...


def read_names(path: Path) -> list[str] | None:
    """Class names, a line each; None where there is no such file."""
    if not path.exists():
        return None
    try:
        with open(open_file(path), encoding="utf-8-sig", errors="surrogateescape") as file:  # noqa: PTH123
            return file.read().removesuffix("\n").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: the class names cannot be read: {error.strerror or error}") from None


def text(raw: bytes) -> str:
    """For people: what is not UTF-8 is shown as \\xNN."""
    return raw.decode("utf-8", "backslashreplace")


def label_of(raw: bytes) -> int:
    """A class id as text. Raises ValueError."""
    if not raw.isdigit() or len(raw) > 18:
        raise ValueError(f"{text(raw[:40])!r} is no class id: a whole number, at least 0, is needed")
    return int(raw)
