"""Mean embeddings of classes, which represent classes that have no center."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from data.records import DataSet, RecordSet
from heads.group.sharding import Shard
from heads.objectives.rows import MIN_NORM

from ..models.model import Model

BLOCK = 2**16  # records at a time


def class_means(
    model: Model, data: DataSet, wanted: NDArray[np.bool_], shard: Shard, limit: int, label: str
) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Embed up to `limit` training images, not augmented, of each wanted class of this process's shard.

    Args:
        wanted: (C,) whether each class is wanted.
        label: label of the progress bar.

    Returns:
        Ids of the wanted classes in the shard (n,), their means (n, D) of unit length, or zero for a class without
        images, and the number of images (n,).
    """
    chosen = first_images(data.train, wanted, shard, limit)
    classes = np.flatnonzero(wanted[shard.start : shard.stop])
    device = model.processes.device
    sums = torch.zeros(len(classes), model.embedding_size, device=device)
    counts = torch.zeros(len(classes), device=device)
    blocks = [chosen[a : a + BLOCK] for a in range(0, len(chosen), BLOCK)]
    for block in model.track(blocks, f"Embedding images of {label}"):
        embeddings = model.embed(data.train.source, data.prepare, block)
        labels = np.asarray(data.train.labels[block], dtype=np.int64) - shard.start
        positions = torch.from_numpy(np.searchsorted(classes, labels)).to(device)
        sums.index_add_(0, positions, normalize(embeddings).to(device))
        counts.index_add_(0, positions, torch.ones(len(positions), device=device))
    model.processes.any(False)  # wait for processes with more images
    return classes, sums.div_(sums.norm(dim=1, keepdim=True).clamp_min_(MIN_NORM)), counts


def first_images(records: RecordSet, wanted: NDArray[np.bool_], shard: Shard, limit: int) -> NDArray[np.int64]:
    """Return up to `limit` records of each wanted class of the shard."""
    taken = np.zeros(shard.size, dtype=np.int64)
    chosen = []
    for start in range(0, len(records), BLOCK):
        indices = np.arange(start, min(start + BLOCK, len(records)))
        labels = np.asarray(records.labels[indices])
        inside = (labels >= shard.start) & (labels < shard.stop)
        inside[inside] = wanted[labels[inside]]
        indices, classes = indices[inside], labels[inside] - shard.start
        order = np.argsort(classes, kind="stable")
        _, begins, counts = np.unique(classes[order], return_index=True, return_counts=True)
        earlier = np.empty(len(classes), dtype=np.int64)  # earlier records of the same class in this block
        earlier[order] = np.arange(len(classes)) - np.repeat(begins, counts)
        chosen.append(indices[taken[classes] + earlier < limit])
        taken += np.bincount(classes, minlength=shard.size)
    return np.concatenate(chosen)
