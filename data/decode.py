"""Encoded images to pixels.

JPEG goes through libjpeg-turbo (simplejpeg), straight into the batch. What it has an objection to, other formats, and
images of another size go through Pillow.
"""

import io
import struct
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .encoded import JPEG, UnreadableError

MODES = {1: ("GRAY", "L"), 3: ("RGB", "RGB")}  # channels -> names in the two libraries
MAX_PIXELS = 64 * 2**20  # more are refused before they are decoded
FITS = ("crop", "stretch")


class Decoder:
    """Brings encoded images to one size.

    Args:
        height, width: in pixels.
        channels: 1 (grey) or 3 (RGB).
        fit: "crop" scales an image of another size until it covers this one and cuts off what is over, alike on both
            sides; "stretch" changes its proportions.
    """

    def __init__(self, height: int, width: int, channels: int, fit: str = "crop"):
        self.shape = (height, width, channels)
        self.fit = fit
        self.color, self.mode = MODES[channels]

    def into(self, pixels: NDArray[np.uint8], encoded: bytes) -> None:
        """Decodes into `pixels` (height, width, channels).

        Raises:
            UnreadableError: no image, a damaged one, or one of too many pixels.
        """
        if encoded[:2] == JPEG:
            try:
                # Of another size, it is not written there or comes back with its own shape.
                if simplejpeg.decode_jpeg(encoded, self.color, buffer=pixels).shape == self.shape:
                    return
            except ValueError:
                pass
        pixels[:] = self._by_pillow(encoded)

    def _by_pillow(self, encoded: bytes) -> NDArray[np.uint8]:
        height, width, _ = self.shape
        image = opened(encoded)
        try:
            image.draft(self.mode, (width, height))  # a large JPEG is decoded at a half, a quarter or an eighth
            image = _eight_bits(image).convert(self.mode)
            if image.size != (width, height):
                if self.fit == "crop":
                    image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
                else:
                    image = image.resize((width, height), Image.Resampling.BILINEAR)
        except PILLOW_ERRORS as error:
            raise UnreadableError(f"it cannot be decoded ({error})") from None
        return np.asarray(image).reshape(self.shape)


# What Pillow's decoders are known to raise for damaged files.
PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, MemoryError, RuntimeError),
    struct.error,
)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")  # of others, some start programs


def _eight_bits(image: Image.Image) -> Image.Image:
    """Of 16 bits the upper 8: Pillow would make white of them."""
    if image.mode == "F":
        raise UnreadableError("its pixels are real numbers without a known range")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image


def opened(encoded: bytes) -> Image.Image:
    """An image of which only the header is read. Raises UnreadableError."""
    if not encoded:
        raise UnreadableError("it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, at sizes near its own limit
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UnreadableError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except PILLOW_ERRORS:
        raise UnreadableError("it is no image of a known format") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"its {width:,} x {height:,} pixels are more than {MAX_PIXELS:,}")
    return image


def decodable(encoded: bytes) -> None:
    """Decodes it in full. Raises UnreadableError."""
    image = opened(encoded)
    try:
        image.load()
        _eight_bits(image)
    except PILLOW_ERRORS as error:
        raise UnreadableError(f"it cannot be decoded ({error})") from None
