"""Open-set evaluation: how well embeddings tell classes apart that were never trained on.

Every pair of images is scored by cosine once, in blocks. Scores fall into 2^16 bins, so memory does
not grow with the number of pairs, and sums over blocks are exact integers.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..protocols.search import best_mate_ranks

BINS = 2**16
BLOCK = 1024


def open_set(embeddings: Tensor, labels: Tensor, far: float = 1e-3) -> dict[str, float]:
    """Verification over all pairs and identification of each image among all others.

    Args:
        embeddings: (N, D), any length.
        labels: (N,) class ids.
        far: false accept rate for `tar_at_far`.

    Returns:
        verification_accuracy: mean of true accept and true reject rate at the best threshold.
        tar_at_far_...: largest true accept rate at a threshold whose false accept rate is at most `far`.
        rank1: share of the images, of classes with at least two, whose nearest other image is of their class. An image
            of another class that is as near counts as nearer, as in `protocols.search`.
        Thresholds are resolved to 2^-15.

    Raises:
        ValueError: NaN or Inf embeddings; no two images of one class, or of one class only.
    """
    if not 0 < far < 1:
        raise ValueError(f"evaluate.far={far}: a rate in (0, 1) is needed")
    if not torch.isfinite(embeddings).all():
        raise ValueError("evaluation: embeddings hold NaN or Inf")
    unit = normalize(embeddings.float())
    genuine = torch.zeros(BINS, dtype=torch.int64)
    impostor = torch.zeros(BINS, dtype=torch.int64)
    found_first = queries = 0
    for start in range(0, len(unit), BLOCK):
        scores = unit[start : start + BLOCK] @ unit.T
        same = labels[start : start + BLOCK, None] == labels
        rows = torch.arange(len(scores))
        itself = (rows, rows + start)
        same[itself] = False
        scores[itself] = -torch.inf
        has_mate = same.any(1)
        found_first += int(((best_mate_ranks(scores, same) == 1) & has_mate).sum())
        queries += int(has_mate.sum())
        # Each pair once: the columns after the image's own.
        scores, same = scores[:, start:], same[:, start:]
        later = torch.arange(scores.shape[1]) > rows[:, None]
        bins = scores.add_(1).mul_(BINS / 2).clamp_(0, BINS - 1).long()
        genuine += torch.bincount(bins[same & later], minlength=BINS)
        impostor += torch.bincount(bins[~same & later], minlength=BINS)
    if not queries or not impostor.sum():
        raise ValueError("evaluation: at least two classes, and one with two images, are needed")
    # Rates of acceptance at the lower edge of each bin, and of accepting nothing.
    accepted_genuine = _share_from(genuine)
    accepted_impostor = _share_from(impostor)
    accuracy = float((accepted_genuine + 1 - accepted_impostor).max() / 2)
    tar = float(accepted_genuine[accepted_impostor <= far].max())
    return dict(zip(names(far), (accuracy, tar, found_first / queries), strict=True))


def names(far: float) -> list[str]:
    """Return the names of the metrics of `open_set`, in its order."""
    return ["verification_accuracy", f"tar_at_far_{far:.0e}".replace("e-0", "e-"), "rank1"]


def _share_from(histogram: Tensor) -> Tensor:
    """Share of the counts in each bin or above, (BINS + 1,)."""
    counts = torch.cat([histogram.flip(0).cumsum(0).flip(0), histogram.new_zeros(1)])
    return counts.double() / histogram.sum()
