"""Room for the rows and checkpoints of a run on this machine, by the head's own `cost`, before any of them exists."""

import os
import shutil
import sys
from pathlib import Path

import torch
from hydra.utils import get_class
from omegaconf import DictConfig

from heads import CenterHead
from heads.core.cost import Case, Cost

from ..checkpoints.storage import CheckpointStore, Folder
from ..plan import cost_of
from .machine import GB, free_memory
from .processes import Processes


def check_capacity(config: DictConfig, num_classes: int, processes: Processes, checkpoints: CheckpointStore) -> None:
    """Warn of what may not fit on this machine. A head that tells no cost is not checked.

    Raises:
        ValueError: rows and their state, or a checkpoint of them, cannot fit; on all processes if on one.
    """
    case = Case(num_classes, config.embedding_size, config.batch_size, processes.world_size)
    refusal = None
    try:
        rows = config.optimizer.rows
        rule = rows if rows and "_target_" in rows else None  # a head may have no rows
        needs = Needs(config, case, cost_of(config.head, rule)(case))
        needs.check_memory(processes.device)
        needs.check_disk(checkpoints)
    except NotImplementedError:
        needs = None
    except ValueError as error:
        refusal = str(error)
    if found := [each for each in processes.gather(refusal) if each]:
        raise ValueError(found[0])
    if needs is not None and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        for warning in needs.warnings:
            print(f"warning: {warning}", file=sys.stderr)


class Needs:
    """The needs of a head on a machine.

    Attributes:
        warnings: what may not fit.
    """

    def __init__(self, config: DictConfig, case: Case, cost: Cost):
        self.config, self.case, self.cost = config, case, cost
        self.here = config.trainer.devices
        self.store = config.head.get("store", "device")
        self.warnings: list[str] = []

    def check_memory(self, device: torch.device) -> None:
        cost = self.cost
        on_device = device.type == "cuda" and self.store == "device"
        if on_device:
            where, there = f"the memory of {device}", float(torch.cuda.mem_get_info(device)[1])
            table, beside = cost.table_bytes, cost.work_bytes
        else:
            where, there = "the free memory of this machine", free_memory()
            table = 0.0 if self.store == "disk" else self.here * cost.table_bytes
            beside = self.here * (cost.index_bytes + (0.0 if device.type == "cuda" else cost.work_bytes))
        told = f"{self._what()}: {table / GB:,.3g} GB of rows and their state"
        if table > there:
            raise ValueError(f"{told} do not fit into {where}, {there / GB:,.3g} GB; {self._remedies(on_device)}")
        if table + beside > there:
            self.warnings.append(
                f"{told} and {beside / GB:,.3g} GB beside them may not fit into {where}, {there / GB:,.3g} GB; "
                f"{self._remedies(on_device)}"
            )

    def check_disk(self, checkpoints: CheckpointStore) -> None:
        shards = self.case.world_size if issubclass(get_class(self.config.head._target_), CenterHead) else 1
        one, rows = shards * self.cost.table_bytes, 0.0
        if self.store == "disk":
            folder = Path(self.config.head.store_dir)
            rows, free = self.here * self.cost.table_bytes - size_on_disk(folder), free_on_disk(folder)
            if rows > free:
                self.warnings.append(
                    f"store_dir={folder}: rows and their state may grow by {rows / GB:,.3g} GB, and "
                    f"{free / GB:,.3g} GB are free"
                )
        if isinstance(checkpoints, Folder):
            keep, free = self.config.checkpoint.keep, free_on_disk(checkpoints.path)
            told = f"checkpoint.dir={checkpoints}: a checkpoint of {self._what()} takes at least {one / GB:,.3g} GB"
            if one > free:
                raise ValueError(f"{told}, and {free / GB:,.3g} GB are free; make room or name another checkpoint.dir")
            # A new one is written before the oldest is removed.
            missing = max(1, keep + 1 - len(checkpoints.complete()))
            if missing * one > free:
                self.warnings.append(
                    f"{told}; {missing} more of them (checkpoint.keep={keep}) may not fit into the {free / GB:,.3g} GB "
                    "that are free"
                )

    def _what(self) -> str:
        case, processes = self.case, "process" if self.here == 1 else "processes"
        return f"{case.num_classes:,} classes of embedding_size={case.embedding_size} in {self.here} {processes} here"

    def _remedies(self, on_device: bool) -> str:
        """Name the options that this head has."""
        head = self.config.head
        found = ["use store=disk"] if "store" in head and self.store != "disk" else []
        found += ["store=host"] if "store" in head and on_device else []
        found += ["dtype=bf16"] if head.get("dtype") == "fp32" else []
        found += ["optimizer.rows.momentum=0"] if (self.config.optimizer.rows or {}).get("momentum") else []
        found += ["a smaller queue_size"] if "queue_size" in self.config else []
        return " or ".join([*found, "more devices" if on_device else "more machines"])


def free_on_disk(folder: Path) -> float:
    """Return the free bytes where a folder is, or will be."""
    folder = folder.absolute()
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    return float(shutil.disk_usage(there).free)


def size_on_disk(folder: Path) -> float:
    """Return the bytes that the files below a folder occupy."""
    return float(sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file()))
