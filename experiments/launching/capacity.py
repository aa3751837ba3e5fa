"""Check that the rows and checkpoints of a run fit on this machine, by the head's own `cost`, before training."""

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


def check_capacity(
    config: DictConfig, num_classes: int, processes: Processes, checkpoints: CheckpointStore, num_records: int = 0
) -> None:
    """Warn if memory or disk of this machine may be too small. Heads without a cost formula are not checked.

    Raises:
        ValueError: rows and their state, or one checkpoint, do not fit. All processes raise it if one does.
    """
    case = Case(num_classes, config.embedding_size, config.batch_size, processes.world_size, num_records)
    refusal = None
    try:
        rows = config.optimizer.rows
        rule = rows if rows and "_target_" in rows else None  # a head may have no rows
        needs = Needs(config, case, cost_of(config, rule)(case))
        needs.check_memory(processes.device)
        needs.check_disk(checkpoints)
    except NotImplementedError:
        needs = None
    except ValueError as error:
        refusal = str(error)
    if refusals := [refusal for refusal in processes.gather(refusal) if refusal]:
        raise ValueError(refusals[0])
    if needs is not None and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        for warning in needs.warnings:
            print(f"warning: {warning}", file=sys.stderr)


class Needs:
    """Memory and disk that a head needs on this machine.

    Attributes:
        warnings: messages about needs that may not fit.
    """

    def __init__(self, config: DictConfig, case: Case, cost: Cost):
        self.config, self.case, self.cost = config, case, cost
        self.num_local = config.trainer.devices
        self.store = config.head.get("store", "device")
        self.warnings: list[str] = []

    def check_memory(self, device: torch.device) -> None:
        cost = self.cost
        on_device = device.type == "cuda" and self.store == "device"
        if on_device:
            where, free = f"the memory of {device}", float(torch.cuda.mem_get_info(device)[1])
            table, other = cost.table_bytes, cost.work_bytes
        else:
            where, free = "the free memory of this machine", free_memory()
            table = 0.0 if self.store == "disk" else self.num_local * cost.table_bytes
            other = self.num_local * (cost.index_bytes + (0.0 if device.type == "cuda" else cost.work_bytes))
        rows = f"{self._size()} need {table / GB:,.3g} GB for rows and their state"
        if table > free:
            raise ValueError(f"{rows}, but {where} is {free / GB:,.3g} GB; {self._remedies(on_device)}")
        if table + other > free:
            self.warnings.append(
                f"{rows} and {other / GB:,.3g} GB for a step, which may not fit into {where}, {free / GB:,.3g} GB; "
                f"{self._remedies(on_device)}"
            )

    def check_disk(self, checkpoints: CheckpointStore) -> None:
        shards = self.case.world_size if issubclass(get_class(self.config.head._target_), CenterHead) else 1
        one, rows = shards * self.cost.table_bytes, 0.0
        if self.store == "disk":
            folder = Path(self.config.head.store_dir)
            rows, free = self.num_local * self.cost.table_bytes - size_on_disk(folder), free_on_disk(folder)
            if rows > free:
                self.warnings.append(
                    f"store_dir={folder} may grow by {rows / GB:,.3g} GB of rows and their state, but only "
                    f"{free / GB:,.3g} GB are free"
                )
        if isinstance(checkpoints, Folder):
            keep, free = self.config.checkpoint.keep, free_on_disk(checkpoints.path)
            size = f"a checkpoint of {self._size()} takes at least {one / GB:,.3g} GB"
            if one > free:
                raise ValueError(
                    f"checkpoint.dir={checkpoints} is too small: {size}, but only {free / GB:,.3g} GB are free; free "
                    "space, or choose another checkpoint.dir"
                )
            # A new checkpoint is written before the oldest one is removed.
            missing = max(1, keep + 1 - len(checkpoints.complete()))
            if missing * one > free:
                self.warnings.append(
                    f"checkpoint.dir={checkpoints} may be too small: {size}, and {missing} more of them "
                    f"(checkpoint.keep={keep}) may not fit into the {free / GB:,.3g} GB that are free"
                )

    def _size(self) -> str:
        case, processes = self.case, "process" if self.num_local == 1 else "processes"
        return (
            f"{case.num_classes:,} classes of embedding_size={case.embedding_size} in {self.num_local} {processes} on "
            "this machine"
        )

    def _remedies(self, on_device: bool) -> str:
        """Return the remedies that this head has options for."""
        head = self.config.head
        remedies = ["use store=disk"] if "store" in head and self.store != "disk" else []
        remedies += ["store=host"] if "store" in head and on_device else []
        remedies += ["dtype=bf16"] if head.get("dtype") == "fp32" else []
        remedies += ["optimizer.rows.momentum=0"] if (self.config.optimizer.rows or {}).get("momentum") else []
        remedies += ["a smaller queue_size"] if "queue_size" in self.config else []
        return " or ".join([*remedies, "more devices" if on_device else "more machines"])


def free_on_disk(folder: Path) -> float:
    """Return the free bytes at the place of a folder, which may not exist yet."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    return float(shutil.disk_usage(existing).free)


def size_on_disk(folder: Path) -> float:
    """Return the bytes that the files below a folder occupy."""
    return float(sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file()))
