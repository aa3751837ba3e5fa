"""Lists of templates, as of IJB-B and IJB-C: which images and media a template holds, and whose it is."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]


def read_templates(path: str) -> tuple[list[bytes], Ids, Ids]:
    """Names, templates and media, a line each."""
    names, numbers = [], []
    for number, line in enumerate(_lines(path), 1):
        name, *rest = line.rsplit(maxsplit=2)
        if len(rest) != 2 or not all(each.lstrip(b"-").isdigit() and len(each) < 19 for each in rest):
            raise ValueError(f"{path}, line {number}: `image template medium` is needed, it is {line!r}")
        names.append(name)
        numbers.append((int(rest[0]), int(rest[1])))
    if not names:
        raise ValueError(f"{path}: there is no image in it")
    both = np.array(numbers, np.int64)
    return names, both[:, 0], both[:, 1]


def read_weights(path: str, count: int) -> Tensor:
    """The last column of each line."""
    try:
        weights = [float(line.split()[-1]) for line in _lines(path)]
    except ValueError as error:
        raise ValueError(f"{path}: a line does not end in a number ({error})") from None
    if len(weights) != count or not np.isfinite(weights).all():
        raise ValueError(f"{path}: a number for each of {count:,} images is needed, there are {len(weights):,}")
    return torch.tensor(weights)


def _lines(path: str) -> list[bytes]:
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    return [line.strip() for line in Path(path).read_bytes().split(b"\n") if line.strip()]


def read_columns(path: str, count: int, expected: str, header: bool = False) -> list[Ids]:
    """The first columns, of whole numbers."""
    rows = [line.replace(b",", b" ").split()[:count] for line in _lines(path)[header:]]
    try:
        columns = np.array(rows, np.int64).reshape(-1, count)
    except (ValueError, OverflowError):
        raise ValueError(f"{path}: lines `{expected}` of whole numbers are needed") from None
    if not len(columns):
        raise ValueError(f"{path}: there is no line in it")
    return list(columns.T)
