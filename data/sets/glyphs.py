"""`data=glyphs`: characters by typeface, rendered from the fonts that matplotlib installs.

A class is a character; its images are the different renderings by 16 typefaces. A fifth of the classes is held out.
With labels="character_typeface" each typeface is a class too, and an image has two labels.
Images are rendered once and kept in a cache folder; a damaged or outdated cache is rendered again.
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
from ..label_file import with_labels
from ..options import absolute
from ..records import DataSet, normalize_pixels
from .rendered import RenderedClass, draw, preprocessing, rendered_images

VERSION = 2  # version of the rendering and its storage
SIDE = 32
FONT_SIZE = 28
FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
LABELS = ("character", "character_typeface")
CHARACTERS = {"letters": "L", "all": "LMNPS"}  # first letters of the Unicode categories


def glyphs(
    *,
    characters: str = "letters",
    labels: str = "character",
    min_images: int = 4,
    heldout: float = 0.2,
    augment: bool = True,
    cache_dir: str | None = None,
) -> DataSet:
    """Return the characters with enough different images, 1x32x32.

    Args:
        characters: "letters" (about 2,950 classes) or "all" (about 4,400, with symbols).
        labels: "character"; or "character_typeface" for two labels of a training image, its character and its
            typeface, which are classes alike; or a .npy file of a class id for each training image, an array of
            integers. The held-out images have their character only.
        min_images: fewest different images of a character.
        heldout: share of the characters that are held out for evaluation.
        augment: apply random affine maps to the training images.
        cache_dir: folder of the rendered images; by default $HEADCOUNT_CACHE or ~/.cache/headcount.
    """
    if characters not in CHARACTERS:
        raise ValueError(f"data.characters={characters} must be one of {', '.join(sorted(CHARACTERS))}")
    if labels not in LABELS and not labels.endswith(".npy"):
        raise ValueError(f"data.labels={labels} must be one of {', '.join(LABELS)}, or a .npy file")
    if not 2 <= min_images <= len(FACES):
        raise ValueError(f"data.min_images={min_images} must be in [2, {len(FACES)}]; there are {len(FACES)} typefaces")
    if not 0 < heldout < 1:
        raise ValueError(f"data.heldout={heldout} must be in (0, 1); 0.2 holds out a fifth of the classes")
    identity = {
        "characters": characters,
        "min_images": min_images,
        "version": VERSION,
        "matplotlib": matplotlib.__version__,
    }
    root = cache_folder(cache_dir) / "glyphs"
    images = rendered_images(root, identity, SIDE, lambda: shuffled(render(characters, min_images)))
    train, evaluation, names = images.split(heldout, FACES if labels == "character_typeface" else ())
    if labels not in LABELS:
        path = absolute(labels)
        train, names = with_labels(train.source, path, cache_folder(cache_dir), "training images"), []
    return DataSet(
        train=train,
        heldout=evaluation,
        shape=(1, SIDE, SIDE),
        prepare=normalize_pixels,
        preprocessing=preprocessing(SIDE),
        augment=RandomAffine() if augment else Unchanged(),
        class_names=names,
    )


def shuffled(images: dict[str, dict[bytes, int]]) -> Iterator[RenderedClass]:
    """Yield the classes in shuffled order."""
    names = sorted(images)
    for i in permute(np.arange(len(names)), len(names), 0):
        yield RenderedClass(names[i], list(images[names[i]]), list(images[names[i]].values()))


def render(characters: str, min_images: int) -> dict[str, dict[bytes, int]]:
    """Return the different images and their typefaces for each character with at least `min_images`."""
    by_character: dict[str, dict[bytes, int]] = {}
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for number, face in enumerate(track(FACES, description="Rendering glyphs (once)", transient=True)):
        path = fonts / f"{face}.ttf"
        if not path.exists():
            raise ValueError(f"data=glyphs needs the typeface {path}, which does not exist; reinstall matplotlib")
        font = ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        for code_point in TTFont(path).getBestCmap():
            character = chr(code_point)
            if unicodedata.category(character)[0] in CHARACTERS[characters]:
                image = draw(character, font, SIDE)
                if image.any():
                    # Of equal images the one of the first typeface is kept.
                    by_character.setdefault(character, {}).setdefault(image.tobytes(), number)
    return {character: images for character, images in by_character.items() if len(images) >= min_images}
