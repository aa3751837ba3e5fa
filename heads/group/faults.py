"""Checks of a batch of this process, whose errors all processes then raise together."""

import torch
from torch import Tensor


def embeddings_fault(embeddings: Tensor, embedding_size: int, device: torch.device) -> ValueError | None:
    """Return an error about type, shape, dtype or device of this process's embeddings; None if they are usable."""
    if not isinstance(embeddings, Tensor):
        return ValueError(
            f"embeddings must be a tensor (batch, embedding_size={embedding_size}), not {_kind(embeddings)}"
        )
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_size or not embeddings.is_floating_point():
        return ValueError(
            f"embeddings of {list(embeddings.shape)} {embeddings.dtype} must be "
            f"(batch, embedding_size={embedding_size}) of a float dtype"
        )
    if embeddings.device != device:
        return ValueError(
            f"embeddings on device {embeddings.device} must be on the head's device, {device}; "
            f"move them, or the head with head.to({str(embeddings.device)!r})"
        )
    return None


def batch_fault(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    embedding_size: int,
    device: torch.device,
    *,
    several: bool = False,
) -> ValueError | None:
    """Return an error about the batch of this process; None if it is usable. `several` allows (n, L) labels."""
    if (fault := embeddings_fault(embeddings, embedding_size, device)) is not None:
        return fault
    if not isinstance(labels, Tensor):
        return ValueError(
            f"labels must be a tensor of integer class ids, not {_kind(labels)}; torch.as_tensor makes one"
        )
    integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    fits = labels.shape[:1] == embeddings.shape[:1] and (
        labels.ndim == 1 or (several and labels.ndim == 2 and labels.shape[1] > 0)
    )
    if not fits or not integer:
        rows = ", or a row of them padded with -1," if several else ""
        return ValueError(
            f"labels of {list(labels.shape)} {labels.dtype} must be one integer class id{rows} for each of the "
            f"{len(embeddings)} embeddings"
        )
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or weight.shape != labels.shape[:1] or weight.is_complex():
        given = list(weight.shape) if isinstance(weight, Tensor) else _kind(weight)
        return ValueError(f"weight of {given} must be a tensor with one number for each of the {len(labels)} labels")
    if weight.requires_grad and torch.is_grad_enabled():
        return ValueError("weight requires a gradient, but a head computes none for weights; pass weight.detach()")
    return None


def records_fault(records: Tensor | None, count: int, num_records: int | None) -> ValueError | None:
    """Return an error about the record numbers of `count` samples of this process; None if they are usable."""
    if num_records is None:
        if records is None:
            return None
        return ValueError("records were given, but this head keeps nothing per record; leave them out")
    if records is None:
        return ValueError(
            f"records are missing, and this head keeps a number for each of the {num_records:,} training records; pass "
            "their positions (n,) among the training records, as head(embeddings, labels, weight, records)"
        )
    if not isinstance(records, Tensor) or records.shape != (count,) or records.dtype not in (torch.int64, torch.int32):
        given = f"{list(records.shape)} {records.dtype}" if isinstance(records, Tensor) else _kind(records)
        return ValueError(f"records of {given} must be one int64 record number for each of the {count} embeddings")
    return None


def _kind(value: object) -> str:
    return type(value).__name__
