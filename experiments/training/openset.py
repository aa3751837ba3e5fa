"""Open-set evaluation: how well embeddings separate classes that were not trained on.

Every pair of images is scored by cosine once, in blocks. Scores are counted in 2^16 bins, so memory does not grow with
the number of pairs, and sums over blocks are exact integers.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..protocols.search import best_mate_ranks

BINS = 2**16
BLOCK = 1024


def open_set(embeddings: Tensor, labels: Tensor, far: float = 1e-3) -> dict[str, float]:
    """Compute verification over all pairs and identification of each image among all others.

    Args:
        embeddings: (N, D), any length.
        labels: (N,) class ids.
        far: false accept rate for `tar_at_far`.

    Returns:
        verification_accuracy: mean of true accept rate and true reject rate at the best threshold.
        tar_at_far_...: largest true accept rate at a threshold whose false accept rate is at most `far`.
        rank1: fraction of the images, of classes with at least two, whose nearest other image has their class. An image
            of another class at the same distance counts as nearer, as in `protocols.search`.
        Thresholds have a resolution of 2^-15.

    Raises:
        ValueError: embeddings with NaN or Inf; no two images of one class, or all images of one class.
    """
    if not 0 < far < 1:
        raise ValueError(f"evaluate.far={far} must be in (0, 1); 1e-3 accepts one of 1,000 impostor pairs")
    if not torch.isfinite(embeddings).all():
        raise ValueError("the embeddings of the held-out classes hold NaN or Inf; the training has diverged")
    unit = normalize(embeddings.float())
    genuine = torch.zeros(BINS, dtype=torch.int64)
    impostor = torch.zeros(BINS, dtype=torch.int64)
    correct = queries = 0
    for start in range(0, len(unit), BLOCK):
        scores = unit[start : start + BLOCK] @ unit.T
        same = labels[start : start + BLOCK, None] == labels
        rows = torch.arange(len(scores))
        itself = (rows, rows + start)
        same[itself] = False
        scores[itself] = -torch.inf
        has_mate = same.any(1)
        correct += int(((best_mate_ranks(scores, same) == 1) & has_mate).sum())
        queries += int(has_mate.sum())
        # Count each pair once: the columns after the image's own.
        scores, same = scores[:, start:], same[:, start:]
        later = torch.arange(scores.shape[1]) > rows[:, None]
        bins = scores.add_(1).mul_(BINS / 2).clamp_(0, BINS - 1).long()
        genuine += torch.bincount(bins[same & later], minlength=BINS)
        impostor += torch.bincount(bins[~same & later], minlength=BINS)
    if not queries or not impostor.sum():
        raise ValueError("two classes must be held out, one of them with two images; raise data.num_heldout")
    accuracy, tar = _verification(genuine, impostor, far)
    return dict(zip(names(far), (accuracy, tar, correct / queries), strict=True))


def names(far: float) -> list[str]:
    """Return the names of the metrics of `open_set`, in its order."""
    return ["verification_accuracy", f"tar_at_far_{far:.0e}".replace("e-0", "e-"), "rank1"]


def _verification(genuine: Tensor, impostor: Tensor, far: float) -> tuple[float, float]:
    """Return the best accuracy, and the true accept rate at this false accept rate, from histograms of the scores."""
    # Acceptance rates with the threshold at the lower edge of each bin, and of accepting nothing.
    accepted_genuine, accepted_impostor = _share_from(genuine), _share_from(impostor)
    accuracy = float((accepted_genuine + 1 - accepted_impostor).max() / 2)
    return accuracy, float(accepted_genuine[accepted_impostor <= far].max())


def _share_from(histogram: Tensor) -> Tensor:
    """Return the fraction of the counts in each bin or above, (BINS + 1,)."""
    counts = torch.cat([histogram.flip(0).cumsum(0).flip(0), histogram.new_zeros(1)])
    return counts.double() / histogram.sum()
