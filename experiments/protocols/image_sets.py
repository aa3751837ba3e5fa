"""Sets of images with their classes, or of features that were computed before."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.arrays import beside, mapped
from data.catalogs.catalog import Catalog
from data.conversion.writers import one_line
from data.records import Indices, RecordSet
from data.sets.image_source import images_at

from ..models.model import BLOCK, Model, unit
from .search import Blocks, WantedItems

Rows = Callable[[Model, Indices, str | None], Tensor]
KEY_FILE = "a .txt file of the same name with a line `key<TAB>class` for each row, or NAME.labels.npy with class ids"


@dataclass(frozen=True)
class ImageSet:
    """Images, or features of images, with their classes.

    Args:
        name: for messages.
        size: number of images.
        classes: class of each image, (n,), as an index into `names`; None if unknown. The first one if it has several.
        names: names of the classes; empty if they are not compared with those of other sets.
        rows: returns embeddings (n, D) of some images, of any length, on the device. The last argument is the title
            of a progress bar, None for no bar.
        are_features: whether the set contains features, so that no image has to be embedded.
        all_classes: all classes of each image, (n, L) padded with -1; None if each has one.
    """

    name: str
    size: int
    classes: NDArray[np.int64] | None
    names: Sequence[str]
    rows: Rows
    are_features: bool = False
    all_classes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.size

    def class_numbers(self, known: dict[str, int], option: str) -> NDArray[np.int64]:
        """Return the class of each image, (n,), numbered by name over several sets.

        Args:
            known: numbers of the names so far; new names are added.
            option: the option that names the set, for messages.
        """
        if self.classes is None:
            raise ValueError(f"{option}={self.name} has no classes; add {KEY_FILE}")
        if not len(self.names):
            return self.classes
        return np.array([known.setdefault(name, len(known)) for name in self.names], np.int64)[self.classes]

    def renumbered(self, number_of_class: NDArray[np.int64]) -> "ImageSet":
        """Return the set with other numbers of its classes, by number."""
        assert self.classes is not None
        every = self.all_classes
        every = None if every is None else np.where(every < 0, -1, number_of_class[every])
        return replace(self, classes=number_of_class[self.classes], all_classes=every)

    def width(self, model: Model) -> int:
        """Return the number of columns of the embeddings, which reads the first image."""
        return self.rows(model, np.array([0]), None).shape[1]

    def subset(self, chosen: Indices) -> "ImageSet":
        """Return some of the images, in this order."""
        classes = None if self.classes is None else self.classes[chosen]
        all_classes = None if self.all_classes is None else self.all_classes[chosen]
        rows = self.rows
        chosen_rows: Rows = lambda model, at, title: rows(model, chosen[at], title)  # noqa: E731
        return ImageSet(self.name, len(chosen), classes, self.names, chosen_rows, self.are_features, all_classes)

    def embeddings(self, model: Model, title: str, *, unit_length: bool = True) -> Tensor:
        """Return the embeddings of all images on every process. Each process embeds a part."""
        return model.gathered(self.size, lambda indices: self.rows(model, indices, title), title, unit_length)

    def blocks(self, model: Model, title: str, *, keep: bool) -> Blocks:
        """Return unit embeddings in blocks, each on one process.

        Args:
            model: embeds the images.
            title: title of the progress bar.
            keep: keep the embeddings in memory; they are computed again for each pass otherwise.
        """

        def block(start: int, stop: int) -> Tensor:
            return unit(self.rows(model, np.arange(start, stop), None), title)

        return shard_blocks(self.size, model, title, cache(block) if keep else block)


def shard_blocks(count: int, model: Model, title: str, block: Callable[[int, int], Tensor]) -> Blocks:
    """Distribute the blocks of `count` items over the processes.

    Args:
        count: number of items.
        model: knows the processes.
        title: title of the progress bar.
        block: returns the rows of the items from start to stop, of unit length.
    """
    numbers = range(model.processes.rank, -(-count // BLOCK), model.processes.world_size)

    def blocks(wanted: WantedItems | None) -> Iterable[tuple[int, Tensor]]:
        needed = [n for n in numbers if wanted is None or wanted.within(n * BLOCK, (n + 1) * BLOCK)]
        for number in model.track(needed, title):
            yield number * BLOCK, block(number * BLOCK, min((number + 1) * BLOCK, count))

    return blocks


def image_set(
    path: str, format: str | None = None, *, root: str | None = None, mirrored: bool = False, option: str = "source"
) -> ImageSet:
    """Open a .npy file of features, or images in any supported format.

    Args:
        path: the file or folder.
        format: format of the images; None detects it.
        root: folder that the paths in a list are relative to.
        mirrored: add the embeddings of the mirrored images.
        option: the option that names the path, for messages.
    """
    if path.endswith(".npy"):
        for name, value in (("format", format), ("root", root), ("mirrored", mirrored or None)):
            if value is not None:
                raise ValueError(f"{name}={value} applies to images only and {option}={path} has features; remove it")
        return features(path, option)
    images = images_at(path, format, root=root, option=option)

    def rows(model: Model, indices: Indices, title: str | None) -> Tensor:
        return model.embed(*model.view(images), indices, mirrored=mirrored, label=title)

    names = [one_line(name) for name in images.names]
    every = images.all_labels if isinstance(images, Catalog) else None
    every = None if every is None else np.asarray(every, np.int64)
    return ImageSet(path, len(images), np.asarray(images.labels, np.int64), names, rows, all_classes=every)


def features(path: str, option: str = "features") -> ImageSet:
    """Open features from `experiments.embed` or another program.

    A .npy file has the numbers (n, D), which are memory-mapped. Their classes are in a .txt file of the same name, or
    else in NAME.labels.npy, by number.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{option}={path} cannot be read ({error})") from None
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise ValueError(
            f"{option}={path} must contain real numbers of shape (n, D), not {array.dtype} {list(array.shape)}"
        )
    classes, names = None, np.empty(0, str)
    key_file = Path(path).with_suffix(".txt")
    if key_file.exists():
        lines = key_file.read_text("utf-8", "surrogateescape").removesuffix("\n").split("\n")
        keys_and_classes = [line.rpartition("\t") for line in lines]
        if len(lines) != len(array):
            raise ValueError(f"{key_file} has {len(lines):,} lines and {path} {len(array):,} rows; they must agree")
        if all(tab for _, tab, _ in keys_and_classes):
            names, classes = np.unique([name for _, _, name in keys_and_classes], return_inverse=True)
    elif Path(label_file := beside(path, ".labels.npy")).exists():
        labels = mapped(option, label_file, "iu", 1)
        if len(labels) != len(array):
            raise ValueError(f"{label_file} has {len(labels):,} labels and {path} {len(array):,} rows; they must agree")
        names, classes = np.unique(labels, return_inverse=True)

    def rows(model: Model, indices: Indices, title: str | None) -> Tensor:
        contiguous = len(indices) and indices[-1] - indices[0] + 1 == len(indices)
        chosen = array[indices[0] : indices[-1] + 1] if contiguous else array[indices]
        with np.errstate(over="ignore"):  # Inf is reported where embeddings are checked
            return torch.from_numpy(np.array(chosen, np.float32)).to(model.processes.device)

    return ImageSet(path, len(array), classes, [str(name) for name in names], rows, are_features=True)


def from_dataset(model: Model, records: RecordSet, name: str, mirrored: bool = False) -> ImageSet:
    """Return a part of the data set that the model was trained on as an image set."""
    prepare = model.data().prepare
    labels = np.asarray(records.labels[np.arange(len(records))], np.int64)
    every = None if records.all_labels is None else np.asarray(records.all_labels[np.arange(len(records))], np.int64)

    def rows(model: Model, indices: Indices, title: str | None) -> Tensor:
        return model.embed(records.source, prepare, indices, mirrored=mirrored, label=title)

    return ImageSet(name, len(records), labels, (), rows, all_classes=every)
