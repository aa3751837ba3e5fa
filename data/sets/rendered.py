"""Pictures of characters, drawn once and kept in the cache folder; damaged or outdated ones are drawn anew."""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from ..cache import cached
from ..formats.lmdb_growing import GrowingLmdb
from ..preprocessing import Preprocessing
from ..records import LmdbArrays, RecordSet, key_of

FILES = ("data.mdb", "labels.npy", "faces.npy")


class Drawn(NamedTuple):
    """The different pictures of one class."""

    name: str
    pictures: list[bytes]
    faces: list[int]  # the typeface of each


class Pictures:
    """Pictures that were drawn, (1, side, side) uint8, class after class.

    Attributes:
        names: of the classes.
        labels, faces: class and typeface of each picture.
    """

    def __init__(self, folder: Path, side: int):
        self.folder, self.side = folder, side
        self.names: list[str] = json.loads((folder / "manifest.json").read_text())["classes"]
        self.labels = np.load(folder / "labels.npy", mmap_mode="r")
        self.faces = np.load(folder / "faces.npy", mmap_mode="r")

    def images(self, start: int, stop: int) -> LmdbArrays:
        return LmdbArrays(self.folder, start, stop, (1, self.side, self.side))

    def split(self, heldout: float) -> tuple[RecordSet, RecordSet, list[str]]:
        """Those to train on, the last share of the classes, and the names of the former. Classes must lie in a random
        order."""
        names, labels = self.names, self.labels
        num_train = len(names) - max(2, round(heldout * len(names)))
        boundary = int(np.searchsorted(labels, num_train))
        return (
            RecordSet(self.images(0, boundary), labels[:boundary], num_train),
            RecordSet(
                self.images(boundary, len(labels)), np.asarray(labels[boundary:]) - num_train, len(names) - num_train
            ),
            names[:num_train],
        )


def pictures(root: Path, of: dict[str, Any], side: int, drawn: Callable[[], Iterable[Drawn]]) -> Pictures:
    """The pictures that belong to `of`, drawn if they are not there.

    Args:
        of: all that decides what is drawn.
        drawn: draws them, in the order of the classes.
    """
    of = {**of, "side": side, "freetype": features.version("freetype2")}
    return Pictures(cached(root, of, intact, partial(write, of=of, drawn=drawn)), side)


def preprocessing(side: int) -> Preprocessing:
    """Of pictures of others, as white on black as these."""
    return Preprocessing(side, side, 1, "crop", (0.5,), (0.5,))


def intact(folder: Path) -> bool:
    """Whether every file is what was written. Bytes are compared before anything maps them."""
    try:
        digests = json.loads((folder / "manifest.json").read_text())["digests"]
        return bool(digests) and all(file_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write(folder: Path, of: dict[str, Any], drawn: Callable[[], Iterable[Drawn]]) -> None:
    """Writes data.mdb, labels.npy, faces.npy and, last, manifest.json."""
    names: list[str] = []
    labels: list[int] = []
    faces: list[int] = []
    with closing(GrowingLmdb(folder, lock=False)) as database:
        for each in drawn():
            for picture in each.pictures:
                database.put(key_of(len(labels)), picture, append=True)
                labels.append(len(names))
            faces += each.faces
            names.append(each.name)
        database.commit()
    np.save(folder / "labels.npy", np.array(labels, np.int64))
    np.save(folder / "faces.npy", np.array(faces, np.int16))
    digests = {name: file_digest(folder / name) for name in FILES}
    (folder / "manifest.json").write_text(json.dumps({**of, "classes": names, "digests": digests}))


def draw(character: str, font: ImageFont.FreeTypeFont, side: int) -> NDArray[np.uint8]:
    """White on black (side, side), the ink centred with a pixel of background around it at least."""
    largest = side - 2
    left, top, right, bottom = font.getbbox(character)
    extent = max(right - left, bottom - top)
    if extent > largest:
        font = font.font_variant(size=int(font.size * largest / extent))
        left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (side, side))
    place = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(place, character, font=font, fill=255)
    return np.asarray(image)


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
