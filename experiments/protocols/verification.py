"""`protocol=lfw`: decide whether two images are of one class, as in Labeled Faces in the Wild (Huang et al. 2007).

The pairs are divided into folds, ten by default, and the threshold of each fold is chosen on the others. It is for
LFW, CFP, AgeDB, CALFW, CPLFW and every other set of pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data.formats.pairs import Pairs, names_of, read_pairs
from data.options import flag, path_of, paths_of, whole

from ..models.model import Model
from . import Result, Same, Scores, bootstrap, format_rate
from .folds import Folding, Folds, assign_folds
from .options import rates_of
from .rates import Weights, check_pairs, notes_on_low_rates

OPTION = "protocol.lfw"


class Verification:
    """Verification of pairs of images in folds.

    Args:
        source: a .bin file, the pairs.txt of LFW, or a list of lines `first<TAB>second<TAB>same`; or several of them.
        root: folder that paths in lists are relative to; None for the folder of the list.
        folds: number of folds; None for the number in the header of the list, or else 10. See `assign_folds`.
        mirrored: add the embedding of the mirrored image.
        far: false accept rates at which the validation rate is reported.
        threshold_step: search the thresholds of the accuracy on squared distances 0, step, 2 step, ..., as
            InsightFace does with 0.01; None for the midpoints between neighbouring scores.
        resamples: bootstrap draws over pairs; 0 for no intervals.
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
        paths, root = paths_of(f"{OPTION}.source", source), path_of(f"{OPTION}.root", root)
        if not paths:
            raise ValueError(f"{OPTION}.source=null must name a .bin file or a list of pairs")
        if threshold_step is not None:
            is_number = isinstance(threshold_step, int | float) and not isinstance(threshold_step, bool)
            if not is_number or not 1e-4 <= threshold_step < 4:
                raise ValueError(
                    f"{OPTION}.threshold_step={threshold_step} must be in [1e-4, 4); null searches all thresholds"
                )
        if root is not None and all(path.endswith(".bin") for path in paths):
            raise ValueError(
                f"{OPTION}.root={root} applies to pair lists only; a .bin file already contains its images, so remove "
                "root"
            )
        self.threshold_step = threshold_step
        num_folds = None if folds is None else whole(f"{OPTION}.folds", folds, 2)
        self.mirrored = flag(f"{OPTION}.mirrored", mirrored)
        self.far = rates_of(f"{OPTION}.far", far)
        self.resamples = whole(f"{OPTION}.resamples", resamples, 0)
        self.pairs: dict[str, Pairs] = {}
        self.folds: dict[str, Folding] = {}
        for path, name in zip(paths, names_of(f"{OPTION}.source", paths), strict=True):
            self.pairs[name] = pairs = read_pairs(path, root)
            check_pairs(np.zeros(len(pairs)), pairs.same, path)
            self.folds[name] = assign_folds(pairs, num_folds)

    @property
    def names(self) -> list[str]:
        """Names of the sets."""
        return list(self.pairs)

    def check(self, model: Model) -> None:
        """Raise ValueError if the model cannot embed the first image of each set."""
        for pairs in self.pairs.values():
            model.embed(*model.view(pairs.images), np.array([0]), mirrored=self.mirrored)

    def __call__(self, model: Model) -> list[Result]:
        """Return a result for each set on the first process."""
        scores = {}
        for name, pairs in self.pairs.items():
            embeddings = model.embed_all(*model.view(pairs.images), name, mirrored=self.mirrored)
            if model.processes.is_rank_zero:
                first, second = (embeddings[torch.from_numpy(side)].double() for side in (pairs.first, pairs.second))
                scores[name] = (first * second).sum(1).numpy()
        # All sets are embedded by now, so an error after this line leaves no process waiting.
        return [
            self.evaluate(name, cosines, self.pairs[name].same, *self.folds[name]) for name, cosines in scores.items()
        ]

    def evaluate(
        self, name: str, scores: Scores, same: Same, folds: NDArray[np.int64], notes: Sequence[str] = ()
    ) -> Result:
        """Evaluate the cosines of pairs.

        Args:
            name: name of the set.
            scores: cosines, (n,).
            same: whether each pair is of one class, (n,).
            folds: fold of each pair, (n,).
            notes: remarks on the folds, which are added to the result.
        """
        check_pairs(scores, same, name)
        num_folds = int(folds.max()) + 1
        at_scores = on_grid = Folds(scores, same, folds)
        if self.threshold_step is not None:
            # The number of thresholds that are at most the squared distance of a pair.
            places = np.searchsorted(np.arange(0, 4, self.threshold_step), 2 - 2 * scores, side="right")
            on_grid = Folds(-places.astype(np.float64), same, folds, midway=False)

        def metrics(weights: Weights | None = None) -> tuple[NDArray[np.float64], dict[str, float]]:
            accuracies, shares = at_scores.evaluate(self.far, weights)
            if on_grid is not at_scores:
                accuracies, _ = on_grid.evaluate((), weights)
            rates = at_scores.ranking.rates(weights)
            validation = {f"val_at_far_{format_rate(far)}": share for far, share in zip(self.far, shares, strict=True)}
            return accuracies, {**validation, "eer": rates.eer, "auc": rates.auc}

        accuracies, others = metrics()
        values = {
            "accuracy": float(accuracies.mean()),
            "accuracy_se": float(accuracies.std(ddof=1) / num_folds**0.5),
            **others,
        }
        # Pairs are drawn within their fold and kind, so that every resample has pairs of all of them.
        strata_of = 2 * folds + same
        order = np.argsort(strata_of, kind="stable")
        weights = np.empty(len(scores))

        def resampled(drawn: Weights) -> Mapping[str, float]:
            weights[order] = drawn
            accuracies, others = metrics(weights)
            return {"accuracy": float(accuracies.mean()), **others}

        intervals = bootstrap.intervals(resampled, np.bincount(strata_of).tolist(), self.resamples)
        counts = {"pairs": len(scores), "of one class": int(same.sum())}
        negatives = int(min((~same & (folds != fold)).sum() for fold in range(num_folds)))
        all_notes = [*notes, *notes_on_low_rates(self.far, negatives, "val_at_far_")]
        curves = {"rates": at_scores.ranking.unweighted, "scores": scores, "same": same}
        return Result(name, values, intervals, counts, all_notes, curves)
