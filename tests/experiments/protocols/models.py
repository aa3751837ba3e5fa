"""Models for protocols, whose embeddings do not depend on the other images of a batch."""

from contextlib import nullcontext

import torch
from torch import nn

from data.preprocessing import Preprocessing
from experiments.launching.processes import Processes
from experiments.models.model import Model
from tests.workers import rank_and_world


class Some(nn.Module):
    """A backbone that returns some of the pixels, centered at zero."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, ::11] - images.flatten(1).mean(1, keepdim=True)


def of_pixels(side: int = 8, backbone: nn.Module | None = None, data=None, centers=None, batch_size: int = 5) -> Model:
    """Return a model of images for the processes of this worker's group."""
    rank, world_size = rank_and_world()
    preprocessing = Preprocessing(side, side, 3, "stretch", (0.5,) * 3, (0.5,) * 3)
    processes = Processes(rank, world_size, torch.device("cpu"))
    return Model(
        backbone or Some(), 18, processes, nullcontext, preprocessing, lambda: data, centers, batch_size=batch_size
    )


def of_nothing() -> Model:
    """Return a model for protocols that read features."""
    rank, world_size = rank_and_world()
    return Model(nn.Identity(), 0, Processes(rank, world_size, torch.device("cpu")), nullcontext, None, lambda: None)
