"""Buffers that are reused from step to step: new buffers of many MB cost page faults each time."""

import math

import torch
from torch import Tensor


class Workspace:
    """Uninitialised buffers by name, at most one free buffer per name."""

    def __init__(self) -> None:
        self._free: dict[str, Tensor] = {}

    def acquire(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a buffer with the dtype and device of `like`, which belongs to the caller until it is released."""
        numel = math.prod(shape)
        free = self._free.pop(name, None)
        if free is None or len(free) < numel or (free.dtype, free.device) != (like.dtype, like.device):
            # A buffer created in torch.inference_mode() could not be written in training.
            with torch.inference_mode(False):
                free = like.new_empty(numel)
        return free[:numel].view(shape)

    def release(self, name: str, buffer: Tensor) -> None:
        """Return an acquired buffer for reuse, unless a larger one of its kind is free."""
        free, nbytes = self._free.get(name), buffer.untyped_storage().nbytes()
        if free is not None and (free.dtype, free.device) == (buffer.dtype, buffer.device) and free.nbytes > nbytes:
            return
        with torch.inference_mode(False):
            self._free[name] = torch.empty(0, dtype=buffer.dtype, device=buffer.device).set_(buffer.untyped_storage())

    def borrow(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a buffer that is valid until the name is used again."""
        free, numel = self._free.get(name), math.prod(shape)
        if free is not None and len(free) >= numel and (free.dtype, free.device) == (like.dtype, like.device):
            return free[:numel].view(shape)
        buffer = self.acquire(name, shape, like)
        self.release(name, buffer)
        return buffer
