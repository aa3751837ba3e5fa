"""What is compared: images with their classes, or features that are there already."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.conversion.writers import one_line
from data.records import Indices, RecordSet
from data.sets.image_source import images_at

from ..models.model import BLOCK, Model, unit
from .search import Blocks, Wanted

Rows = Callable[[Model, Indices, str | None], Tensor]


@dataclass(frozen=True)
class Items:
    """
    Args:
        name: for people.
        size: how many.
        classes: what the class of each is called, as numbers of `names`; None where nobody says.
        names: of the classes; empty where none are compared with those of others.
        are_features: whether there is nothing to embed.
        rows: embeddings (n, D) of some, of any length, on the device; a progress bar calls the work as the last
            argument says.
    """

    name: str
    size: int
    classes: NDArray[np.int64] | None
    names: Sequence[str]
    rows: Rows
    are_features: bool = False

    def __len__(self) -> int:
        return self.size

    def numbered(self, known: dict[str, int], option: str) -> NDArray[np.int64]:
        """Classes (n,) by the number that their name has, or gets, in `known`."""
        if self.classes is None:
            raise ValueError(f"{option}={self.name}: has no classes; {KEYS_OF} beside it must tell them")
        if not len(self.names):
            return self.classes
        return np.array([known.setdefault(name, len(known)) for name in self.names], np.int64)[self.classes]

    def width(self, model: Model) -> int:
        """Of its rows. Reads the first."""
        return self.rows(model, np.array([0]), None).shape[1]

    def only(self, chosen: Indices) -> "Items":
        """Some of them, in this order."""
        classes = None if self.classes is None else self.classes[chosen]
        rows = self.rows
        some: Rows = lambda model, at, what: rows(model, chosen[at], what)  # noqa: E731
        return Items(self.name, len(chosen), classes, self.names, some, self.are_features)

    def everywhere(self, model: Model, what: str, *, unit_length: bool = True) -> Tensor:
        """Embeddings of all, of unit length unless told otherwise, on every process; each embeds a part."""
        return model.gathered(self.size, lambda indices: self.rows(model, indices, what), what, unit_length)

    def blocks(self, model: Model, what: str, *, keep: bool) -> Blocks:
        """Unit embeddings in blocks, each of one process.

        Args:
            keep: in memory; otherwise they are made anew whenever they are gone through.
        """

        def block(start: int, stop: int) -> Tensor:
            return unit(self.rows(model, np.arange(start, stop), None), what)

        return dealt(self.size, model, what, cache(block) if keep else block)


def dealt(count: int, model: Model, what: str, block: Callable[[int, int], Tensor]) -> Blocks:
    """Blocks of so many items, each on one process.

    Args:
        block: items from start to stop, of unit length.
    """
    numbers = range(model.processes.rank, -(-count // BLOCK), model.processes.world_size)

    def blocks(wanted: Wanted | None) -> Iterable[tuple[int, Tensor]]:
        chosen = [n for n in numbers if wanted is None or wanted.within(n * BLOCK, (n + 1) * BLOCK)]
        for number in model.shown(chosen, what):
            yield number * BLOCK, block(number * BLOCK, min((number + 1) * BLOCK, count))

    return blocks


KEYS_OF = "a .txt of the same name, with a line `key<TAB>class` for each row,"


def items(
    path: str, format: str | None = None, *, root: str | None = None, mirrored: bool = False, option: str = "source"
) -> Items:
    """Of a file or folder: a .npy of features, or images in any of our formats.

    Args:
        format: of the images; found by looking unless given.
        root: of a list: what its paths are relative to.
        mirrored: add the embeddings of the mirrored images.
        option: that names the path, for errors.
    """
    if path.endswith(".npy"):
        for name, given in (("format", format), ("root", root), ("mirrored", mirrored or None)):
            if given is not None:
                raise ValueError(f"{name}={given}: is of images, and {option}={path} holds features")
        return features(path, option)
    images = images_at(path, format, root=root, option=option)

    def rows(model: Model, indices: Indices, shown: str | None) -> Tensor:
        return model.embed(*model.view(images), indices, mirrored=mirrored, shown=shown)

    names = [one_line(name) for name in images.names]
    return Items(path, len(images), np.asarray(images.labels, np.int64), names, rows)


def features(path: str, option: str = "features") -> Items:
    """Of `experiments.embed`, or anybody's: (n, D) numbers in a .npy, memory-mapped, and their classes in a .txt."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{option}={path}: cannot be read ({error})") from None
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise ValueError(f"{option}={path}: real numbers (n, D) are needed, it holds {array.dtype} {list(array.shape)}")
    classes, names = None, np.empty(0, str)
    keys = Path(path).with_suffix(".txt")
    if keys.exists():
        lines = keys.read_text("utf-8", "surrogateescape").removesuffix("\n").split("\n")
        told = [line.rpartition("\t") for line in lines]
        if len(told) != len(array):
            raise ValueError(f"{keys}: has {len(told):,} lines for the {len(array):,} rows of {path}")
        if all(tab for _, tab, _ in told):
            names, classes = np.unique([name for _, _, name in told], return_inverse=True)

    def rows(model: Model, indices: Indices, shown: str | None) -> Tensor:
        contiguous = len(indices) and indices[-1] - indices[0] + 1 == len(indices)
        chosen = array[indices[0] : indices[-1] + 1] if contiguous else array[indices]
        with np.errstate(over="ignore"):  # Inf is told of where it matters
            return torch.from_numpy(np.array(chosen, np.float32)).to(model.processes.device)

    return Items(path, len(array), classes, [str(name) for name in names], rows, are_features=True)


def own(model: Model, records: RecordSet, name: str, mirrored: bool = False) -> Items:
    """Of the data that a model was trained on."""
    prepare = model.data().prepare
    labels = np.asarray(records.labels[np.arange(len(records))], np.int64)

    def rows(model: Model, indices: Indices, shown: str | None) -> Tensor:
        return model.embed(records.source, prepare, indices, mirrored=mirrored, shown=shown)

    return Items(name, len(records), labels, (), rows)
