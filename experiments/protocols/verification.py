"""`protocol=lfw`: are two images of one class? As of Labeled Faces in the Wild (Huang et al. 2007): ten folds, the
threshold of each chosen on the other nine.

For LFW itself, CFP, AgeDB, CALFW, CPLFW and whatever else comes as pairs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.images import absolute, several
from data.pairs import Pairs, read_pairs

from ..models.model import Model
from . import Result, Same, Scores, bootstrap, rate
from .options import rates_of, whole
from .rates import Ranking, Weights, check


class Verification:
    """
    Args:
        source: a .bin, LFW's pairs.txt, or a list `first<TAB>second<TAB>same`; or several.
        root: what paths are relative to; the list's folder unless given.
        folds: in file order.
        mirrored: whether embeddings are those of image and mirrored image, added.
        far: false accept rates at which the validation rate is told.
        threshold_step: of the accuracy, search thresholds on squared distances 0, step, 2 step, ... instead of all;
            InsightFace's is 0.01.
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
        if not several(source):
            raise ValueError("protocol.lfw.source=null: the path of a .bin or of a list of pairs is needed")
        if threshold_step is not None and not 1e-4 <= threshold_step < 4:
            raise ValueError(f"protocol.lfw.threshold_step={threshold_step}: must lie in [1e-4, 4); null for all")
        if root is not None and all(path.endswith(".bin") for path in several(source)):
            raise ValueError(f"protocol.lfw.root={root}: is of lists of pairs; a .bin holds its images")
        self.folds, self.mirrored, self.step = whole("protocol.lfw.folds", folds, 2), mirrored, threshold_step
        self.far = rates_of("protocol.lfw.far", far)
        self.resamples = whole("protocol.lfw.resamples", resamples, 0)
        self.pairs: dict[str, Pairs] = {}
        for path in map(absolute, several(source)):
            name = Path(path).stem
            if name in self.pairs:
                raise ValueError(f"protocol.lfw.source: two lists are called {name}; rename one")
            self.pairs[name] = pairs = read_pairs(path, root and absolute(root))
            check(np.zeros(len(pairs)), pairs.same, path)
            fold_of(len(pairs), self.folds, path)

    def check(self, model: Model) -> None:
        for pairs in self.pairs.values():
            model.view(pairs.images)

    def __call__(self, model: Model) -> list[Result]:
        results = []
        for name, pairs in self.pairs.items():
            embeddings = model.embed_all(*model.view(pairs.images), name, mirrored=self.mirrored)
            if model.processes.first:
                first, second = (embeddings[torch.from_numpy(each)].double() for each in (pairs.first, pairs.second))
                results.append(self.judge(name, (first * second).sum(1).numpy(), pairs.same))
        return results

    def judge(self, name: str, scores: Scores, same: Same) -> Result:
        """Of cosines (n,)."""
        check(scores, same, name)
        folds = fold_of(len(scores), self.folds, name)
        judged = on_grid = Folds(scores, same, folds)
        if self.step is not None:
            # The number of thresholds that a pair's squared distance does not lie below.
            places = np.searchsorted(np.arange(0, 4, self.step), 2 - 2 * scores, side="right")
            on_grid = Folds(-places.astype(np.float64), same, folds)
        accuracies = on_grid.accuracies()
        metrics = {
            "accuracy": float(accuracies.mean()),
            "accuracy_se": float(accuracies.std(ddof=1) / self.folds**0.5),
            **judged.validation(self.far),
            "eer": judged.ranking.plain.eer,
            "auc": judged.ranking.plain.auc,
        }

        # Pairs are drawn within their fold and kind, so that no resample lacks one.
        strata_of = 2 * folds + same
        order = np.argsort(strata_of, kind="stable")
        weights = np.empty(len(scores))

        def resampled(drawn: Weights) -> Mapping[str, float]:
            weights[order] = drawn
            rates = judged.ranking.rates(weights)
            accuracy = float(on_grid.accuracies(weights).mean())
            return {"accuracy": accuracy, **judged.validation(self.far, weights), "eer": rates.eer, "auc": rates.auc}

        intervals = bootstrap.intervals(resampled, np.bincount(strata_of).tolist(), self.resamples)
        counts = {"pairs": len(scores), "of one class": int(same.sum())}
        return Result(name, metrics, intervals, counts, {"rates": judged.ranking.plain, "scores": scores, "same": same})


def fold_of(count: int, folds: int, what: str = "pairs") -> NDArray[np.int64]:
    """Which fold each pair is in: contiguous, in file order, the first ones larger by one where need be."""
    if count < folds:
        raise ValueError(f"{what}: {count} pairs cannot be parted into {folds} folds; lower the number of folds")
    sizes = np.full(folds, count // folds) + (np.arange(folds) < count % folds)
    return np.repeat(np.arange(folds), sizes)


class Folds:
    """Each fold judged at the threshold that is best, or right for a false accept rate, on the others."""

    def __init__(self, scores: Scores, same: Same, folds: NDArray[np.int64]):
        self.ranking = Ranking(scores, same)
        self.folds = folds
        self.num_folds = int(folds.max()) + 1

    def accuracies(self, weights: Weights | None = None) -> NDArray[np.float64]:
        """(folds,). Of thresholds that are equally good the highest is taken."""
        w = np.ones(len(self.folds)) if weights is None else weights
        found = []
        for own_right, own_wrong, right, wrong in self._cuts(w):
            best = np.argmax(right - wrong)
            found.append((own_right[best] + own_wrong[-1] - own_wrong[best]) / (own_right[-1] + own_wrong[-1]))
        return np.array(found)

    def validation(self, far: Sequence[float], weights: Weights | None = None) -> dict[str, float]:
        """The share of pairs of one class that is accepted, all folds together, at the lowest thresholds whose false
        accept rate on the other folds is at most `far`."""
        w = np.ones(len(self.folds)) if weights is None else weights
        accepted, total = np.zeros(len(far)), 0.0
        for own_right, _, _, wrong in self._cuts(w):
            cuts = np.searchsorted(wrong / (wrong[-1] or 1), far, side="right") - 1
            accepted += own_right[cuts]
            total += own_right[-1]
        return {f"val_at_far_{rate(each)}": float(share) for each, share in zip(far, accepted / total, strict=True)}

    def _cuts(self, w: Weights):  # type: ignore[no-untyped-def]
        """Of each fold, what is accepted at each cut: of one class and of two, in the fold and in the others."""
        all_right, all_wrong = self.ranking.accepted(w)
        for fold in range(self.num_folds):
            own_right, own_wrong = self.ranking.accepted(w * (self.folds == fold))
            yield own_right, own_wrong, all_right - own_right, all_wrong - own_wrong
