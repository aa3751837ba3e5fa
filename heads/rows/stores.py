"""Where tables of class rows live: on the head's device, in host memory, or in memory-mapped files.

A table has a row for each class of the shard; what is read from it travels to the head's device.
"""

import json
import math
import mmap
import os
import shutil
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..group.sharding import Shard


class DeviceStore:
    """Tables on the device of the head; they follow it."""

    lazy = False  # rows are drawn at the start, not when first read

    def zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        # Shared, because a private page is copied when it is written after a fork, and data loaders fork.
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def follow(self, table: Tensor, device: torch.device) -> Tensor:
        """The table after the head has moved to `device`."""
        return table.to(device)


class HostStore(DeviceStore):
    """Tables in host memory, pinned where there is a GPU to carry rows to."""

    def zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if not torch.cuda.is_available():
            return super().zeros(name, shape, dtype, torch.device("cpu"))
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def follow(self, table: Tensor, device: torch.device) -> Tensor:
        return table


class DiskStore(DeviceStore):
    """Tables in sparse memory-mapped files of a folder, one set for each process.

    Untouched rows take no space: a row of zeros has not been written yet. A file that is there already is
    opened again with what it holds, if it was made for the same classes. After a crash each row is
    what it was before its last write or after it, at worst a mixture of the two, never garbage; rows
    and their state may then be a step apart. What must be exact belongs into a checkpoint. One process
    at a time may have them open.

    Args:
        folder: made if missing.
        shard: the classes of this process.
        facts: what else must agree with an existing file, such as the seed of its initial rows.
    """

    lazy = True

    def __init__(self, folder: str | os.PathLike[str], shard: Shard, facts: Mapping[str, Any]):
        self.folder = Path(folder) / f"{shard.rank}-of-{shard.world_size}"
        self.facts = {"num_classes": shard.num_classes, **facts}
        try:
            import fcntl  # of Unix alone; the other stores work without it
        except ImportError:
            raise ValueError(
                "store=disk: needs file locks of Linux or macOS, which this system lacks; use store=device or host"
            ) from None
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        weakref.finalize(self, os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"store_dir={os.fspath(folder)}: another head has {self.folder} open") from None

    def __getstate__(self) -> dict[str, Any]:
        raise ValueError(
            f"store='disk' cannot be copied or pickled, since {self.folder} belongs to one head; save state_dict() and "
            "load it into a head with a store_dir of its own"
        )

    def zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The table as the file holds it; zeros where it is new."""
        path = self.folder / f"{name}.bin"
        about = {**self.facts, "shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
        self._agree(path, about)
        nbytes = math.prod(shape) * dtype.itemsize
        size, on_disk = (path.stat().st_size, 512 * path.stat().st_blocks) if path.exists() else (0, 0)
        if size not in (0, nbytes):
            raise ValueError(f"{path}: {size} bytes instead of {nbytes}; remove {self.folder} to begin anew")
        free = shutil.disk_usage(self.folder).free
        if nbytes - on_disk > free:  # a mapped write that finds no room ends the process without a word
            raise ValueError(
                f"store_dir={self.folder.parent}: {path.name} may grow to {nbytes / 1e9:.3g} GB, of which "
                f"{on_disk / 1e9:.3g} are there, and only {free / 1e9:.3g} GB are free"
            )
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.ftruncate(descriptor, nbytes)
            memory = mmap.mmap(descriptor, nbytes)
        finally:
            os.close(descriptor)
        memory.madvise(mmap.MADV_RANDOM)  # rows lie scattered: reading ahead would cost more than the row
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def follow(self, table: Tensor, device: torch.device) -> Tensor:
        return table

    def _agree(self, path: Path, about: dict[str, Any]) -> None:
        """Writes down what the file is, or checks it; the description exists before the file does."""
        description = path.with_suffix(".json")
        if description.exists():
            found = json.loads(description.read_text())
            for name, value in about.items():
                if found.get(name) != value:
                    raise ValueError(
                        f"store_dir={self.folder.parent}: {path} was made with {name}={found.get(name)}, not "
                        f"{value}; use another folder, or remove this one to begin anew"
                    )
            return
        if path.exists():
            raise ValueError(f"store_dir={self.folder.parent}: {path} is not a table of rows (no {description.name})")
        aside = description.with_suffix(".tmp")
        aside.write_text(json.dumps(about, indent=2) + "\n")
        os.replace(aside, description)


STORES: dict[str, Callable[..., DeviceStore]] = {"device": DeviceStore, "host": HostStore, "disk": DiskStore}


def make(store: str, store_dir: str | os.PathLike[str] | None, shard: Shard, facts: Mapping[str, Any]) -> DeviceStore:
    """The store by its name; `store_dir` belongs to "disk" alone."""
    if store not in STORES:
        raise ValueError(f"store={store!r}: must be one of {', '.join(STORES)}")
    if store != "disk":
        if store_dir is not None:
            raise ValueError(f"store_dir={os.fspath(store_dir)}: belongs to store='disk', not to store={store!r}")
        return STORES[store]()
    if store_dir is None:
        raise ValueError("store='disk': needs store_dir, the folder of its files")
    return DiskStore(store_dir, shard, facts)
