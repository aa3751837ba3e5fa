"""The layout of a target: the order, labels and class names of its images, and their split for validation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..catalogs.catalog import Catalog
from ..counter_rng import permute, uniforms
from .options import Options

VALIDATION = 0.1  # default share of the images in val.txt


def image_order(positions: NDArray[np.int64], count: int, options: Options) -> NDArray[np.int64]:
    """Return the source's images at some positions of the target. A shuffled order takes no memory."""
    return permute(positions, count, options.seed) if options.shuffle else positions


def in_validation(numbers: NDArray[np.int64], options: Options) -> NDArray[np.bool_]:
    """Return whether the images of these numbers in the target are listed in val.txt."""
    share = VALIDATION if options.validation is None else options.validation
    return uniforms("validation", options.seed, numbers) < share


def label_in_target(source: Catalog, options: Options, index: int) -> int:
    """Return the label that an image of the source has in the target."""
    return source.label(index) if _keeps_labels(source, options) else int(source.labels[index])


def largest_label(source: Catalog, options: Options) -> int:
    """Return the largest label in the target."""
    return source.largest_label if _keeps_labels(source, options) else source.num_classes - 1


def class_names(source: Catalog, options: Options) -> Sequence[str]:
    """Return the class names in the target; none if its classes are named by the labels of the source's files."""
    return () if _keeps_labels(source, options) else source.class_names


def _keeps_labels(source: Catalog, options: Options) -> bool:
    """Return whether the labels of the source's files are written, instead of class ids."""
    return source.numbered and not options.renumber


def companions(target: str, format: str) -> list[str]:
    """Return the files that are written next to a target and must not exist."""
    stem = target.removesuffix(".rec")
    return [f"{stem}.idx", f"{stem}.classes.txt"] if format == "rec" else []
