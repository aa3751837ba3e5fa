"""Memory that is kept from one step to the next: fresh buffers of many MB cost page faults each time."""

import math

import torch
from torch import Tensor


class Workspace:
    """Uninitialised buffers by name, at most one free buffer of each."""

    def __init__(self) -> None:
        self._free: dict[str, Tensor] = {}

    def acquire(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A buffer in the dtype and on the device of `like`, the caller's own until given back, if ever."""
        numel = math.prod(shape)
        free = self._free.pop(name, None)
        if free is None or len(free) < numel or (free.dtype, free.device) != (like.dtype, like.device):
            # A buffer born in torch.inference_mode() could never be written in training.
            with torch.inference_mode(False):
                free = like.new_empty(numel)
        return free[:numel].view(shape)

    def release(self, name: str, buffer: Tensor) -> None:
        """The caller is done with what it took."""
        with torch.inference_mode(False):
            self._free[name] = torch.empty(0, dtype=buffer.dtype, device=buffer.device).set_(buffer.untyped_storage())

    def borrow(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The same, until the name is lent again."""
        buffer = self.acquire(name, shape, like)
        self.release(name, buffer)
        return buffer
