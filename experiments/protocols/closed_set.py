"""`protocol=closed_set`: which of the classes that it was trained on? Images against all class centers, which pass in
blocks: what classification, of products or characters say, asks."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from data.conversion.writers import one_line
from data.counter_rng import permute
from data.options import flag, path_of, whole

from ..models.model import Centers, Model, finite
from . import Result, bootstrap
from .identification import Ranks
from .image_sets import Items, items, own
from .options import ranks_of
from .search import Known, Wanted, strangers_above


class ClosedSet:
    """
    Args:
        source: images by class; training records of the model's own data unless given.
        format, root: as `data.format` and `data.root`; found by looking unless given.
        classes: "name" takes the class of the model that is called as the source calls it, "id" class i for class i.
        records: how many images, drawn at random; None for all.
        ranks: top-k for these k.
        mirrored: whether embeddings are those of image and mirrored image, added.
        resamples: of the bootstrap, by class.
    """

    def __init__(
        self,
        source: str | None = None,
        format: str | None = None,
        root: str | None = None,
        classes: str = "name",
        records: int | None = 10_000,
        ranks: Sequence[int] = (1, 5),
        mirrored: bool = False,
        resamples: int = 1000,
    ):
        option = "protocol.closed_set"
        if classes not in ("name", "id"):
            raise ValueError(f"{option}.classes={classes}: must be name or id")
        source, root = path_of(f"{option}.source", source), path_of(f"{option}.root", root)
        for name, given in (("format", format), ("root", root)):
            if given is not None and source is None:
                raise ValueError(f"{option}.{name}={given}: is of a source, and there is none")
        self.records = None if records is None else whole(f"{option}.records", records, 1)
        self.ranks = ranks_of(f"{option}.ranks", ranks)
        self.mirrored = flag(f"{option}.mirrored", mirrored)
        self.names = ["closed_set"]
        self.source = source and items(source, format, root=root, mirrored=mirrored, option=f"{option}.source")
        self.classes = classes
        self.resamples = whole(f"{option}.resamples", resamples, 0)

    def check(self, model: Model) -> None:
        _, found, _ = self._wanted(model)
        if (width := found.width(model)) != model.embedding_size:
            raise ValueError(
                f"protocol.closed_set.source={found.name}: is of {width} numbers, the model's embeddings of "
                f"{model.embedding_size}"
            )

    def __call__(self, model: Model) -> list[Result]:
        centers, found, label_N = self._wanted(model)
        if self.records is not None and self.records < len(found):
            chosen = permute(np.arange(self.records), len(found), 0)
            found, label_N = found.only(chosen), label_N[chosen]
        probes_ND = found.everywhere(model, "images", unit_length=centers.normalize).to(model.processes.device)
        if not centers.normalize:
            probes_ND = torch.cat([probes_ND, probes_ND.new_ones(len(probes_ND), 1)], 1)  # for the bias

        def blocks(wanted: Wanted | None) -> Iterable[tuple[int, Tensor]]:
            for start, rows in centers.blocks():
                if wanted is None or wanted.within(start, start + len(rows)):
                    rows = finite(rows, "class centers")
                    yield start, normalize(rows) if centers.normalize else rows

        number_N = torch.arange(len(found))
        known = Known(number_N, torch.from_numpy(label_N), torch.ones(len(found), dtype=torch.bool))
        _, above_N = strangers_above(probes_ND, known, blocks, together=model.together)
        if not model.processes.is_rank_zero:
            return []
        judged = Ranks(known, above_N.cpu(), label_N, "best")

        def metrics(weights: np.ndarray | None = None) -> dict[str, float]:
            told = judged.metrics(self.ranks, weights)
            return {f"top{k}": told[f"rank{k}"] for k in self.ranks}

        intervals = bootstrap.intervals(metrics, [judged.num_classes], self.resamples)
        counts = {"images": len(found), "classes": centers.num_classes}
        return [Result("closed_set", metrics(), intervals, counts, curves={"cmc": judged.cmc(centers.num_classes)})]

    def _wanted(self, model: Model) -> tuple[Centers, Items, NDArray[np.int64]]:
        """What is judged, and the class of each image."""
        if model.centers is None:
            raise ValueError(
                "protocol=closed_set: there are no class centers, this head keeps none or checkpoint= is missing"
            )
        if isinstance(self.source, Items):
            return model.centers, self.source, self._labels(self.source, model.centers)
        found = own(model, model.data().train, "training records", self.mirrored)
        assert found.classes is not None
        if found.classes.max() >= model.centers.num_classes:
            raise ValueError(
                f"protocol=closed_set: its own data have a class {found.classes.max():,}, the model has "
                f"{model.centers.num_classes:,} classes; they have changed since it was trained"
            )
        return model.centers, found, found.classes

    def _labels(self, source: Items, centers: Centers) -> NDArray[np.int64]:
        """The model's class of each image."""
        option = "protocol.closed_set"
        if source.classes is None:
            raise ValueError(f"{option}.source={source.name}: has no classes")
        if self.classes == "id":
            ids = np.arange(len(source.names))
            if source.are_features:
                if not all(name.isdigit() and len(name) < 19 for name in source.names):
                    raise ValueError(f"{option}.classes=id: classes of {source.name} are no numbers; classes=name")
                ids = np.array([int(name) for name in source.names], np.int64)
            if ids.max() >= centers.num_classes:
                raise ValueError(
                    f"{option}.classes=id: {source.name} has a class {ids.max():,}, the model has "
                    f"{centers.num_classes:,} classes"
                )
            return ids[source.classes]
        there = [one_line(name) for name in centers.class_names] or [
            str(number) for number in range(centers.num_classes)
        ]
        known = {name: number for number, name in enumerate(there)}
        unknown = [name for name in source.names if name not in known]
        if unknown:
            raise ValueError(
                f"{option}.classes=name: {len(unknown):,} of {len(source.names):,} classes of {source.name} are none "
                f"of the model's, {unknown[0]!r} for one"
            )
        return np.array([known[name] for name in source.names], np.int64)[source.classes]
