"""Gathering of a gallery from all processes, with the checks that all processes must agree on."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from ..group.batch import directions
from ..group.collectives import gather_rows, gather_sizes
from ..group.faults import batch_fault

HEADER = 2  # numbers sent before the labels: the queue's checksum, and flags for finite values and labels out of range


@dataclass(frozen=True)
class GalleryBatch:
    """Probes of this process and the gallery of all processes.

    Args:
        x_nD: (n, D) probes at unit length, differentiable.
        norm_n: (n,) their lengths before, differentiable.
        probe_classes: (n,) their classes, in host memory.
        features: (M, D) gallery of all processes at unit length, in rank order.
        classes: (M,) their classes, in host memory.
    """

    x_nD: Tensor
    norm_n: Tensor
    probe_classes: NDArray[np.int64]
    features: Tensor
    classes: NDArray[np.int64]


def gather_gallery(
    probe: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    embedding_size: int,
    num_classes: int,
    checksum: int,
    step: int,
    device: torch.device,
    group: ProcessGroup | None,
) -> GalleryBatch:
    """Check probes and gallery, and gather the gallery of all processes.

    Args:
        probe: (n, embedding_size) of this process.
        labels: (n,) class ids of the probes.
        gallery: (m, embedding_size) features of this process.
        gallery_labels: (m,) class ids of the gallery.
        checksum: checksum of the queue; must be equal on all processes.
        step: the head's step, for messages.

    Raises:
        ValueError: on all processes, also if only one has a wrong input.
    """
    fault = batch_fault(probe, labels, None, embedding_size, device) or batch_fault(
        gallery, gallery_labels, None, embedding_size, device
    )
    sizes = gather_sizes(0 if fault else len(gallery), device, group, fault)
    x_nD, features = directions(probe.float()), directions(gallery.detach().float())
    finite = torch.isfinite(x_nD.detach()).all() & torch.isfinite(features).all()
    outside = ((labels < 0) | (labels >= num_classes)).any()
    header = torch.stack([torch.tensor(checksum, device=device), finite.to(torch.int64) + 2 * outside])
    packed = gather_rows(
        torch.cat([header, gallery_labels.to(device, torch.int64)]), [size + HEADER for size in sizes], group
    )
    host = torch.cat([packed, labels.to(device, torch.int64)]).cpu().numpy()
    classes = _checked_classes(host[: len(packed)], sizes, num_classes=num_classes, checksum=checksum, step=step)
    norm_n = torch.linalg.vector_norm(probe.float(), dim=1)
    return GalleryBatch(x_nD, norm_n, host[len(packed) :], gather_rows(features, sizes, group), classes)


def _checked_classes(
    packed: NDArray[np.int64], sizes: list[int], *, num_classes: int, checksum: int, step: int
) -> NDArray[np.int64]:
    """Return the gallery's classes without the headers, or raise for what the headers report."""
    starts = np.cumsum([0, *(size + HEADER for size in sizes[:-1])])
    checksums, flags = packed[starts], packed[starts + 1]
    classes = np.delete(packed, np.concatenate([starts, starts + 1]))
    assert (checksums == checksum).all(), "the processes hold different pools"
    if (flags & 2).any() or (len(classes) and not 0 <= classes.min() <= classes.max() < num_classes):
        raise ValueError(f"a label at step {step} is out of range; class ids must be in [0, num_classes={num_classes})")
    if not (flags & 1).all():
        raise ValueError(
            f"embeddings contain NaN or Inf at step {step}; a lower learning rate, warm-up or gradient clipping "
            "usually helps"
        )
    return classes
