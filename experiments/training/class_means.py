"""Mean embeddings of classes, which represent classes that have no center."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from data.records import DataSet, RecordSet
from heads.objectives.rows import MIN_NORM

from ..models.model import Model

BLOCK = 2**16  # records at a time


def class_means(
    model: Model, data: DataSet, classes: NDArray[np.int64], limit: int, label: str
) -> tuple[Tensor, Tensor]:
    """Embed up to `limit` training images, not augmented, of each of some classes.

    Args:
        classes: (n,) sorted class ids of which this process embeds the images.
        label: label of the progress bar.

    Returns:
        Their means (n, D) of unit length, or zero for a class without images, and the number of images (n,).
    """
    chosen = first_images(data.train, classes, limit)
    device = model.processes.device
    sums = torch.zeros(len(classes), model.embedding_size, device=device)
    counts = torch.zeros(len(classes), device=device)
    blocks = [chosen[a : a + BLOCK] for a in range(0, len(chosen), BLOCK)]
    for block in model.track(blocks, f"Embedding images of {label}"):
        embeddings = model.embed(data.train.source, data.prepare, block)
        labels = np.asarray(data.train.labels[block], dtype=np.int64)
        positions = torch.from_numpy(np.searchsorted(classes, labels)).to(device)
        sums.index_add_(0, positions, normalize(embeddings).to(device))
        counts.index_add_(0, positions, torch.ones(len(positions), device=device))
    model.processes.any(False)  # wait for processes with more images
    return sums.div_(sums.norm(dim=1, keepdim=True).clamp_min_(MIN_NORM)), counts


def first_images(records: RecordSet, classes: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return up to `limit` records of each of some classes, sorted ids (n,)."""
    taken = np.zeros(len(classes), dtype=np.int64)
    chosen = []
    for start in range(0, len(records), BLOCK):
        indices = np.arange(start, min(start + BLOCK, len(records)))
        labels = np.asarray(records.labels[indices])
        places = np.searchsorted(classes, labels)
        inside = places < len(classes)
        inside[inside] = classes[places[inside]] == labels[inside]
        indices, places = indices[inside], places[inside]
        order = np.argsort(places, kind="stable")
        _, begins, counts = np.unique(places[order], return_index=True, return_counts=True)
        earlier = np.empty(len(places), dtype=np.int64)  # earlier records of the same class in this block
        earlier[order] = np.arange(len(places)) - np.repeat(begins, counts)
        chosen.append(indices[taken[places] + earlier < limit])
        taken += np.bincount(places, minlength=len(classes))
    return np.concatenate(chosen)
