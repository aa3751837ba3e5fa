"""Images of a source, converted in chunks by worker processes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from rich.progress import Progress

from ..catalogs.catalog import Catalog
from ..formats.decode import Decoder, decodable, opened
from ..formats.encoded import BadEntry, UnreadableError
from ..workers import map_in_order
from .layout import label_in_target
from .options import Options
from .report import Report

CHUNK = 256  # images that a worker handles together
QUALITY = 95  # default of encode=jpeg

T = TypeVar("T")


class ConvertedImage(NamedTuple):
    """An image for the target, or the reason why the source's image cannot be read.

    Args:
        number: its number in the source.
        key: its key in the source.
        label: its label in the target.
        encoded: its bytes in the target; empty if it cannot be read.
        reason: why it cannot be read; None if it can.
    """

    number: int
    key: str
    label: int
    encoded: bytes
    reason: str | None = None


@dataclass(frozen=True)
class ImageConverter:
    """Read images of the source and convert them; runs in the workers."""

    source: Catalog
    options: Options

    def chunk(self, indices: NDArray[np.int64]) -> list[ConvertedImage]:
        """Return the converted images of a chunk."""
        return [self.one(int(index)) for index in indices]

    def one(self, index: int) -> ConvertedImage:
        """Return a converted image, checked to be readable."""
        key, label = self.source.key(index), self.label(index)
        try:
            encoded = self.encoded(index)
            if self.options.verify or self.options.on_corrupt == "list":
                decodable(encoded)
            else:
                opened(encoded)
        except UnreadableError as error:
            return ConvertedImage(index, key, label, b"", error.reason)
        return ConvertedImage(index, key, label, encoded)

    def label(self, index: int) -> int:
        """Return the label of an image in the target."""
        return label_in_target(self.source, self.options, index)

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image in the target. Raises UnreadableError."""
        return convert_image(self.source.read(index), self.options)


def convert_image(encoded: bytes, options: Options) -> bytes:
    """Return an encoded image with the encoding, size and quality of the options. Raises UnreadableError."""
    if options.encode is None:
        return encoded
    side = options.size
    width, height = opened(encoded).size if side is None else (side, side)
    pixels = np.empty((height, width, 3), np.uint8)
    Decoder(height, width, 3).into(pixels, encoded)
    try:
        return bytes(simplejpeg.encode_jpeg(pixels, options.quality or QUALITY))
    except ValueError as error:
        raise UnreadableError(f"it cannot be encoded ({error})") from None


def chunks(count: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers from `start` to `count` - 1, CHUNK at a time."""
    for begin in range(start, count, CHUNK):
        yield np.arange(begin, min(begin + CHUNK, count))


def map_chunks(
    work: Callable[[NDArray[np.int64]], T], chunks: Iterable[NDArray[np.int64]], source: Catalog, options: Options
) -> Iterator[tuple[NDArray[np.int64], T]]:
    """Yield each chunk with the result of the work on it, which `options.num_workers` processes do."""
    return map_in_order(work, chunks, options.num_workers or 0, ", ".join(source.origin.paths))


def check_images(source: Catalog, options: Options, progress: Progress) -> Report:
    """Decode all images, write nothing, and report the unreadable ones."""
    report = Report(source.num_classes, 0, 0, list(source.unreadable()))
    task = progress.add_task("Checking", total=len(source))
    for chunk, images in map_chunks(ImageConverter(source, options).chunk, chunks(len(source)), source, options):
        for image in images:
            if image.reason is None:
                report.images += 1
                report.bytes += len(image.encoded)
            else:
                report.unreadable.append(BadEntry(image.key, image.reason))
        progress.advance(task, len(chunk))
    return report
