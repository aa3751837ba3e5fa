"""`data=sphere`: noisy vectors around class directions, for any number of classes.

Nothing is stored. The label and the noise of a record, and the direction of a class, are computed by hashing.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..augment import Unchanged
from ..counter_rng import normals, permute, uniforms
from ..options import whole
from ..records import ByClass, DataSet, Indices, RecordSet

STEEPNESS = 1.5  # standard deviation of the input of tanh, in the network that mixes nuisance in


def sphere(
    num_classes: int,
    *,
    size: int = 128,
    images_per_class: int = 10,
    noise: float = 1.0,
    tail: float = 0.0,
    conflict: float = 0.0,
    num_heldout: int = 500,
    nuisance: float = 0.0,
    seed: int = 0,
) -> DataSet:
    """Return vectors direction + noise * normal / sqrt(size), scaled to length 1.

    With `nuisance` these are half of the numbers, and the other half is nuisance * normal / sqrt(size / 2). A fixed
    network of two random layers mixes both, so that a backbone has to learn what tells classes apart. Without, it has
    to learn no more than to keep angles.

    `tail` and `conflict` are computed and need no memory, unlike the same options of `noise`, which apply to any set.

    Args:
        num_classes: number of training classes.
        size: dimension of a vector.
        images_per_class: mean number of records of a training class.
        noise: length of the noise relative to that of the direction.
        tail: exponent of Zipf's law of records over classes; 0 gives all classes the same number.
        conflict: share of the pairs of class ids (2j, 2j + 1) that are one identity: two labels with one direction.
        num_heldout: number of held-out classes.
        nuisance: length, relative to that of the direction, of what varies without regard to the class.
        seed: seed of all random numbers.
    """
    num_classes, size = whole("data.num_classes", num_classes, 2), whole("data.size", size, 2)
    images_per_class = whole("data.images_per_class", images_per_class, 1)
    num_heldout = whole("data.num_heldout", num_heldout, 2)
    for name, value in (("noise", noise), ("tail", tail), ("nuisance", nuisance)):
        if value < 0:
            raise ValueError(f"data.{name}={value} must be at least 0")
    if not 0 <= conflict <= 1:
        raise ValueError(f"data.conflict={conflict} must be in [0, 1]; 0.1 affects a tenth of the pairs of ids")
    train = SphereLabels(num_classes * images_per_class, num_classes, tail, seed)
    heldout = SphereLabels(num_heldout * 8, num_heldout, 0.0, seed)
    size_of_all = (num_classes, images_per_class)
    by_class = None if tail else ByClass(SphereOrder(*size_of_all), SphereStarts(*size_of_all))
    return DataSet(
        train=RecordSet(SphereVectors(train, size, noise, conflict, 0, nuisance, seed), train, num_classes, by_class),
        heldout=RecordSet(SphereVectors(heldout, size, noise, 0.0, num_classes, nuisance, seed), heldout, num_heldout),
        shape=(size,),
        prepare=_unchanged,
        augment=Unchanged(),
    )


@dataclass(frozen=True)
class SphereLabels:
    """Computed labels of the records."""

    num_records: int
    num_classes: int
    tail: float
    seed: int

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, indices: Indices) -> NDArray[np.int64]:
        if self.tail == 0:
            return np.asarray(indices) % self.num_classes
        u = uniforms("sphere label", self.seed, indices)
        span = 1.0 + self.num_classes
        if math.isclose(self.tail, 1.0):
            rank = span**u - 1
        else:
            power = 1 - self.tail
            rank = (1 + u * (span**power - 1)) ** (1 / power) - 1
        rank = np.minimum(rank.astype(np.int64), self.num_classes - 1)
        # The permutation distributes frequent classes over the ids, and so over the shards.
        return permute(rank, self.num_classes, self.seed)


@dataclass(frozen=True)
class SphereOrder:
    """Computed records of classes of one size, class by class, as `grouping.group` orders them."""

    num_classes: int
    images_per_class: int

    def __len__(self) -> int:
        return self.num_classes * self.images_per_class

    def __getitem__(self, places: Indices) -> NDArray[np.int64]:
        classes, which = np.divmod(np.asarray(places), self.images_per_class)
        return classes + which * self.num_classes


@dataclass(frozen=True)
class SphereStarts:
    """Computed position of the first record of each class in `SphereOrder`."""

    num_classes: int
    images_per_class: int

    def __len__(self) -> int:
        return self.num_classes + 1

    def __getitem__(self, classes: Indices) -> NDArray[np.int64]:
        return np.asarray(classes) * self.images_per_class


@dataclass(frozen=True)
class SphereVectors:
    """Computed vectors of the records. `first_class` gives different sets different classes."""

    labels: SphereLabels
    size: int
    noise: float
    conflict: float
    first_class: int
    nuisance: float
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Indices) -> Tensor:
        """Return vectors: indices (n,) -> float32 (n, size), of length 1."""
        rows, size = np.asarray(indices)[:, None], self.own_size
        directions = self.directions(self.labels[indices])
        noise = normals("sphere noise", self.seed, self.first_class, rows, np.arange(size))
        vectors = directions + np.float32(self.noise / math.sqrt(size)) * noise
        if self.nuisance:
            others = self.size - size
            varied = normals("sphere nuisance", self.seed, self.first_class, rows, np.arange(others))
            vectors = self.mixed(np.hstack([vectors, np.float32(self.nuisance / math.sqrt(others)) * varied]))
        return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    @property
    def own_size(self) -> int:
        """The dimension of the class directions."""
        return self.size - self.size // 2 if self.nuisance else self.size

    def mixed(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the output of two random layers: (n, size) -> (n, size)."""
        typical = math.sqrt((1 + self.noise**2 + self.nuisance**2) / self.size)  # standard deviation of a number
        first, second = self.layers
        # In float64, whose rounding depends on the other records of a batch too, but far below a float32.
        result = np.tanh(vectors.astype(np.float64) @ first * (STEEPNESS / typical)) @ second
        return result.astype(np.float32)

    @cached_property
    def layers(self) -> NDArray[np.float64]:
        """Two orthogonal matrices (size, size)."""
        columns = np.arange(self.size)
        drawn = normals("sphere layers", self.seed, np.arange(2)[:, None, None], columns[:, None], columns)
        return np.linalg.qr(drawn.astype(np.float64))[0]

    def directions(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the directions of classes: labels (n,) -> unit vectors (n, size)."""
        pair = labels // 2
        split = uniforms("sphere conflict", self.seed, pair) < self.conflict
        source = np.where(split, 2 * pair, labels) + self.first_class
        vectors = normals("sphere class", self.seed, source[:, None], np.arange(self.own_size))
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def _unchanged(vectors: Tensor) -> Tensor:
    return vectors
