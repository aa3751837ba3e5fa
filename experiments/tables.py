"""Output on the terminal: tables that fit its width, readable figures, and progress bars."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from data import screen

T = TypeVar("T")
Cell = str | Text  # plain or styled text
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def console() -> Console:
    """Return the terminal, or a very wide one if the output goes to a file, so that nothing is cut."""
    result = screen.console()
    if not result.is_terminal:
        result.width = 1000
    return result


def shown(work: Iterable[T], label: str, total: int, on: bool = True) -> Iterable[T]:
    """Return an iterable that shows a progress bar on a terminal."""
    terminal = console()
    if not (on and terminal.is_terminal and not _HIDDEN.get()):
        # A thread of `track` might collect the generator that an error has left, and cannot wait for itself.
        return work
    return track(work, label, total, console=terminal, transient=True)


@contextmanager
def bars_hidden() -> Iterator[None]:
    """Hide progress bars while another one is on the screen."""
    token = _HIDDEN.set(True)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


_HIDDEN = ContextVar("hidden", default=False)


def packed(
    keys: Mapping[str, Sequence[Cell]], figures: Mapping[str, Sequence[Cell]], title: str, width: int
) -> list[Table]:
    """Return tables of at most `width` characters: each has all keys, and the figures are spread over them."""
    key_width = sum(_width(name, cells) for name, cells in keys.items()) + 1
    tables: list[list[str]] = []
    left = 0
    for name, cells in figures.items():
        left -= _width(name, cells)
        if left < 0 or not tables:
            tables.append([])
            left = width - key_width - _width(name, cells)
        tables[-1].append(name)
    result = []
    for number, names in enumerate(tables):
        table = Table(*keys, title=title if number == 0 else None, title_justify="left")
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for line in zip(*keys.values(), *(figures[name] for name in names), strict=True):
            table.add_row(*line)
        result.append(table)
    return result


def readable(name: str, value: Any) -> str:
    """Return a figure in the unit that its name implies."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if name.endswith("bytes"):
        return readable_bytes(value)
    if name.endswith(("per_second", "seconds")):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def readable_bytes(value: float) -> str:
    """Return a number of bytes with its unit, such as 72.0 KiB."""
    power = min(int(math.log2(value) / 10), len(UNITS) - 1) if value >= 1024 else 0
    return f"{value / 1024**power:,.{1 if power else 0}f} {UNITS[power]}"


def _width(title: str, cells: Sequence[Cell]) -> int:
    """Return the width of a column with its borders."""
    return max(cell_len(str(cell)) for cell in (title, *cells)) + 3
