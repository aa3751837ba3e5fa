"""Chinese characters: their code points, canonical equivalence, and the typefaces that draw them."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..fonts import Face, different

PROBES = "一\U00020000豈"  # every typeface with Chinese characters contains one of these
BLOCKS = (  # CJK unified and compatibility ideographs
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2EE5D),
    (0x2F800, 0x2FA1F),
    (0x30000, 0x323AF),
)
CODE_POINTS = frozenset(code_point for first, last in BLOCKS for code_point in range(first, last + 1))

Drawings = dict[str, dict[str, list[int]]]  # class -> its characters -> numbers of its different faces


class Package(NamedTuple):
    """A font package of Debian and Ubuntu."""

    name: str
    megabytes: int
    family: str
    characters: int


PACKAGES = (
    Package("fonts-noto-cjk", 89, "Noto Sans CJK", 30_289),
    Package("fonts-arphic-uming", 21, "AR PL UMing", 21_743),
    Package("fonts-arphic-ukai", 17, "AR PL UKai", 21_366),
    Package("fonts-wqy-zenhei", 16, "WenQuanYi Zen Hei", 28_520),
    Package("fonts-babelstone-han", 49, "BabelStone Han", 54_830),
    Package("fonts-hanazono", 51, "HanaMin", 91_997),
    Package("fonts-cwtex-kai", 10, "cwTeXKai", 13_587),
    Package("fonts-ipaexfont-gothic", 6, "IPAexGothic", 10_145),
    Package("fonts-ipaexfont-mincho", 8, "IPAexMincho", 10_145),
    Package("fonts-wqy-microhei", 5, "WenQuanYi Micro Hei", 21_236),
)
DEFAULT_PACKAGES = tuple(package.name for package in PACKAGES[:5])
INSTALL = f"apt install {' '.join(DEFAULT_PACKAGES)}"


def canonical(character: str) -> str:
    """Return the character that Unicode's canonical equivalence maps a character to."""
    return unicodedata.normalize("NFC", character)


def conflicts(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the pairs of classes (n, 2) that are one character by Unicode's canonical equivalence.

    Args:
        names: the character of each class.
    """
    class_ids = {name: number for number, name in enumerate(names)}
    pairs = [(class_ids[canonical(name)], number) for name, number in class_ids.items() if canonical(name) in class_ids]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def drawings_by_class(faces: Sequence[Face], merge: bool) -> Drawings:
    """Return the drawings of each class. Blank and equal images can be detected only when they are rendered.

    Args:
        merge: whether canonically equivalent characters are one class.
    """
    classes: Drawings = {}
    for code_point, face_numbers in sorted(different(faces, CODE_POINTS).items()):
        character = chr(code_point)
        classes.setdefault(canonical(character) if merge else character, {})[character] = face_numbers
    return classes


def num_drawings(drawings: dict[str, list[int]]) -> int:
    """Return the number of drawings of one class."""
    return sum(map(len, drawings.values()))
