"""Class ids of a catalog: the labels of all files become 0, 1, ..., without gaps."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..grouping import group
from .names import write_class_names
from .scan import FileScan

CHUNK = 2**16  # labels written together
MOST_CLASSES = 2**31 - 1


class _Numbering(NamedTuple):
    """The class ids of all labels.

    Args:
        ids: for each file, the class id of each of its distinct labels.
        num_classes: number of classes.
        names: class names; None where a class is named by its id.
        labels: sorted labels of the classes, where all files share one numbering.
    """

    ids: list[NDArray[np.int64]]
    num_classes: int
    names: Iterator[str] | None
    labels: NDArray[np.int64] | None


def assign_class_ids(folder: Path, scans: Sequence[FileScan], shared: bool) -> int:
    """Write class ids, the records of each class, and class names. Return the number of classes.

    Args:
        folder: the catalog's folder with `raw.bin` and `more.bin`, the labels as the files have them; these files are
            removed.
        scans: the classes of each file.
        shared: whether equal labels, or equal class names, mean the same class in all files.
    """
    numbering = _shared(scans) if shared else _separate(scans)
    ids, num_classes, names, of_files = numbering
    if of_files is not None and len(of_files) and of_files[-1] >= len(of_files):
        of_files.tofile(folder / "file_labels.bin")
    if num_classes > MOST_CLASSES:
        raise ValueError(f"the sources have {num_classes:,} classes; at most {MOST_CLASSES:,} are supported")
    if sum(scan.count for scan in scans):
        _write_labels(folder, scans, ids)
        if any(scan.num_more for scan in scans):
            _write_all_labels(folder, scans, ids)
        group(np.memmap(folder / "labels.bin", np.int32, "r"), num_classes, folder)
    for name in ("raw.bin", "more.bin"):
        (folder / name).unlink()
    if names is not None and num_classes:
        write_class_names(folder, names)
    return num_classes


def _shared(scans: Sequence[FileScan]) -> _Numbering:
    named = [scan for scan in scans if scan.names is not None]
    if not named:
        labels = np.unique(np.concatenate([scan.labels for scan in scans]))
        ids = [np.searchsorted(labels, scan.labels) for scan in scans]
        names = map(str, labels) if len(labels) and labels[-1] >= len(labels) else None
        return _Numbering(ids, len(labels), names, labels)
    if len(named) < len(scans):
        raise ValueError("shared=true needs class names in all sources or in none; some of these sources have none")
    used = [name for scan in named for name in np.asarray(scan.names, object)[scan.labels]]
    known = {name: number for number, name in enumerate(dict.fromkeys(used))}
    ids = [np.array([known[scan.names[label]] for label in scan.labels], np.int64) for scan in named]  # type: ignore[index]
    return _Numbering(ids, len(known), iter(known), scans[0].labels if len(scans) == 1 else None)


def _separate(scans: Sequence[FileScan]) -> _Numbering:
    offsets = np.cumsum([0, *(len(scan.labels) for scan in scans)])
    ids = [np.arange(len(scan.labels)) + offset for scan, offset in zip(scans, offsets, strict=False)]
    num_classes = int(offsets[-1])
    labels = scans[0].labels if len(scans) == 1 else None
    if labels is not None and scans[0].names is None and (not num_classes or labels[-1] < num_classes):
        return _Numbering(ids, num_classes, None, labels)
    names = chain.from_iterable(_names(scan, k, len(scans)) for k, scan in enumerate(scans))
    return _Numbering(ids, num_classes, names, labels)


def _names(scan: FileScan, number: int, num_files: int) -> Iterator[str]:
    """Yield the class names of a file; the file's number makes them unique among several files."""
    for label in scan.labels:
        name = scan.names[label] if scan.names is not None else str(label)
        yield f"{number}/{name}" if num_files > 1 else name


def _write_labels(folder: Path, scans: Sequence[FileScan], ids: Sequence[NDArray[np.int64]]) -> None:
    count = sum(scan.count for scan in scans)
    raw = np.memmap(folder / "raw.bin", np.int64, "r", shape=(count,))
    with (folder / "labels.bin").open("wb") as labels:
        start = 0
        for scan, of_scan in zip(scans, ids, strict=True):
            for begin in range(start, start + scan.count, CHUNK):
                _class_ids(scan, of_scan, raw[begin : min(begin + CHUNK, start + scan.count)]).tofile(labels)
            start += scan.count


def _write_all_labels(folder: Path, scans: Sequence[FileScan], ids: Sequence[NDArray[np.int64]]) -> None:
    """Write the class ids of all labels, (n, L) padded with -1. The first column is that of `labels.bin`."""
    count, width = sum(scan.count for scan in scans), max(scan.width for scan in scans)
    first = np.memmap(folder / "labels.bin", np.int32, "r")
    more = np.memmap(folder / "more.bin", np.int64, "r").reshape(-1, 3)
    labels = np.memmap(folder / "all_labels.bin", np.int32, "w+", shape=(count, width))
    for begin in range(0, count, CHUNK):
        labels[begin : begin + CHUNK] = -1
        labels[begin : begin + CHUNK, 0] = first[begin : begin + CHUNK]
    image = start = 0
    for scan, of_scan in zip(scans, ids, strict=True):
        for begin in range(start, start + scan.num_more, CHUNK):
            number, place, label = more[begin : min(begin + CHUNK, start + scan.num_more)].T
            labels[image + number, place] = _class_ids(scan, of_scan, label)
        image, start = image + scan.count, start + scan.num_more


def _class_ids(scan: FileScan, ids: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the class ids of some labels of a file."""
    gaps = scan.labels[-1] >= len(scan.labels)
    return ids[np.searchsorted(scan.labels, labels) if gaps else labels].astype(np.int32)
