"""`data=hanzi`: Chinese characters by typeface, rendered from the fonts that are installed.

A class is a character, its images the different pictures that the typefaces draw of it: tens of thousands of classes of
a real, long-tailed kind, without a download. Pairs of characters that Unicode calls canonically equivalent are one
class, or with `conflict=keep` two classes of one identity whose truth is known.

`python -m data.hanzi --list` tells which typefaces are found, which packages would add what, and how many classes
result. `python -m data.hanzi --picture PATH` shows some.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m data.hanzi")


import argparse
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..augment import RandomAffine, Unchanged
from ..cache import cache_folder
from ..counter_rng import permute
from ..grouping import group
from ..records import DataSet, RecordSet, normalize_pixels
from ..screen import console
from .fonts import Face, different, installed, shown
from .noise import with_noise
from .rendered import Drawn, Pictures, draw, pictures, preprocessing
from .split import Subset

VERSION = 1  # of what is drawn
PROBES = "一\U00020000豈"  # a typeface with Chinese characters has one of these
BLOCKS = (  # CJK unified and compatibility ideographs
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2EE5D),
    (0x2F800, 0x2FA1F),
    (0x30000, 0x323AF),
)
WANTED = frozenset(code_point for first, last in BLOCKS for code_point in range(first, last + 1))
FEWEST = 100  # classes worth the name
CHUNK = 128  # classes that a process draws together
CUTS = (2, 4, 6, 8, 10, 12)


class Package(NamedTuple):
    """A package of Debian and Ubuntu: what it installs, and of how many characters."""

    name: str
    megabytes: int
    family: str
    characters: int


PACKAGES = (
    Package("fonts-noto-cjk", 89, "Noto Sans CJK", 30_289),
    Package("fonts-arphic-uming", 21, "AR PL UMing", 21_743),
    Package("fonts-arphic-ukai", 17, "AR PL UKai", 21_366),
    Package("fonts-wqy-zenhei", 16, "WenQuanYi Zen Hei", 28_520),
    Package("fonts-babelstone-han", 49, "BabelStone Han", 54_830),
    Package("fonts-hanazono", 51, "HanaMin", 91_997),
    Package("fonts-cwtex-kai", 10, "cwTeXKai", 13_587),
    Package("fonts-ipaexfont-gothic", 6, "IPAexGothic", 10_145),
    Package("fonts-ipaexfont-mincho", 8, "IPAexMincho", 10_145),
    Package("fonts-wqy-microhei", 5, "WenQuanYi Micro Hei", 21_236),
)
DEFAULT_PACKAGES = tuple(package.name for package in PACKAGES[:5])
USUAL = "29,800 classes with num_faces=4, 20,300 with 8"
INSTALL = f"apt install {' '.join(DEFAULT_PACKAGES)}"


def hanzi(
    *,
    num_faces: int = 4,
    size: int = 32,
    split: str = "characters",
    heldout: float = 0.05,
    conflict: str = "merge",
    tail: float = 0.0,
    augment: bool = True,
    cache_dir: str | None = None,
    seed: int = 0,
) -> DataSet:
    """Characters of which the typefaces draw enough different pictures, (1, size, size).

    Args:
        num_faces: fewest different pictures of a class.
        size: side of a picture in pixels.
        split: what is held out to judge on: "characters", or "typefaces", whose pictures of the training characters are
            then judged on; near-twins are held out together.
        heldout: share of the characters, or least share of the pictures whose typefaces are held out.
        conflict: of characters that are canonically equivalent: "merge" makes them one class, "keep" leaves them two.
        tail: exponent of Zipf's law; see `noise.with_noise`.
        augment: random affine maps of the training images.
        cache_dir: where pictures are kept; $HEADCOUNT_CACHE or ~/.cache/headcount unless given.
        seed: of the typefaces that are held out, and of the tail.
    """
    if num_faces < 2:
        raise ValueError(f"data.num_faces={num_faces}: must be at least 2")
    if not 16 <= size <= 256:
        raise ValueError(f"data.size={size}: must lie between 16 and 256 pixels")
    if split not in ("characters", "typefaces"):
        raise ValueError(f"data.split={split}: must be characters or typefaces")
    if not 0 < heldout < 1:
        raise ValueError(f"data.heldout={heldout}: a share in (0, 1) is needed")
    if conflict not in ("merge", "keep"):
        raise ValueError(f"data.conflict={conflict}: must be merge or keep")
    faces = installed(PROBES)
    of = {
        "version": VERSION,
        "num_faces": num_faces,
        "conflict": conflict,
        "faces": [(face.path, face.index, Path(face.path).stat().st_mtime_ns) for face in faces],
    }
    drawn = pictures(cache_folder(cache_dir) / "hanzi", of, size, partial(render, faces, conflict, num_faces, size))
    if split == "characters":
        train, judged, names = drawn.split(heldout)
    else:
        train, judged, names = _by_typefaces(drawn, [face.design for face in faces], heldout, seed)
    data = DataSet(
        train=train,
        heldout=judged,
        shape=(1, size, size),
        prepare=normalize_pixels,
        preprocessing=preprocessing(size),
        augment=RandomAffine() if augment else Unchanged(),
        class_names=names,
    )
    return with_noise(data, tail=tail, seed=seed)


def conflicts(names: Sequence[str]) -> NDArray[np.int64]:
    """Pairs of classes (n, 2) that are one character by Unicode's canonical equivalence."""
    place = {name: number for number, name in enumerate(names)}
    pairs = [(place[canonical(name)], number) for name, number in place.items() if canonical(name) in place]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def canonical(character: str) -> str:
    return unicodedata.normalize("NFC", character)


Drawings = dict[str, dict[str, list[int]]]  # class -> its characters -> the faces that draw each in its own way


def classes_of(faces: Sequence[Face], merge: bool) -> Drawings:
    """What the faces could draw, by code point; blank and equal pictures are seen only when it is drawn."""
    classes: Drawings = {}
    for code_point, of_faces in sorted(different(faces, WANTED).items()):
        character = chr(code_point)
        classes.setdefault(canonical(character) if merge else character, {})[character] = of_faces
    return classes


def _different(drawings: dict[str, list[int]]) -> int:
    return sum(map(len, drawings.values()))


def render(faces: Sequence[Face], conflict: str, num_faces: int, size: int) -> Iterator[Drawn]:
    """The classes with enough different pictures, in a shuffled order, drawn by a process for each core."""
    drawings = classes_of(faces, merge=conflict == "merge")
    candidates = sorted(name for name in drawings if _different(drawings[name]) >= num_faces)
    if len(candidates) < FEWEST:
        raise ValueError(
            f"data=hanzi: the {len(faces)} installed typefaces with Chinese characters draw fewer than {FEWEST} of "
            f"them in num_faces={num_faces} ways; for the usual 30,000 classes: {INSTALL}"
        )
    names = [candidates[i] for i in permute(np.arange(len(candidates)), len(candidates), 0)]
    chunks = [{name: drawings[name] for name in names[i : i + CHUNK]} for i in range(0, len(names), CHUNK)]
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), initializer=_open_fonts, initargs=(faces, size)
    ) as pool:
        results = pool.map(_draw_chunk, chunks)
        for drawn in track(results, "Drawing characters (once)", total=len(chunks), transient=True):
            yield from (each for each in drawn if len(each.pictures) >= num_faces)


def _open_fonts(faces: Sequence[Face], size: int) -> None:
    """Of a process that draws."""
    global FONTS, SIDE
    FONTS, SIDE = [face.font(size - 2) for face in faces], size


def _draw_chunk(chunk: Drawings) -> list[Drawn]:
    drawn = []
    for name, by_character in chunk.items():
        found: dict[bytes, int] = {}
        for character, of_faces in by_character.items():
            for number in of_faces:
                picture = draw(character, FONTS[number], SIDE)
                if picture.any():  # some typefaces claim characters that they draw blank
                    found.setdefault(picture.tobytes(), number)
        drawn.append(Drawn(name, list(found), list(found.values())))
    return drawn


def _by_typefaces(
    drawn: Pictures, designs: Sequence[str], heldout: float, seed: int
) -> tuple[RecordSet, RecordSet, list[str]]:
    """Whole designs are held out, until there is enough to judge on. A character counts on a side with two pictures."""
    labels, faces = np.asarray(drawn.labels), np.asarray(drawn.faces)
    kinds = sorted(set(designs))
    of_record = np.array([kinds.index(design) for design in designs])[faces]
    aside = np.zeros(len(labels), dtype=bool)
    for kind in permute(np.arange(len(kinds)), len(kinds), seed):
        judged = aside & (np.bincount(labels[aside], minlength=len(drawn.names))[labels] >= 2)
        if judged.sum() < heldout * len(labels):
            aside |= of_record == kind
    train, names = _renumbered(drawn, labels, ~aside)
    if train.num_classes < 2:
        raise ValueError(f"data.split=typefaces: {len(kinds)} designs are too few to hold out heldout={heldout}")
    judged_on, _ = _renumbered(drawn, labels, aside)
    return train, judged_on, names


def _renumbered(drawn: Pictures, labels: NDArray[np.int64], chosen: NDArray[np.bool_]) -> tuple[RecordSet, list[str]]:
    """The chosen pictures of characters with two of them at least."""
    counts = np.bincount(labels[chosen], minlength=len(drawn.names))
    records = np.flatnonzero(chosen & (counts[labels] >= 2))
    classes, new = np.unique(labels[records], return_inverse=True)
    source = Subset(drawn.images(0, len(labels)), records)
    return RecordSet(source, new, len(classes), group(new, len(classes))), [drawn.names[place] for place in classes]


def tell(screen: Console) -> None:
    """`--list`."""
    faces = installed(PROBES)
    table = Table(title="Typefaces with Chinese characters", title_justify="left")
    for column in ("family", "style", "design", "characters", "file"):
        table.add_column(column, justify="right" if column == "characters" else "left")
    for face in faces:
        table.add_row(face.family, face.style, face.design, f"{len(WANTED & face.glyphs().keys()):,}", shown(face.path))
    screen.print(table)
    table = Table(title="Packages of Debian and Ubuntu", title_justify="left")
    for column in ("package", "MB", "characters", ""):
        table.add_column(column, justify="left" if column in ("package", "") else "right")
    for package in PACKAGES:
        there = any(face.family.startswith(package.family) for face in faces)
        table.add_row(package.name, str(package.megabytes), f"{package.characters:,}", "installed" if there else "")
    screen.print(table)
    drawings = classes_of(faces, merge=True)
    counts = [_different(each) for each in drawings.values()]
    table = Table(title="Classes at most", title_justify="left")
    table.add_column("num_faces", justify="right")
    table.add_column("classes", justify="right")
    for cut in CUTS:
        table.add_row(str(cut), f"{sum(count >= cut for count in counts):,}")
    screen.print(table)
    screen.print(f"The usual set, {USUAL}: {INSTALL}", soft_wrap=True)


def sheet(path: Path, rows: int = 8, columns: int = 14, size: int = 48) -> None:
    """A picture of some classes, one a row, drawn for it at `size` pixels."""
    faces = installed(PROBES)
    drawings = classes_of(faces, merge=True)
    columns = min(columns, max(map(_different, drawings.values()), default=0))
    names = sorted(name for name in drawings if _different(drawings[name]) >= columns > 0)
    if not names:
        raise ValueError(f"no typeface with Chinese characters is installed: {INSTALL}")
    chosen = [names[i] for i in permute(np.arange(rows), len(names), 0)] if len(names) >= rows else names
    _open_fonts(faces, size)
    image = Image.new("L", (columns * size, len(chosen) * size))
    for row, each in enumerate(_draw_chunk({name: drawings[name] for name in chosen})):
        for column, picture in enumerate(each.pictures[:columns]):
            image.paste(Image.frombytes("L", (size, size), picture), (column * size, row * size))
    image.save(path)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.hanzi", description=__doc__)
    parser.add_argument("--list", action="store_true", help="typefaces, packages and numbers of classes")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="writes a picture of some classes")
    given = parser.parse_args(words)
    try:
        if given.picture is not None:
            sheet(given.picture)
        if given.list or given.picture is None:
            tell(console())
    except ValueError as error:
        sys.exit(f"error: {error}")


FONTS: list[Any] = []
SIDE = 0

if __name__ == "__main__":
    main()
