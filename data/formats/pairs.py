"""Verification sets: pairs of images of the same class or of different classes.

The formats are InsightFace's .bin, LFW's pairs.txt with its folder, and lists `first<TAB>second<TAB>same`.
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
    """Pairs of images. Each image is stored once.

    Args:
        path: path of the file that lists the pairs.
        images: encoded images.
        first, second: (n,) numbers of the images of each pair.
        same: (n,) whether both images are of one class.
        folds: number of consecutive folds that the file announces; None if it announces none.
        in_order: whether folds of any number are consecutive parts of the file, as in a .bin.
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
    """Read the pairs of a file, in its order: a .bin by its ending, otherwise a list of paths or LFW's pairs.txt.

    Args:
        path: path of the file.
        root: folder that paths are relative to; the list's folder if None.

    Raises:
        ValueError: the file does not exist, contains no pair, or has an invalid line or an invalid pickle.
    """
    check_file(path, "list of pairs")
    pairs = _read_bin(Path(path)) if Path(path).suffix == ".bin" else _read_list(str(path), root)
    if not len(pairs):
        raise ValueError(f"{path} contains no pair")
    return pairs


def names_of(option: str, paths: Sequence[str]) -> list[str]:
    """Return a unique name for each file: its stem, with as many parent folders or the ending as needed."""
    for depth in range(1, max((len(Path(path).parts) for path in paths), default=0)):
        for whole in (False, True):
            names = ["_".join((path if whole else path.with_suffix("")).parts[-depth:]) for path in map(Path, paths)]
            if len({*names}) == len(paths):
                return names
    raise ValueError(f"{option}={', '.join(paths)} names a file twice; give each file once")


@dataclass(frozen=True)
class ImageBytes:
    """Encoded images in memory.

    Args:
        path: path of the file that contains them.
        images: the images.
        places: number of each image in the file.
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
    content = loads(path.read_bytes(), str(path))
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise ValueError(f"{path} must contain a list of images and a list of booleans, but contains something else")
    images, same = content
    sizes = [
        len(part) for part in content if isinstance(part, list) or (isinstance(part, np.ndarray) and part.ndim == 1)
    ]
    if len(sizes) != 2 or sizes[0] != 2 * sizes[1]:
        raise ValueError(
            f"{path} must contain two images for each boolean, "
            f"but contains {' and '.join(map(str, sizes)) or 'no lists'}"
        )
    if not all(isinstance(flag, bool | int | np.bool_ | np.integer) and flag in (0, 1) for flag in same):
        raise ValueError(f"{path} must contain booleans as its second list, but contains other values")
    encoded: dict[bytes, int] = {}
    places: list[int] = []
    numbers = []
    for place, image in enumerate(images):
        # OpenCV's encoder returns the shape (n,), and older versions (n, 1).
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size == max(image.shape, default=0):
            image = image.tobytes()
        if not isinstance(image, bytes | bytearray):
            shape = f"{image.dtype} array {list(image.shape)}" if isinstance(image, np.ndarray) else ""
            raise ValueError(f"{path}: image {place} is of type {shape or type(image).__name__}, not an encoded image")
        number = encoded.setdefault(bytes(image), len(encoded))
        if number == len(places):
            places.append(place)
        numbers.append(number)
    pairs = np.array(numbers, np.int64).reshape(-1, 2)
    stored = ImageBytes(str(path), list(encoded), places)
    return Pairs(str(path), stored, pairs[:, 0], pairs[:, 1], np.array(same, bool), in_order=True)


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
            raise ValueError(f"{path}, line {number} must be {EXPECTED}, but is {text(line)!r}") from None
        paths = (os.path.join(folder, name) for name in (first, second))  # noqa: PTH118
        a, b = (known.setdefault(path, len(known)) for path in paths)
        ends.append((a, b))
        same.append(alike)
    both = np.array(ends, np.int64).reshape(-1, 2)
    folds = _folds(path, header, np.array(same, bool)) if same else None
    return Pairs(path, ImageFiles(list(known)), both[:, 0], both[:, 1], np.array(same, bool), folds)


def _folds(path: str, header: list[int], same: NDArray[np.bool_]) -> int | None:
    """Return the number of folds in LFW's header, which is `folds pairs`, or `pairs` for a set without folds.

    Raises:
        ValueError: the pairs differ from those that the header announces.
    """
    if not header:
        return None
    *folds, count = header
    number = folds[0] if folds else 1
    if number < 1 or len(same) != 2 * number * count or (same.reshape(number, -1).sum(1) != count).any():
        raise ValueError(
            f"{path}: the first line announces {number} x {count:,} pairs of one person and as many of two persons, "
            f"but the list contains {int(same.sum()):,} and {int((~same).sum()):,}, or another order; delete that "
            "line if the list is correct"
        )
    return number if number > 1 else None


def _pair(columns: list[bytes]) -> tuple[bytes, bytes, bool]:
    """Return two paths and whether they are of one class. Raises ValueError."""
    if len(columns) == 3 and columns[1].isdigit():
        return _lfw_path(columns[0], columns[1]), _lfw_path(columns[0], columns[2]), True
    if len(columns) == 4:
        return _lfw_path(*columns[:2]), _lfw_path(*columns[2:]), False
    first, second, same = columns
    if same not in SAME or not first or not second:
        raise ValueError
    return first, second, SAME[same]


def _lfw_path(name: bytes, number: bytes) -> bytes:
    return b"%b/%b_%04d%b" % (name, name, int(number), ANY)


def write_bin(pairs: Pairs, path: Path, track: Callable[[Any], Any], convert: Callable[[bytes], bytes]) -> int:
    """Write InsightFace's .bin like `pickle.dump((images, same), protocol=4)`, one image at a time.

    Args:
        pairs: the pairs.
        path: path of the .bin.
        track: iterates over its argument, and may show the progress.
        convert: returns the bytes to write for an encoded image.

    Returns:
        size of the images in bytes.

    Raises:
        UnreadableError: an image cannot be read or converted; the error names it.
    """
    size = 0
    with path.open("wb") as file:
        file.write(b"\x80\x04]")
        for index in track(np.stack([pairs.first, pairs.second], 1).ravel()):
            encoded = _converted(pairs.images, int(index), convert)
            file.write(b"B" + len(encoded).to_bytes(4, "little") + encoded + b"a")
            size += len(encoded)
        file.write(b"]" + b"".join(b"\x88a" if same else b"\x89a" for same in pairs.same) + b"\x86.")
        file.flush()
        os.fsync(file.fileno())
    return size


def _converted(images: Images, index: int, convert: Callable[[bytes], bytes]) -> bytes:
    try:
        return convert(next(iter(images.read_all(np.array([index])))))
    except UnreadableError as error:
        if str(error) == error.reason:
            raise UnreadableError(error.reason, images.name(index)) from None
        raise
