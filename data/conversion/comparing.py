"""The comparison of a written target with its source, image by image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from ..catalogs.catalog import Catalog, catalog
from ..catalogs.origin import Origin
from ..formats.decode import decodable, opened
from ..formats.encoded import UnreadableError
from .images import ImageConverter, chunks, map_chunks
from .layout import in_validation
from .options import Options


def compare(source: Catalog, options: Options, format: str, made: Path, target: Path, progress: Progress) -> int:
    """Read a target back, compare it with its source, and return its number of classes.

    Args:
        format: the target's format.
        made: the folder with the target's files, next to `written.bin` with the number of each image in the source.
        target: the target's final path.

    Raises:
        ValueError: the target differs from its source.
    """
    written: NDArray[np.int64] = np.memmap(made.parent / "written.bin", "<i8", "r").view(np.ndarray)
    if format == "folder":  # a catalog sorts folders by name, but lists keep the order of writing
        validation = in_validation(np.arange(len(written)), options)
        lists = [(made / "train.txt", written[~validation]), (made / "val.txt", written[validation])]
        filled = [(path, indices) for path, indices in lists if len(indices)]
        written = np.concatenate([indices for _, indices in filled])
        origin = Origin("list", tuple(str(path) for path, _ in filled), shared=True)
    else:
        origin = Origin(format, (str(made / f"{target.stem}.rec" if format == "rec" else made),))
    copy = catalog(origin, made.parent / "catalogs")
    if len(copy) != len(written):
        raise ValueError(
            f"{made} contains {len(copy):,} images, but {len(written):,} were written; remove it and convert again"
        )
    pairs = (np.stack([chunk, written[chunk]], axis=1) for chunk in chunks(len(written)))
    task = progress.add_task(f"Comparing {target.name}", total=len(written))
    for chunk, wrong in map_chunks(Comparer(ImageConverter(source, options), copy).chunk, pairs, source, options):
        if wrong:
            raise ValueError(f"{made} differs from its source: {wrong[0]}; remove it and convert again")
        progress.advance(task, len(chunk))
    if format == "rec":
        width, height = opened(copy.read(0)).size
        (made / "property").write_text(f"{copy.largest_label + 1},{height},{width}\n")
    return copy.num_classes


@dataclass(frozen=True)
class Comparer:
    """Compare images of a target with the converted images of its source; runs in the workers."""

    converter: ImageConverter
    target: Catalog

    def chunk(self, pairs: NDArray[np.int64]) -> list[str]:
        """Return the differences between images given by their numbers in target and source (n, 2)."""
        differences = ((number, self._difference(number, original)) for number, original in pairs.tolist())
        return [f"{self.target.key(number)} has {what}" for number, what in differences if what is not None]

    def _difference(self, number: int, original: int) -> str | None:
        try:
            expected, encoded = self.converter.encoded(original), self.target.read(number)
            if self.converter.options.verify:
                decodable(encoded)
        except UnreadableError as error:
            return f"unreadable content ({error.reason})"
        if encoded != expected:
            return "other bytes than its source"
        same = self.target.label(number) == self.converter.label(original)
        return None if same else "another label than its source"
