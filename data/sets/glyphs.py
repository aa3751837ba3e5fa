"""`data=glyphs`: characters by typeface, rendered from the fonts that matplotlib installs.

A class is a character, its images the different pictures that 16 typefaces draw of it. A fifth of the
classes is held out. Pictures are rendered once and kept in a cache folder; a damaged or outdated cache
is made anew.
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from PIL import ImageFont
from rich.progress import track

from ..augment import RandomAffine, Unchanged
from ..cache import cache_folder
from ..counter_rng import permute
from ..records import DataSet, normalize_pixels
from .rendered import Drawn, draw, pictures, preprocessing

VERSION = 2  # of what is drawn and how it is stored
SIDE = 32
FONT_SIZE = 28
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
    }
    drawn = pictures(cache_folder(cache_dir) / "glyphs", of, SIDE, lambda: in_order(render(characters, min_images)))
    train, judged, names = drawn.split(heldout)
    return DataSet(
        train=train,
        heldout=judged,
        shape=(1, SIDE, SIDE),
        prepare=normalize_pixels,
        preprocessing=preprocessing(SIDE),
        augment=RandomAffine() if augment else Unchanged(),
        class_names=names,
    )


def in_order(found: dict[str, dict[bytes, int]]) -> Iterator[Drawn]:
    """The classes in a shuffled order."""
    names = sorted(found)
    for i in permute(np.arange(len(names)), len(names), 0):
        yield Drawn(names[i], list(found[names[i]]), list(found[names[i]].values()))


def render(characters: str, min_images: int) -> dict[str, dict[bytes, int]]:
    """Character -> its different pictures and their faces, for characters with at least `min_images`."""
    found: dict[str, dict[bytes, int]] = {}
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for number, face in enumerate(track(FACES, description="Rendering glyphs (once)", transient=True)):
        path = fonts / f"{face}.ttf"
        if not path.exists():
            raise ValueError(f"data=glyphs: the typeface {path} is missing; reinstall matplotlib")
        font = ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        for code_point in TTFont(path).getBestCmap():
            character = chr(code_point)
            if unicodedata.category(character)[0] in CHARACTERS[characters]:
                picture = draw(character, font, SIDE)
                if picture.any():
                    # Of equal pictures the first stays, in the order of the faces.
                    found.setdefault(character, {}).setdefault(picture.tobytes(), number)
    return {character: pictures for character, pictures in found.items() if len(pictures) >= min_images}
