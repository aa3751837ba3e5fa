"""Folds of pairs: how pairs are assigned to them, and the accuracy of each at thresholds chosen on the others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.formats.pairs import Pairs

from . import Same, Scores
from .rates import Ranking, Weights


class Folding(NamedTuple):
    """Assignment of pairs to folds.

    Args:
        numbers: fold of each pair, (n,).
        notes: remarks that a reader needs to interpret the metrics.
    """

    numbers: NDArray[np.int64]
    notes: list[str]


def assign_folds(pairs: Pairs, num_folds: int | None = None) -> Folding:
    """Assign pairs to folds.

    A .bin file, and a list whose header announces this number of folds, are cut in file order, as InsightFace and LFW
    do. In other lists each fold gets its share of both kinds of pairs, because a list may have all pairs of one class
    first.

    Args:
        pairs: the pairs.
        num_folds: number of folds; None for the number in the header, or else 10.

    Raises:
        ValueError: fewer pairs than folds, or pairs of one kind in a single fold only.
    """
    same, number = pairs.same, num_folds or pairs.folds or 10
    if len(same) < number:
        raise ValueError(f"{pairs.path} has {len(same)} pairs for {number} folds; lower the number of folds")
    numbers = np.empty(len(same), np.int64)
    in_order = pairs.in_order or pairs.folds == number
    for chosen in [np.ones_like(same)] if in_order else [same, ~same]:
        sizes = [len(part) for part in np.array_split(np.flatnonzero(chosen), number)]
        numbers[chosen] = np.repeat(np.arange(number), sizes)
    present = np.array([np.bincount(numbers[chosen], minlength=number) > 0 for chosen in (same, ~same)])
    for kind, folds in zip(("one class", "two classes"), present, strict=True):
        if folds.sum() < 2:
            raise ValueError(
                f"{pairs.path} has pairs of {kind} in one of {number} folds only, so its threshold cannot be chosen "
                "on the other folds; mix the pairs, or change the number of folds"
            )
    notes = []
    if lacking := int((~present).any(0).sum()):
        cause = "in the order of the file" if in_order else "too few for each fold"
        notes.append(
            f"{lacking} of {number} folds have pairs of one kind only ({cause}). Their accuracy counts one kind of "
            "error, at a threshold chosen on other shares of both kinds; mix the pairs, or lower the number of folds"
        )
    if pairs.folds not in (None, number):
        notes.append(f"the header announces {pairs.folds} folds, and protocol.lfw.folds={number} replaces them")
    return Folding(numbers, notes)


class Folds:
    """Evaluation of each fold at the threshold that is best on the other folds, or has a false accept rate there.

    Args:
        scores: (n,).
        same: whether each pair is of one class, (n,).
        folds: fold of each pair, (n,).
        midway: whether the best threshold lies midway between two scores of the other folds, or at the upper one.
    """

    def __init__(self, scores: Scores, same: Same, folds: NDArray[np.int64], midway: bool = True):
        self.ranking = Ranking(scores, same)
        self.folds, self.midway = folds, midway
        self.num_folds = int(folds.max()) + 1

    def evaluate(self, far: Sequence[float], weights: Weights | None = None) -> tuple[NDArray[np.float64], list[float]]:
        """Return the accuracy of each fold, and the validation rate at each false accept rate.

        Args:
            far: false accept rates.
            weights: weights of the pairs, (n,).

        Returns:
            Accuracies (folds,). Of equally good thresholds the highest is taken.
            For each rate, the share of the pairs of one class that is accepted over all folds, at the lowest
            thresholds whose false accept rate on the other folds is at most this rate.
        """
        w = np.ones(len(self.folds)) if weights is None else weights
        all_right, all_wrong = self.ranking.accepted(w)
        accuracies, accepted = [], np.zeros(len(far))
        for fold in range(self.num_folds):
            # Accepted at each cut, of one class and of two: in the fold, and in the others.
            own_right, own_wrong = self.ranking.accepted(w * (self.folds == fold))
            right, wrong = all_right - own_right, all_wrong - own_wrong
            best = self._best(right, wrong)
            accuracies.append((own_right[best] + own_wrong[-1] - own_wrong[best]) / (own_right[-1] + own_wrong[-1]))
            accepted += own_right[np.searchsorted(wrong / wrong[-1], far, side="right") - 1]
        return np.array(accuracies), (accepted / all_right[-1]).tolist()

    def _best(self, right: Weights, wrong: Weights) -> int:
        """Return the cut at the threshold that separates the pairs of the other folds best."""
        best = int(np.argmax(right - wrong))
        if not self.midway or not best:
            return best
        both = right + wrong
        after = int(np.searchsorted(both, both[best], side="right"))  # the next cut that accepts another of them
        thresholds = self.ranking.thresholds
        if after == len(both):  # all pairs are accepted
            return after - 1
        middle = (thresholds[best] + thresholds[after]) / 2
        return int(np.searchsorted(-thresholds, -middle, side="right")) - 1
