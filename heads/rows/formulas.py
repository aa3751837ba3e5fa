"""Formulas that compute the row of a class from its id: points on the sphere that no training moves.

Legend: C classes, D columns, k classes of a call.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.cost import TooManyClassesError
from ..core.options import whole
from .initial import initial_rows


@dataclass(frozen=True)
class Formula(ABC):
    """Rows of unit length as a function of the class id.

    Args:
        num_classes: C.
        embedding_size: D.
        seed: seed of formulas that draw; 0 for the others, whatever is given.

    Raises:
        TooManyClassesError: the formula has fewer rows than classes; a ValueError.
    """

    kind: ClassVar[str]
    draws: ClassVar[bool] = False

    num_classes: int
    embedding_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.draws:
            object.__setattr__(self, "seed", 0)
        most = self.most_classes(self.embedding_size)
        if most is not None and self.num_classes > most:
            others = [name for name, each in FORMULAS.items() if _fits(each, self.num_classes, self.embedding_size)]
            raise TooManyClassesError(
                f"num_classes={self.num_classes:,} is too large for kind={self.kind}, which has {most:,} rows "
                f"for embedding_size={self.embedding_size}; use kind={' or '.join(others)}, or a larger embedding_size"
            )

    @classmethod
    @abstractmethod
    def most_classes(cls, embedding_size: int) -> int | None:
        """Return the number of rows that exist in this many dimensions; None for any number."""

    @abstractmethod
    def __call__(self, classes: Tensor) -> Tensor:
        """Return the rows of classes: int64 ids (k,) -> float (k, D). A row depends on its own id only."""

    def description(self) -> dict[str, Any]:
        """Return what `described` makes an equal formula from, as plain data."""
        return {"kind": self.kind, **asdict(self)}


class Random(Formula):
    """Uniformly distributed directions: the initial rows of heads that store rows, with the same seed."""

    kind = "random"
    draws = True

    @classmethod
    def most_classes(cls, embedding_size: int) -> None:
        return None

    def __call__(self, classes: Tensor) -> Tensor:
        rows_kD = initial_rows(classes, self.embedding_size, self.seed)
        # In float64, so that the order of summation, which depends on k, does not change the rounded length.
        length_k = torch.linalg.vector_norm(rows_kD, dim=1, dtype=torch.float64).float()
        return rows_kD.div_(length_k[:, None])


class Simplex(Formula):
    """The vertices of a regular simplex: every two of the C rows have the cosine -1 / (C - 1), the least possible.

    With w = 2 pi / C, row i has the columns cos(i w), sin(i w), cos(2 i w), sin(2 i w) and so on, scaled to unit
    length. These are C - 1 columns, as for even C the last cosine, (-1)^i, has no sine. Further columns are 0.
    """

    kind = "simplex"

    @classmethod
    def most_classes(cls, embedding_size: int) -> int:
        return embedding_size + 1

    def __call__(self, classes: Tensor) -> Tensor:
        C, half = self.num_classes, (self.num_classes - 1) // 2
        cos_C, sin_C = waves(C, classes.device)
        rows_kD = cos_C.new_zeros(len(classes), self.embedding_size)
        if C == 1:
            rows_kD[:, 0] = 1
            return rows_kD
        turns = classes[:, None] * torch.arange(1, half + 1, device=classes.device) % C
        rows_kD[:, 0 : 2 * half : 2] = cos_C[turns]
        rows_kD[:, 1 : 2 * half : 2] = sin_C[turns]
        if C % 2 == 0:
            rows_kD[:, C - 2] = (1 - 2 * (classes % 2)).double() / math.sqrt(2)
        return rows_kD.mul_(math.sqrt(2 / (C - 1)))


class Permutations(Formula):
    """The roots of A_(D-1): 1 in one column and -1 in another, over sqrt(2). Their cosines are 0, +-1/2 and -1.

    Row i has its 1 in column i mod D, and the -1 i // D + 1 columns further on, beyond the last one from the first.
    So any number of classes uses all columns alike.
    """

    kind = "permutations"

    @classmethod
    def most_classes(cls, embedding_size: int) -> int:
        return embedding_size * (embedding_size - 1)

    def __call__(self, classes: Tensor) -> Tensor:
        D = self.embedding_size
        rows_kD = torch.zeros(len(classes), D, dtype=torch.float64, device=classes.device)
        plus_k = classes % D
        minus_k = (plus_k + classes // D + 1) % D
        rows_kD.scatter_(1, plus_k[:, None], math.sqrt(0.5))
        return rows_kD.scatter_(1, minus_k[:, None], -math.sqrt(0.5))


FORMULAS: dict[str, type[Formula]] = {each.kind: each for each in (Random, Simplex, Permutations)}


def checked_kind(kind: object) -> str:
    """Return the name of a formula. Raise ValueError if there is none of this name."""
    if kind not in FORMULAS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(FORMULAS)}")
    return str(kind)


def described(description: Mapping[str, Any]) -> Formula:
    """Return the formula that a description names; it may come from a file.

    Raises:
        ValueError: it is no description of a formula.
    """
    try:
        kind = FORMULAS[description["kind"]]
        least = {"num_classes": 1, "embedding_size": 1, "seed": 0}
        return kind(**{name: whole(name, description[name], each) for name, each in least.items()})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{description!r} describes no formula of rows ({error!r})") from error


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def waves(period: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the multiples of a full turn over `period`, float64 (period,)."""
    angles = torch.arange(period, dtype=torch.float64) * (2 * math.pi / period)
    return angles.cos().to(device), angles.sin().to(device)


def _fits(kind: type[Formula], num_classes: int, embedding_size: int) -> bool:
    most = kind.most_classes(embedding_size)
    return most is None or num_classes <= most
