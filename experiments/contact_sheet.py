"""Contact sheets: rows of images with captions, in one image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data.formats.decode import opened
from data.formats.encoded import Labelled
from data.formats.unlabeled_images import ImageFiles

THUMBNAIL, MARGIN, CAPTION = 96, 4, 150  # pixels
MAX_SIDE = 500  # rows, or columns


def contact_sheet(
    source: Labelled | ImageFiles, rows: Sequence[tuple[str, NDArray[np.int64]]], columns: int
) -> Image.Image:
    """Draw rows of images.

    Args:
        rows: caption and numbers of the images of each row.
        columns: most images of a row.
    """
    step = THUMBNAIL + MARGIN
    height = max(1, len(rows)) * step + MARGIN
    sheet = Image.new("RGB", (CAPTION + columns * step + MARGIN, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (caption, members) in enumerate(rows):
        top = MARGIN + number * step
        draw.text((MARGIN, top + THUMBNAIL // 2 - 8), caption, fill="black", font=font)
        for column, encoded in enumerate(source.read_all(members)):
            image = opened(encoded).convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            if max(image.size) < THUMBNAIL:
                scale = THUMBNAIL // max(image.size)
                image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
            left = CAPTION + column * step
            sheet.paste(image, (left + (THUMBNAIL - image.width) // 2, top + (THUMBNAIL - image.height) // 2))
    return sheet


def stacked(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Return one image with one sheet above the other."""
    sheet = Image.new("RGB", (lower.width, lower.height + upper.height), "white")
    sheet.paste(upper, (0, 0))
    sheet.paste(lower, (0, upper.height))
    return sheet
