"""`data=hanzi`: Chinese characters by typeface, rendered from the installed fonts.

A class is a character; its images are the different renderings by the typefaces. The set has tens of thousands of
classes with a real long tail, and needs no download. Two characters that Unicode defines as canonically equivalent are
one class. With `conflict=keep` they are two classes of one known identity, which `conflicts` returns.

`python -m data.sets.hanzi --list` prints the installed typefaces, the packages with more, and the resulting numbers of
classes. `python -m data.sets.hanzi --picture PATH` saves an image of some classes.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...augment import RandomAffine, Unchanged
from ...cache import cache_folder
from ...counter_rng import permute
from ...grouping import group
from ...label_file import with_labels
from ...options import path_of
from ...records import DataSet, RecordSet, normalize_pixels
from ..fonts import installed
from ..rendered import RenderedImages, preprocessing, rendered_images
from ..split import Subset
from .characters import PROBES, conflicts
from .rendering import render

__all__ = ["conflicts", "hanzi"]

VERSION = 1  # version of the rendering


def hanzi(
    *,
    num_faces: int = 4,
    size: int = 32,
    split: str = "characters",
    heldout: float = 0.05,
    conflict: str = "merge",
    augment: bool = True,
    labels: str | None = None,
    cache_dir: str | None = None,
    seed: int = 0,
) -> DataSet:
    """Return the characters with enough different images, (1, size, size).

    Args:
        num_faces: fewest different images of a class.
        size: side of an image in pixels.
        split: what is held out for evaluation: "characters"; "typefaces", which evaluates the training characters on
            other designs; or "both", which evaluates other characters on other designs. Typefaces of one design are
            held out together.
        heldout: share of the characters, and least share of the images whose typefaces are held out.
        conflict: canonically equivalent characters: "merge" makes them one class, "keep" leaves them two. These
            conflicts are real; `noise.conflict` splits classes at random.
        augment: apply random affine maps to the training images.
        labels: a class id for each training image, in place of its character: an array of integers, .npy. The held-out
            images keep their characters.
        cache_dir: folder of the rendered images; by default $HEADCOUNT_CACHE or ~/.cache/headcount.
        seed: seed of the choice of held-out typefaces.
    """
    _check(num_faces, size, split, heldout, conflict)
    faces = installed(PROBES)
    identity = {
        "version": VERSION,
        "num_faces": num_faces,
        "conflict": conflict,
        "faces": [(face.path, face.index, Path(face.path).stat().st_mtime_ns) for face in faces],
    }
    images = rendered_images(
        cache_folder(cache_dir) / "hanzi", identity, size, partial(render, faces, conflict, num_faces, size)
    )
    if split == "characters":
        train, evaluation, names = images.split(heldout)
    else:
        designs = [face.design for face in faces]
        train, evaluation, names = _split_typefaces(images, designs, heldout, seed, characters=split == "both")
    if (path := path_of("data.labels", labels)) is not None:
        train, names = with_labels(train.source, path, cache_folder(cache_dir), "training images"), []
    return DataSet(
        train=train,
        heldout=evaluation,
        shape=(1, size, size),
        prepare=normalize_pixels,
        preprocessing=preprocessing(size),
        augment=RandomAffine() if augment else Unchanged(),
        class_names=names,
    )


def _check(num_faces: int, size: int, split: str, heldout: float, conflict: str) -> None:
    if num_faces < 2:
        raise ValueError(f"data.num_faces={num_faces} must be at least 2")
    if not 16 <= size <= 256:
        raise ValueError(f"data.size={size} must be in [16, 256] pixels")
    if split not in ("characters", "typefaces", "both"):
        raise ValueError(f"data.split={split} must be characters, typefaces or both")
    if not 0 < heldout < 1:
        raise ValueError(f"data.heldout={heldout} must be in (0, 1); 0.05 holds out a twentieth")
    if conflict not in ("merge", "keep"):
        raise ValueError(f"data.conflict={conflict} must be merge or keep")


def _split_typefaces(
    images: RenderedImages, designs: Sequence[str], heldout: float, seed: int, *, characters: bool
) -> tuple[RecordSet, RecordSet, list[str]]:
    """Hold out whole designs until enough images can be evaluated. A character needs two images on a side.

    Args:
        designs: the design of each typeface.
        characters: hold out the last characters too: the other designs are evaluated on these, and trained on the rest.

    Returns:
        training records, held-out records, and the names of the training classes.
    """
    labels, faces = np.asarray(images.labels), np.asarray(images.faces)
    kinds = sorted(set(designs))
    design_of_image = np.array([kinds.index(design) for design in designs])[faces]
    aside = np.zeros(len(labels), dtype=bool)
    for kind in permute(np.arange(len(kinds)), len(kinds), seed):
        evaluated = aside & (np.bincount(labels[aside], minlength=len(images.names))[labels] >= 2)
        if evaluated.sum() < heldout * len(labels):
            aside |= design_of_image == kind
    first = round((1 - heldout) * len(images.names)) if characters else 0  # of the characters to evaluate
    last = first if characters else len(images.names)  # of those to train on
    train, names = _renumbered(images, labels, ~aside & (labels < last))
    split = "both" if characters else "typefaces"
    if train.num_classes < 2:
        raise ValueError(
            f"data.heldout={heldout} leaves fewer than two classes to train on: data.split={split} holds out whole "
            f"designs, and there are {len(kinds)}; hold out less, or install more typefaces"
        )
    evaluation, _ = _renumbered(images, labels, aside & (labels >= first))
    return train, evaluation, names


def _renumbered(
    images: RenderedImages, labels: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> tuple[RecordSet, list[str]]:
    """Return the chosen images of characters with at least two of them, and the names of these characters."""
    counts = np.bincount(labels[chosen], minlength=len(images.names))
    records = np.flatnonzero(chosen & (counts[labels] >= 2))
    classes, new = np.unique(labels[records], return_inverse=True)
    source = Subset(images.images(0, len(labels)), records)
    return RecordSet(source, new, len(classes), group(new, len(classes))), [images.names[number] for number in classes]
