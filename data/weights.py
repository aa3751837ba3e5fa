"""Weights of the training records in the loss: by class frequency, or from a file.

The loss of a batch is a weighted mean, so only the ratios of weights matter. Their mean over the training records, or
over all labels of the training records, is 1.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .options import path_of
from .records import CHUNK, DataSet, Indices, Labels, RecordSet

CHOICES = ("inverse", "balanced", "file")


def with_weights(data: DataSet, *, by: str | None = None, beta: float = 0.999, file: str | None = None) -> DataSet:
    """Return a set whose training records have weights.

    Args:
        data: the set.
        by: "inverse" for 1 / n, with n the number of training records of the class; "balanced" for the inverse of the
            effective number of records, (1 - beta) / (1 - beta^n) (Cui et al., "Class-Balanced Loss Based on Effective
            Number of Samples", CVPR 2019); "file"; None for no weights.
        beta: in [0, 1); 0 gives all classes the same weight, and near 1 "balanced" is "inverse".
        file: a .npy file with one number of at least 0 for each class, or for each training record.

    Raises:
        ValueError: an option is out of range, or the file does not fit.
    """
    path = path_of("weights.file", file)
    if by is not None and by not in CHOICES:
        raise ValueError(f"weights.by={by} must be one of {', '.join(CHOICES)}, or null for none")
    if (by == "file") != (path is not None):
        raise ValueError(
            f"weights.by={'null' if by is None else by} and weights.file={'null' if path is None else path} do not fit "
            "together: weights from a file need both weights.by=file and weights.file"
        )
    if not 0 <= beta < 1:
        raise ValueError(f"weights.beta={beta} must be in [0, 1); 0.999 is common")
    if by is None:
        return data
    train = data.train
    if path is not None:
        return replace(data, train=replace(train, weights=_from_file(path, train)))
    counts = train.class_counts()
    count = np.maximum(counts, 1).astype(np.float64)
    weights = 1 / count if by == "inverse" else (1 - beta) / (1 - beta**count)
    return replace(data, train=replace(train, weights=_by_class(weights, train, counts)))


@dataclass(frozen=True)
class ClassWeights:
    """The weights of records by their class; the mean over its classes if a record has several."""

    labels: Labels
    of_class: NDArray[np.float32]

    def __getitem__(self, indices: Indices) -> NDArray[np.float32]:
        labels = np.asarray(self.labels[indices], dtype=np.int64)
        if labels.ndim == 1:
            return self.of_class[labels]
        is_label = labels >= 0
        return np.where(is_label, self.of_class[labels], 0).sum(axis=1) / is_label.sum(axis=1, dtype=np.float32)


class FileWeights:
    """The weights of records in a .npy file, times a factor. They are pickled as a path."""

    def __init__(self, path: str, factor: float):
        self.path, self.factor = path, factor
        self._weights = np.load(path, mmap_mode="r", allow_pickle=False)

    def __reduce__(self) -> tuple[type["FileWeights"], tuple[str, float]]:
        return FileWeights, (self.path, self.factor)

    def __getitem__(self, indices: Indices) -> NDArray[np.float32]:
        return (self._weights[indices] * self.factor).astype(np.float32)


def _by_class(weights: NDArray[np.float64], train: RecordSet, counts: NDArray[np.int64]) -> ClassWeights:
    mean = float(np.dot(weights, counts)) / int(counts.sum())
    return ClassWeights(train.targets, (weights / mean if mean else weights).astype(np.float32))


def _from_file(path: str, train: RecordSet) -> ClassWeights | FileWeights:
    try:
        numbers = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"weights.file={path} cannot be read as a .npy file ({error})") from None
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiu" or len(numbers) not in (train.num_classes, len(train)):
        raise ValueError(
            f"weights.file={path} has {numbers.dtype} of shape {list(numbers.shape)}; it must have one number for each "
            f"of the {train.num_classes:,} training classes, or of the {len(train):,} training records"
        )
    total = _checked_sum(path, numbers)
    if len(numbers) == len(train) != train.num_classes:
        return FileWeights(path, len(numbers) / total)
    counts = train.class_counts()
    weights = _by_class(np.asarray(numbers, dtype=np.float64), train, counts)
    if not weights.of_class[counts > 0].any():
        raise ValueError(f"weights.file={path} has only zeros for classes with records, so nothing would be learned")
    return weights


def _checked_sum(path: str, numbers: NDArray[Any]) -> float:
    """Return the sum of weights. Raise ValueError if one is negative or not finite, or all are 0."""
    total = 0.0
    for begin in range(0, len(numbers), CHUNK):
        chunk = np.asarray(numbers[begin : begin + CHUNK], dtype=np.float64)
        if len(wrong := np.flatnonzero(~(np.isfinite(chunk) & (chunk >= 0)))):
            place = int(wrong[0])
            raise ValueError(
                f"weights.file={path}: number {begin + place}, counted from 0, is {chunk[place]}; weights must be at "
                "least 0, and finite"
            )
        total += float(chunk.sum())
    if not total:
        raise ValueError(f"weights.file={path} has only zeros, so nothing would be learned")
    return total
