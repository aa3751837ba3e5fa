"""Installed typefaces, found with fontconfig, and the characters that they draw."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError
from PIL import ImageFont

# Prefixes of the families of one design. Its typefaces are nearly equal, so a split keeps them together.
DESIGNS = {
    "Noto Sans": ("Noto Sans", "Source Han Sans"),
    "Noto Serif": ("Noto Serif", "Source Han Serif"),
    "Arphic Ming": ("AR PL UMing", "AR PL Mingti"),
    "Arphic Kai": ("AR PL UKai", "AR PL Kaiti", "cwTeXKai"),
    "Arphic Song": ("AR PL SungtiL", "BabelStone"),
    "IPA Mincho": ("IPAexMincho", "IPAmjMincho", "IPAMincho"),
    "IPA Gothic": ("IPAexGothic", "IPAGothic"),
    "LXGW": ("LXGW",),
    "Zen Hei": ("WenQuanYi Zen Hei",),
    "Micro Hei": ("WenQuanYi Micro Hei",),
    "Hanazono": ("HanaMin",),
}


@dataclass(frozen=True, order=True)
class Face:
    """A typeface of a font file."""

    path: str
    index: int  # number in the file; the upper 16 bits number the instances of a variable font
    family: str
    style: str

    @property
    def name(self) -> str:
        """Family and style."""
        return f"{self.family} {self.style}"

    @property
    def design(self) -> str:
        """Design, which nearly equal typefaces share."""
        for design, beginnings in DESIGNS.items():
            if self.family.startswith(beginnings):
                return design
        return " ".join(self.family.split()[:2])

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        """Return the typeface in a size of pixels."""
        return ImageFont.truetype(self.path, size, index=self.index, layout_engine=ImageFont.Layout.BASIC)

    def glyphs(self) -> dict[int, tuple[str, int, str]]:
        """Return the drawing of each code point. Faces of one file that share a drawing return equal values."""
        with TTFont(self.path, fontNumber=self.index & 0xFFFF, lazy=True) as font:
            table = next((tag for tag in ("glyf", "CFF ", "CFF2") if tag in font.reader.tables), None)
            if table is None:
                return {}
            drawings = (self.path, font.reader.tables[table].offset + (self.index >> 16))
            return {code_point: (*drawings, glyph) for code_point, glyph in (font.getBestCmap() or {}).items()}


def installed(characters: Iterable[str]) -> list[Face]:
    """Return the installed outline typefaces that contain any of the characters, sorted.

    Raises:
        ValueError: fontconfig is not installed.
    """
    if shutil.which("fc-list") is None:
        raise ValueError("fontconfig, which finds typefaces, is not installed; run apt install fontconfig")
    faces = set()
    for character in characters:
        listing = subprocess.run(
            ["fc-list", "--format=%{file}\t%{index}\t%{family[0]}\t%{style[0]}\n", f":charset={ord(character):x}"],
            capture_output=True,
            text=True,
            check=True,
        )
        for line in listing.stdout.splitlines():
            path, index, family, style = line.split("\t")
            if re.search(r"\.(ttf|ttc|otf|otc)$", path, re.IGNORECASE) and not family.startswith("LastResort"):
                faces.add(Face(path, int(index), family, style))
    return sorted(faces)


def different(faces: Sequence[Face], wanted: frozenset[int]) -> dict[int, list[int]]:
    """Return, for each wanted code point, the numbers of the faces with different drawings of it."""
    drawn: dict[int, dict[tuple[str, int, str], int]] = {}
    for number, face in enumerate(faces):
        for code_point, glyph in readable(face).items():
            if code_point in wanted:
                drawn.setdefault(code_point, {}).setdefault(glyph, number)
    return {code_point: list(by_glyph.values()) for code_point, by_glyph in drawn.items()}


@lru_cache(maxsize=256)
def readable(face: Face) -> dict[int, tuple[str, int, str]]:
    """Return the drawings of a face; none if its file is damaged."""
    try:
        return face.glyphs()
    except (TTLibError, OSError, ValueError, KeyError):
        return {}


def shown(path: str) -> str:
    """Return a path with ~ for the home folder."""
    return path.replace(str(Path.home()), "~")
