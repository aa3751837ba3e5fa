"""A model as protocols and commands use it: a backbone, the preparation of its input, and its class centers.

The processes of a run share the work: each embeds a part of the images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from data.formats.encoded import Images
from data.loading import InOrder, loaded
from data.preprocessing import Preprocessing
from data.records import DataSet, Indices, Source
from data.sets.encoded_images import EncodedImages
from heads.group.collectives import default_group, gather_rows, gather_sizes

from ..launching.processes import Processes
from ..tables import shown

# Images embedded together, and items of a gallery. The bounds of blocks do not depend on the number of processes, so
# any number of them computes the same bits.
BLOCK = 4096
TINY = 1e-15  # shorter lengths are computed with scaling, because float32 may not hold their squares
Prepare = Callable[[Tensor], Tensor]
T = TypeVar("T")


class Centers(Protocol):
    """The class centers of a model."""

    @property
    def num_classes(self) -> int: ...

    @property
    def normalize(self) -> bool:
        """True if embeddings and centers have unit length; otherwise the last column of the centers is a bias."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, or empty."""
        ...

    def slots(self, classes: Tensor) -> Tensor:
        """Return the numbers by which `blocks` counts classes."""
        ...

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first slot and the float32 rows of each block in this process's share.

        Rows are (k, width), or (k, R, width) if a class has R of them.
        """
        ...


@dataclass(frozen=True)
class Model:
    """A backbone with what is needed to embed images.

    Args:
        backbone: set to eval mode during use, and then back to its mode.
        embedding_size: D.
        processes: processes that share the work; all of them call the methods that gather.
        precision: returns the context in which the backbone computes.
        preprocessing: preprocessing of images; None for a model of vectors.
        data: returns the model's own data set. Raises ValueError if that is missing or has changed.
        centers: None for a model without class centers.
        num_workers: processes that read and decode images.
        batch_size: images embedded at a time.
        name: name of its checkpoint.
    """

    backbone: nn.Module
    embedding_size: int
    processes: Processes
    precision: Callable[[], AbstractContextManager[object]]
    preprocessing: Preprocessing | None
    data: Callable[[], DataSet]
    centers: Centers | None = None
    num_workers: int = 0
    batch_size: int = 512
    name: str = ""

    def view(self, images: Images) -> tuple[Source, Prepare]:
        """Return encoded images as this model's input. Raise ValueError if the model takes no images."""
        if self.preprocessing is None:
            raise ValueError(
                "there is no model that takes images: it was trained on vectors, or checkpoint= is missing"
            )
        return EncodedImages(images, self.preprocessing.decoder), self.preprocessing.normalize

    @torch.no_grad()
    def embed(
        self, source: Source, prepare: Prepare, indices: Indices, *, mirrored: bool = False, label: str | None = None
    ) -> Tensor:
        """Return float32 embeddings (n, D) of these examples in their order, computed by this process alone.

        Args:
            mirrored: add the embeddings of the mirrored images.
            label: label of a progress bar; None for no bar.
        """
        if mirrored and self.preprocessing is None:
            raise ValueError("mirrored=true needs a model that takes images; set it to false")
        blocks = InOrder(source, indices, self.batch_size)
        numbers = range(len(blocks))
        batches: Iterable[Tensor | ValueError] = loaded(blocks, numbers, self.num_workers if len(numbers) > 1 else 0)
        if label is not None:
            batches = self.track(batches, f"Embedding {label}", len(numbers))
        embeddings = []  # on the backbone's device
        training = self.backbone.training
        self.backbone.eval()
        try:
            with self.precision():
                for examples in batches:
                    if isinstance(examples, ValueError):
                        raise examples
                    inputs = prepare(examples.to(self.processes.device))
                    outputs = self.backbone(inputs).float()
                    if mirrored:
                        outputs = outputs + self.backbone(inputs.flip(-1)).float()
                    embeddings.append(outputs)
        finally:
            self.backbone.train(training)
        return torch.cat(embeddings) if embeddings else torch.empty(0, 0, device=self.processes.device)

    def embed_all(
        self, source: Source, prepare: Prepare, label: str, *, mirrored: bool = False, unit_length: bool = True
    ) -> Tensor:
        """Return embeddings (n, D) of all examples on the host, on every process; each process embeds a part.

        Args:
            label: name of the examples, for the progress bar and for messages.
            mirrored: add the embeddings of the mirrored images.
            unit_length: normalize the embeddings.

        Raises:
            ValueError: NaN or Inf, or an image that cannot be read.
        """
        embed_part = partial(self.embed, source, prepare, mirrored=mirrored, label=label)
        return self.gathered(len(source), embed_part, label, unit_length)

    def gathered(
        self, count: int, rows_of: Callable[[Indices], Tensor], label: str, unit_length: bool = True
    ) -> Tensor:
        """Return `count` rows (n, D) on the host of each process; each process computes a part with `rows_of`."""
        part = np.array_split(np.arange(count), self.processes.world_size)[self.processes.rank]
        own_rows = self.together(lambda: rows_of(part))
        width = max(self.processes.gather(own_rows.shape[1]))
        own_rows = own_rows if len(own_rows) else own_rows.new_empty(0, width)
        group = default_group()
        rows = gather_rows(own_rows, gather_sizes(len(own_rows), own_rows.device, group), group).cpu()
        return unit(rows, label) if unit_length else finite(rows, label)

    def together(self, work: Callable[[], T]) -> T:
        """Do the work, and raise on all processes what one of them raises, so that none waits for the others."""
        failure: Exception | None = None
        try:
            result = work()
        except (ValueError, OSError) as error:
            failure = error
        for message in self.processes.gather(failure and str(failure)):
            if message:
                raise ValueError(message) from failure
        return result

    def track(self, work: Any, label: str, count: int | None = None) -> Iterable[Any]:
        """Iterate with a progress bar, which process 0 shows on a terminal."""
        return shown(work, label, len(work) if count is None else count, self.processes.is_rank_zero)


def by_class(rows: Tensor, rows_per_class: int) -> Tensor:
    """Return rows (k x R, width) of classes as (k, R, width), unchanged if each class has one."""
    return rows if rows_per_class == 1 else rows.view(-1, rows_per_class, rows.shape[1])


def unit(embeddings: Tensor, label: str) -> Tensor:
    """Normalize embeddings in place; zeros stay zeros. Raise ValueError for NaN or Inf."""
    norms = embeddings.norm(dim=1, keepdim=True)
    if not (torch.isfinite(norms) & (norms > TINY)).all():  # squares may overflow or underflow float32
        largest = finite(embeddings, label).abs().amax(1, keepdim=True)
        embeddings.div_(torch.where(largest > 0, largest, 1))
        norms = embeddings.norm(dim=1, keepdim=True).clamp_min_(TINY)
    return embeddings.div_(norms)


def finite(embeddings: Tensor, label: str) -> Tensor:
    """Return the embeddings. Raise ValueError for NaN or Inf."""
    if not torch.isfinite(embeddings).all():
        raise ValueError(f"the embeddings of {label} hold NaN or Inf")
    return embeddings
