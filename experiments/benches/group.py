"""Calls of a function on several gloo processes of this machine."""

import logging
import os
import uuid
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..launching.processes import Processes


def on_processes(world_size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call module-level `work(processes, *arguments)` on each process, and return the results in rank order."""
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    results = elastic_launch(settings, _work)(work, *arguments)
    return [results[rank] for rank in range(world_size)]


def _work(work: Callable[..., Any], *arguments: Any) -> Any:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    group = None
    if world_size > 1:
        dist.init_process_group("gloo")
        group = dist.group.WORLD
    try:
        return work(Processes(rank, world_size, torch.device("cpu"), group), *arguments)
    finally:
        if world_size > 1:
            dist.destroy_process_group()
