"""Conversion of a list of pairs into InsightFace's .bin: written to a temporary file, compared, and renamed."""

import os
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress

from ..formats.decode import decodable, opened
from ..formats.pairs import read_pairs, write_bin
from ..options import absolute, path_of, paths_of
from .images import convert_image
from .options import Options
from .report import Report
from .writing import already_exists


def write_pair_bin(options: Options, progress: Progress) -> Report:
    """Convert the list of pairs in `source`. Its paths are relative to `root`, by default the list's folder.

    Raises:
        ValueError: an image cannot be read; the error names it, and nothing is written.
    """
    target = Path(absolute(str(options.target)))
    if target.exists():
        raise already_exists(target, target.name)
    if not target.parent.is_dir():
        raise ValueError(f"target={target} cannot be written: the folder {target.parent} does not exist")
    (source,) = paths_of("source", options.source)
    pairs = read_pairs(source, path_of("root", options.root))
    count = 2 * len(pairs)
    track = partial(progress.track, total=count)

    def convert(encoded: bytes) -> bytes:
        result = convert_image(encoded, options)
        (decodable if options.verify else opened)(result)
        return result

    temporary = target.with_name(f".{target.stem}.partial.bin")
    try:
        size = write_bin(pairs, temporary, partial(track, description="Writing"), convert)
        copy = read_pairs(temporary)
        both = zip(*(np.stack([side.first, side.second], 1).ravel() for side in (copy, pairs)), strict=True)
        for written, listed in track(both, description="Comparing"):
            (content,), (encoded,) = copy.images.read_all(written[None]), pairs.images.read_all(listed[None])
            if content != convert_image(encoded, options):
                raise ValueError(f"target={target} differs from its source at {pairs.images.name(int(listed))}")
        if not np.array_equal(copy.same, pairs.same):
            raise ValueError(f"target={target} differs from its source in the labels of its pairs")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return Report(len(pairs), count, size, [])
