"""Lists of templates, as in IJB-B and IJB-C: their images, media and subjects."""

import csv
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files import check_file

Ids = NDArray[np.int64]


def read_templates(path: str) -> tuple[list[bytes], Ids, Ids]:
    """Return the image name, template and medium of each line."""
    names, numbers = [], []
    for number, line in enumerate(_lines(path), 1):
        name, *rest = line.rsplit(maxsplit=2)
        if len(rest) != 2 or not all(_is_number(word.decode("latin1")) for word in rest):
            raise ValueError(f"{path}, line {number} must be `image template medium`, but is {line!r}")
        names.append(name)
        numbers.append((int(rest[0]), int(rest[1])))
    if not names:
        raise ValueError(f"{path} lists no image")
    both = np.array(numbers, np.int64)
    return names, both[:, 0], both[:, 1]


def read_weights(path: str, names: Sequence[bytes]) -> Tensor:
    """Return the last column of each line as the image's weight. In several columns, the first is the image name."""
    lines = _lines(path)
    try:
        weights = [float(line.split()[-1]) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path}: each line must end in a number ({error})") from None
    if len(weights) != len(names) or not np.isfinite(weights).all():
        raise ValueError(
            f"{path} must contain a finite number for each of {len(names):,} images, but contains {len(weights):,}"
        )
    for number, (line, name) in enumerate(zip(lines, names, strict=True), 1):
        if len(line.split()) > 1 and not line.startswith((name + b" ", name + b"\t")):
            raise ValueError(f"{path}, line {number} must begin with {name!r}, as the same line of the templates does")
    return torch.tensor(weights)


def read_pairs(path: str) -> tuple[Ids, Ids, NDArray[np.bool_]]:
    """Return two templates and whether they are of one subject, for each line `template template same`."""
    check_file(path, "file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about an empty file, which is an error below
            columns = np.loadtxt(path, np.int64, ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} must contain lines `template template same` of whole numbers; numpy reports: {error}"
        ) from None
    if not columns.size:
        raise ValueError(f"{path} contains no line")
    if columns.shape[1] != 3:
        raise ValueError(f"{path} must contain lines `template template same`, but contains {columns.shape[1]} columns")
    first, second, same = columns.T
    if not np.isin(same, (0, 1)).all():
        raise ValueError(f"{path}: the third column must be 1 (one subject) or 0 (two subjects)")
    return first, second, same == 1


def read_subjects(path: str) -> tuple[Ids, Ids]:
    """Return each template once with its subject, from a CSV file with a line for each image.

    The columns are named TEMPLATE_ID and SUBJECT_ID; without a header they are the first two.
    """
    check_file(path, "file")
    try:
        with Path(path).open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file ({error})") from None
    if not rows:
        raise ValueError(f"{path} contains no line")
    columns = [0, 1]
    start = int(not _is_number(rows[0][0].strip()))
    if start:
        names = [name.strip().upper() for name in rows[0]]
        if missing := {"TEMPLATE_ID", "SUBJECT_ID"} - {*names}:
            raise ValueError(f"{path} has no column {' and '.join(sorted(missing))}; its first line is {rows[0]}")
        columns = [names.index("TEMPLATE_ID"), names.index("SUBJECT_ID")]
    subjects: dict[int, int] = {}
    for number, row in enumerate(rows[start:], 1 + start):
        cells = [row[column].strip() for column in columns if column < len(row)]
        if len(cells) != 2 or not all(map(_is_number, cells)):
            raise ValueError(f"{path}, line {number} must have whole numbers as template and subject, but is {row}")
        template, subject = map(int, cells)
        if subjects.setdefault(template, subject) != subject:
            raise ValueError(f"{path}: template {template} has two subjects, {subjects[template]} and {subject}")
    if not subjects:
        raise ValueError(f"{path} contains no line")
    return np.array([*subjects], np.int64), np.array([*subjects.values()], np.int64)


def _is_number(word: str) -> bool:
    return re.fullmatch("-?[0-9]{1,18}", word) is not None


def _lines(path: str) -> list[bytes]:
    check_file(path, "file")
    return [line.strip() for line in Path(path).read_bytes().split(b"\n") if line.strip()]
