"""The catalog of a source: for each image, its place in the files and its class.

A catalog is built once, out of core, and memory-mapped afterwards. Opening one of 10^8 images takes no time, and memory
is used only for the parts that are read. Catalogs are kept in the cache folder; their sources are never written to.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import cached
from ..formats.encoded import BadEntry, Format, UnreadableError
from ..formats.unlabeled_images import has_images
from ..grouping import index_dtype
from ..records import ByClass, Indices
from .build import build_catalog, is_intact
from .names import ClassNames
from .origin import Origin

VERSIONS = {"list": 4, "folder": 4}  # version of the files and of the rules by which images are found, by format
VERSION = 3  # that of the other formats
SHOWN = 3  # unreadable entries in an error message


class Catalog:
    """The images of an origin, numbered in the order of its files. Class ids follow the labels, without gaps.

    Attributes:
        labels: (n,) class ids; those of the first labels if images have several.
        all_labels: (n, L) class ids of all labels, padded with -1; None if each image has one.
        by_class: the records of each class, by `labels`.
        num_classes: number of classes, each with at least one image.
        class_names: names of the classes in the files; empty if classes are named by their ids.
        numbered: whether the class names, if any, are the labels of the files.
        bad: number of entries that were left out because they cannot be read.
    """

    def __init__(self, folder: Path, origin: Origin):
        self.folder, self.origin = folder, origin
        about = json.loads((folder / "catalog.json").read_text())
        self.num_classes: int = about["num_classes"]
        self.bad: int = about["bad"]
        self.numbered: bool = about["numbered"]
        self._ends = np.array(about["ends"])  # end of the images of each file
        count = int(self._ends[-1])
        self.labels: NDArray[Any] = _mapped(folder / "labels.bin", np.int32, count)
        self.all_labels: NDArray[Any] | None = None
        if (width := about.get("labels_per_image", 1)) > 1:
            self.all_labels = _mapped(folder / "all_labels.bin", np.int32, count * width).reshape(count, width)
        self._places = _mapped(folder / "places.bin", np.uint64, count)
        self.by_class = ByClass(
            _mapped(folder / "order.bin", index_dtype(count), count),
            _mapped(folder / "starts.bin", np.int64, self.num_classes + 1),
        )
        file_labels = folder / "file_labels.bin"
        self._file_labels = np.memmap(file_labels, np.int64, "r").view(np.ndarray) if file_labels.exists() else None
        self.class_names: Sequence[str] = ClassNames(folder) if (folder / "names.txt").exists() else ()
        self._files = origin.open(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "origin": self.origin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """Return an encoded image. Raises UnreadableError, which names the image."""
        return next(self.read_all(np.array([index])))

    def read_all(self, indices: Indices) -> Iterator[bytes]:
        """Yield encoded images. Raises UnreadableError, which names the current image."""
        files = np.searchsorted(self._ends, indices, side="right").tolist()
        for file, place, index in zip(files, self._places[indices].tolist(), indices, strict=True):
            try:
                yield self._files[file].read(place)
            except UnreadableError as error:
                raise UnreadableError(error.reason, self.name(int(index))) from None
            except OSError as error:
                raise UnreadableError(error.strerror or str(error), self._files[file].path) from None

    def key(self, index: int) -> str:
        """Return the key of an image in its file."""
        return self._file(index).key(int(self._places[index]))

    def place(self, index: int) -> int:
        """Return the place of an image in its file, in the unit of the format."""
        return int(self._places[index])

    def label(self, index: int) -> int:
        """Return the first label of an image in its file, or its class id if several files have separate labels."""
        class_id = int(self.labels[index])
        return class_id if self._file_labels is None else int(self._file_labels[class_id])

    @property
    def names(self) -> Sequence[str]:
        """Names of all classes; the class id where the files have no name."""
        return self.class_names if len(self.class_names) else [str(number) for number in range(self.num_classes)]

    @property
    def fingerprint(self) -> str:
        """A digest that changes with the files of the source."""
        return self.folder.name

    @property
    def largest_label(self) -> int:
        """The largest value that `label` returns."""
        return self.num_classes - 1 if self._file_labels is None else int(self._file_labels[-1])

    def name(self, index: int) -> str:
        """Return the file and the key of an image, for error messages."""
        return f"{self._file(index).path}: {self.key(index)}"

    def unreadable(self) -> Iterator[BadEntry]:
        """Yield the entries that were left out."""
        for line in (self.folder / "bad.txt").read_text(encoding="utf-8").splitlines():
            yield BadEntry(*json.loads(line))

    def _file(self, index: int) -> Format:
        return self._files[int(np.searchsorted(self._ends, index, side="right"))]


def catalog(origin: Origin, cache: Path, on_corrupt: str = "stop") -> Catalog:
    """Return the catalog of an origin, and build it first if needed.

    Args:
        cache: the cache folder.
        on_corrupt: "stop" raises for entries that are not images with a label; "skip" leaves them out.

    Raises:
        ValueError: missing files, files of another kind, no image at all, a duplicate key, or, with
            on_corrupt="stop", entries that cannot be read.
    """
    files = origin.open(cache)
    identity = {
        "version": VERSIONS.get(origin.format, VERSION),
        "origin": [
            origin.format,
            origin.paths,
            origin.labels,
            origin.root,
            origin.shared,
            *filter(None, origin.columns),
        ],
        "files": [_file_state(path) for file in files for path in file.files()],
    }
    folder = cached(cache / "catalogs", identity, is_intact, partial(build_catalog, origin=origin))
    catalog = Catalog(folder, origin)
    sources = ", ".join(origin.paths)
    if catalog.bad and on_corrupt == "stop":
        raise ValueError(f"{sources}: {_bad_entries(catalog)}")
    if not len(catalog):
        remedy = ""
        if origin.format == "folder":
            loose = any(Path(path).is_dir() and has_images(path) for path in origin.paths)
            remedy = " in folders of classes; name the folder that holds them" if loose else ""
            remedy += "; put the images of each class into a folder of their own"
        raise ValueError(f"{sources} contains no image{remedy}")
    return catalog


def _bad_entries(catalog: Catalog) -> str:
    """Describe the entries that cannot be read, and the remedy."""
    shown = [f"{bad.key}: {bad.reason}" for bad, _ in zip(catalog.unreadable(), range(SHOWN), strict=False)]
    more = f"; and {catalog.bad - SHOWN:,} more" if catalog.bad > SHOWN else ""
    remedy = "python -m data.convert with on_corrupt=skip writes a copy without them"
    if not len(catalog):
        remedy = f"check whether the source has format={catalog.origin.format}"
        if catalog.origin.format == "lmdb":
            remedy = "check whether the key-label file belongs to this database and is undamaged"
    return (
        f"{catalog.bad:,} of {catalog.bad + len(catalog):,} entries cannot be read: {'; '.join(shown)}{more}; {remedy}"
    )


def _mapped(path: Path, dtype: type[np.generic], count: int) -> NDArray[Any]:
    """Map a file as an array. An empty file cannot be mapped, so it becomes an empty array."""
    if not path.exists() or not count:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", shape=(count,)).view(np.ndarray)  # plain arrays are indexed faster


def _file_state(path: str) -> list[Any]:
    stat = Path(path).stat() if Path(path).exists() else None
    return [path, stat and stat.st_size, stat and stat.st_mtime_ns]
