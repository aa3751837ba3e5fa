"""The scan of one file: the place and the label of each image, and the entries that cannot be read."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats.encoded import BadEntry, Entry, Format, text

CHUNK = 2**16  # entries written together
MERGE = 2**20  # least number of labels merged together


@dataclass
class FileScan:
    """The classes of one file.

    Args:
        labels: (k,) distinct labels, sorted.
        names: class names of the labels 0, 1, ...; None if the file has no names.
        count: number of images.
        width: most labels of an image.
        num_more: number of labels after the first ones.
        num_bad: number of entries that cannot be read.
    """

    labels: NDArray[np.int64]
    names: Sequence[str] | None
    count: int = 0
    width: int = 1
    num_more: int = 0
    num_bad: int = 0


class ScanOutputs(NamedTuple):
    """Open files of a catalog that a scan appends to."""

    places: IO[bytes]  # uint64 for each image
    labels: IO[bytes]  # int64 for each image, as in the file; the first one if it has several
    more: IO[bytes]  # int64 (image in its file, place among its labels, label) for each other label
    bad: IO[str]  # a JSON line for each entry that cannot be read


def scan_file(file: Format, folder: Path, outputs: ScanOutputs, progress: Callable[[int], None]) -> FileScan:
    """Write the places and labels of a file's images, and return its classes.

    Args:
        folder: the catalog's folder, which holds temporary files.
        progress: called with the number of images so far.

    Raises:
        ValueError: a key is listed twice, or a label has no class name.
    """
    scan = FileScan(labels=np.empty(0, np.int64), names=file.class_names())
    pending: list[NDArray[np.int64]] = []
    with (folder / "keys.bin").open("wb") as keys:
        for entries, bad in _chunks(file.scan()):
            np.array([entry.place for entry in entries], np.uint64).tofile(outputs.places)
            labels = np.array([entry.label for entry in entries], np.int64)
            labels.tofile(outputs.labels)
            more = more_labels(entries, scan.count)
            more.tofile(outputs.more)
            scan.num_more += len(more)
            scan.width = max(scan.width, int(more[:, 1].max(initial=0)) + 1)
            pending.append(np.unique(np.concatenate([labels, more[:, 2]])))
            # Waiting for as many labels as are merged already keeps the total cost linear.
            if sum(map(len, pending)) > max(len(scan.labels), MERGE):
                scan.labels, pending = np.unique(np.concatenate([scan.labels, *pending])), []
            if entries and entries[0].key is not None:
                np.array([hash(entry.key) for entry in entries], np.int64).tofile(keys)
            outputs.bad.writelines(json.dumps(entry) + "\n" for entry in bad)
            scan.num_bad += len(bad)
            scan.count += len(entries)
            progress(scan.count)
    scan.labels = np.unique(np.concatenate([scan.labels, *pending]))
    _check_keys(folder / "keys.bin", file)
    if scan.names is not None and len(scan.labels) and scan.labels[-1] >= len(scan.names):
        raise ValueError(f"{file.path} has label {scan.labels[-1]}, but only {len(scan.names)} class names")
    return scan


def more_labels(entries: Sequence[Entry], first: int) -> NDArray[np.int64]:
    """Return (image, place among its labels, label) of the labels after the first ones, (n, 3).

    Args:
        first: number of the first image.
    """
    rows = [
        (number, place, label)
        for number, entry in enumerate(entries, first)
        for place, label in enumerate(entry.more_labels, 1)
    ]
    return np.array(rows, np.int64).reshape(-1, 3)


def _chunks(entries: Iterator[Entry | BadEntry]) -> Iterator[tuple[list[Entry], list[BadEntry]]]:
    images: list[Entry] = []
    bad: list[BadEntry] = []
    for entry in entries:
        if isinstance(entry, Entry):
            images.append(entry)
        else:
            bad.append(entry)
        if len(images) + len(bad) == CHUNK:
            yield images, bad
            images, bad = [], []
    yield images, bad


def _check_keys(path: Path, file: Format) -> None:
    """Raise ValueError for a duplicate key. Only keys with equal hashes are compared themselves."""
    if path.stat().st_size:
        hashes = np.memmap(path, np.int64, "r+")
        hashes.sort()
        suspects = {int(value) for value in hashes[1:][hashes[1:] == hashes[:-1]]}
        seen: set[bytes] = set()
        for entry in file.scan() if suspects else ():
            if isinstance(entry, Entry) and entry.key is not None and hash(entry.key) in suspects:
                if entry.key in seen:
                    raise ValueError(f"{file.path}: key {text(entry.key)!r} is listed twice; keys must be unique")
                seen.add(entry.key)
        del hashes
    path.unlink()
