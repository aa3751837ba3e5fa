"""The global batch: gathered from all processes, then checked.

Values are checked on the gathered tensors, so that all processes raise together.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional

from .collectives import gather_rows, gather_shapes, gather_sizes, rank_and_size
from .faults import batch_fault, embeddings_fault, records_fault
from .positives import Positives, draw, positives_of

SHORTEST = 1e-6
LARGE = 1e15  # squares of larger numbers might overflow float32


def directions(embeddings: Tensor) -> Tensor:
    """Return embeddings (n, D) at unit length, differentiable.

    Embeddings shorter than 1e-6 have no direction: they become zero and get no gradient. Their gradient would be a
    million times larger than the others, and gradient clipping would then erase the others.
    """
    largest = torch.linalg.vector_norm(embeddings.detach(), torch.inf, dim=1, keepdim=True)
    embeddings = embeddings / torch.where(largest > LARGE, largest, 1)
    norm = torch.linalg.vector_norm(embeddings.detach(), dim=1, keepdim=True)
    return torch.where(norm < SHORTEST, 0, functional.normalize(embeddings, eps=SHORTEST))


def in_rows_space(x_nD: Tensor, *, normalize: bool) -> Tensor:
    """Return embeddings (n, D) at unit length, or without normalization with a last column of ones for the bias."""
    return directions(x_nD) if normalize else torch.cat([x_nD, x_nD.new_ones(len(x_nD), 1)], dim=1)


def trainable(embeddings: Tensor) -> Tensor:
    """Return embeddings that require a gradient."""
    if embeddings.requires_grad:
        return embeddings
    return (embeddings.clone() if embeddings.is_inference() else embeddings.detach()).requires_grad_()


@dataclass(frozen=True)
class GlobalBatch:
    """Embeddings (N, D), positives and weights (N,) of all processes in rank order.

    Args:
        x_nD: embeddings of this process, differentiable.
        start: position of this process's first sample.
        norm_n: (n,) lengths of the embeddings of this process before the transform, differentiable.
        norm_N: (N,) those of all processes.
        records_N: (N,) int64 record numbers; None for a head that keeps nothing per record.
    """

    x_nD: Tensor
    x_ND: Tensor
    positives: Positives
    weight_N: Tensor
    start: int
    norm_n: Tensor
    norm_N: Tensor
    records_N: Tensor | None = None

    def with_drawn(self, count: int, key: tuple[int, ...]) -> "GlobalBatch":
        """Return the batch with `count` targets of each sample, drawn by a key."""
        return replace(self, positives=draw(self.positives, count, len(self.x_ND), key))

    def with_classes(self, classes_of: Callable[[Tensor], Tensor]) -> "GlobalBatch":
        """Return the batch with other numbers of the classes, which `classes_of` computes from those of the labels."""
        return replace(self, positives=self.positives.with_classes(classes_of))

    def chosen(self, places: list[int]) -> "GlobalBatch":
        """Return some samples of all processes as a batch that is detached, with equal weights."""
        x_QD, norm_Q = self.x_ND[places], self.norm_N[places]
        positives = self.positives.chosen(places, len(self.x_ND))
        records_Q = None if self.records_N is None else self.records_N[places]
        return GlobalBatch(x_QD, x_QD, positives, x_QD.new_ones(len(x_QD)), 0, norm_Q, norm_Q, records_Q)


def gather_batch(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    transform: Callable[[Tensor], Tensor],
    *,
    embedding_size: int,
    num_classes: int,
    step: int,
    device: torch.device,
    group: ProcessGroup | None,
    ignore_label: int | None = None,
    several: bool = True,
    records: Tensor | None = None,
    num_records: int | None = None,
) -> GlobalBatch:
    """Check the batch of this process, gather the batches of all processes, and check their values.

    Args:
        embeddings: (n, embedding_size) of this process; n may differ between processes.
        labels: (n,) class ids, or (n, L) padded with -1.
        weight: (n,) weights; None for ones.
        transform: applied to the embeddings of this process before they are gathered.
        step: the head's step, for messages.
        device: the head's device.
        ignore_label: samples with this label are left out, so that the batch may be empty; None for none.
        several: whether labels may be (n, L).
        records: (n,) record numbers in [0, num_records).
        num_records: number of training records; None for a head that keeps nothing per record and takes no numbers.

    Raises:
        ValueError: on all processes, also if only one has a wrong input.
    """
    fault = batch_fault(embeddings, labels, weight, embedding_size, device, several=several)
    fault = records_fault(records, len(labels), num_records) if fault is None else fault
    if ignore_label is not None and fault is None:
        labels, kept = without(ignore_label, labels, num_classes)
        embeddings = embeddings[kept.to(embeddings.device)]
        weight, records = (given if given is None else given[kept.to(given.device)] for given in (weight, records))
    width = labels.shape[1] if not fault and labels.ndim == 2 else 0
    sizes, width = gather_shapes(0 if fault else len(embeddings), width, device, group, fault)
    if width:
        labels = (labels if labels.ndim == 2 else labels[:, None]).to(torch.int64)
        labels = functional.pad(labels, (0, width - labels.shape[1]), value=-1)
    x_nD = transform(embeddings)
    norm_n = torch.linalg.vector_norm(embeddings.to(x_nD.dtype), dim=1)
    batch = gather(x_nD, norm_n, labels, weight, sizes, group, records)
    if ignore_label is not None:
        batch = replace(batch, positives=batch.positives.without_target(ignore_label))
    check_values(batch, num_classes, step, may_be_empty=ignore_label is not None, num_records=num_records)
    return batch


def without(ignore_label: int, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the labels of the samples of this process that have another label, and their positions.

    Of several labels, an ignored class stays: it is no negative of its sample. `Positives.without_target` drops it from
    the targets. A number that is no class becomes padding.
    """
    labels = labels.to(torch.int64)
    ignored = labels == ignore_label
    if labels.ndim == 2:
        padded = labels.masked_fill(ignored, -1)
        ignored = ignored.any(dim=1) & (padded == -1).all(dim=1)
        labels = labels if 0 <= ignore_label < num_classes else padded
    kept = (~ignored).nonzero()[:, 0]
    return labels[kept], kept


def gather(
    x_nD: Tensor,
    norm_n: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    sizes: list[int],
    group: ProcessGroup | None,
    records: Tensor | None = None,
) -> GlobalBatch:
    """Gather the batches of all processes in two collectives: embeddings with lengths and weights, and integers.

    Args:
        x_nD: embeddings of this process.
        norm_n: their lengths.
        labels: (n,) class ids.
        weight: (n,) weights; None for ones.
        sizes: number of samples of each process.
        group: the processes.
        records: (n,) record numbers; None for none.
    """
    weight_n = x_nD.new_ones(len(x_nD)) if weight is None else weight.detach().to(x_nD)
    packed = gather_rows(torch.cat([x_nD.detach(), norm_n.detach()[:, None], weight_n[:, None]], dim=1), sizes, group)
    integers, records_N = labels.to(x_nD.device, torch.int64), None
    if records is not None:
        integers = torch.column_stack([integers, records.to(integers)])
    integers = gather_rows(integers, sizes, group)
    if records is not None:
        integers, records_N = integers[:, :-1].reshape(-1, *labels.shape[1:]), integers[:, -1].contiguous()
    positives = positives_of(integers)
    start = sum(sizes[: rank_and_size(group)[0]])
    x_ND, norm_N, weight_N = packed[:, :-2].contiguous(), packed[:, -2].contiguous(), packed[:, -1].contiguous()
    return GlobalBatch(x_nD, x_ND, positives, weight_N, start, norm_n, norm_N, records_N)


def gather_embeddings(
    embeddings: Tensor,
    transform: Callable[[Tensor], Tensor],
    *,
    embedding_size: int,
    device: torch.device,
    group: ProcessGroup | None,
) -> tuple[Tensor, list[int]]:
    """Return the embeddings of all processes, transformed, in rank order, and the number of each process.

    Raises:
        ValueError: on all processes, also if only one has a wrong input.
    """
    fault = embeddings_fault(embeddings, embedding_size, device)
    sizes = gather_sizes(0 if fault else len(embeddings), device, group, fault)
    return gather_rows(transform(embeddings), sizes, group), sizes


def check_values(
    batch: GlobalBatch, num_classes: int, step: int, *, may_be_empty: bool = False, num_records: int | None = None
) -> None:
    """Raise a ValueError unless numbers are in range, embeddings finite, and weights finite and not negative."""
    if len(batch.x_ND) == 0 and not may_be_empty:
        raise ValueError("the batches of all processes are empty, but the loss needs at least one sample")
    labels_P, sample_P = batch.positives.labels_P, batch.positives.sample_P
    if sample_P is not None and (missing := torch.bincount(sample_P, minlength=len(batch.x_ND)) == 0).any():
        raise ValueError(
            f"{int(missing.sum())} of {len(missing)} samples of the global batch at step {step} have no label but -1; "
            "each needs one"
        )
    outside = (labels_P < 0) | (labels_P >= num_classes)
    if outside.any():
        raise ValueError(
            f"label {int(labels_P[outside][0])} at step {step} is out of range; class ids must be in "
            f"[0, num_classes={num_classes})"
        )
    if batch.records_N is not None and num_records is not None:
        outside = (batch.records_N < 0) | (batch.records_N >= num_records)
        if outside.any():
            raise ValueError(
                f"record {int(batch.records_N[outside][0])} at step {step} is out of range; record numbers must be in "
                f"[0, num_records={num_records})"
            )
    broken = ~torch.isfinite(batch.x_ND).all(dim=1)
    if broken.any():
        raise ValueError(
            f"embeddings contain NaN or Inf at step {step}: {int(broken.sum())} of {len(broken)} samples of the "
            "global batch; a lower learning rate, warm-up or gradient clipping usually helps"
        )
    weight_N = batch.weight_N
    if not (torch.isfinite(weight_N).all() and (weight_N >= 0).all()):
        raise ValueError(f"weight at step {step} must be finite and not negative")
