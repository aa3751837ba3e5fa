"""Labels of records from a .npy file: checked and grouped by class once, and memory-mapped afterwards."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import mapped
from .cache import cached
from .grouping import CHUNK, group, index_dtype
from .records import ByClass, Indices, RecordSet, Source

VERSION = 1  # version of the files in the cache
OPTION = "data.labels"


class LabelFile:
    """Class ids by index, from an array of integers in a .npy file. It is pickled as its path.

    Args:
        path: an array (N,), or (N, L) of several labels a record, padded with -1.
        first: return the first label of each record only.
    """

    def __init__(self, path: str, first: bool = False):
        self.path, self.first = path, first
        array = mapped(OPTION, path, "iu", 1, 2)
        self.has_several = array.ndim == 2 and array.shape[1] > 1
        self._array: NDArray[Any] = array[:, 0] if array.ndim == 2 and (first or not self.has_several) else array

    def __reduce__(self) -> tuple[type["LabelFile"], tuple[str, bool]]:
        return LabelFile, (self.path, self.first)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, indices: Indices) -> NDArray[np.int64]:
        return np.asarray(self._array[np.asarray(indices)], dtype=np.int64)


def with_labels(source: Source, path: str, cache: Path, records: str = "records") -> RecordSet:
    """Return the examples of a source with the labels in a file, which must be 0 .. C - 1 without gaps.

    The first call checks the labels and writes the records of each class to the cache: 4 bytes a record, 8 a class.

    Args:
        path: an array (N,) of integers, or (N, L) padded with -1 for records of several classes, .npy.
        cache: the cache folder.
        records: the name of the examples, for messages.

    Raises:
        ValueError: the file cannot be read, or its labels do not fit.
    """
    labels, first = LabelFile(path), LabelFile(path, first=True)
    if len(labels) != len(source):
        raise ValueError(
            f"{OPTION}={path} has {len(labels):,} labels for {len(source):,} {records}; each must have its own, in "
            "the same order"
        )
    state = Path(path).stat()
    identity = {"version": VERSION, "path": path, "size": state.st_size, "time": state.st_mtime_ns}
    folder = cached(cache / "labels", identity, _is_intact, partial(_write, labels))
    num_classes = (folder / "starts.bin").stat().st_size // 8 - 1
    order = np.memmap(folder / "order.bin", index_dtype(len(labels)), "r", shape=(len(labels),)).view(np.ndarray)
    starts = np.memmap(folder / "starts.bin", np.int64, "r", shape=(num_classes + 1,)).view(np.ndarray)
    all_labels = labels if labels.has_several else None
    return RecordSet(source, first, num_classes, ByClass(order, starts), all_labels=all_labels)


def _write(labels: LabelFile, folder: Path) -> None:
    """Write the records of each class. `sizes.json` is written last."""
    group(LabelFile(labels.path, first=True), _number_of_classes(labels), folder)
    (folder / "sizes.json").write_text(json.dumps({path.name: path.stat().st_size for path in folder.iterdir()}))


def _is_intact(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "sizes.json").read_text())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _number_of_classes(labels: LabelFile) -> int:
    """Return C. Raise ValueError unless the labels are all of 0 .. C - 1, for at least two classes."""
    given, count, largest = f"{OPTION}={labels.path}", len(labels), -1
    for start in range(0, count, CHUNK):
        chunk = labels[np.arange(start, min(start + CHUNK, count))].reshape(min(CHUNK, count - start), -1)
        wrong = (chunk < -1) | ((chunk == -1) & (np.arange(chunk.shape[1]) == 0))  # -1 pads
        if wrong.any():
            place = int(np.flatnonzero(wrong.any(axis=1))[0])
            raise ValueError(
                f"{given} has label {int(chunk[place][wrong[place]][0]):,} at record {start + place:,}, counted from "
                "0; labels must be class ids from 0"
            )
        largest = max(largest, int(chunk.max()))
    if largest < 1:
        raise ValueError(
            f"{given} has {'no label' if largest < 0 else 'labels of one class'}; training needs two classes or more"
        )
    most = count * labels[np.arange(1)].size
    present = np.zeros(min(largest, most) + 1, dtype=bool)  # more ids than labels: one is missing
    for start in range(0, count, CHUNK):
        chunk = labels[np.arange(start, min(start + CHUNK, count))]
        present[chunk[(chunk >= 0) & (chunk < len(present))]] = True
    if not present.all():
        raise ValueError(
            f"{given} has gaps: no record has label {int(np.argmin(present)):,}, and the largest label is "
            f"{largest:,}; number the classes without gaps, as numpy.unique(labels, return_inverse=True)[1] does"
        )
    return largest + 1
