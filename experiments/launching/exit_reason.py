"""What is told of a program that a signal ended: what it read, which may be the cause, and how to go on. Imports no
torch."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from data.options import several
from data.workers import ended_by

from ..checkpoints.storage import Folder

SOURCES = ("data.source", "source")  # options that name what is read


def ended(number: int, config: DictConfig) -> str:
    """Say by which signal a program was ended, and what may be the cause."""
    found = {name: OmegaConf.select(config, name) for name in SOURCES}
    return ended_by(number, " or ".join(f"{name}={path}" for name, value in found.items() for path in several(value)))


def how_to_resume(config: DictConfig, folder: Path) -> str:
    """Say how a training that was ended goes on."""
    where = str(config.checkpoint.dir or folder / "checkpoints")
    if "://" not in where and not Folder(Path(where)).complete():
        return "it has not written a checkpoint, so that there is nothing to resume"
    return f"resume={folder} goes on from its newest checkpoint"
