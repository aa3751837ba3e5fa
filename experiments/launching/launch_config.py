"""Conventions between the launcher of a run and its processes. Imports no torch, because the launcher uses it."""

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

CONFIG = "config.yaml"  # in the folder of a run


def pending_config() -> str:
    """Return a unique file name for the config of a run that does not train yet."""
    return f".config-{uuid.uuid4().hex}.yaml"


def number_of_processes(config: DictConfig) -> int:
    """Return the number of processes over all machines.

    Raises:
        ValueError: a count is not a whole number of at least 1, or the machines have no common address.
    """
    devices, nodes = (checked(f"trainer.{name}", config.trainer[name], Count) for name in ("devices", "num_nodes"))
    if nodes > 1 and not config.trainer.rendezvous:
        raise ValueError(
            f"trainer.num_nodes={nodes} needs trainer.rendezvous=HOST:PORT, the address of one of the machines"
        )
    return int(devices * nodes)


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel send this process SIGTERM when its parent dies for any reason. Linux only.

    Args:
        parent: the process that started this one, if known. This process ends at once if that one is gone already.
    """
    workers.end_with_parent(signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def let_output_fail() -> None:
    """Continue when output cannot be printed, on a full disk or to a closed pipe, and drop this output."""
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
    """Return the arguments of Python for a program of this package that ends with this process."""
    return ["-m", "experiments.launching.child", str(os.getpid()), f"experiments.{program}"]
