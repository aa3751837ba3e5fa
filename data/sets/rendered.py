"""Images of characters, rendered once and kept in the cache folder. Damaged or outdated images are rendered again."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
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


class RenderedClass(NamedTuple):
    """The different images of one class.

    Args:
        name: name of the class.
        images: pixels of each image.
        faces: number of the typeface of each image.
    """

    name: str
    images: list[bytes]
    faces: list[int]


class RenderedImages:
    """Rendered images, (1, side, side) uint8, class after class.

    Attributes:
        names: class names.
        labels, faces: class and typeface of each image.
    """

    def __init__(self, folder: Path, side: int):
        self.folder, self.side = folder, side
        self.names: list[str] = json.loads((folder / "manifest.json").read_text())["classes"]
        self.labels = np.load(folder / "labels.npy", mmap_mode="r")
        self.faces = np.load(folder / "faces.npy", mmap_mode="r")

    def images(self, start: int, stop: int) -> LmdbArrays:
        """Return the source of the images `start` to `stop` - 1."""
        return LmdbArrays(self.folder, start, stop, (1, self.side, self.side))

    def split(self, heldout: float, face_names: Sequence[str] = ()) -> tuple[RecordSet, RecordSet, list[str]]:
        """Hold out the last share of the classes, which must be in random order.

        Args:
            face_names: names of the typefaces. If there are any, the typefaces are classes too, after the others, and
                each training record has the label of its typeface as a second one.

        Returns:
            training records, held-out records, and the names of the training classes.
        """
        names, labels = self.names, self.labels
        num_train = len(names) - max(2, round(heldout * len(names)))
        boundary = int(np.searchsorted(labels, num_train))
        train = RecordSet(self.images(0, boundary), labels[:boundary], num_train)
        if face_names:
            both = np.stack([labels[:boundary], num_train + self.faces[:boundary].astype(np.int64)], axis=1)
            train = replace(train, num_classes=num_train + len(face_names), all_labels=both)
        return (
            train,
            RecordSet(
                self.images(boundary, len(labels)), np.asarray(labels[boundary:]) - num_train, len(names) - num_train
            ),
            [*names[:num_train], *face_names],
        )


def rendered_images(
    root: Path, identity: dict[str, Any], side: int, render: Callable[[], Iterable[RenderedClass]]
) -> RenderedImages:
    """Return the images with an identity from the folder `root`, and render them first if needed.

    Args:
        identity: all that determines the images.
        side: side of an image in pixels.
        render: returns the classes in their order.
    """
    identity = {**identity, "side": side, "freetype": features.version("freetype2")}
    return RenderedImages(cached(root, identity, intact, partial(write, identity=identity, render=render)), side)


def preprocessing(side: int) -> Preprocessing:
    """Return the preprocessing that makes other images white on black, like the rendered ones."""
    return Preprocessing(side, side, 1, "crop", (0.5,), (0.5,))


def intact(folder: Path) -> bool:
    """Return whether every file has its digest. Bytes are compared before anything maps them."""
    try:
        digests = json.loads((folder / "manifest.json").read_text())["digests"]
        return bool(digests) and all(file_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write(folder: Path, identity: dict[str, Any], render: Callable[[], Iterable[RenderedClass]]) -> None:
    """Write data.mdb, labels.npy, faces.npy and, last, manifest.json."""
    names: list[str] = []
    labels: list[int] = []
    faces: list[int] = []
    with closing(GrowingLmdb(folder, lock=False)) as database:
        for rendered in render():
            for image in rendered.images:
                database.put(key_of(len(labels)), image, append=True)
                labels.append(len(names))
            faces += rendered.faces
            names.append(rendered.name)
        database.commit()
    np.save(folder / "labels.npy", np.array(labels, np.int64))
    np.save(folder / "faces.npy", np.array(faces, np.int16))
    digests = {name: file_digest(folder / name) for name in FILES}
    (folder / "manifest.json").write_text(json.dumps({**identity, "classes": names, "digests": digests}))


def draw(character: str, font: ImageFont.FreeTypeFont, side: int) -> NDArray[np.uint8]:
    """Return a character in white on black, (side, side), centred with a border of at least one pixel."""
    largest = side - 2
    left, top, right, bottom = font.getbbox(character)
    extent = max(right - left, bottom - top)
    if extent > largest:
        font = font.font_variant(size=int(font.size * largest / extent))
        left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (side, side))
    origin = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(origin, character, font=font, fill=255)
    return np.asarray(image)


def file_digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
