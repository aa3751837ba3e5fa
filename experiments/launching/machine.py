"""What this machine has, compared with what a run asks for, before the run starts. Imports no torch."""

import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from .launch_config import number_of_processes

PROCESSES_PER_CORE = 8  # more of them only wait for each other
INTERPRETER_BYTES = 0.3e9  # that one process takes once torch is imported
GB = 1e9


def check_batch(config: DictConfig) -> None:
    """Raise ValueError if a training batch has no image for each process."""
    world_size, here = number_of_processes(config), config.trainer.devices
    if isinstance(config.batch_size, int) and world_size > config.batch_size:
        raise ValueError(
            f"trainer.devices={here}, trainer.num_nodes={config.trainer.num_nodes}: a batch of batch_size="
            f"{config.batch_size} images cannot be divided among {world_size} processes; raise batch_size or start "
            "fewer processes"
        )


def check_processes(config: DictConfig) -> int:
    """Return the number of processes over all machines. Warn of more of them than cores.

    Raises:
        ValueError: there is no memory for those of this machine, or no core by far.
    """
    world_size, here = number_of_processes(config), config.trainer.devices
    if here > PROCESSES_PER_CORE * cores():
        raise ValueError(
            f"trainer.devices={here}: at most {PROCESSES_PER_CORE} processes per core can start, and this machine has "
            f"{_counted(cores(), 'core')}; set trainer.devices to {cores()} or fewer"
        )
    needed, free = here * INTERPRETER_BYTES, free_memory()
    if here > 1 and needed > free:
        raise ValueError(
            f"trainer.devices={here}: {here} processes take {needed / GB:.3g} GB before they train, and "
            f"{free / GB:.3g} GB of memory are free; start fewer processes"
        )
    if here > cores():
        print(
            f"warning: trainer.devices={here}: this machine has {_counted(cores(), 'core')} for {here} processes, "
            "which will be slower than fewer of them",
            file=sys.stderr,
        )
    return world_size


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> float:
    """Return the bytes that new processes can take, swap included, within the limit of this process's container."""
    found = _meminfo()
    free = found.get("MemAvailable", _all_memory()) + found.get("SwapFree", 0.0)
    return min([free, *_container_limits()])


def _meminfo() -> dict[str, float]:
    """Return the figures of /proc/meminfo in bytes; none where there is no such file."""
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
