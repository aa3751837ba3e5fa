"""`protocol=lfw`: are two images of one class? As of Labeled Faces in the Wild (Huang et al. 2007): ten folds, the
threshold of each chosen on the other nine.

For LFW itself, CFP, AgeDB, CALFW, CPLFW and whatever else comes as pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data.options import flag, path_of, paths_of, whole
from data.pairs import Pairs, names_of, read_pairs

from ..models.model import Model
from . import Result, Same, Scores, bootstrap, rate
from .options import rates_of
from .rates import Ranking, Weights, check, unresolved


class Verification:
    """
    Args:
        source: a .bin, LFW's pairs.txt, or a list `first<TAB>second<TAB>same`; or several.
        root: what paths are relative to; the list's folder unless given.
        folds: in file order.
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
        folds: int = 10,
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
        self.folds, self.step = whole(f"{option}.folds", folds, 2), threshold_step
        self.mirrored = flag(f"{option}.mirrored", mirrored)
        self.far = rates_of(f"{option}.far", far)
        self.resamples = whole(f"{option}.resamples", resamples, 0)
        self.pairs: dict[str, Pairs] = {}
        for path, name in zip(paths, names_of(f"{option}.source", paths), strict=True):
            self.pairs[name] = pairs = read_pairs(path, root)
            check(np.zeros(len(pairs)), pairs.same, path)
            fold_of(pairs.same, self.folds, path)

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
            if model.processes.first:
                first, second = (embeddings[torch.from_numpy(each)].double() for each in (pairs.first, pairs.second))
                scores[name] = (first * second).sum(1).numpy()
        # When all is embedded: a set that cannot be judged leaves no process waiting.
        return [self.judge(name, of_pairs, self.pairs[name].same) for name, of_pairs in scores.items()]

    def judge(self, name: str, scores: Scores, same: Same) -> Result:
        """Of cosines (n,)."""
        check(scores, same, name)
        folds = fold_of(same, self.folds, name)
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
            "accuracy_se": float(accuracies.std(ddof=1) / self.folds**0.5),
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
        negatives = int(min((~same & (folds != fold)).sum() for fold in range(self.folds)))
        notes = unresolved(self.far, negatives, "val_at_far_")
        curves = {"rates": judged.ranking.plain, "scores": scores, "same": same}
        return Result(name, found, intervals, counts, notes, curves)


def fold_of(same: Same, folds: int, what: str = "pairs") -> NDArray[np.int64]:
    """Which fold each pair is in: contiguous, in file order, the first ones larger by one where need be.

    Raises:
        ValueError: fewer pairs than folds, or pairs of one class, or of two, in a single fold only.
    """
    count = len(same)
    if count < folds:
        raise ValueError(f"{what}: {count} pairs cannot be parted into {folds} folds; lower the number of folds")
    sizes = np.full(folds, count // folds) + (np.arange(folds) < count % folds)
    numbers = np.repeat(np.arange(folds), sizes)
    for kind, chosen in (("one class", same), ("two classes", ~same)):
        if len(np.unique(numbers[chosen])) < 2:
            raise ValueError(
                f"{what}: pairs of {kind} lie in one of {folds} folds only, and nothing is left to choose its "
                "threshold by; mix the pairs, or change the number of folds"
            )
    return numbers


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
