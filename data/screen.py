"""The terminal. Paths and the words of users are printed as they are: rich reads `[x]` as markup and `:x:` as emoji."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


def console() -> Console:
    return Console(markup=False, emoji=False)


def bars(screen: Console) -> Progress:
    """Return progress bars, shown on a terminal only."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
