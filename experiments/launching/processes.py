"""The processes of one run: their number, the rank of this one, and their group."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch.distributed import ProcessGroup

from heads.group.collectives import default_group, max_over_processes

from .launch_config import number_of_processes

T = TypeVar("T")
# Processes wait for each other this long. On the host, one process may write or embed for hours; the launcher ends the
# others if it dies.
PATIENCE = {"cpu": timedelta(days=1), "cuda": timedelta(minutes=10)}


@dataclass(frozen=True)
class Processes:
    """Rank, device and group of this process.

    Args:
        rank: rank of this process among all processes.
        world_size: number of processes.
        device: the device that this process computes on.
        control: the group for small agreements, on the host so that no GPU waits; None for one process.
    """

    rank: int
    world_size: int
    device: torch.device
    control: ProcessGroup | None = None

    @property
    def is_rank_zero(self) -> bool:
        """True on the process that prints and writes for all processes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process. A collective."""
        return bool(max_over_processes(torch.tensor(int(flag)), self.control))

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in rank order. A collective."""
        values: list[T] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def rank_zero_call(self, work: Callable[[], T]) -> T:
        """Call `work` on rank 0 and return its result on all processes. A collective.

        Raises:
            OSError: `work` failed; all processes raise it.
        """
        outcome: list[Any] = [None, None]
        if self.is_rank_zero:
            try:
                outcome[0] = work()
            except OSError as error:
                outcome[1] = error
            except Exception as error:  # from a library for object stores
                outcome[1] = OSError(repr(error))
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, 0, group=self.control)
        result, failure = outcome
        if failure is not None:
            raise failure
        return cast(T, result)


@contextmanager
def joined(config: DictConfig) -> Iterator[Processes]:
    """Form the process group of the config, from the variables that `experiments.launch` has set.

    A process group that exists already is used and stays.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    wanted = number_of_processes(config)
    if world_size != wanted:
        raise ValueError(
            f"trainer.devices={config.trainer.devices} and trainer.num_nodes={config.trainer.num_nodes} need {wanted} "
            f"processes, but {world_size} were started"
        )
    device = device_for(config.trainer.accelerator, int(os.environ.get("LOCAL_RANK", 0)))
    if world_size == 1:
        yield Processes(0, 1, device)
        return
    ours = not dist.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE[device.type])
    try:
        control = default_group()
        if dist.get_backend() != "gloo":
            control = dist.new_group(backend="gloo", timeout=PATIENCE["cpu"])
        yield Processes(rank, world_size, device, control)
    finally:
        if ours:
            dist.destroy_process_group()
            # The objects of a training refer to the group too. If one of their threads released a tensor while the
            # interpreter is finalized, the process would abort.
            gc.collect()


def device_for(accelerator: str, local_rank: int = 0) -> torch.device:
    """Return the device of a process. Raise ValueError if this machine has none for it."""
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f"trainer.accelerator={accelerator!r} must be auto, cpu or gpu")
    if accelerator != "cpu" and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"trainer.devices={local_rank + 1} needs a GPU for each process, and torch finds "
                f"{torch.cuda.device_count()} on this machine; start as many processes as there are GPUs, or set "
                "trainer.accelerator=cpu"
            )
        return torch.device("cuda", local_rank)
    if accelerator in ("gpu", "cuda"):
        raise ValueError(
            f"trainer.accelerator={accelerator} cannot be used: torch finds no CUDA device; use auto or cpu"
        )
    return torch.device("cpu")
