"""A run's folder and processes, as its launcher and they agree on them. Imports no torch: the launcher asks."""

import ctypes
import signal
import sys
from pathlib import Path

from omegaconf import DictConfig

CONFIG, PENDING = "config.yaml", "config.pending.yaml"


def config_in(folder: Path) -> Path:
    """The config to run: what waits to become the folder's config.yaml, if there is one already and it differs."""
    return folder / (PENDING if (folder / PENDING).exists() else CONFIG)


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
