"""The processes of one run: how many, which one this is, and the group they form."""

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
# How long processes wait for each other: on the host for as long as one writes or embeds; the launcher ends those whose
# partner has died.
PATIENCE = {"cpu": timedelta(days=1), "cuda": timedelta(minutes=10)}


@dataclass(frozen=True)
class Processes:
    """
    Args:
        rank: of this process among all.
        world_size: of all.
        device: where this process computes.
        control: their group for small agreements, on the host, so that no GPU waits; None for one process.
    """

    rank: int
    world_size: int
    device: torch.device
    control: ProcessGroup | None = None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all must ask."""
        return bool(max_over_processes(torch.tensor(int(flag)), self.control))

    def gather(self, found: T) -> list[T]:
        """What each process has found, on all."""
        everyone: list[T] = [found] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(everyone, found, group=self.control)
        return everyone

    def rank_zero_call(self, work: Callable[[], T]) -> T:
        """What the first process finds or does, on all. Raises OSError on all where it fails."""
        outcome: list[Any] = [None, None]
        if self.is_rank_zero:
            try:
                outcome[0] = work()
            except OSError as error:
                outcome[1] = error
            except Exception as error:  # of a library for object stores
                outcome[1] = OSError(repr(error))
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, 0, group=self.control)
        found, failure = outcome
        if failure is not None:
            raise failure
        return cast(T, found)


@contextmanager
def joined(config: DictConfig) -> Iterator[Processes]:
    """Forms the process group that the config asks for, from what `experiments.launch` has set; one that is there
    already stays."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    wanted = number_of_processes(config)
    if world_size != wanted:
        raise ValueError(
            f"trainer.devices={config.trainer.devices}, trainer.num_nodes={config.trainer.num_nodes}: they ask for "
            f"{wanted} processes, and {world_size} were started"
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
            # What has trained holds the group too. A thread of it that releases a tensor while the interpreter is
            # finalized would abort the process.
            gc.collect()


def device_for(accelerator: str, local_rank: int = 0) -> torch.device:
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f"trainer.accelerator={accelerator!r}: must be auto, cpu or gpu")
    if accelerator != "cpu" and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"trainer.devices={local_rank + 1}: each process needs a GPU of its own, and torch finds "
                f"{torch.cuda.device_count()} here; start as many processes as there are GPUs, or set "
                "trainer.accelerator=cpu"
            )
        return torch.device("cuda", local_rank)
    if accelerator in ("gpu", "cuda"):
        raise ValueError(f"trainer.accelerator={accelerator}: torch finds no CUDA device; use auto or cpu")
    return torch.device("cpu")
