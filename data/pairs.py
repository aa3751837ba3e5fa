"""Lists of pairs: a line `first<TAB>second<TAB>same` for each, with 1 for two images of one class, 0 for others."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .encoded import text
from .files import LineFile

SAME = {b"1": True, b"0": False, b"True": True, b"False": False, b"true": True, b"false": False}


@dataclass(frozen=True)
class Pairs:
    """Pairs of images. A place is the byte that a line begins at.

    Args:
        same: whether both are of one class, (n,).
        places: (n,) uint64.
    """

    path: str
    root: Path
    places: NDArray[np.uint64]
    same: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)

    def paths(self, index: int) -> tuple[str, str]:
        """Of both images."""
        first, second, _ = LineFile(self.path).line(int(self.places[index])).split(b"\t")
        return str(self.root / os.fsdecode(first)), str(self.root / os.fsdecode(second))


def read_pairs(path: str | Path, root: str | Path | None = None) -> Pairs:
    """A list of pairs; its paths are relative to `root`, the list's folder unless given.

    Raises:
        ValueError: no such file, no pair in it, or a line that is none; it names the line.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such list of pairs")
    places, same = [], []
    for number, place, line in LineFile(str(path)).lines():
        columns = line.split(b"\t")
        if len(columns) != 3 or columns[2].strip() not in SAME:
            raise ValueError(
                f"{path}, line {number}: two paths and 1 or 0 are needed, with tabs between them; it is {text(line)!r}"
            )
        places.append(place)
        same.append(SAME[columns[2].strip()])
    if not same:
        raise ValueError(f"{path}: there is no pair in it")
    root = Path(root) if root is not None else Path(path).parent
    return Pairs(str(path), root, np.array(places, np.uint64), np.array(same))
