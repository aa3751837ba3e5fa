"""Pairs of images into InsightFace's .bin: written aside, read back and compared, and then given its name."""

import os
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.progress import Progress

from ..formats.decode import decodable, opened
from ..formats.pairs import read_pairs, write_bin
from ..options import absolute, path_of, paths_of
from .conversion import CONF, Options, Report, taken, written

TAKEN = (
    "source",
    "target",
    "format",
    "root",
    "encode",
    "quality",
    "size",
    "verify",
)  # options that mean something here


def check_packing(options: Options) -> None:
    """Raises ValueError for options that pairs have no use for."""
    defaults: Any = OmegaConf.load(CONF)
    for each in fields(Options):
        if each.name not in TAKEN and getattr(options, each.name) != defaults[each.name]:
            raise ValueError(f"{each.name}={getattr(options, each.name)}: is no option of format=bin")
    if len(paths_of("source", options.source)) != 1:
        raise ValueError(f"source={options.source}: one list of pairs makes one .bin")
    if options.root is not None and str(options.source).endswith(".bin"):
        raise ValueError(f"root={options.root}: is of lists of pairs; a .bin holds its images")
    if "://" in str(options.target):
        raise ValueError(f"target={options.target}: a .bin is written to a path")


def pack(options: Options, progress: Progress) -> Report:
    """The list is in `source`, its folder of images in `root`, the list's own unless given.

    Raises:
        ValueError: an image that cannot be read; it is named, and nothing is written.
    """
    target = Path(absolute(str(options.target)))
    if target.exists():
        raise taken(target, target.name)
    if not target.parent.is_dir():
        raise ValueError(f"target={target}: there is no folder {target.parent}")
    (source,) = paths_of("source", options.source)
    pairs = read_pairs(source, path_of("root", options.root))
    count = 2 * len(pairs)
    shown = partial(progress.track, total=count)

    def changed(encoded: bytes) -> bytes:
        result = written(encoded, options)
        (decodable if options.verify else opened)(result)
        return result

    aside = target.with_name(f".{target.stem}.partial.bin")
    try:
        size = write_bin(pairs, aside, partial(shown, description="Packing"), changed)
        there = read_pairs(aside)
        both = zip(*(np.stack([each.first, each.second], 1).ravel() for each in (there, pairs)), strict=True)
        for packed, listed in shown(both, description="Comparing"):
            (found,), (encoded,) = there.images.read_all(packed[None]), pairs.images.read_all(listed[None])
            if found != written(encoded, options):
                raise ValueError(f"target={target}: {pairs.images.name(int(listed))} has become something else")
        if not np.array_equal(there.same, pairs.same):
            raise ValueError(f"target={target}: which pairs are of one class has become something else")
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return Report(len(pairs), count, size, [])
