"""`protocol=ijb`: evaluate templates, each of several images and video frames of one person (Maze et al. 2018, IJB-C).

It verifies pairs of templates (1:1), and searches galleries in which some of the persons are not enrolled (1:N).
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.formats.templates import Ids, read_pairs, read_subjects, read_templates, read_weights
from data.formats.unlabeled_images import ImageFiles
from data.options import flag, path_of, paths_of, whole

from ..models.model import Model
from . import Result, bootstrap, format_rate
from .image_sets import ImageSet, features
from .options import ranks_of, rates_of
from .rates import Ranking, check_pairs, notes_on_low_rates
from .templates import GallerySearch, pair_cosines, pool_templates

OPTION = "protocol.ijb"


class Ijb:
    """Verification and open-set search of templates.

    Args:
        templates: file of lines `image template medium`.
        pairs: file of lines `template template same`, for 1:1; None for no 1:1.
        galleries: CSV files with columns TEMPLATE_ID and SUBJECT_ID and a line for each image, for 1:N. Each is
            searched separately. None for no 1:N.
        probes: such a file; probes whose subject is not in a gallery are strangers to it.
        images: folder of the images; None if features are given.
        features: .npy with a row for each line of `templates`; None if images are given.
        scores: file whose lines end in a weight for each image; None for equal weights.
        mirrored: add the embedding of the mirrored image; None for true if images are given.
        far: false accept rates of 1:1 at which the true accept rate is reported.
        fpir: false positive identification rates of 1:N: shares of the strangers that are identified as some person.
        ranks: k of the rank-k metrics of enrolled persons.
        resamples: bootstrap draws; 0 for no intervals.
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
        files = {"templates": templates, "pairs": pairs, "probes": probes, "images": images, "features": features}
        paths = {name: path_of(f"{OPTION}.{name}", value) for name, value in (files | {"scores": scores}).items()}
        gallery_paths = paths_of(f"{OPTION}.galleries", galleries)
        _check_files(paths, gallery_paths)
        if mirrored is not None and features is not None:
            raise ValueError(f"{OPTION}.mirrored={mirrored} applies to images only; remove it, or give images")
        if mirrored is not None:
            flag(f"{OPTION}.mirrored", mirrored)
        self.far, self.fpir = rates_of(f"{OPTION}.far", far), rates_of(f"{OPTION}.fpir", fpir)
        self.ranks, self.resamples = ranks_of(f"{OPTION}.ranks", ranks), whole(f"{OPTION}.resamples", resamples, 0)
        image_names, self.template_n, self.medium_n = read_templates(str(paths["templates"]))
        self.template_ids = np.unique(self.template_n)
        self.weights = read_weights(paths["scores"], image_names) if paths["scores"] else None
        if paths["features"]:
            self.images = _features(paths["features"], len(image_names))
        else:
            self.images = _images(image_names, str(paths["images"]), mirrored is not False)
        self.pairs = self._pairs(paths["pairs"]) if paths["pairs"] else None
        self.galleries = [self._subjects(path) for path in gallery_paths]
        self.probes = self._subjects(paths["probes"]) if paths["probes"] else None
        for path, (_, subjects) in zip(gallery_paths, self.galleries, strict=True):
            self._check_gallery(path, subjects)

    @property
    def names(self) -> list[str]:
        """Names of the results."""
        return ["ijb_1_1"] * (self.pairs is not None) + ["ijb_1_n"] * (self.probes is not None)

    def check(self, model: Model) -> None:
        """Raise ValueError if the model cannot embed the first image."""
        self.images.width(model)

    def __call__(self, model: Model) -> list[Result]:
        """Return the results of 1:1 and 1:N on the first process."""
        embeddings = self.images.embeddings(model, "images of templates", unit_length=False)
        if not model.processes.is_rank_zero:
            return []
        if self.weights is not None:
            embeddings = embeddings * self.weights[:, None]
        templates_TD = pool_templates(embeddings, self.template_n, self.medium_n)
        results = []
        if self.pairs is not None:
            first, second, same = self.pairs
            results.append(self.verify("ijb_1_1", pair_cosines(templates_TD, first, second), same, first, second))
        if self.probes is not None:
            results.append(self.search(templates_TD))
        return results

    def verify(
        self, name: str, scores: NDArray[np.float64], same: NDArray[np.bool_], first: Ids, second: Ids
    ) -> Result:
        """Evaluate the scores of pairs of templates, (n,). The bootstrap draws templates."""
        check_pairs(scores, same, name)
        ranking = Ranking(scores, same)
        counts = {"templates": len(self.template_ids), "pairs": len(same), "of one subject": int(same.sum())}

        def metrics(weights: NDArray[np.float64]) -> Mapping[str, float]:
            rates = ranking.rates(weights[first] * weights[second])
            names = [f"tar_at_far_{format_rate(far)}" for far in self.far]
            if np.isnan(rates.tar[-1]) or np.isnan(rates.far[-1]):
                return dict.fromkeys([*names, "eer", "auc"], np.nan)
            shares = dict(zip(names, map(rates.tar_at, self.far), strict=True))
            return {**shares, "eer": rates.eer, "auc": rates.auc}

        intervals = bootstrap.intervals(metrics, [len(self.template_ids)], self.resamples)
        notes = notes_on_low_rates(self.far, int((~same).sum()), "tar_at_far_")
        curves = {"rates": ranking.unweighted, "scores": scores, "same": same}
        return Result(name, metrics(np.ones(len(self.template_ids))), intervals, counts, notes, curves)

    def search(self, templates_TD: Tensor) -> Result:
        """Search all galleries and return the means over them.

        The bootstrap draws subjects of the probes, the same for all galleries.
        """
        assert self.probes is not None
        template_P, subject_P = self.probes
        subjects, unit_P = np.unique(subject_P, return_inverse=True)
        searches, units = [], []
        for template_G, subject_G in self.galleries:
            enrolled = np.isin(subject_P, subject_G)
            searches.append(GallerySearch(templates_TD, template_G, subject_G, template_P[enrolled],
                                          subject_P[enrolled], template_P[~enrolled]))  # fmt: skip
            units.append((unit_P[enrolled], unit_P[~enrolled]))

        def metrics(weights: NDArray[np.float64]) -> Mapping[str, float]:
            values = [
                search.metrics(self.fpir, self.ranks, weights[enrolled], weights[strangers])
                for search, (enrolled, strangers) in zip(searches, units, strict=True)
            ]
            return {name: float(np.mean([of_gallery[name] for of_gallery in values])) for name in values[0]}

        intervals = bootstrap.intervals(metrics, [len(subjects)], self.resamples)
        counts = {
            "galleries": len(searches),
            "enrolled": sum(len(search.rank) for search in searches),
            "strangers": sum(len(search.stranger) for search in searches),
        }
        points = np.arange(1, 101)
        shares = [np.searchsorted(np.sort(search.rank), points, side="right") / len(search.rank) for search in searches]
        curves = {"cmc": (points, np.mean(shares, axis=0))}
        notes = notes_on_low_rates(self.fpir, min(len(search.stranger) for search in searches), "tpir_at_fpir_")
        return Result("ijb_1_n", metrics(np.ones(len(subjects))), intervals, counts, notes, curves)

    def _pairs(self, path: str) -> tuple[Ids, Ids, NDArray[np.bool_]]:
        """Read pairs as indices of templates."""
        first, second, same = read_pairs(path)
        first, second = self._indices(first, path), self._indices(second, path)
        check_pairs(np.zeros(len(same)), same, path)
        return first, second, same

    def _subjects(self, path: str) -> tuple[Ids, Ids]:
        """Read templates, as indices, and their subjects."""
        template, subject = read_subjects(path)
        return self._indices(template, path), subject

    def _indices(self, templates: Ids, path: str) -> Ids:
        """Return the indices of these ids among all templates."""
        indices = np.searchsorted(self.template_ids, templates).clip(max=len(self.template_ids) - 1)
        missing = templates[self.template_ids[indices] != templates]
        if len(missing):
            raise ValueError(
                f"{path} has template {missing[0]}, which has no image in {OPTION}.templates; add it there"
            )
        return indices

    def _check_gallery(self, path: str, subjects: Ids) -> None:
        """Raise ValueError unless a gallery has one template of each subject and knows some of the probes."""
        if len(np.unique(subjects)) < len(subjects):
            raise ValueError(f"{OPTION}.galleries has two templates of one subject in {path}; give each subject one")
        assert self.probes is not None
        enrolled = np.isin(self.probes[1], subjects)
        if enrolled.all() or not enrolled.any():
            share = "every subject" if enrolled.any() else "no subject"
            raise ValueError(
                f"{OPTION}.galleries has {share} of the probes in {path}; open-set search needs enrolled probes and "
                "strangers"
            )


def _check_files(paths: Mapping[str, str | None], galleries: Sequence[str]) -> None:
    """Raise ValueError for files that are missing, or that exclude each other."""
    if paths["templates"] is None:
        raise ValueError(f"{OPTION}.templates=null must name a file of lines `image template medium`")
    if paths["pairs"] is None and not galleries:
        raise ValueError(f"{OPTION}.pairs=null and {OPTION}.galleries=null leave nothing to evaluate; give one of them")
    if bool(galleries) != (paths["probes"] is not None):
        raise ValueError(
            f"{OPTION}.galleries={list(galleries)} and {OPTION}.probes={paths['probes']} must be given together for 1:N"
        )
    if (paths["images"] is None) == (paths["features"] is None):
        raise ValueError(
            f"{OPTION}.images={paths['images']} or {OPTION}.features={paths['features']} must name a path, but not both"
        )


def _features(path: str, count: int) -> ImageSet:
    """Open features, which must have a row for each image."""
    rows = features(path, f"{OPTION}.features")
    if len(rows) != count:
        raise ValueError(f"{OPTION}.features={path} has {len(rows):,} rows for {count:,} images; they must agree")
    return rows


def _images(names: Sequence[bytes], folder: str, mirrored: bool) -> ImageSet:
    """Return the images of these names in a folder as a set without classes."""
    root = os.fsencode(folder)
    files = ImageFiles([os.path.join(root, name) for name in names])  # noqa: PTH118
    return ImageSet(
        folder,
        len(names),
        None,
        (),
        lambda model, at, title: model.embed(*model.view(files), at, mirrored=mirrored, label=title),
    )
