"""What the terminal shows: tables that fit it, figures as people read them, and bars of long work."""

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
Cell = str | Text  # text as it is, or with a style


def console() -> Console:
    """The terminal; elsewhere one without an edge, so that nothing is cut in a file."""
    result = screen.console()
    if not result.is_terminal:
        result.width = 1000
    return result


def shown(work: Iterable[T], what: str, total: int, on: bool = True) -> Iterable[T]:
    """With a progress bar, on a terminal."""
    terminal = console()
    on = on and terminal.is_terminal and not _HIDDEN.get()
    return track(work, what, total, console=terminal, transient=True, disable=not on)


@contextmanager
def bars_hidden() -> Iterator[None]:
    """Where another bar is on the screen already."""
    token = _HIDDEN.set(True)
    try:
        yield
    finally:
        _HIDDEN.reset(token)


_HIDDEN = ContextVar("hidden", default=False)


def packed(
    keys: Mapping[str, Sequence[Cell]], figures: Mapping[str, Sequence[Cell]], title: str, width: int
) -> list[Table]:
    """As many tables as it takes for none to be wider than `width`: keys in each, figures spread over them."""
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
    """A figure by what its name says it is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if name.endswith("bytes"):
        return f"{value / 2**20:,.1f} MiB"
    if name.endswith(("per_second", "seconds")):
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _width(title: str, cells: Sequence[Cell]) -> int:
    """Of a column with its borders."""
    return max(cell_len(str(cell)) for cell in (title, *cells)) + 3
