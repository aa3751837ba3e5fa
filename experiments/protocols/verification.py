"""`protocol=lfw`: are two images of one class? As of Labeled Faces in the Wild (Huang et al. 2007): ten folds, the
threshold of each chosen on the other nine.

For LFW itself, CFP, AgeDB, CALFW, CPLFW and whatever else comes as pairs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data.formats.pairs import Pairs, names_of, read_pairs
from data.options import flag, path_of, paths_of, whole

from ..models.model import Model
from . import Result, Same, Scores, bootstrap, rate
from .options import rates_of
from .rates import Ranking, Weights, check, unresolved


class Folding(NamedTuple):
    """
    Args:
        numbers: which fold each pair is in, (n,).
        remarks: what must be known to read the figures.
    """

    numbers: NDArray[np.int64]
    remarks: list[str]


class Verification:
    """
    Args:
        source: a .bin, LFW's pairs.txt, or a list `first<TAB>second<TAB>same`; or several.
        root: what paths are relative to; the list's folder unless given.
        folds: how many; those of the list's header, or else 10, unless given. See `folds_of`.
        mirrored: whether embeddings are those of image and mirrored image, added.
        far: false accept rates at which the validation rate is told.
        threshold_step: of the accuracy, search thresholds on squared distances 0, step, 2 step, ... instead of those
            midway between neighbouring scores; InsightFace's is 0.01.
        resamples: of the bootstrap.
    """

    def __init__(
        self,
        source: str | Sequence[str] | None,
        root: str | None = None,
        folds: int | None = None,
        mirrored: bool = True,
        far: Sequence[float] = (1e-3,),
        threshold_step: float | None = None,
        resamples: int = 1000,
    ):
        option = "protocol.lfw"
        paths, root = paths_of(f"{option}.source", source), path_of(f"{option}.root", root)
        if not paths:
            raise ValueError(f"{option}.source=null: the path of a .bin or of a list of pairs is needed")
        if threshold_step is not None:
            is_number = isinstance(threshold_step, int | float) and not isinstance(threshold_step, bool)
            if not is_number or not 1e-4 <= threshold_step < 4:
                raise ValueError(f"{option}.threshold_step={threshold_step}: must lie in [1e-4, 4); null for none")
        if root is not None and all(path.endswith(".bin") for path in paths):
            raise ValueError(f"{option}.root={root}: is of lists of pairs; a .bin holds its images")
        self.step = threshold_step
        wanted = None if folds is None else whole(f"{option}.folds", folds, 2)
        self.mirrored = flag(f"{option}.mirrored", mirrored)
        self.far = rates_of(f"{option}.far", far)
        self.resamples = whole(f"{option}.resamples", resamples, 0)
        self.pairs: dict[str, Pairs] = {}
        self.folds: dict[str, Folding] = {}
        for path, name in zip(paths, names_of(f"{option}.source", paths), strict=True):
            self.pairs[name] = pairs = read_pairs(path, root)
            check(np.zeros(len(pairs)), pairs.same, path)
            self.folds[name] = folds_of(pairs, wanted)

    @property
    def names(self) -> list[str]:
        return list(self.pairs)

    def check(self, model: Model) -> None:
        for pairs in self.pairs.values():
            model.embed(*model.view(pairs.images), np.array([0]), mirrored=self.mirrored)

    def __call__(self, model: Model) -> list[Result]:
        scores = {}
        for name, pairs in self.pairs.items():
            embeddings = model.embed_all(*model.view(pairs.images), name, mirrored=self.mirrored)
            if model.processes.is_rank_zero:
                first, second = (embeddings[torch.from_numpy(each)].double() for each in (pairs.first, pairs.second))
                scores[name] = (first * second).sum(1).numpy()
        # When all is embedded: a set that cannot be judged leaves no process waiting.
        return [self.judge(name, found, self.pairs[name].same, *self.folds[name]) for name, found in scores.items()]

    def judge(
        self, name: str, scores: Scores, same: Same, folds: NDArray[np.int64], remarks: Sequence[str] = ()
    ) -> Result:
        """Judge cosines (n,).

        Args:
            folds: which fold each pair is in, (n,).
            remarks: what must be known of these.
        """
        check(scores, same, name)
        number = int(folds.max()) + 1
        judged = on_grid = Folds(scores, same, folds)
        if self.step is not None:
            # The number of thresholds that a pair's squared distance does not lie below.
            places = np.searchsorted(np.arange(0, 4, self.step), 2 - 2 * scores, side="right")
            on_grid = Folds(-places.astype(np.float64), same, folds, midway=False)

        def metrics(weights: Weights | None = None) -> tuple[NDArray[np.float64], dict[str, float]]:
            accuracies, shares = judged.judge(self.far, weights)
            if on_grid is not judged:
                accuracies, _ = on_grid.judge((), weights)
            rates = judged.ranking.rates(weights)
            validation = {f"val_at_far_{rate(each)}": share for each, share in zip(self.far, shares, strict=True)}
            return accuracies, {**validation, "eer": rates.eer, "auc": rates.auc}

        accuracies, others = metrics()
        found = {
            "accuracy": float(accuracies.mean()),
            "accuracy_se": float(accuracies.std(ddof=1) / number**0.5),
            **others,
        }

        # Pairs are drawn within their fold and kind, so that no resample lacks one.
        strata_of = 2 * folds + same
        order = np.argsort(strata_of, kind="stable")
        weights = np.empty(len(scores))

        def resampled(drawn: Weights) -> Mapping[str, float]:
            weights[order] = drawn
            accuracies, others = metrics(weights)
            return {"accuracy": float(accuracies.mean()), **others}

        intervals = bootstrap.intervals(resampled, np.bincount(strata_of).tolist(), self.resamples)
        counts = {"pairs": len(scores), "of one class": int(same.sum())}
        negatives = int(min((~same & (folds != fold)).sum() for fold in range(number)))
        notes = [*remarks, *unresolved(self.far, negatives, "val_at_far_")]
        curves = {"rates": judged.ranking.plain, "scores": scores, "same": same}
        return Result(name, found, intervals, counts, notes, curves)


def folds_of(pairs: Pairs, wanted: int | None = None) -> Folding:
    """Deal pairs to folds.

    A .bin, and a list whose header announces this number of folds, are cut in file order, as InsightFace and LFW do. Of
    other lists each fold gets its share of both kinds: a list may hold all pairs of one class first.

    Raises:
        ValueError: fewer pairs than folds, or pairs of one class, or of two, in a single fold only.
    """
    same, number = pairs.same, wanted or pairs.folds or 10
    if len(same) < number:
        raise ValueError(
            f"{pairs.path}: {len(same)} pairs cannot be parted into {number} folds; lower the number of folds"
        )
    numbers = np.empty(len(same), np.int64)
    in_order = pairs.in_order or pairs.folds == number
    for chosen in [np.ones_like(same)] if in_order else [same, ~same]:
        sizes = [len(part) for part in np.array_split(np.flatnonzero(chosen), number)]
        numbers[chosen] = np.repeat(np.arange(number), sizes)
    present = np.array([np.bincount(numbers[chosen], minlength=number) > 0 for chosen in (same, ~same)])
    for kind, folds in zip(("one class", "two classes"), present, strict=True):
        if folds.sum() < 2:
            raise ValueError(
                f"{pairs.path}: pairs of {kind} lie in one of {number} folds only, and nothing is left to choose its "
                "threshold by; mix the pairs, or change the number of folds"
            )
    remarks = []
    if lacking := int((~present).any(0).sum()):
        where = "in the order of the file" if in_order else "too few for each fold"
        remarks.append(
            f"{lacking} of {number} folds hold pairs of one kind only ({where}): their accuracy counts one kind of "
            "error, at a threshold chosen on other shares of both; mix the pairs, or lower the number of folds"
        )
    if pairs.folds not in (None, number):
        remarks.append(f"the header announces {pairs.folds} folds, and protocol.lfw.folds={number} was asked for")
    return Folding(numbers, remarks)


class Folds:
    """Each fold judged at the threshold that is best, or right for a false accept rate, on the others.

    Args:
        midway: whether the best threshold lies in the middle between two scores of the other folds, or at the upper.
    """

    def __init__(self, scores: Scores, same: Same, folds: NDArray[np.int64], midway: bool = True):
        self.ranking = Ranking(scores, same)
        self.folds, self.midway = folds, midway
        self.num_folds = int(folds.max()) + 1

    def judge(self, far: Sequence[float], weights: Weights | None = None) -> tuple[NDArray[np.float64], list[float]]:
        """
        Returns:
            accuracy of each fold (folds,). Of thresholds that are equally good the highest is taken.
            for each rate, the share of pairs of one class that is accepted, all folds together, at the lowest
                thresholds whose false accept rate on the other folds is at most this.
        """
        w = np.ones(len(self.folds)) if weights is None else weights
        all_right, all_wrong = self.ranking.accepted(w)
        accuracies, accepted = [], np.zeros(len(far))
        for fold in range(self.num_folds):
            # What is accepted at each cut: of one class and of two, in the fold and in the others.
            own_right, own_wrong = self.ranking.accepted(w * (self.folds == fold))
            right, wrong = all_right - own_right, all_wrong - own_wrong
            best = self._best(right, wrong)
            accuracies.append((own_right[best] + own_wrong[-1] - own_wrong[best]) / (own_right[-1] + own_wrong[-1]))
            accepted += own_right[np.searchsorted(wrong / wrong[-1], far, side="right") - 1]
        return np.array(accuracies), (accepted / all_right[-1]).tolist()

    def _best(self, right: Weights, wrong: Weights) -> int:
        """The cut at the threshold that parts the others best."""
        best = int(np.argmax(right - wrong))
        if not self.midway or not best:
            return best
        both = right + wrong
        after = int(np.searchsorted(both, both[best], side="right"))  # the first cut that accepts another of them
        thresholds = self.ranking.thresholds
        if after == len(both):  # all are accepted
            return after - 1
        middle = (thresholds[best] + thresholds[after]) / 2
        return int(np.searchsorted(-thresholds, -middle, side="right")) - 1
