"""`data=features`: precomputed features with labels, from two .npy files that are memory-mapped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import beside, floats, mapped
from ..augment import Unchanged
from ..cache import cache_folder
from ..formats.encoded import read_names
from ..label_file import with_labels
from ..options import path_of, whole
from ..records import DataSet, Indices
from .split import hold_out


def features(
    *,
    source: str | None,
    labels: str | None = None,
    num_heldout: int | None = None,
    cache_dir: str | None = None,
    seed: int = 0,
) -> DataSet:
    """Return the rows of an array as records, unchanged but for their dtype, float32.

    Args:
        source: an (N, D) array of floats, .npy.
        labels: an array of class ids 0 .. C - 1, .npy: (N,), or (N, L) padded with -1 for records of several classes;
            NAME.labels.npy for the source NAME.npy if None. Class names are read from a file with the same name and the
            ending .classes.txt, if there is one.
        num_heldout: classes held out for evaluation; a twentieth, at most 500, if None; 0 for none.
        cache_dir: folder of the records by class; by default $HEADCOUNT_CACHE or ~/.cache/headcount.
        seed: seed of the choice of held-out classes.
    """
    if (path := path_of("data.source", source)) is None:
        raise ValueError("data.source=null must be the path of an array (N, D) of floats, .npy")
    if num_heldout is not None:
        num_heldout = whole("data.num_heldout", num_heldout, 0)
    vectors = FeatureFile(path)
    label_path = path_of("data.labels", labels) or beside(path, ".labels.npy")
    records = with_labels(vectors, label_path, cache_folder(cache_dir), "features")
    names: Sequence[str] = read_names(Path(beside(label_path, ".classes.txt"))) or ()
    if len(names) not in (0, records.num_classes):
        raise ValueError(
            f"{beside(label_path, '.classes.txt')} has {len(names):,} class names, and the labels have "
            f"{records.num_classes:,} classes; give each class a name, or remove the file"
        )
    train, heldout, names = hold_out(records, names, num_heldout, seed)
    return DataSet(train, heldout, (vectors.width,), _unchanged, Unchanged(), names)


class FeatureFile:
    """The rows of an (N, D) array of floats in a .npy file. It is pickled as its path."""

    def __init__(self, path: str):
        self.path = path
        self._array: NDArray[Any] = mapped("data.source", path, "f", 2)

    def __reduce__(self) -> tuple[type["FeatureFile"], tuple[str]]:
        return FeatureFile, (self.path,)

    def __len__(self) -> int:
        return len(self._array)

    @property
    def width(self) -> int:
        """Number of columns, D."""
        return int(self._array.shape[1])

    def read(self, indices: Indices) -> Tensor:
        """Return rows (n,) -> float32 (n, D). Raise ValueError for NaN or Inf, with the number of the record."""
        return torch.from_numpy(floats(self._array, np.asarray(indices), self.path))


def _unchanged(vectors: Tensor) -> Tensor:
    return vectors
