"""What a run's launcher and its processes agree on. Imports no torch: the launcher asks."""

import io
import os
import signal
import sys
import uuid
from typing import Any

from omegaconf import DictConfig

from data import workers

from ..command_line.schema import Count
from ..option_types import checked

CONFIG = "config.yaml"  # of a folder's run


def pending_config() -> str:
    """Return a file name for the config of a run that does not train yet, which no other run uses."""
    return f".config-{uuid.uuid4().hex}.yaml"


def number_of_processes(config: DictConfig) -> int:
    """Return the number of processes over all machines.

    Raises:
        ValueError: a count is no whole number of at least 1, or machines have no place to meet.
    """
    devices, nodes = (checked(f"trainer.{name}", config.trainer[name], Count) for name in ("devices", "num_nodes"))
    if nodes > 1 and not config.trainer.rendezvous:
        raise ValueError(
            f"trainer.num_nodes={nodes} needs trainer.rendezvous=HOST:PORT, the address of one of the machines"
        )
    return int(devices * nodes)


def end_with_parent(parent: int | None = None) -> None:
    """Send this process SIGTERM when the process that started it dies, in whatever way. Linux only.

    Args:
        parent: the process that started this one, if known. This process ends at once if that one is gone already.
    """
    workers.end_with_parent(signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def let_output_fail() -> None:
    """Drop what can no longer be printed, on a full disk or to a reader that has gone, and go on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = io.BufferedWriter(_Dropping(stream.fileno(), "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=True))


class _Dropping(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def child(program: str) -> list[str]:
    """Return the first words of a command that runs a program of this package, and ends with this process."""
    return ["-m", "experiments.launching.child", str(os.getpid()), f"experiments.{program}"]
