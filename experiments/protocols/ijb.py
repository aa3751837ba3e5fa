"""`protocol=ijb`: templates, which are several images and video frames of one person (Maze et al. 2018: IJB-C).

1:1 verification of pairs of templates, and 1:N search in galleries in which some of the persons are not enrolled.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from data.formats.templates import Ids, read_pairs, read_subjects, read_templates, read_weights
from data.formats.unlabeled_images import ImageFiles
from data.options import flag, path_of, paths_of, whole

from ..models.model import Model
from . import Result, bootstrap, rate
from .image_sets import Items, features
from .options import ranks_of, rates_of
from .rates import Ranking, check, unresolved
from .search import best_mate_ranks


class Ijb:
    """
    Args:
        templates: file of lines `image template medium`.
        pairs: file of lines `template template same`, for 1:1.
        galleries: CSV files with a line for each image, in which TEMPLATE_ID and SUBJECT_ID are columns, each searched
            by itself, for 1:N.
        probes: such a file; those whose subject is not in a gallery are strangers to it.
        images: folder of the images, if there are no features.
        features: .npy with a row for each line of `templates`.
        scores: file whose lines end in a weight of each image.
        mirrored: with images: whether embeddings are those of image and mirrored image, added; they are unless told
            otherwise.
        far: false accept rates of 1:1, at which the true accept rate is told.
        fpir: false positive identification rates of 1:N: shares of the strangers' searches that find somebody.
        ranks: at which the share of right answers to searches of enrolled persons is told.
        resamples: of the bootstrap.
    """

    def __init__(
        self,
        templates: str | None,
        pairs: str | None = None,
        galleries: str | Sequence[str] | None = None,
        probes: str | None = None,
        images: str | None = None,
        features: str | None = None,
        scores: str | None = None,
        mirrored: bool | None = None,
        far: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        fpir: Sequence[float] = (1e-2, 1e-1),
        ranks: Sequence[int] = (1, 5, 10),
        resamples: int = 200,
    ):
        option = "protocol.ijb"
        names = {"templates": templates, "pairs": pairs, "probes": probes, "images": images, "features": features}
        paths = {name: path_of(f"{option}.{name}", value) for name, value in (names | {"scores": scores}).items()}
        gallery_paths = paths_of(f"{option}.galleries", galleries)
        if paths["templates"] is None:
            raise ValueError(f"{option}.templates=null: the path of a file `image template medium` is needed")
        if pairs is None and not gallery_paths:
            raise ValueError(f"{option}.pairs=null, {option}.galleries=null: one of them is needed")
        if bool(gallery_paths) != (probes is not None):
            raise ValueError(f"{option}.galleries={galleries}, {option}.probes={probes}: 1:N needs both")
        if (images is None) == (features is None):
            raise ValueError(f"{option}.images={images}, {option}.features={features}: one of them is needed")
        if mirrored is not None and features is not None:
            raise ValueError(f"{option}.mirrored={mirrored}: is of images; features are as they are")
        if mirrored is not None:
            flag(f"{option}.mirrored", mirrored)
        self.far, self.fpir = rates_of(f"{option}.far", far), rates_of(f"{option}.fpir", fpir)
        self.ranks, self.resamples = ranks_of(f"{option}.ranks", ranks), whole(f"{option}.resamples", resamples, 0)
        image_names, self.template_n, self.medium_n = read_templates(paths["templates"])
        self.known = np.unique(self.template_n)
        self.weights = read_weights(paths["scores"], image_names) if paths["scores"] else None
        if paths["features"]:
            self.items = _features(paths["features"], len(image_names))
        else:
            self.items = _images(image_names, str(paths["images"]), mirrored is not False)
        self.pairs = self._pairs(paths["pairs"]) if paths["pairs"] else None
        self.galleries = [self._subjects(path) for path in gallery_paths]
        self.probes = self._subjects(paths["probes"]) if paths["probes"] else None
        for path, (_, subjects) in zip(gallery_paths, self.galleries, strict=True):
            if len(np.unique(subjects)) < len(subjects):
                raise ValueError(f"{option}.galleries: {path} has two templates of one subject; one each is needed")
            assert self.probes is not None
            enrolled = np.isin(self.probes[1], subjects)
            if enrolled.all() or not enrolled.any():
                kind = "no subject of the probes" if not enrolled.any() else "every subject of the probes"
                raise ValueError(f"{option}: {path} holds {kind}; open-set search needs enrolled and strangers")
        if self.pairs is not None:
            check(np.zeros(len(self.pairs[2])), self.pairs[2], str(pairs))

    @property
    def names(self) -> list[str]:
        return ["ijb_1_1"] * (self.pairs is not None) + ["ijb_1_n"] * (self.probes is not None)

    def check(self, model: Model) -> None:
        self.items.width(model)

    def __call__(self, model: Model) -> list[Result]:
        embeddings = self.items.everywhere(model, "images of templates", unit_length=False)
        if not model.processes.is_rank_zero:
            return []
        if self.weights is not None:
            embeddings = embeddings * self.weights[:, None]
        templates_TD = pooled(embeddings, self.template_n, self.medium_n)
        results = []
        if self.pairs is not None:
            first, second, same = self.pairs
            results.append(self.verify("ijb_1_1", cosines(templates_TD, first, second), same, first, second))
        if self.probes is not None:
            results.append(self.search(templates_TD))
        return results

    def verify(
        self, name: str, scores: NDArray[np.float64], same: NDArray[np.bool_], first: Ids, second: Ids
    ) -> Result:
        """1:1, of pairs of templates (n,). The bootstrap draws templates."""
        check(scores, same, name)
        ranking = Ranking(scores, same)
        rates = ranking.plain
        counts = {"templates": len(self.known), "pairs": len(same), "of one subject": int(same.sum())}

        def metrics(weights: NDArray[np.float64]) -> Mapping[str, float]:
            found = ranking.rates(weights[first] * weights[second])
            names = [f"tar_at_far_{rate(each)}" for each in self.far]
            if np.isnan(found.tar[-1]) or np.isnan(found.far[-1]):
                return dict.fromkeys([*names, "eer", "auc"], np.nan)
            shares = dict(zip(names, map(found.tar_at, self.far), strict=True))
            return {**shares, "eer": found.eer, "auc": found.auc}

        intervals = bootstrap.intervals(metrics, [len(self.known)], self.resamples)
        notes = unresolved(self.far, int((~same).sum()), "tar_at_far_")
        curves = {"rates": rates, "scores": scores, "same": same}
        return Result(name, metrics(np.ones(len(self.known))), intervals, counts, notes, curves)

    def search(self, templates_TD: Tensor) -> Result:
        """1:N, the mean over the galleries. The bootstrap draws subjects of the probes, the same for all galleries."""
        assert self.probes is not None
        template_P, subject_P = self.probes
        subjects, unit_P = np.unique(subject_P, return_inverse=True)
        searches, shares = [], []
        for template_G, subject_G in self.galleries:
            enrolled = np.isin(subject_P, subject_G)
            searches.append(Search(templates_TD, template_G, subject_G, template_P[enrolled], subject_P[enrolled],
                                   template_P[~enrolled]))  # fmt: skip

            shares.append((unit_P[enrolled], unit_P[~enrolled]))

        def metrics(weights: NDArray[np.float64]) -> Mapping[str, float]:
            found = [
                each.metrics(self.fpir, self.ranks, weights[of_enrolled], weights[of_strangers])
                for each, (of_enrolled, of_strangers) in zip(searches, shares, strict=True)
            ]
            return {name: float(np.mean([each[name] for each in found])) for name in found[0]}

        intervals = bootstrap.intervals(metrics, [len(subjects)], self.resamples)
        counts = {
            "galleries": len(searches),
            "enrolled": sum(len(each.rank) for each in searches),
            "strangers": sum(len(each.stranger) for each in searches),
        }
        points = np.arange(1, 101)
        found = [np.searchsorted(np.sort(each.rank), points, side="right") / len(each.rank) for each in searches]
        curves = {"cmc": (points, np.mean(found, axis=0))}
        notes = unresolved(self.fpir, min(len(each.stranger) for each in searches), "tpir_at_fpir_")
        return Result("ijb_1_n", metrics(np.ones(len(subjects))), intervals, counts, notes, curves)

    def _pairs(self, path: str) -> tuple[Ids, Ids, NDArray[np.bool_]]:
        first, second, same = read_pairs(path)
        return self._places(first, path), self._places(second, path), same

    def _subjects(self, path: str) -> tuple[Ids, Ids]:
        template, subject = read_subjects(path)
        return self._places(template, path), subject

    def _places(self, templates: Ids, path: str) -> Ids:
        """Of templates among those there are."""
        places = np.searchsorted(self.known, templates).clip(max=len(self.known) - 1)
        missing = templates[self.known[places] != templates]
        if len(missing):
            raise ValueError(f"{path}: template {missing[0]} has no image in protocol.ijb.templates")
        return places


class Search:
    """Probes in one gallery, of unit templates.

    Attributes:
        rank: of each enrolled probe's template, as if others of the same score came first.
        score: of that template.
        stranger: the highest score of each stranger.
    """

    def __init__(
        self, templates_TD: Tensor, template_G: Ids, subject_G: Ids, enrolled_P: Ids, subject_P: Ids, stranger_S: Ids
    ):
        gallery = templates_TD[torch.from_numpy(template_G)]
        order = np.argsort(subject_G)
        mate = torch.from_numpy(order[np.searchsorted(subject_G[order], subject_P)])
        rank, score = [], []
        for start in range(0, len(enrolled_P), PROBES):
            here = slice(start, start + PROBES)
            scores = templates_TD[torch.from_numpy(enrolled_P[here])] @ gallery.T
            own = scores.gather(1, mate[here, None])
            is_mate = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, mate[here, None], True)
            rank.append(best_mate_ranks(scores, is_mate))
            score.append(own[:, 0])
        self.rank, self.score = torch.cat(rank).numpy(), torch.cat(score).numpy()
        self.stranger = np.concatenate([
            (templates_TD[torch.from_numpy(stranger_S[start : start + PROBES])] @ gallery.T).amax(1).numpy()
            for start in range(0, len(stranger_S), PROBES)
        ])  # fmt: skip

    def metrics(
        self,
        fpir: Sequence[float],
        ranks: Sequence[int],
        of_enrolled: NDArray[np.float64],
        of_strangers: NDArray[np.float64],
    ) -> dict[str, float]:
        """The share of enrolled probes that are found, first and with a score at which at most that share of the
        strangers finds somebody. NaN where the weights leave none of either."""
        if not of_enrolled.any() or not of_strangers.any():
            names = [*(f"tpir_at_fpir_{rate(each)}" for each in fpir), *(f"rank{k}" for k in ranks)]
            return dict.fromkeys(names, np.nan)
        order = np.argsort(-self.stranger, kind="stable")
        falling, share = self.stranger[order], np.cumsum(of_strangers[order]) / of_strangers.sum()
        told = {}
        for each in fpir:
            refused = falling[share > each]
            # Above the first stranger who would be one too many.
            accepted = self.score > refused[0]
            told[f"tpir_at_fpir_{rate(each)}"] = float(of_enrolled @ (accepted & (self.rank == 1)) / of_enrolled.sum())
        for k in ranks:
            told[f"rank{k}"] = float(of_enrolled @ (self.rank <= k) / of_enrolled.sum())
        return told


PROBES = 1024
PAIRS = 2**16


def pooled(embeddings: Tensor, template_n: Ids, medium_n: Ids) -> Tensor:
    """Unit templates (T, D), by their numbers: the sum over media of the mean over a medium's images."""
    templates, place_n = np.unique(template_n, return_inverse=True)
    media, medium_of_n, counts = np.unique(
        np.stack([place_n, medium_n]), axis=1, return_inverse=True, return_counts=True
    )
    means = embeddings.new_zeros(media.shape[1], embeddings.shape[1], dtype=torch.float64)
    means.index_add_(0, torch.from_numpy(medium_of_n.ravel()), embeddings.double())
    means /= torch.from_numpy(counts)[:, None]
    sums = means.new_zeros(len(templates), embeddings.shape[1])
    sums.index_add_(0, torch.from_numpy(media[0].astype(np.int64)), means)
    return normalize(sums)


def cosines(templates_TD: Tensor, first: Ids, second: Ids) -> NDArray[np.float64]:
    """Of pairs (n,), a stretch at a time."""
    found = []
    for start in range(0, len(first), PAIRS):
        a, b = (torch.from_numpy(each[start : start + PAIRS]) for each in (first, second))
        found.append((templates_TD[a] * templates_TD[b]).sum(1).numpy())
    return np.concatenate(found)


def _features(path: str, count: int) -> Items:
    found = features(path, "protocol.ijb.features")
    if len(found) != count:
        raise ValueError(f"protocol.ijb.features={path}: has {len(found):,} rows for {count:,} images")
    return found


def _images(names: Sequence[bytes], folder: str, mirrored: bool) -> Items:
    root = os.fsencode(folder)
    files = ImageFiles([os.path.join(root, name) for name in names])  # noqa: PTH118
    return Items(
        folder,
        len(names),
        None,
        (),
        lambda model, at, what: model.embed(*model.view(files), at, mirrored=mirrored, shown=what),
    )
