"""Images of Chinese characters, rendered by several processes."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from rich.progress import track

from ...counter_rng import permute
from ..fonts import Face
from ..rendered import RenderedClass, draw
from .characters import INSTALL, Drawings, drawings_by_class, num_drawings

FEWEST = 100  # classes of a set that is worth rendering
CHUNK = 128  # classes that a process renders together

# The fonts and the image side of this process, set by `open_fonts`.
FONTS: list[Any] = []
SIDE = 0


def render(faces: Sequence[Face], conflict: str, num_faces: int, size: int) -> Iterator[RenderedClass]:
    """Yield the classes with enough different images, in shuffled order, rendered by a process for each core.

    Args:
        faces: the typefaces.
        conflict: "merge" makes canonically equivalent characters one class, "keep" leaves them two.
        num_faces: fewest different images of a class.
        size: side of an image in pixels.
    """
    drawings = drawings_by_class(faces, merge=conflict == "merge")
    candidates = sorted(name for name in drawings if num_drawings(drawings[name]) >= num_faces)
    if len(candidates) < FEWEST:
        raise ValueError(
            f"data.num_faces={num_faces} leaves fewer than {FEWEST} characters: the {len(faces)} installed typefaces "
            f"with Chinese characters do not suffice; for the usual 30,000 classes: {INSTALL}"
        )
    names = [candidates[i] for i in permute(np.arange(len(candidates)), len(candidates), 0)]
    chunks = [{name: drawings[name] for name in names[i : i + CHUNK]} for i in range(0, len(names), CHUNK)]
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), initializer=open_fonts, initargs=(faces, size)
    ) as pool:
        results = pool.map(render_chunk, chunks)
        for classes in track(results, "Rendering characters (once)", total=len(chunks), transient=True):
            yield from (rendered for rendered in classes if len(rendered.images) >= num_faces)


def open_fonts(faces: Sequence[Face], size: int) -> None:
    """Open the fonts of a process that renders images of a size."""
    global FONTS, SIDE
    FONTS, SIDE = [face.font(size - 2) for face in faces], size


def render_chunk(chunk: Drawings) -> list[RenderedClass]:
    """Render some classes. Blank images and equal images of a class are dropped."""
    classes = []
    for name, by_character in chunk.items():
        images: dict[bytes, int] = {}
        for character, face_numbers in by_character.items():
            for number in face_numbers:
                image = draw(character, FONTS[number], SIDE)
                if image.any():  # some typefaces draw blanks for characters that they claim to contain
                    images.setdefault(image.tobytes(), number)
        classes.append(RenderedClass(name, list(images), list(images.values())))
    return classes
