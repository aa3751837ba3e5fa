"""Gathering of a gallery from all processes, with the checks that all processes must agree on."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from ..group.batch import directions
from ..group.collectives import gather_rows

HEADER = 2  # numbers sent before the labels: the queue's checksum, and flags for finite values and labels out of range


def gather_gallery(
    x_nD: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    sizes: list[int],
    *,
    num_classes: int,
    checksum: int,
    step: int,
    group: ProcessGroup | None,
) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """Gather the gallery of all processes, and check probes and gallery.

    Args:
        x_nD: (n, D) probes of this process.
        labels: (n,) their class ids.
        gallery: (m, D) features of this process.
        gallery_labels: (m,) their class ids.
        sizes: m of each process.
        num_classes: C.
        checksum: of the queue; must be equal on all processes.
        step: of the head, for messages.
        group: the processes that share the batch.

    Returns:
        Features (M, D) of all processes at unit length, their classes (M,), and the classes (n,) of this process's
        probes; classes in host memory.

    Raises:
        ValueError: labels outside [0, C), NaN or Inf; on all processes, also if only one has such input.
    """
    device = x_nD.device
    features = directions(gallery.detach().float())
    finite = torch.isfinite(x_nD.detach()).all() & torch.isfinite(features).all()
    outside = ((labels < 0) | (labels >= num_classes)).any()
    header = torch.stack([torch.tensor(checksum, device=device), finite.to(torch.int64) + 2 * outside])
    packed = gather_rows(
        torch.cat([header, gallery_labels.to(device, torch.int64)]), [size + HEADER for size in sizes], group
    )
    host = torch.cat([packed, labels.to(device, torch.int64)]).cpu().numpy()
    gathered, probe_classes = host[: len(packed)], host[len(packed) :]
    starts = np.cumsum([0, *(size + HEADER for size in sizes[:-1])])
    checksums, flags = gathered[starts], gathered[starts + 1]
    classes = np.delete(gathered, np.concatenate([starts, starts + 1]))
    assert (checksums == checksum).all(), "the processes hold different pools"
    if (flags & 2).any() or (len(classes) and not 0 <= classes.min() <= classes.max() < num_classes):
        raise ValueError(f"a label at step {step} is out of range; class ids must be in [0, num_classes={num_classes})")
    if not (flags & 1).all():
        raise ValueError(
            f"embeddings contain NaN or Inf at step {step}; a lower learning rate, warm-up or gradient clipping "
            "usually helps"
        )
    return gather_rows(features, sizes, group), classes, probe_classes
