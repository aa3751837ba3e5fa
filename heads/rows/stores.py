"""Stores of tables of class rows: on the head's device, in host memory, or in memory-mapped files.

A table has one row per class of the shard. Rows that are read from it are copied to the head's device.
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
    """Tables on the device of the head, which move with it."""

    lazy = False  # whether initial rows are drawn at the first read instead of at the start

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a table of zeros."""
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        # Shared memory: a private page is copied when it is written after a fork, and data loaders fork.
        memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def move(self, table: Tensor, device: torch.device) -> Tensor:
        """Return the table for a head on `device`."""
        return table.to(device)


class HostStore(DeviceStore):
    """Tables in host memory, pinned if a GPU is available."""

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if not torch.cuda.is_available():
            return super().allocate(name, shape, dtype, torch.device("cpu"))
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def move(self, table: Tensor, device: torch.device) -> Tensor:
        return table


class DiskStore(DeviceStore):
    """Tables in sparse memory-mapped files of a folder, one set for each process.

    Untouched rows take no space: a row of zeros has not been written yet. An existing file is opened with its
    contents if it was created for the same classes. After a crash each row has its value before or after its last
    write, at worst a mixture of the two, never garbage. Rows and their state may then differ by a step. Use a
    checkpoint for an exact state. Only one process at a time can open the files.

    Args:
        folder: created if missing.
        shard: the classes of this process.
        facts: name -> value of other properties that must agree with an existing file, such as the seed of the rows.

    Raises:
        ValueError: another head has the files open, or the system has no file locks.
    """

    lazy = True

    def __init__(self, folder: str | os.PathLike[str], shard: Shard, facts: Mapping[str, Any]):
        self.folder = Path(folder) / f"{shard.rank}-of-{shard.world_size}"
        self.facts = {"num_classes": shard.num_classes, **facts}
        try:
            import fcntl  # Unix only; the other stores work without it
        except ImportError:
            raise ValueError(
                "store=disk needs file locks of Linux or macOS, which this system lacks; use store=device or host"
            ) from None
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        weakref.finalize(self, os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"store_dir={os.fspath(folder)} is in use: another head has {self.folder} open; use another folder"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        raise ValueError(
            f"a head with store='disk' cannot be copied or pickled, since {self.folder} belongs to one head; save "
            "state_dict() and load it into a head with a store_dir of its own"
        )

    def allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the table of a file; a new file holds zeros.

        Raises:
            ValueError: a file of other classes or another size, or too little space on the disk.
        """
        path = self.folder / f"{name}.bin"
        description = {**self.facts, "shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
        self._check_description(path, description)
        nbytes = math.prod(shape) * dtype.itemsize
        size, on_disk = (path.stat().st_size, 512 * path.stat().st_blocks) if path.exists() else (0, 0)
        if size not in (0, nbytes):
            raise ValueError(f"{path} has {size} bytes instead of {nbytes}; remove {self.folder} to start over")
        free = shutil.disk_usage(self.folder).free
        if nbytes - on_disk > free:  # a mapped write without space kills the process without a message
            raise ValueError(
                f"store_dir={self.folder.parent} has too little space: {path.name} may grow to {nbytes / 1e9:.3g} GB, "
                f"of which {on_disk / 1e9:.3g} are on the disk already, and only {free / 1e9:.3g} GB are free; "
                "use another folder"
            )
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.ftruncate(descriptor, nbytes)
            memory = mmap.mmap(descriptor, nbytes)
        finally:
            os.close(descriptor)
        memory.madvise(mmap.MADV_RANDOM)  # rows are scattered: reading ahead would cost more than the row
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def move(self, table: Tensor, device: torch.device) -> Tensor:
        return table

    def _check_description(self, path: Path, description: dict[str, Any]) -> None:
        """Write the description of a new file, before the file exists, or check that of an existing one."""
        file = path.with_suffix(".json")
        if file.exists():
            saved = json.loads(file.read_text())
            for name in {**saved, **description}:
                if saved.get(name) != (value := description.get(name)):
                    raise ValueError(
                        f"store_dir={self.folder.parent} does not fit: {path} was made with {name}={saved.get(name)}, "
                        f"not {value}; use another folder, or remove this one to start over"
                    )
            return
        if path.exists():
            raise ValueError(
                f"store_dir={self.folder.parent} does not fit: {path} is not a table of rows (no {file.name}); "
                "use another folder"
            )
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(description, indent=2) + "\n")
        os.replace(temporary, file)


STORES: dict[str, Callable[..., DeviceStore]] = {"device": DeviceStore, "host": HostStore, "disk": DiskStore}


def make_store(
    store: str, store_dir: str | os.PathLike[str] | None, shard: Shard, facts: Mapping[str, Any]
) -> DeviceStore:
    """Return a new store.

    Args:
        store: "device", "host" or "disk".
        store_dir: folder of the files of "disk"; None for the others.
        shard: the classes of this process.
        facts: see `DiskStore`.

    Raises:
        ValueError: an unknown store, or a `store_dir` missing or without use.
    """
    if store not in STORES:
        raise ValueError(f"store={store!r} must be one of {', '.join(STORES)}")
    if store != "disk":
        if store_dir is not None:
            raise ValueError(
                f"store_dir={os.fspath(store_dir)} belongs to store='disk', not to store={store!r}; remove it"
            )
        return STORES[store]()
    if store_dir is None:
        raise ValueError("store='disk' needs store_dir, the folder of its files")
    return DiskStore(store_dir, shard, facts)
