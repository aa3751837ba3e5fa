"""Losses of samples that are compared with each other: pairs and triplets.

Legend: N samples, A anchors among them, P most positives of an anchor.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def contrastive(logits_AN: Tensor, positive_AN: Tensor, own_AN: Tensor) -> Tensor:
    """Return the mean over the positives of each anchor of -log softmax over the other samples, (A,).

    Args:
        logits_AN: cosines over the temperature.
        positive_AN: bool, the positives, at least one for each anchor.
        own_AN: bool, the anchor itself.
    """
    total_A = logits_AN.masked_fill(own_AN, -torch.inf).logsumexp(1)
    return total_A - (logits_AN * positive_AN).sum(1) / positive_AN.sum(1)


def triplet(cos_AN: Tensor, positive_AN: Tensor, negative_AN: Tensor, margin: float, mining: str) -> Tensor:
    """Return the mean loss of the triplets of each anchor, (A,).

    Args:
        cos_AN: cosines c. A squared distance is 2 - 2 c.
        positive_AN, negative_AN: bool, at least one of each for each anchor.
        margin: the margin between squared distances.
        mining: "hard", "semihard" or "all"; see `NoCentersOptions`.
    """
    nearest_A = cos_AN.masked_fill(~negative_AN, -torch.inf).amax(1)
    if mining == "hard":
        farthest_A = cos_AN.masked_fill(~positive_AN, torch.inf).amin(1)
        return (2 * (nearest_A - farthest_A) + margin).relu()
    sum_A, count_A = torch.zeros_like(nearest_A), torch.zeros_like(nearest_A)
    outermost_A = cos_AN.masked_fill(~negative_AN, torch.inf).amin(1)
    for has_A, positive_A in positives_in_turn(cos_AN, positive_AN):
        if mining == "all":
            losses_AN = (2 * (cos_AN - positive_A[:, None]) + margin).relu() * (negative_AN & has_A[:, None])
            sum_A, count_A = sum_A + losses_AN.sum(1), count_A + (losses_AN > 0).sum(1)
        else:
            farther_AN = negative_AN & (cos_AN < positive_A[:, None])
            chosen_A = cos_AN.masked_fill(~farther_AN, -torch.inf).amax(1)
            chosen_A = torch.where(farther_AN.any(1), chosen_A, outermost_A)
            sum_A = sum_A + (2 * (chosen_A - positive_A) + margin).relu() * has_A
            count_A = count_A + has_A
    return sum_A / count_A.clamp(min=1)


def positives_in_turn(cos_AN: Tensor, positive_AN: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for the first positive of each anchor, the second, and so on: whether it exists (A,), and its cosine."""
    count_A = positive_AN.sum(1)
    place_AP = positive_AN.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(count_A.max())]
    for turn, place_A in enumerate(place_AP.T):
        yield turn < count_A, cos_AN.gather(1, place_A[:, None])[:, 0]
