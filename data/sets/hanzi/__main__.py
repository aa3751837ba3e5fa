"""Command `python -m data.sets.hanzi`: print typefaces, packages and numbers of classes, or save an image of some."""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m data.sets.hanzi")


import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from ...counter_rng import permute
from ...screen import console
from ..fonts import installed, shown
from . import __doc__ as description
from .characters import CODE_POINTS, INSTALL, PACKAGES, PROBES, drawings_by_class, num_drawings
from .rendering import open_fonts, render_chunk

CUTS = (2, 4, 6, 8, 10, 12)  # values of num_faces
CAPTION = 72  # pixels of a caption in the picture
USUAL = "29,800 classes with num_faces=4, 20,300 with 8"


def print_typefaces(screen: Console) -> None:
    """Print the installed typefaces, the packages with more, and the resulting numbers of classes."""
    faces = installed(PROBES)
    table = Table(title="Typefaces with Chinese characters", title_justify="left")
    for column in ("family", "style", "design", "characters", "file"):
        table.add_column(column, justify="right" if column == "characters" else "left")
    for face in faces:
        count = len(CODE_POINTS & face.glyphs().keys())
        table.add_row(face.family, face.style, face.design, f"{count:,}", shown(face.path))
    screen.print(table)
    table = Table(title="Packages of Debian and Ubuntu", title_justify="left")
    for column in ("package", "MB", "characters", ""):
        table.add_column(column, justify="left" if column in ("package", "") else "right")
    for package in PACKAGES:
        status = "installed" if any(face.family.startswith(package.family) for face in faces) else ""
        table.add_row(package.name, str(package.megabytes), f"{package.characters:,}", status)
    screen.print(table)
    counts = [num_drawings(drawings) for drawings in drawings_by_class(faces, merge=True).values()]
    table = Table(title="Most classes", title_justify="left")
    table.add_column("num_faces", justify="right")
    table.add_column("classes", justify="right")
    for cut in CUTS:
        table.add_row(str(cut), f"{sum(count >= cut for count in counts):,}")
    screen.print(table)
    screen.print(f"The usual set, {USUAL}: {INSTALL}", soft_wrap=True)


def save_picture(path: Path, rows: int = 8, columns: int = 14, size: int = 48) -> None:
    """Save an image of some classes: one class per row, named by its code point, each rendering `size` pixels wide."""
    faces = installed(PROBES)
    drawings = drawings_by_class(faces, merge=True)
    columns = min(columns, max(map(num_drawings, drawings.values()), default=0))
    names = sorted(name for name in drawings if num_drawings(drawings[name]) >= columns > 0)
    if not names:
        raise ValueError(f"no typeface with Chinese characters is installed: {INSTALL}")
    chosen = [names[i] for i in permute(np.arange(rows), len(names), 0)] if len(names) >= rows else names
    open_fonts(faces, size)
    sheet = Image.new("L", (CAPTION + columns * size, len(chosen) * size), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, rendered in enumerate(render_chunk({name: drawings[name] for name in chosen})):
        draw.text((6, row * size + size / 2), f"U+{ord(rendered.name):04X}", fill=0, font=font, anchor="lm")
        for column, image in enumerate(rendered.images[:columns]):
            sheet.paste(Image.frombytes("L", (size, size), image), (CAPTION + column * size, row * size))
    sheet.save(path)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.sets.hanzi", description=description)
    parser.add_argument("--list", action="store_true", help="print typefaces, packages and numbers of classes")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="save an image of some classes")
    arguments = parser.parse_args(words)
    try:
        if arguments.picture is not None:
            save_picture(arguments.picture)
        if arguments.list or arguments.picture is None:
            print_typefaces(console())
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
