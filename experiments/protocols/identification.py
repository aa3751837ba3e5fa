"""`protocol=identification`: whose image is it? Each probe is looked for in a gallery, with strangers beside, exactly.

With a distractor set this is MegaFace's protocol (Kemelmacher-Shlizerman et al. 2016); with one set only, in which each
image is looked for among all others, retrieval as on Stanford Online MatMul.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data.options import flag, path_of, whole

from ..models.model import Model
from . import Result, bootstrap
from .image_sets import Items, dealt, items, own
from .options import ranks_of
from .search import Known, strangers_above

CMC_POINTS = 200
MOST = 2 * 10**7  # pairs of a probe and a mate: 3.4 GB


class Identification:
    """
    Args:
        gallery: images by class, or a .npy of features; the model's own held-out classes unless given.
        probes: likewise; each item of the gallery is looked for among the others unless given.
        distractors: likewise, without classes: strangers to all probes. Goes by in blocks, and takes no memory.
        format, root: of images, as `data.format` and `data.root`; found by looking unless given.
        mates: of a probe with several items of its class in the gallery: "best", the first one found counts; "each",
            each is looked for while the others are away. With distractors it is then, as in MegaFace, alone among
            these: the other classes of the gallery are away too.
        ranks: at which the share of right answers is told.
        mirrored: whether embeddings are those of image and mirrored image, added.
        resamples: of the bootstrap, by class of the probes.
    """

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
        option = "protocol.identification"
        if mates not in ("best", "each"):
            raise ValueError(f"{option}.mates={mates}: must be best or each")
        names = {"gallery": gallery, "probes": probes, "distractors": distractors}
        paths = {name: path_of(f"{option}.{name}", value) for name, value in names.items()}
        root = path_of(f"{option}.root", root)
        if paths["probes"] is not None and paths["gallery"] is None:
            raise ValueError(f"{option}.gallery=null: probes need one to be looked for in")
        if paths["probes"] is not None and paths["probes"] == paths["gallery"]:
            raise ValueError(
                f"{option}.probes={probes}: is the gallery itself, where each would find itself; without probes each "
                "item of the gallery is looked for among the others"
            )
        given = [path for path in paths.values() if path is not None]
        of_images = [path for path in given if not path.endswith(".npy")]
        mirrored = flag(f"{option}.mirrored", mirrored)
        for name, value in (("format", format), ("root", root), ("mirrored", mirrored or None)):
            if value is not None and ((given and not of_images) or (not given and name != "mirrored")):
                raise ValueError(f"{option}.{name}={value}: is of images, and none are named")

        def opened(name: str) -> Items | None:
            path = paths[name]
            if path is None:
                return None
            if path in of_images:
                return items(path, format, root=root, mirrored=mirrored, option=f"{option}.{name}")
            return items(path, option=f"{option}.{name}")

        self.gallery, self.probes, self.distractors = opened("gallery"), opened("probes"), opened("distractors")
        self.mates, self.ranks, self.mirrored = mates, ranks_of(f"{option}.ranks", ranks), mirrored
        self.resamples = whole(f"{option}.resamples", resamples, 0)
        self.among_distractors = mates == "each" and distractors is not None  # a mate among the distractors
        self.names = ["identification"]

    def check(self, model: Model) -> None:
        gallery, probes, *_ = self._wanted(model)
        width = probes.width(model)
        for name, other in (("gallery", gallery), ("distractors", self.distractors)):
            if other is not None and other is not probes and other.width(model) != width:
                raise ValueError(
                    f"protocol.identification.{name}={other.name}: is of {other.width(model)} numbers, "
                    f"{probes.name} of {width}"
                )

    def _wanted(self, model: Model) -> tuple[Items, Items, NDArray[np.int64], Known]:
        """Gallery, probes, the classes of these, and who knows whom."""
        gallery = self.gallery
        if gallery is None:
            heldout = model.data().heldout
            if heldout is None:
                raise ValueError(
                    "protocol.identification.gallery=null: the model's data holds no classes out; name one"
                )
            gallery = own(model, heldout, "held-out classes", self.mirrored)
        probes = gallery if self.probes is None else self.probes
        known_names: dict[str, int] = {}
        gallery_G = gallery.numbered(known_names, "protocol.identification.gallery")
        probe_P = probes.numbered(known_names, "protocol.identification.probes")
        known = pairs(probe_P, gallery_G, alone=self.probes is None)
        if not known.counts_M.any():
            raise ValueError("identification: no probe is of a class of the gallery; there is nothing to be found")
        own_items = torch.bincount(known.probe_M)[known.probe_M[known.counts_M]]
        if not (own_items < self._searched(gallery)).any() and self.distractors is None:
            raise ValueError("identification: the gallery holds nothing but each probe's own class; name distractors")
        return gallery, probes, probe_P, known

    def _searched(self, gallery: Items) -> int:
        """How many items a probe is held against, its own class among them."""
        return (1 if self.among_distractors else len(gallery)) + len(self.distractors or ())

    def __call__(self, model: Model) -> list[Result]:
        gallery, probes, probe_P, known = self._wanted(model)
        probes_PD = probes.everywhere(model, "probes").to(model.processes.device)
        if self.probes is None:
            searched = dealt(len(probes_PD), model, "Gallery", lambda start, stop: probes_PD[start:stop])
        else:
            searched = gallery.blocks(model, "Gallery", keep=True)
        others = [self.distractors.blocks(model, "Distractors", keep=False)] if self.distractors else []
        _, above_M = strangers_above(probes_PD, known, searched, others, not self.among_distractors, model.together)
        if not model.processes.is_rank_zero:
            return []
        judged = Ranks(known, above_M.cpu(), probe_P, self.mates)
        counts = {
            "probes": len(probes),
            "with a mate": len(known.probe_M[known.counts_M].unique()),
            "gallery": len(gallery),
            "distractors": len(self.distractors or ()),
        }
        intervals = bootstrap.intervals(
            lambda weights: judged.metrics(self.ranks, weights), [judged.num_classes], self.resamples
        )
        curve = judged.cmc(self._searched(gallery))
        return [Result("identification", judged.metrics(self.ranks), intervals, counts, curves={"cmc": curve})]


def pairs(probe_P: NDArray[np.int64], gallery_G: NDArray[np.int64], alone: bool) -> Known:
    """Each probe with the items of its class.

    Args:
        alone: probes and gallery are the same items, and none is looked for with itself.
    """
    order = np.argsort(gallery_G, kind="stable")
    starts = np.searchsorted(gallery_G[order], probe_P, side="left")
    counts = np.searchsorted(gallery_G[order], probe_P, side="right") - starts
    if counts.sum() > MOST:
        raise ValueError(
            f"identification: {counts.sum():,} pairs of a probe and an image of its class are more than fit into "
            "memory; take fewer probes, or fewer images of a class"
        )
    probe_M = np.repeat(np.arange(len(probe_P)), counts)
    within = np.arange(len(probe_M)) - np.repeat(np.cumsum(counts) - counts, counts)
    item_M = order[np.repeat(starts, counts) + within]
    counts_M = probe_M != item_M if alone else np.ones(len(probe_M), bool)
    return Known(*(torch.from_numpy(np.ascontiguousarray(each)) for each in (probe_M, item_M, counts_M)))


class Ranks:
    """The rank of each probe's mate, as if strangers of the same score came first.

    Args:
        above_M: of the known pairs that count, how many strangers come before the mate.
        class_P: of the probes.
        mates: "best" or "each".
    """

    def __init__(self, known: Known, above_M: torch.Tensor, class_P: NDArray[np.int64], mates: str):
        probe_M, above = known.probe_M[known.counts_M].numpy(), above_M[known.counts_M].numpy()
        order = np.lexsort((above, probe_M))
        probe_M, above = probe_M[order], above[order]
        probes, firsts, counts = np.unique(probe_M, return_index=True, return_counts=True)
        place_M = 1 + np.arange(len(probe_M)) - np.repeat(firsts, counts)  # among the mates of its probe
        if mates == "best":
            self.ranks = 1 + above[firsts]
            precision = place_M / (place_M + above)
            self.average_precision: NDArray[np.float64] | None = np.add.reduceat(precision, firsts) / counts
            self.classes = class_P[probes]
        else:
            self.ranks, self.average_precision, self.classes = 1 + above, None, class_P[probe_M]
        _, self.unit = np.unique(self.classes, return_inverse=True)
        self.num_classes = int(self.unit.max()) + 1

    def metrics(self, ranks: Sequence[int], weights: NDArray[np.float64] | None = None) -> Mapping[str, float]:
        """
        Args:
            weights: of the classes of the probes.
        """
        w = np.ones(len(self.ranks)) if weights is None else weights[self.unit]
        found = {f"rank{k}": float(w @ (self.ranks <= k) / w.sum()) for k in ranks}
        if self.average_precision is not None:
            found["map"] = float(w @ self.average_precision / w.sum())
        return found

    def cmc(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ranks, and the share that is found up to each: the cumulative match characteristic."""
        points = np.unique(np.geomspace(1, max(size, 2), CMC_POINTS).astype(np.int64))
        return points, np.searchsorted(np.sort(self.ranks), points, side="right") / len(self.ranks)
