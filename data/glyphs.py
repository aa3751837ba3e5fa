"""`data=glyphs`: characters by typeface, rendered from the fonts that matplotlib installs.

A class is a character, its images the different pictures that 16 typefaces draw of it. A fifth of the
classes is held out. Pictures are rendered once and kept in a cache folder; a damaged or outdated cache
is made anew.
"""

import hashlib
import json
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features
from rich.progress import track

from .augment import RandomAffine, Unchanged
from .cache import cache_folder, cached
from .keyed import permute
from .records import DataSet, LmdbArrays, RecordSet, key_of, normalize_pixels

VERSION = 1  # of what is drawn and how it is stored
SIDE = 32
FONT_SIZE = 28
LARGEST = 30  # sides of the ink; a larger character is drawn smaller
FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
CHARACTERS = {"letters": "L", "all": "LMNPS"}  # first letters of the Unicode categories


def glyphs(
    *,
    characters: str = "letters",
    min_images: int = 4,
    heldout: float = 0.2,
    augment: bool = True,
    cache_dir: str | None = None,
) -> DataSet:
    """Characters of which the typefaces draw enough different pictures, 1x32x32.

    Args:
        characters: "letters" (about 2,950 classes) or "all" (about 4,400, with symbols).
        min_images: fewest different pictures of a class.
        heldout: share of the classes to judge on.
        augment: random affine maps of the training images.
        cache_dir: where rendered pictures are kept; $HEADCOUNT_CACHE or ~/.cache/headcount unless given.
    """
    if characters not in CHARACTERS:
        raise ValueError(f"data.characters={characters!r}: must be one of {sorted(CHARACTERS)}")
    if not 2 <= min_images <= len(FACES):
        raise ValueError(f"data.min_images={min_images}: must lie between 2 and the {len(FACES)} typefaces")
    if not 0 < heldout < 1:
        raise ValueError(f"data.heldout={heldout}: a share of the classes in (0, 1) is needed")
    of = {
        "characters": characters,
        "min_images": min_images,
        "version": VERSION,
        "matplotlib": matplotlib.__version__,
        "freetype": features.version("freetype2"),
    }
    folder = cached(cache_folder(cache_dir) / "glyphs", of, intact, partial(write, of=of))
    names: list[str] = json.loads((folder / "manifest.json").read_text())["classes"]
    labels = np.load(folder / "labels.npy", mmap_mode="r")

    # Classes are stored in a shuffled order, so that a prefix of them is a random choice.
    num_train = len(names) - max(2, round(heldout * len(names)))
    boundary = int(np.searchsorted(labels, num_train))
    return DataSet(
        train=RecordSet(_images(folder, 0, boundary), labels[:boundary], num_train),
        heldout=RecordSet(
            _images(folder, boundary, len(labels)), np.asarray(labels[boundary:]) - num_train, len(names) - num_train
        ),
        shape=(1, SIDE, SIDE),
        prepare=normalize_pixels,
        augment=RandomAffine() if augment else Unchanged(),
        class_names=names[:num_train],
    )


def _images(folder: Path, start: int, stop: int) -> LmdbArrays:
    return LmdbArrays(folder, start, stop, (1, SIDE, SIDE))


def intact(folder: Path) -> bool:
    """Whether every file is what was written. Bytes are compared before anything maps them."""
    try:
        digests = json.loads((folder / "manifest.json").read_text())["digests"]
        return bool(digests) and all(file_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write(folder: Path, of: dict[str, Any]) -> None:
    """Renders the classes and writes data.mdb, labels.npy and, last, manifest.json."""
    pictures = render(of["characters"], of["min_images"])
    order = permute(np.arange(len(pictures)), len(pictures), 0)
    names = [sorted(pictures)[i] for i in order]
    labels = np.repeat(np.arange(len(names)), [len(pictures[name]) for name in names])
    in_order = [picture for name in names for picture in pictures[name]]
    with (
        lmdb.open(str(folder), map_size=2**30, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for index, picture in enumerate(in_order):
            transaction.put(key_of(index), picture)
    np.save(folder / "labels.npy", labels)
    digests = {name: file_digest(folder / name) for name in ("data.mdb", "labels.npy")}
    (folder / "manifest.json").write_text(json.dumps({**of, "classes": names, "digests": digests}))


def render(characters: str, min_images: int) -> dict[str, list[bytes]]:
    """Character -> its different pictures as bytes, for characters with at least `min_images`."""
    pictures: dict[str, dict[bytes, None]] = {}
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for face in track(FACES, description="Rendering glyphs (once)", transient=True):
        path = fonts / f"{face}.ttf"
        if not path.exists():
            raise ValueError(f"data=glyphs: the typeface {path} is missing; reinstall matplotlib")
        font = ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        for code_point in TTFont(path).getBestCmap():
            character = chr(code_point)
            if unicodedata.category(character)[0] in CHARACTERS[characters]:
                picture = draw(character, font)
                if picture.any():
                    # A dict keeps the first of equal pictures, in the order of the faces.
                    pictures.setdefault(character, {})[picture.tobytes()] = None
    return {character: list(found) for character, found in pictures.items() if len(found) >= min_images}


def draw(character: str, font: ImageFont.FreeTypeFont) -> NDArray[np.uint8]:
    """White on black (32, 32), the ink centred."""
    left, top, right, bottom = font.getbbox(character)
    largest = max(right - left, bottom - top)
    if largest > LARGEST:
        font = font.font_variant(size=int(font.size * LARGEST / largest))
        left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (SIDE, SIDE))
    place = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
    ImageDraw.Draw(image).text(place, character, font=font, fill=255)
    return np.asarray(image)


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
