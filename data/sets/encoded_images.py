"""Encoded images as a source of pixels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ..formats.decode import Decoder
from ..formats.encoded import Images, UnreadableError
from ..records import Indices


@dataclass(frozen=True)
class EncodedImages:
    """Encoded images, decoded when they are read."""

    encoded: Images
    decoder: Decoder

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, indices: Indices) -> Tensor:
        """Return images (n,) -> uint8 (n, H, W, C). Raises UnreadableError, which names the image."""
        pixels = _empty(len(indices), *self.decoder.shape)
        array = pixels.numpy()
        for place, encoded in enumerate(self.encoded.read_all(np.asarray(indices))):
            try:
                self.decoder.into(array[place], encoded)
            except UnreadableError as error:
                raise UnreadableError(error.reason, self.encoded.name(int(indices[place]))) from None
        return pixels


def _empty(*shape: int) -> Tensor:
    """Return an empty uint8 tensor. A loader's worker allocates it in shared memory, which saves a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)  # type: ignore[call-overload]
