"""Catalogs: for each image of some files, where it lies and which class it is of.

A catalog is made once, out of core, and is memory-mapped from then on: 10^8 images take no time to open, and no memory
but for what is looked at. It lies in the cache folder; what it tells of is never written to.
"""

import json
import mmap
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .cache import cached
from .formats.encoded import Bad, Format, Found, UnreadableError, text
from .formats.image_lists import ImageFolder, ImageList
from .formats.lmdb_images import LmdbImages
from .formats.recordio import RecordFile
from .formats.sources import check_source
from .grouping import group, index_dtype
from .records import ByClass, Indices

VERSION = 3  # of the files of a catalog, and of which images are found
CHUNK = 2**16  # images written together
MERGE = 2**20  # labels merged together at least
TOLD = 3  # of the unreadable images, in an error


@dataclass(frozen=True)
class Origin:
    """What a catalog is made of.

    Args:
        format: "lmdb", "rec", "folder" or "list".
        paths: of the files or folders; absolute.
        labels: key-label files of the LMDB folders, one each; found there unless given.
        root: what the paths of lists are relative to; a list's folder unless given.
        shared: whether a label, or a class name, is the same class in all of them. Otherwise each brings classes of
            its own, which follow those of the ones before.
    """

    format: str
    paths: tuple[str, ...]
    labels: tuple[str, ...] = ()
    root: str | None = None
    shared: bool = False

    def open(self, folder: Path) -> list[Format]:
        """`folder`: of the catalog, where listings of folders lie."""
        if self.labels and len(self.labels) != len(self.paths):
            raise ValueError(f"{len(self.labels)} key-label files for {len(self.paths)} sources: one each is needed")
        files: list[Format] = []
        for k, path in enumerate(self.paths):
            check_source(path)
            if self.format == "lmdb":
                files.append(LmdbImages(path, self.labels[k] if self.labels else None))
            elif self.format == "rec":
                files.append(RecordFile(path))
            elif self.format == "folder":
                files.append(ImageFolder(path, str(folder / f"listing-{k}.txt")))
            else:
                files.append(ImageList(path, self.root))
        return files


class Catalog:
    """The images of an origin, numbered in the order of its files. Classes are numbered without gaps, by label.

    Attributes:
        labels: (n,) class ids.
        by_class: the records of each class.
        num_classes: all have images.
        class_names: what the files call the classes; empty where that is the class id.
        numbered: whether these names, if there are any, are the labels of the files.
        bad: how many entries were left out because they could not be read.
    """

    def __init__(self, folder: Path, origin: Origin):
        self.folder, self.origin = folder, origin
        about = json.loads((folder / "catalog.json").read_text())
        self.num_classes: int = about["num_classes"]
        self.bad: int = about["bad"]
        self.numbered: bool = about["numbered"]
        self._ends = np.array(about["ends"])  # of the images of each file
        count = int(self._ends[-1])
        self.labels: NDArray[Any] = _mapped(folder / "labels.bin", np.int32, count)
        self._places = _mapped(folder / "places.bin", np.uint64, count)
        self.by_class = ByClass(
            _mapped(folder / "order.bin", index_dtype(count), count),
            _mapped(folder / "starts.bin", np.int64, self.num_classes + 1),
        )
        gaps = folder / "file_labels.bin"
        self._file_labels = np.memmap(gaps, np.int64, "r").view(np.ndarray) if gaps.exists() else None
        self.class_names: Sequence[str] = Names(folder) if (folder / "names.txt").exists() else ()
        self._files = origin.open(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "origin": self.origin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The encoded image. Raises UnreadableError, naming it."""
        return next(self.read_all(np.array([index])))

    def read_all(self, indices: Indices) -> Iterator[bytes]:
        """The encoded images, one after the other. Raises UnreadableError, naming the one it is at."""
        files = np.searchsorted(self._ends, indices, side="right").tolist()
        for file, place, index in zip(files, self._places[indices].tolist(), indices, strict=True):
            try:
                yield self._files[file].read(place)
            except UnreadableError as error:
                raise UnreadableError(error.reason, self.name(int(index))) from None
            except OSError as error:
                raise UnreadableError(error.strerror or str(error), self._files[file].path) from None

    def key(self, index: int) -> str:
        """What its file calls it."""
        return self._file(index).key(int(self._places[index]))

    def place(self, index: int) -> int:
        """Return where it lies in its file, in the unit of the format."""
        return int(self._places[index])

    def label(self, index: int) -> int:
        """As its file has it; the class id where each of several files has its own."""
        class_id = int(self.labels[index])
        return class_id if self._file_labels is None else int(self._file_labels[class_id])

    @property
    def names(self) -> Sequence[str]:
        """Of all classes: the class id where the files have no name."""
        return self.class_names if len(self.class_names) else [str(number) for number in range(self.num_classes)]

    @property
    def fingerprint(self) -> str:
        """Of other files, or files that have changed, it is another."""
        return self.folder.name

    @property
    def largest_label(self) -> int:
        """Of those that `label` gives."""
        return self.num_classes - 1 if self._file_labels is None else int(self._file_labels[-1])

    def name(self, index: int) -> str:
        """The image, for an error: its file and its key."""
        return f"{self._file(index).path}: {self.key(index)}"

    def unreadable(self) -> Iterator[Bad]:
        """What was left out."""
        for line in (self.folder / "bad.txt").read_text(encoding="utf-8").splitlines():
            yield Bad(*json.loads(line))

    def _file(self, index: int) -> Format:
        return self._files[int(np.searchsorted(self._ends, index, side="right"))]


class Names(Sequence[str]):
    """Names, a line each in `names.txt`, found by `names.bin`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ends = np.memmap(folder / "names.bin", np.int64, "r")
        with (folder / "names.txt").open("rb") as file:
            self.lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return Names, (self.folder,)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        with (self.folder / "names.txt").open("rb") as file:
            for line in file:
                yield line[:-1].decode("utf-8", "surrogateescape")

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) + 1 if index else 0
        return self.lines[start : int(self.ends[index])].decode("utf-8", "surrogateescape")


def catalog(origin: Origin, cache: Path, on_corrupt: str = "stop") -> Catalog:
    """The catalog of an origin, made if need be.

    Args:
        cache: where catalogs are kept.
        on_corrupt: "stop" raises where something in the files is no image with a label, "skip" leaves it out.

    Raises:
        ValueError: missing files, files of another kind, no image at all, a key that is there twice, and with
            on_corrupt="stop" entries that cannot be read.
    """
    files = origin.open(cache)
    of = {
        "version": VERSION,
        "origin": [origin.format, origin.paths, origin.labels, origin.root, origin.shared],
        "files": [_state(path) for file in files for path in file.files()],
    }
    folder = cached(cache / "catalogs", of, _intact, partial(_write, origin=origin))
    made = Catalog(folder, origin)
    if made.bad and on_corrupt == "stop":
        told = [f"{bad.key}: {bad.reason}" for bad, _ in zip(made.unreadable(), range(TOLD), strict=False)]
        more = f"; and {made.bad - TOLD:,} more" if made.bad > TOLD else ""
        hint = "on_corrupt=skip of python -m data.convert makes a set without them"
        if not len(made):
            hint = f"is it of format={origin.format}?"
            if origin.format == "lmdb":
                hint = "is the key-label file of this database, and is that undamaged?"
        raise ValueError(
            f"{', '.join(origin.paths)}: {made.bad:,} of {made.bad + len(made):,} entries cannot be read: "
            f"{'; '.join(told)}{more}; {hint}"
        )
    if not len(made):
        folders = " in a folder of its class; put those of each class into a folder" * (origin.format == "folder")
        raise ValueError(f"{', '.join(origin.paths)}: there is no image in it{folders}")
    return made


def _mapped(path: Path, dtype: type[np.generic], count: int) -> NDArray[Any]:
    """Nothing can be mapped of an empty file."""
    if not path.exists() or not count:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", shape=(count,)).view(np.ndarray)  # indexing a memmap takes longer


def _state(path: str) -> list[Any]:
    stat = Path(path).stat() if Path(path).exists() else None
    return [path, stat and stat.st_size, stat and stat.st_mtime_ns]


def _intact(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "catalog.json").read_text())["sizes"]
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(folder: Path, origin: Origin) -> None:
    """Scans all files. `catalog.json` is written last."""
    parts: list[Part] = []
    with (
        (folder / "places.bin").open("wb") as places,
        (folder / "raw.bin").open("wb") as raw,
        (folder / "bad.txt").open("w", encoding="utf-8") as bad,
        Progress(
            SpinnerColumn(),
            TextColumn("{task.description}, {task.completed:,}", markup=False),
            TimeElapsedColumn(),
            transient=True,
            disable=not sys.stdout.isatty(),
        ) as progress,
    ):
        num_bad = 0
        for file in origin.open(folder):
            task = progress.add_task(f"Listing {file.path}", total=None)
            part = Part(labels=np.empty(0, np.int64), names=file.class_names())
            new: list[NDArray[np.int64]] = []
            with (folder / "keys.bin").open("wb") as keys:
                for found, of_bad in _chunks(file.scan()):
                    np.array([each.place for each in found], np.uint64).tofile(places)
                    labels = np.array([each.label for each in found], np.int64)
                    labels.tofile(raw)
                    new.append(np.unique(labels))
                    # So that all merging takes as long as the last.
                    if sum(map(len, new)) > max(len(part.labels), MERGE):
                        part.labels, new = np.unique(np.concatenate([part.labels, *new])), []
                    if found and found[0].key is not None:
                        np.array([hash(each.key) for each in found], np.int64).tofile(keys)
                    bad.writelines(json.dumps(each) + "\n" for each in of_bad)
                    num_bad += len(of_bad)
                    part.count += len(found)
                    progress.update(task, completed=part.count)
            part.labels = np.unique(np.concatenate([part.labels, *new]))
            _check_keys(folder / "keys.bin", file)
            if part.names is not None and len(part.labels) and part.labels[-1] >= len(part.names):
                raise ValueError(f"{file.path}: label {part.labels[-1]}, but only {len(part.names)} class names")
            parts.append(part)
            progress.remove_task(task)
    num_classes = number(folder, parts, origin.shared)
    ends = np.cumsum([part.count for part in parts]).tolist()
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    numbered = all(part.names is None for part in parts) and (origin.shared or len(parts) == 1)
    about = {"ends": ends, "num_classes": num_classes, "numbered": numbered, "bad": num_bad, "sizes": sizes}
    (folder / "catalog.json").write_text(json.dumps(about))


@dataclass
class Part:
    """What a scan of one file has found: its labels, sorted, and the names of the labels 0, 1, ... if it has any."""

    labels: NDArray[np.int64]
    names: Sequence[str] | None
    count: int = 0


def _check_keys(path: Path, file: Format) -> None:
    """Raises ValueError for a key that is there twice. Keys with equal hashes are looked at again."""
    if path.stat().st_size:
        hashes = np.memmap(path, np.int64, "r+")
        hashes.sort()
        suspects = {int(each) for each in hashes[1:][hashes[1:] == hashes[:-1]]}
        seen: set[bytes] = set()
        for each in file.scan() if suspects else ():
            if isinstance(each, Found) and each.key is not None and hash(each.key) in suspects:
                if each.key in seen:
                    raise ValueError(f"{file.path}: key {text(each.key)!r} is listed twice; each image needs its own")
                seen.add(each.key)
        del hashes
    path.unlink()


def number(folder: Path, parts: Sequence[Part], shared: bool) -> int:
    """Writes class ids, the records of each class, and the names of classes; the number of classes."""
    named = [part for part in parts if part.names is not None]
    of_files = parts[0].labels if len(parts) == 1 else None  # labels of the classes, sorted, where they have some
    if shared and named:
        if len(named) < len(parts):
            raise ValueError("shared=true: some of the sources have class names and some have none")
        used = [name for part in named for name in np.asarray(part.names, object)[part.labels]]
        known = {name: number for number, name in enumerate(dict.fromkeys(used))}
        ids = [np.array([known[part.names[label]] for label in part.labels], np.int64) for part in named]  # type: ignore[index]
        num_classes = len(known)
        names: Iterator[str] | None = iter(known)
    elif shared:
        of_files = np.unique(np.concatenate([part.labels for part in parts]))
        ids = [np.searchsorted(of_files, part.labels) for part in parts]
        num_classes = len(of_files)
        names = map(str, of_files) if num_classes and of_files[-1] >= num_classes else None
    else:
        offsets = np.cumsum([0, *(len(part.labels) for part in parts)])
        ids = [np.arange(len(part.labels)) + offset for part, offset in zip(parts, offsets, strict=False)]
        num_classes = int(offsets[-1])
        plain = len(parts) == 1 and not named and (not num_classes or parts[0].labels[-1] < num_classes)
        names = None if plain else chain.from_iterable(_names(part, k, len(parts)) for k, part in enumerate(parts))
    if of_files is not None and len(of_files) and of_files[-1] >= len(of_files):
        of_files.tofile(folder / "file_labels.bin")
    if num_classes >= 2**31:
        raise ValueError(f"{num_classes:,} classes: at most {2**31 - 1:,} can be told apart")
    count = sum(part.count for part in parts)
    if count:
        raw = np.memmap(folder / "raw.bin", np.int64, "r", shape=(count,))
        with (folder / "labels.bin").open("wb") as labels:
            start = 0
            for part, of_part in zip(parts, ids, strict=True):
                gaps = part.count and part.labels[-1] >= len(part.labels)
                for begin in range(start, start + part.count, CHUNK):
                    chunk = raw[begin : min(begin + CHUNK, start + part.count)]
                    of_part[np.searchsorted(part.labels, chunk) if gaps else chunk].astype(np.int32).tofile(labels)
                start += part.count
        group(np.memmap(folder / "labels.bin", np.int32, "r"), num_classes, folder)
    (folder / "raw.bin").unlink()
    if names is not None and num_classes:
        with (folder / "names.txt").open("wb") as lines, (folder / "names.bin").open("wb") as ends:
            while block := list(islice(names, CHUNK)):
                encoded = [name.encode("utf-8", "surrogateescape") for name in block]
                lengths = np.array([len(name) + 1 for name in encoded], np.int64)
                (lines.tell() + np.cumsum(lengths) - 1).tofile(ends)
                lines.write(b"\n".join(encoded) + b"\n")
    return num_classes


def _names(part: Part, number: int, of: int) -> Iterator[str]:
    """Of its classes; with the number of the part where there are several, so that none is there twice."""
    for label in part.labels:
        name = part.names[label] if part.names is not None else str(label)
        yield f"{number}/{name}" if of > 1 else name


def _chunks(scan: Iterator[Found | Bad]) -> Iterator[tuple[list[Found], list[Bad]]]:
    found: list[Found] = []
    bad: list[Bad] = []
    for each in scan:
        if isinstance(each, Found):
            found.append(each)
        else:
            bad.append(each)
        if len(found) + len(bad) == CHUNK:
            yield found, bad
            found, bad = [], []
    yield found, bad
