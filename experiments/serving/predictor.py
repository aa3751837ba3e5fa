"""Embeddings, nearest classes and nearest images of a gallery for the images of a request, without the server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ..launching.processes import Processes, device_for
from ..models.model import Model
from ..models.trained import Trained, model_of
from ..protocols.image_sets import ImageSet


@dataclass(frozen=True)
class Sent:
    """Encoded images of a request."""

    encoded: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.encoded)

    def read_all(self, indices: NDArray[np.int64]) -> Iterator[bytes]:
        for index in indices:
            yield self.encoded[int(index)]

    def name(self, index: int) -> str:
        return f"image {index + 1}"


class Predictor:
    """A model with the rows and the gallery that it compares images with, all on one device.

    Args:
        checkpoint: the folder of a run, one of its checkpoints, or a URL.
        trust: classes outside this project that its config may name.
        accelerator: auto, cpu or gpu.
        precision: precision of the backbone.
        top: number of nearest classes and of nearest images of the gallery.

    Raises:
        ValueError: the checkpoint has no model that takes images.
    """

    def __init__(self, checkpoint: str, trust: Sequence[str], accelerator: str, precision: str, top: int):
        trained = trained_on_images(checkpoint, trust)
        self.model: Model = model_of(trained, Processes(0, 1, device_for(accelerator)), precision)
        self.description, self.top = str(trained), top
        self.rows: Tensor | None = None
        self.class_names: Sequence[str] = ()
        if (centers := self.model.centers) is not None:
            self.normalize = centers.normalize
            rows = torch.cat([rows.float() for _, rows in trained.rows_by_class()]).to(self.model.processes.device)
            self.rows = normalize(rows, dim=-1) if centers.normalize else rows
            self.class_names = centers.class_names or [str(number) for number in range(centers.num_classes)]
        self.gallery: tuple[Tensor, ImageSet] | None = None

    def add_gallery(self, images: ImageSet) -> None:
        """Embed the images of a gallery, which then are searched for each image."""
        self.gallery = images.embeddings(self.model, "gallery").to(self.model.processes.device), images

    def check(self, encoded: bytes) -> None:
        """Raise UnreadableError unless an image can be decoded."""
        assert self.model.preprocessing is not None
        height, width, channels = self.model.preprocessing.decoder.shape
        self.model.preprocessing.decoder.into(np.empty((height, width, channels), np.uint8), encoded)

    @torch.no_grad()
    def predict(self, encoded: Sequence[bytes]) -> list[dict[str, Any]]:
        """Return for each image its embedding of unit length, nearest classes, and nearest images of the gallery.

        Raises:
            UnreadableError: an image cannot be decoded.
        """
        images, prepare = self.model.view(Sent(encoded))
        raw_ND = self.model.embed(images, prepare, np.arange(len(encoded)))
        unit_ND = normalize(raw_ND, dim=-1)
        found: list[dict[str, Any]] = [{"embedding": row} for row in unit_ND.tolist()]
        if self.rows is not None:
            for answer, nearest in zip(found, self._nearest_classes(raw_ND, unit_ND), strict=True):
                answer["classes"] = nearest
        if self.gallery is not None:
            rows, images_of = self.gallery
            for answer, nearest in zip(found, self._nearest_images(unit_ND @ rows.T, images_of), strict=True):
                answer["gallery"] = nearest
        return found

    def _nearest_classes(self, raw_ND: Tensor, unit_ND: Tensor) -> Iterator[list[dict[str, Any]]]:
        """Yield the classes with the highest scores of each image: cosines, or logits of a head without them."""
        assert self.rows is not None
        x = unit_ND if self.normalize else torch.cat([raw_ND, raw_ND.new_ones(len(raw_ND), 1)], 1)
        scores = x @ self.rows.flatten(0, -2).T
        if self.rows.dim() == 3:  # several rows a class: the best one counts
            scores = scores.view(len(x), len(self.rows), -1).amax(2)
        for values, places in zip(*_top(scores, self.top), strict=True):
            yield [
                {"class": self.class_names[place], "id": place, "score": value}
                for value, place in zip(values, places, strict=True)
            ]

    def _nearest_images(self, scores: Tensor, images: ImageSet) -> Iterator[list[dict[str, Any]]]:
        for values, places in zip(*_top(scores, self.top), strict=True):
            nearest: list[dict[str, Any]] = [
                {"number": place, "score": value} for value, place in zip(values, places, strict=True)
            ]
            if images.classes is not None and len(images.names):
                for each in nearest:
                    each["class"] = images.names[int(images.classes[each["number"]])]
            yield nearest


def trained_on_images(checkpoint: str, trust: Sequence[str]) -> Trained:
    """Return a checkpoint whose model takes images. Raises ValueError for any other."""
    trained = Trained(checkpoint, trust=trust)
    if trained.preprocessing is None:
        raise ValueError(f"checkpoint={checkpoint} was trained on vectors and takes no images")
    return trained


def _top(scores: Tensor, count: int) -> tuple[list[list[float]], list[list[int]]]:
    """Return the highest scores of each row, and their places."""
    values, places = scores.topk(min(count, scores.shape[1]), dim=1)
    return values.tolist(), places.tolist()
