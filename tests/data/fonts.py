"""Small typefaces for tests, and a fontconfig that finds only these."""

from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

FIRST = 0x4E00
COUNT = 150
COMPATIBLE, UNIFIED = 0xF900, 0x8C48  # 豈 and 豈: canonically equivalent
BLANK = FIRST + 3  # blank in the first typeface of each family


def write_font(path: Path, family: str, style: str, seed: int, characters: list[int]) -> None:
    """Write a typeface that draws a character as three bars, placed by its number and the seed."""
    builder = FontBuilder(1000, isTTF=True)
    names = {code_point: f"u{code_point:X}" for code_point in characters}
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    glyphs = {".notdef": TTGlyphPen(None).glyph()}
    for code_point, name in names.items():
        pen = TTGlyphPen(None)
        number = COUNT if code_point in (COMPATIBLE, UNIFIED) else code_point - FIRST
        places = (number % 13 * 60, number // 13 * 60, 90 * seed)
        for bar, place in enumerate(() if code_point == BLANK and style == "Regular" else places):
            thick = 40 + 11 * seed
            corners = [(place, 0), (place, 900), (place + thick, 900), (place + thick, 0)]
            if bar % 2:
                corners = [(y, x) for x, y in corners][::-1]
            pen.moveTo(corners[0])
            for corner in corners[1:]:
                pen.lineTo(corner)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": style})
    builder.setupOS2(sTypoAscender=900, sTypoDescender=-100)
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)


def installed_for_tests(folder: Path, monkeypatch: pytest.MonkeyPatch, families: int = 3) -> None:
    """Install two styles of each of some families, and a twin of the first."""
    characters = [*range(FIRST, FIRST + COUNT), UNIFIED, COMPATIBLE]
    names = ["Noto Sans CJK SC", "AR PL UMing CN", "WenQuanYi Zen Hei", "HanaMinA"][:families]
    for number, family in enumerate(names):
        write_font(folder / f"{number}r.ttf", family, "Regular", 2 * number, characters)
        write_font(folder / f"{number}b.ttf", family, "Bold", 2 * number + 1, characters)
    if families:
        write_font(folder / "twin.ttf", "Source Han Sans SC", "Regular", 0, characters[:50])
    write_config(folder, monkeypatch)


def write_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "fonts.conf"
    config.write_text(
        f"<?xml version='1.0'?><fontconfig><dir>{folder}</dir><cachedir>{folder / 'cache'}</cachedir></fontconfig>"
    )
    monkeypatch.setenv("FONTCONFIG_FILE", str(config))
