"""The terminal. Markup and emoji of rich are disabled, since paths and user input may contain `[x]` or `:x:`."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


def console() -> Console:
    """Return a console that prints text unchanged."""
    return Console(markup=False, emoji=False)


def bars(screen: Console) -> Progress:
    """Return progress bars, shown on a terminal only."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
