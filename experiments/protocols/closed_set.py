"""`protocol=closed_set`: classify images among the training classes, by comparing them with all class centers.

This is the question of classification, for example of products or characters. The centers are read in blocks.
"""

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
from .image_sets import ImageSet, from_dataset, image_set
from .options import ranks_of
from .ranks import Ranks
from .search import KnownPairs, WantedItems, count_strangers_above

OPTION = "protocol.closed_set"
NOTES = (f"the model was trained on these images; {OPTION}.source=PATH classifies others",)


class ClosedSet:
    """Classification among the training classes.

    An image with several labels is judged by the first one. Its other classes are not compared with it.

    Args:
        source: images by class; None for training records of the model's data.
        format: format of the images, as `data.format`; None detects it.
        root: folder that paths in a list are relative to, as `data.root`.
        classes: "name" matches classes of the source and the model by name, "id" by number.
        records: number of images, drawn at random; None for all.
        ranks: k of the top-k metrics.
        mirrored: add the embedding of the mirrored image.
        resamples: bootstrap draws over classes; 0 for no intervals.
    """

    names = ("closed_set",)

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
        if classes not in ("name", "id"):
            raise ValueError(f"{OPTION}.classes={classes} must be name or id")
        source, root = path_of(f"{OPTION}.source", source), path_of(f"{OPTION}.root", root)
        for name, value in (("format", format), ("root", root)):
            if value is not None and source is None:
                raise ValueError(f"{OPTION}.{name}={value} applies to a source only; remove it, or name a source")
        self.records = None if records is None else whole(f"{OPTION}.records", records, 1)
        self.ranks = ranks_of(f"{OPTION}.ranks", ranks)
        self.mirrored = flag(f"{OPTION}.mirrored", mirrored)
        self.source = source and image_set(source, format, root=root, mirrored=mirrored, option=f"{OPTION}.source")
        self.classes = classes
        self.resamples = whole(f"{OPTION}.resamples", resamples, 0)

    def check(self, model: Model) -> None:
        """Raise ValueError if the source does not fit the model. Reads one image."""
        _, images = self._sets(model)
        if (width := images.width(model)) != model.embedding_size:
            raise ValueError(
                f"{OPTION}.source={images.name} has features of {width} numbers and the model embeddings of "
                f"{model.embedding_size}; use features of this model"
            )

    def __call__(self, model: Model) -> list[Result]:
        """Return the result on the first process."""
        centers, images = self._sets(model)
        if self.records is not None and self.records < len(images):
            images = images.subset(permute(np.arange(self.records), len(images), 0))
        probes_ND = images.embeddings(model, "images", unit_length=centers.normalize).to(model.processes.device)
        if not centers.normalize:
            probes_ND = torch.cat([probes_ND, probes_ND.new_ones(len(probes_ND), 1)], 1)  # multiplies the bias

        def blocks(wanted: WantedItems | None) -> Iterable[tuple[int, Tensor]]:
            for start, rows in centers.blocks():
                if wanted is None or wanted.within(start, start + len(rows)):
                    rows = finite(rows, "class centers")
                    yield start, normalize(rows, dim=-1) if centers.normalize else rows

        known = known_classes(images, centers)
        _, above_M = count_strangers_above(probes_ND, known, blocks, together=model.together)
        if not model.processes.is_rank_zero:
            return []
        assert images.classes is not None
        ranks = Ranks(known, above_M.cpu(), images.classes, "best")

        def metrics(weights: np.ndarray | None = None) -> dict[str, float]:
            values = ranks.metrics(self.ranks, weights)
            return {f"top{k}": values[f"rank{k}"] for k in self.ranks}

        intervals = bootstrap.intervals(metrics, [ranks.num_classes], self.resamples)
        counts = {"images": len(images), "classes": centers.num_classes}
        curves = {"cmc": ranks.cmc(centers.num_classes)}
        return [Result("closed_set", metrics(), intervals, counts, NOTES if self.source is None else (), curves)]

    def _sets(self, model: Model) -> tuple[Centers, ImageSet]:
        """Return the class centers, and the images with the model's numbers of their classes."""
        if model.centers is None:
            raise ValueError(
                "protocol=closed_set needs class centers, and there are none: the head keeps none, or checkpoint= is "
                "missing"
            )
        if isinstance(self.source, ImageSet):
            return model.centers, self.source.renumbered(self._numbers(self.source, model.centers))
        images = from_dataset(model, model.data().train, "training records", self.mirrored)
        assert images.classes is not None
        largest = (images.classes if images.all_classes is None else images.all_classes).max()
        if largest >= model.centers.num_classes:
            raise ValueError(
                f"protocol=closed_set found class {largest:,} in the model's data and the model has "
                f"{model.centers.num_classes:,} classes; restore the data that it was trained on"
            )
        return model.centers, images

    def _numbers(self, source: ImageSet, centers: Centers) -> NDArray[np.int64]:
        """Return the model's class for each class of the source."""
        if source.classes is None:
            raise ValueError(f"{OPTION}.source={source.name} has no classes; add a .txt file that names them")
        if self.classes == "id":
            return self._ids(source, centers.num_classes)
        model_names = [one_line(name) for name in centers.class_names] or [
            str(number) for number in range(centers.num_classes)
        ]
        numbers = {name: number for number, name in enumerate(model_names)}
        unknown = [name for name in source.names if name not in numbers]
        if unknown:
            raise ValueError(
                f"{OPTION}.classes=name needs class names of the model, and {len(unknown):,} of {len(source.names):,} "
                f"classes of {source.name} have other names, such as {unknown[0]!r}; rename them, or choose classes=id"
            )
        return np.array([numbers[name] for name in source.names], np.int64)

    def _ids(self, source: ImageSet, num_classes: int) -> NDArray[np.int64]:
        """Return the model's class for each class of the source, by number."""
        ids = np.arange(len(source.names))
        if source.are_features:
            if not all(name.isdigit() and len(name) < 19 for name in source.names):
                raise ValueError(
                    f"{OPTION}.classes=id needs numbers as classes of {source.name}; choose classes=name for names"
                )
            ids = np.array([int(name) for name in source.names], np.int64)
        if ids.max() >= num_classes:
            raise ValueError(
                f"{OPTION}.classes=id found class {ids.max():,} in {source.name} and the model has {num_classes:,} "
                "classes; use a model of those classes"
            )
        return ids


def known_classes(images: ImageSet, centers: Centers) -> KnownPairs:
    """Return the classes of each image, by slot. The first is the one to be found, and the others are ignored."""
    assert images.classes is not None
    if images.all_classes is None:
        number_N, slot_N = torch.arange(len(images)), centers.slots(torch.from_numpy(images.classes))
        return KnownPairs(number_N, slot_N, torch.ones(len(images), dtype=torch.bool))
    image, place = np.nonzero(images.all_classes >= 0)
    image, class_id = np.unique([image, images.all_classes[image, place]], axis=1)
    is_first = class_id == images.classes[image]
    image_P, class_P, first_P = (torch.from_numpy(np.ascontiguousarray(array)) for array in (image, class_id, is_first))
    return KnownPairs(image_P, centers.slots(class_P), first_P)
