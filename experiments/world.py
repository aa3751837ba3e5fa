"""How many processes a run has, that they end together, and that what they write is whole. Imports no torch: the
launcher asks."""

import ctypes
import os
import signal
import sys
import uuid
from pathlib import Path

from omegaconf import DictConfig


def number_of_processes(config: DictConfig) -> int:
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    for name, value in (("devices", devices), ("num_nodes", nodes)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"trainer.{name}={value}: a whole number, at least 1, is needed")
    if nodes > 1 and not config.trainer.rendezvous:
        raise ValueError(f"trainer.num_nodes={nodes}: needs trainer.rendezvous=HOST:PORT, where one of the machines is")
    return int(devices * nodes)


def end_with_parent() -> None:
    """SIGTERM for this process when the one that started it dies, however it does; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def write_whole(path: Path, text: str) -> None:
    """Puts a file in place of another, which stays until all of the new one is there."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # several machines may write the same
    with aside.open("w", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
