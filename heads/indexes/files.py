"""Temporary files without a name, through which libraries write and read an index."""

import tempfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor


def saved_bytes(save: Callable[[str], object]) -> Tensor:
    """What a library writes, as bytes (n,): mapped, so that there is no second copy in memory."""
    with unnamed_file() as file:
        save(path_of(file))
        return torch.from_numpy(np.memmap(file, np.uint8, mode="c"))


def loaded_from(written: Tensor, load: Callable[[str], Any]) -> Any:
    """What a library reads of such bytes."""
    with unnamed_file() as file:
        written.numpy().tofile(file)
        file.seek(0)
        return load(path_of(file))


def unnamed_file() -> IO[bytes]:
    """A temporary file without a name. The system removes it with the last process that has it open or mapped."""
    return tempfile.TemporaryFile(prefix="headcount-", buffering=0)


def path_of(file: IO[bytes]) -> str:
    """Return a path by which libraries, and programs that inherit the descriptor, open the file."""
    return f"/dev/fd/{file.fileno()}"
