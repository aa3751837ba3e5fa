"""Temporary files without a name, through which libraries write and read an index."""

import tempfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor


def saved_bytes(save: Callable[[str], object]) -> Tensor:
    """Return the bytes (n,) that a library writes, mapped from the file to avoid a copy in memory."""
    with unnamed_file() as file:
        save(path_of(file))
        return torch.from_numpy(np.memmap(file, np.uint8, mode="c"))


def loaded_from(content: Tensor, load: Callable[[str], Any]) -> Any:
    """Return what a library loads from the bytes that `saved_bytes` returned."""
    with unnamed_file() as file:
        content.numpy().tofile(file)
        file.seek(0)
        return load(path_of(file))


def unnamed_file() -> IO[bytes]:
    """Open a temporary file without a name, which the system removes once no process has it open or mapped."""
    return tempfile.TemporaryFile(prefix="headcount-", buffering=0)


def path_of(file: IO[bytes]) -> str:
    """Return the path by which libraries, and programs that inherit the descriptor, open the file."""
    return f"/dev/fd/{file.fileno()}"
