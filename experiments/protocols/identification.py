"""`protocol=identification`: find the images of each probe's class in a gallery with strangers, by exact search.

With a distractor set this is the protocol of MegaFace (Kemelmacher-Shlizerman et al. 2016). With one set, in which
each image is searched among all others, it is retrieval as on Stanford Online Products.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data.options import flag, path_of, whole

from ..models.model import Model
from . import Result, bootstrap
from .image_sets import ImageSet, from_dataset, image_set, shard_blocks
from .options import ranks_of
from .ranks import Ranks, mate_pairs
from .search import KnownPairs, count_strangers_above

OPTION = "protocol.identification"


class Identification:
    """Identification of probes in a gallery.

    Args:
        gallery: images by class, or a .npy of features; None for the held-out classes of the model's data.
        probes: images by class, or a .npy of features; None to search each gallery item among the others.
        distractors: images or a .npy of features that are strangers to all probes, without classes. They are read in
            blocks and not kept in memory.
        format: format of the images, as `data.format`; None detects it.
        root: folder that paths in lists of images are relative to, as `data.root`.
        mates: if a probe has several items of its class in the gallery, "best" takes the rank of the best one, and
            "each" searches each of them while the others are absent. With distractors, "each" searches a mate among
            the distractors alone, as in MegaFace: the other classes of the gallery are absent too.
        ranks: k of the rank-k metrics.
        mirrored: add the embedding of the mirrored image.
        resamples: bootstrap draws over the classes of the probes; 0 for no intervals.
    """

    names = ("identification",)

    def __init__(
        self,
        gallery: str | None = None,
        probes: str | None = None,
        distractors: str | None = None,
        format: str | None = None,
        root: str | None = None,
        mates: str = "best",
        ranks: Sequence[int] = (1, 5, 10),
        mirrored: bool = False,
        resamples: int = 1000,
    ):
        if mates not in ("best", "each"):
            raise ValueError(f"{OPTION}.mates={mates} must be best or each")
        sets = {"gallery": gallery, "probes": probes, "distractors": distractors}
        paths = {name: path_of(f"{OPTION}.{name}", value) for name, value in sets.items()}
        root = path_of(f"{OPTION}.root", root)
        if paths["probes"] is not None and paths["gallery"] is None:
            raise ValueError(f"{OPTION}.gallery=null cannot be combined with probes; name the set to search")
        if paths["probes"] is not None and paths["probes"] == paths["gallery"]:
            raise ValueError(
                f"{OPTION}.probes={probes} is the gallery itself, where each probe would find itself; without probes "
                "each item of the gallery is searched among the others"
            )
        named = [path for path in paths.values() if path is not None]
        of_images = [path for path in named if not path.endswith(".npy")]
        mirrored = flag(f"{OPTION}.mirrored", mirrored)
        for name, value in (("format", format), ("root", root), ("mirrored", mirrored or None)):
            if value is not None and ((named and not of_images) or (not named and name != "mirrored")):
                raise ValueError(f"{OPTION}.{name}={value} applies to images only and no images are named; remove it")

        def opened(name: str) -> ImageSet | None:
            path = paths[name]
            if path is None:
                return None
            if path in of_images:
                return image_set(path, format, root=root, mirrored=mirrored, option=f"{OPTION}.{name}")
            return image_set(path, option=f"{OPTION}.{name}")

        self.gallery, self.probes, self.distractors = opened("gallery"), opened("probes"), opened("distractors")
        self.mates, self.ranks, self.mirrored = mates, ranks_of(f"{OPTION}.ranks", ranks), mirrored
        self.resamples = whole(f"{OPTION}.resamples", resamples, 0)
        self.distractors_only = mates == "each" and distractors is not None

    def check(self, model: Model) -> None:
        """Raise ValueError if the sets do not fit each other or the model. Reads one image of each set."""
        gallery, probes, *_ = self._sets(model)
        width = probes.width(model)
        for name, other in (("gallery", gallery), ("distractors", self.distractors)):
            if other is not None and other is not probes and other.width(model) != width:
                raise ValueError(
                    f"{OPTION}.{name}={other.name} has features of {other.width(model)} numbers and {probes.name} of "
                    f"{width}; both must come from one model"
                )

    def __call__(self, model: Model) -> list[Result]:
        """Return the result on the first process."""
        gallery, probes, probe_P, known = self._sets(model)
        probes_PD = probes.embeddings(model, "probes").to(model.processes.device)
        if self.probes is None:
            searched = shard_blocks(len(probes_PD), model, "Gallery", lambda start, stop: probes_PD[start:stop])
        else:
            searched = gallery.blocks(model, "Gallery", keep=True)
        others = [self.distractors.blocks(model, "Distractors", keep=False)] if self.distractors else []
        _, above_M = count_strangers_above(
            probes_PD, known, searched, others, not self.distractors_only, model.together
        )
        if not model.processes.is_rank_zero:
            return []
        ranks = Ranks(known, above_M.cpu(), probe_P, self.mates)
        counts = {
            "probes": len(probes),
            "classes": ranks.num_classes,
            "with a mate": len(known.probe_M[known.is_mate_M].unique()),
            "gallery": len(gallery),
            "distractors": len(self.distractors or ()),
        }
        intervals = bootstrap.intervals(
            lambda weights: ranks.metrics(self.ranks, weights), [ranks.num_classes], self.resamples
        )
        curves = {"cmc": ranks.cmc(self._num_searched(gallery))}
        return [Result("identification", ranks.metrics(self.ranks), intervals, counts, curves=curves)]

    def _sets(self, model: Model) -> tuple[ImageSet, ImageSet, NDArray[np.int64], KnownPairs]:
        """Return gallery, probes, the classes of the probes, and the pairs that are not strangers."""
        gallery = self.gallery
        if gallery is None:
            heldout = model.data().heldout
            if heldout is None:
                raise ValueError(f"{OPTION}.gallery=null needs held-out classes and the data has none; name a gallery")
            gallery = from_dataset(model, heldout, "held-out classes", self.mirrored)
        probes = gallery if self.probes is None else self.probes
        known_names: dict[str, int] = {}
        gallery_G = gallery.class_numbers(known_names, f"{OPTION}.gallery")
        probe_P = probes.class_numbers(known_names, f"{OPTION}.probes")
        known = mate_pairs(probe_P, gallery_G, leave_one_out=self.probes is None)
        if not known.is_mate_M.any():
            raise ValueError("identification has no probe whose class is in the gallery; check the class names")
        items_of_class = torch.bincount(known.probe_M)[known.probe_M[known.is_mate_M]]
        if not (items_of_class < self._num_searched(gallery)).any() and self.distractors is None:
            raise ValueError(
                "identification compares each probe with its own class only; name distractors, or more classes"
            )
        return gallery, probes, probe_P, known

    def _num_searched(self, gallery: ImageSet) -> int:
        """Return the number of items that a probe is compared with, including those of its class."""
        return (1 if self.distractors_only else len(gallery)) + len(self.distractors or ())
