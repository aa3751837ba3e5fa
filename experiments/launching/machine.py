"""Check that this machine has the cores and the memory for the processes of a run. Imports no torch."""

import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from .launch_config import number_of_processes

PROCESSES_PER_CORE = 8  # more processes only wait for each other
INTERPRETER_BYTES = 0.3e9  # memory of one process that has imported torch
GB = 1e9


def check_batch(config: DictConfig) -> None:
    """Raise ValueError if a training batch has no image for each process."""
    world_size, num_local = number_of_processes(config), config.trainer.devices
    if isinstance(config.batch_size, int) and world_size > config.batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} cannot be divided among {world_size} processes "
            f"(trainer.devices={num_local}, trainer.num_nodes={config.trainer.num_nodes}); raise batch_size or start "
            "fewer processes"
        )


def check_processes(config: DictConfig) -> int:
    """Return the number of processes over all machines. Warn if this machine has more of them than cores.

    Raises:
        ValueError: the processes of this machine do not fit into memory, or are far more than its cores.
    """
    world_size, num_local = number_of_processes(config), config.trainer.devices
    if num_local > PROCESSES_PER_CORE * cores():
        raise ValueError(
            f"trainer.devices={num_local} exceeds {PROCESSES_PER_CORE} processes per core, and this machine has "
            f"{_counted(cores(), 'core')}; set trainer.devices to {cores()} or fewer"
        )
    needed, free = num_local * INTERPRETER_BYTES, free_memory()
    if num_local > 1 and needed > free:
        raise ValueError(
            f"trainer.devices={num_local} needs {needed / GB:.3g} GB of memory before training begins, and only "
            f"{free / GB:.3g} GB are free; start fewer processes"
        )
    if num_local > cores():
        print(
            f"warning: trainer.devices={num_local} exceeds the {_counted(cores(), 'core')} of this machine; fewer "
            "processes are faster",
            file=sys.stderr,
        )
    return world_size


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> float:
    """Return the bytes that new processes can take, swap included, within the limit of this process's container."""
    figures = _meminfo()
    free = figures.get("MemAvailable", _all_memory()) + figures.get("SwapFree", 0.0)
    return min([free, *_container_limits()])


def _meminfo() -> dict[str, float]:
    """Return the figures of /proc/meminfo in bytes; empty on systems without this file."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: 1024 * float(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}


def _all_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _container_limits() -> list[float]:
    """Return the memory limits of control groups, versions 2 and 1, as a container sees them."""
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(float(Path(path).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return limits


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count > 1 else ''}"
