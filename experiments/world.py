"""What a run's launcher and its processes agree on. Imports no torch: the launcher asks."""

import ctypes
import signal
import sys

from omegaconf import DictConfig

# The config of a folder's run, and of one that waits to take the folder over.
CONFIG, PENDING = "config.yaml", "config.pending.yaml"


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
