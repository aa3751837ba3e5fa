"""Verification sets: pairs of images, of one class or of two.

Read from InsightFace's .bin, from LFW's pairs.txt and its folder, and from lists `first<TAB>second<TAB>same`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import LineFile, check_file
from ..records import Indices
from .encoded import Images, UnreadableError, text
from .pickles import loads
from .unlabeled_images import ANY, ImageFiles

SAME = {b"1": True, b"0": False, b"True": True, b"False": False, b"true": True, b"false": False}
EXPECTED = "two paths and 1 or 0, or LFW's `name i j` or `name i name j`"


@dataclass(frozen=True)
class Pairs:
    """Pairs of images; each image is there once.

    Args:
        path: of the file that lists them.
        images: encoded.
        first, second: which images a pair is of, (n,).
        same: whether both are of one class, (n,).
        folds: how many folds the file itself has, in its order; None where it says nothing.
        in_order: whether folds of any number follow the order of the file, as those of a .bin do.
    """

    path: str
    images: Images
    first: Indices
    second: Indices
    same: NDArray[np.bool_]
    folds: int | None = None
    in_order: bool = False

    def __len__(self) -> int:
        return len(self.same)


def read_pairs(path: str | Path, root: str | Path | None = None) -> Pairs:
    """Pairs of a file, in its order: a .bin by its ending, otherwise a list, of LFW's kind or of two paths each.

    Args:
        root: what paths are relative to; the list's folder unless given.

    Raises:
        ValueError: no such file, no pair in it, a line that is none, a pickle that holds something else.
    """
    check_file(path, "list of pairs")
    pairs = _read_bin(Path(path)) if Path(path).suffix == ".bin" else _read_list(str(path), root)
    if not len(pairs):
        raise ValueError(f"{path}: there is no pair in it")
    return pairs


def names_of(option: str, paths: Sequence[str]) -> list[str]:
    """Return a name for each file: its own without the ending, after as many of its folders as tell all apart."""
    for depth in range(1, max((len(Path(path).parts) for path in paths), default=0)):
        for whole in (False, True):
            names = ["_".join((path if whole else path.with_suffix("")).parts[-depth:]) for path in map(Path, paths)]
            if len({*names}) == len(paths):
                return names
    raise ValueError(f"{option}={', '.join(paths)}: one of these files is given twice")


@dataclass(frozen=True)
class ImageBytes:
    """Encoded images in memory.

    Args:
        path: of the file they are from.
        places: of each in there.
    """

    path: str
    images: Sequence[bytes]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.images)

    def read_all(self, indices: Indices) -> Iterator[bytes]:
        return (self.images[index] for index in indices)

    def name(self, index: int) -> str:
        return f"{self.path}: image {self.places[index]}"


def _read_bin(path: Path) -> Pairs:
    held = loads(path.read_bytes(), str(path))
    if not (isinstance(held, tuple | list) and len(held) == 2):
        raise ValueError(f"{path}: a list of images and a list of booleans are needed, it holds something else")
    images, same = held
    sizes = [len(each) for each in held if isinstance(each, list) or (isinstance(each, np.ndarray) and each.ndim == 1)]
    if len(sizes) != 2 or sizes[0] != 2 * sizes[1]:
        raise ValueError(
            f"{path}: two images for each boolean are needed, there are {' and '.join(map(str, sizes)) or 'no lists'}"
        )
    if not all(isinstance(each, bool | int | np.bool_ | np.integer) and each in (0, 1) for each in same):
        raise ValueError(f"{path}: whether pairs are of one class is told by something else than booleans")
    encoded: dict[bytes, int] = {}
    places: list[int] = []
    where = []
    for place, image in enumerate(images):
        # OpenCV's encoder gives (n,), and its older versions (n, 1).
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size == max(image.shape, default=0):
            image = image.tobytes()
        if not isinstance(image, bytes | bytearray):
            shape = f" {image.dtype} array {list(image.shape)}" if isinstance(image, np.ndarray) else ""
            raise ValueError(f"{path}: image {place} is a {shape or type(image).__name__}, not an encoded image")
        number = encoded.setdefault(bytes(image), len(encoded))
        if number == len(places):
            places.append(place)
        where.append(number)
    ends = np.array(where, np.int64).reshape(-1, 2)
    held_images = ImageBytes(str(path), list(encoded), places)
    return Pairs(str(path), held_images, ends[:, 0], ends[:, 1], np.array(same, bool), in_order=True)


def _read_list(path: str, root: str | Path | None) -> Pairs:
    folder = os.fsencode(root if root is not None else Path(path).parent)
    known: dict[bytes, int] = {}
    ends: list[tuple[int, int]] = []
    same: list[bool] = []
    header: list[int] = []
    for number, _, line in LineFile(path).lines():
        columns = line.split(b"\t") if b"\t" in line else line.split()
        columns = [column.strip() for column in columns]
        if not ends and all(column.isdigit() for column in columns) and len(columns) <= 2:
            header = [int(column) for column in columns]
            continue
        try:
            first, second, alike = _pair(columns)
        except ValueError:
            raise ValueError(f"{path}, line {number}: {EXPECTED} are needed; it is {text(line)!r}") from None
        paths = (os.path.join(folder, each) for each in (first, second))  # noqa: PTH118
        a, b = (known.setdefault(each, len(known)) for each in paths)
        ends.append((a, b))
        same.append(alike)
    both = np.array(ends, np.int64).reshape(-1, 2)
    folds = _folds(path, header, np.array(same, bool)) if same else None
    return Pairs(path, ImageFiles(list(known)), both[:, 0], both[:, 1], np.array(same, bool), folds)


def _folds(path: str, header: list[int], same: NDArray[np.bool_]) -> int | None:
    """Return how many folds LFW's header announces: `folds pairs`, or `pairs` of a set without folds.

    Raises:
        ValueError: the list holds other pairs than its header says.
    """
    if not header:
        return None
    *folds, count = header
    number = folds[0] if folds else 1
    if number < 1 or len(same) != 2 * number * count or (same.reshape(number, -1).sum(1) != count).any():
        raise ValueError(
            f"{path}: its first line announces {number} x {count:,} pairs of one person and as many of two, and it "
            f"holds {int(same.sum()):,} and {int((~same).sum()):,}, or in another order; delete that line if the list "
            "is as it should be"
        )
    return number if number > 1 else None


def _pair(columns: list[bytes]) -> tuple[bytes, bytes, bool]:
    """Two paths, and whether they are of one class. Raises ValueError."""
    if len(columns) == 3 and columns[1].isdigit():
        return _of_lfw(columns[0], columns[1]), _of_lfw(columns[0], columns[2]), True
    if len(columns) == 4:
        return _of_lfw(*columns[:2]), _of_lfw(*columns[2:]), False
    first, second, same = columns
    if same not in SAME or not first or not second:
        raise ValueError
    return first, second, SAME[same]


def _of_lfw(name: bytes, number: bytes) -> bytes:
    return b"%b/%b_%04d%b" % (name, name, int(number), ANY)


def write_bin(pairs: Pairs, path: Path, shown: Callable[[Any], Any], changed: Callable[[bytes], bytes]) -> int:
    """Writes InsightFace's .bin, as `pickle.dump((images, same), protocol=4)` would, an image at a time.

    Args:
        shown: goes through what it is given, and may show how far it is.
        changed: what is written of an encoded image.

    Returns:
        bytes of the images.

    Raises:
        UnreadableError: it names the image.
    """
    size = 0
    with path.open("wb") as file:
        file.write(b"\x80\x04]")
        for index in shown(np.stack([pairs.first, pairs.second], 1).ravel()):
            encoded = _changed(pairs.images, int(index), changed)
            file.write(b"B" + len(encoded).to_bytes(4, "little") + encoded + b"a")
            size += len(encoded)
        file.write(b"]" + b"".join(b"\x88a" if same else b"\x89a" for same in pairs.same) + b"\x86.")
        file.flush()
        os.fsync(file.fileno())
    return size


def _changed(images: Images, index: int, changed: Callable[[bytes], bytes]) -> bytes:
    try:
        return changed(next(iter(images.read_all(np.array([index])))))
    except UnreadableError as error:
        if str(error) == error.reason:
            raise UnreadableError(error.reason, images.name(index)) from None
        raise
