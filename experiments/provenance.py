"""The version of the project and the commit of its repository."""

import subprocess
from functools import cache
from pathlib import Path

from heads import __version__

ROOT = Path(__file__).resolve().parent.parent


@cache
def about() -> dict[str, str | None]:
    """Return the version of the project, and the commit if it is a git checkout."""
    return {"version": __version__, "commit": _commit()}


def _commit() -> str | None:
    if not (ROOT / ".git").exists():  # or git would report a repository around this folder
        return None
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
