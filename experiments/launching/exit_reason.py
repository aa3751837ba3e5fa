"""Messages about a program that a signal ended: the possible cause, and how to resume. Imports no torch."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from data.options import several
from data.workers import ended_by

from ..checkpoints.storage import Folder

SOURCES = ("data.source", "source")  # options that name the files that are read


def ended(number: int, config: DictConfig) -> str:
    """Return the signal that ended a program, and the possible cause."""
    sources = {name: OmegaConf.select(config, name) for name in SOURCES}
    return ended_by(number, " or ".join(f"{name}={path}" for name, value in sources.items() for path in several(value)))


def how_to_resume(config: DictConfig, folder: Path) -> str:
    """Return how to resume a training that was ended."""
    where = str(config.checkpoint.dir or folder / "checkpoints")
    if "://" not in where and not Folder(Path(where)).complete():
        return "it cannot be resumed, because it has not written a checkpoint"
    return f"resume={folder} continues from its newest checkpoint"
