"""Decoding of images.

JPEG is decoded by libjpeg-turbo (simplejpeg), directly into the batch. Pillow decodes all other formats, images of
another size, and JPEG files that libjpeg-turbo refuses. Every image is decoded at its full size and then scaled by an
antialiased bilinear filter. So JPEG and PNG of one picture give nearly the same pixels, and any program with Pillow can
reproduce them.
"""

import io
import re
import struct
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from .encoded import JPEG, UnreadableError

MODES = {1: ("GRAY", "L"), 3: ("RGB", "RGB")}  # channels -> names of the mode in simplejpeg and Pillow
MAX_PIXELS = 64 * 2**20  # larger images are refused before they are decoded
# Most pixels times scans of a JPEG, a second or two of decoding; usual progressive files have about ten scans.
MAX_SCANNED = 2**30
FITS = ("crop", "stretch")
BITS_PER_SAMPLE = 258  # TIFF tag


class Decoder:
    """Decoder of images to one size.

    Args:
        height, width: size in pixels.
        channels: 1 (grey) or 3 (RGB).
        fit: "crop" scales an image of another size to cover this size and cuts off the rest, equally on both sides;
            "stretch" changes its proportions.
        crop: share of each side that is kept first, about the centre of every image.
    """

    def __init__(self, height: int, width: int, channels: int, fit: str = "crop", crop: float = 1.0):
        self.shape = (height, width, channels)
        self.fit, self.crop = fit, crop
        self.color, self.mode = MODES[channels]

    def into(self, pixels: NDArray[np.uint8], encoded: bytes) -> None:
        """Decode an image into `pixels` (height, width, channels).

        Raises:
            UnreadableError: the bytes are not an image, or the image is damaged or too large.
        """
        fast = encoded[:2] == JPEG and self.crop == 1
        if fast and not _many_scans(encoded, pixels.shape[0] * pixels.shape[1]):
            try:
                # simplejpeg 1.9 loses 4 KB of memory at each image that does not fit its buffer.
                if simplejpeg.decode_jpeg_header(encoded)[:2] == self.shape[:2]:
                    simplejpeg.decode_jpeg(encoded, self.color, buffer=pixels)
                    return
            except ValueError:
                pass
        pixels[:] = self._by_pillow(encoded)

    def _by_pillow(self, encoded: bytes) -> NDArray[np.uint8]:
        height, width, _ = self.shape
        image = opened(encoded)
        try:
            image = _eight_bits(image).convert(self.mode)
            if self.crop != 1:
                left, top = (side * (1 - self.crop) / 2 for side in image.size)
                image = image.crop((left, top, image.width - left, image.height - top))
            if image.size != (width, height):
                if self.fit == "crop":
                    image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
                else:
                    image = image.resize((width, height), Image.Resampling.BILINEAR)
        except PILLOW_ERRORS as error:
            raise UnreadableError(f"it cannot be decoded ({error})") from None
        return np.asarray(image).reshape(self.shape)


# Errors that Pillow's decoders are known to raise for damaged files.
PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, MemoryError, RuntimeError),
    struct.error,
)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")  # Pillow starts external programs for some other formats


def _eight_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 of up to 16 bits, which Pillow would clip to white. Refuse pixels of an unknown range."""
    if image.mode == "F":
        raise UnreadableError("its pixels are real numbers of unknown range; save it with 8 bits per channel")
    if not image.mode.startswith("I"):
        return image
    bits = 16
    if isinstance(image, TiffImageFile):
        bits = int(image.tag_v2.get(BITS_PER_SAMPLE, (1,))[0])
        if image.mode == "I":  # 32 bits, or signed
            raise UnreadableError(
                f"its pixels are integers of {bits} bits of unknown range; save it with 8 bits per channel"
            )
    return Image.fromarray((np.asarray(image) >> (bits - 8)).clip(0, 255).astype(np.uint8))


MARKER = re.compile(
    rb"\xff([^\x00\xd0-\xd7\xff])"
)  # other than a 0 or a restart number, which the coded data of a scan contains


def _many_scans(encoded: bytes, pixels: int) -> bool:
    """Return whether decoding a JPEG would take very long, since each scan visits all pixels."""
    scans = encoded.count(b"\xff\xda")  # a fast upper bound: other bytes of the file may look the same
    return scans * pixels > MAX_SCANNED and _scans(encoded) * pixels > MAX_SCANNED


def _scans(encoded: bytes) -> int:
    """Count the scans of a JPEG."""
    place, scans = 2, 0
    while (marker := MARKER.search(encoded, place)) and marker[1] != b"\xd9":  # the end of the image
        scans += marker[1] == b"\xda"
        place = marker.end() + int.from_bytes(encoded[marker.end() : marker.end() + 2], "big")
    return scans


def opened(encoded: bytes) -> Image.Image:
    """Return an image whose header is read and checked, but not its pixels. Raises UnreadableError."""
    if not encoded:
        raise UnreadableError("it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about sizes near its own limit
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UnreadableError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except PILLOW_ERRORS:
        raise UnreadableError("it is not an image in a known format") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"its {width:,} x {height:,} pixels are more than {MAX_PIXELS:,}")
    if encoded[:2] == JPEG and _many_scans(encoded, width * height):
        raise UnreadableError(
            f"its {_scans(encoded):,} scans of {width:,} x {height:,} pixels take too long to decode; "
            "save it again with fewer scans"
        )
    return image


def decodable(encoded: bytes) -> None:
    """Check an image by decoding it completely. Raises UnreadableError."""
    image = opened(encoded)
    try:
        image.load()
        _eight_bits(image)
    except PILLOW_ERRORS as error:
        raise UnreadableError(f"it cannot be decoded ({error})") from None
