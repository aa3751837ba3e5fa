"""Fidelity of a head with class centers: its loss over a selection compared with that over all its classes.

Legend: n batch of this process, Q embeddings, D row width, k hardest negatives, R repeated selections.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..center_head import CenterHead
from ..core.timer import Timer
from ..group.batch import GlobalBatch
from ..rows.active import ActiveRows
from .figures import check_options, compare_gradients, evenly_spaced
from .reference import FullLoss, backbone_gradient, full_loss

FIRST_REPEAT = 1 << 20  # micro-batch in the keys of repeated draws; no training has that many micro-batches


def selection_fidelity(
    head: CenterHead,
    embeddings: Tensor,
    labels: Tensor,
    *,
    records: Tensor | None = None,
    probes: int = 32,
    repeats: int = 4,
    hardest: int = 10,
) -> dict[str, float]:
    """Compare the selected classes of a head with all its classes, without any effect on training.

    All processes must call it together.

    Args:
        head: a head in training mode.
        embeddings: (n, D) of this process, float, as in training; n may differ between processes.
        labels: (n,) integer class ids.
        records: (n,) record numbers, for a head with `needs_records`.
        probes: number of embeddings to evaluate. Classes are selected for the embeddings of all processes.
        repeats: R, the number of selections, each with new random draws.
        hardest: k, the number of hardest negatives in `hardest_recall`.

    Returns:
        Means over selections, the same on all processes. The gradients of all embeddings form one vector. If the margin
        normalizes, only their part along the sphere counts.

        mass: share of the negatives' mass in the selected classes; mean over embeddings. The mass of a negative is its
            probability in the softmax, or for other objectives its share of the gradients by the negative logits.
        hardest_recall: share of the k negatives with the highest logits that are selected; mean over embeddings.
        gradient_cosine: cosine between the gradient and the exact one.
        gradient_norm_ratio: length of the gradient over that of the exact one.
        gradient_bias: distance of the mean gradient over selections from the exact one, over the length of the exact
            one, corrected for the noise of a mean of R. Only for R > 1.
        gradient_variance: variance of the gradient over selections, over the squared length of the exact one. The mean
            squared error is bias squared plus variance. Only for R > 1.

    Raises:
        ValueError: an option that is not a whole number of at least 1, an input that `CenterHead.forward` refuses, or a
            head without fidelity.
    """
    probes, repeats, hardest = check_options(probes, repeats, hardest)
    head.check_fidelity()
    with _separate_draws(head):
        batch = head.gather_batch(embeddings, labels, records=records)
        probed = batch.chosen(evenly_spaced(len(batch.x_ND), probes))
        return _mean_figures(head, batch, probed, full_loss(head, probed, hardest), repeats)


def _mean_figures(
    head: CenterHead, batch: GlobalBatch, probed: GlobalBatch, exact: FullLoss, repeats: int
) -> dict[str, float]:
    masses, recalls, gradients = [], [], []
    for repeat in range(repeats):
        head.micro_batch = FIRST_REPEAT + repeat
        selection = head.select_classes(batch.x_ND, batch.positives.labels_P)
        rows = ActiveRows(head.centers, selection, keep=False)
        masses.append(exact.mass(rows, selection))
        recalls.append(exact.recall(selection))
        inputs = replace(head.loss_inputs(probed, selection, rows), batch=exact.inputs.batch)  # the same draws
        gradients.append(backbone_gradient(head.objective, inputs))
    return {
        "mass": float(torch.stack(masses).mean()),
        "hardest_recall": float(torch.stack(recalls).mean()),
        **compare_gradients(torch.stack(gradients), exact.gradient_QD),
    }


@contextmanager
def _separate_draws(head: CenterHead) -> Iterator[None]:
    """Separate random draws and times of the block from those of training, and compute no gradients by autograd."""
    micro_batch, timer = head.micro_batch, head.timer
    head.timer = Timer()
    device = head.centers.like.device
    global_draws = torch.random.fork_rng([device] if device.type == "cuda" else [])  # for heads that draw without keys
    try:
        with (
            torch.inference_mode(False),  # margins are differentiated, which inference mode does not allow
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            head.only_looking(),
            global_draws,
        ):
            yield
    finally:
        head.micro_batch, head.timer = micro_batch, timer
