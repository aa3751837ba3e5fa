"""A model as it is judged and used: a backbone in eval mode, how images become its input, and its class centers.

All processes of a run share the work: each embeds a part of the images, each of them once.
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
from data.loading import loaded
from data.preprocessing import Preprocessing
from data.records import DataSet, Indices, Source
from data.sets.encoded_images import EncodedImages
from data.streams import InOrder
from heads.group.collectives import default_group, gather_rows, gather_sizes

from ..launching.processes import Processes
from ..tables import shown

# Images embedded together, and items of a gallery: a part of the whole whose bounds do not depend on how many processes
# share it, so that all compute the same bits.
BLOCK = 4096
TINY = 1e-15  # lengths below it are computed from squares that float32 may not hold
Prepare = Callable[[Tensor], Tensor]
T = TypeVar("T")


class Centers(Protocol):
    """The class centers of a model."""

    @property
    def num_classes(self) -> int: ...

    @property
    def normalize(self) -> bool:
        """Whether embeddings and centers are brought to unit length; otherwise the last column is a bias."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """Empty where they have none."""
        ...

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """First class and rows (k, width) in float32 of this process's share; of all processes, each class once."""
        ...


@dataclass(frozen=True)
class Model:
    """
    Args:
        backbone: in eval mode while it is used, and left as it was.
        processes: that share the work; all of them call.
        precision: a context to compute in.
        preprocessing: of images; None where the backbone takes vectors.
        data: builds the data set that it was trained on.
        centers: None for a head that keeps none.
        num_workers: processes that read and decode.
        batch_size: of the backbone.
        name: of the checkpoint it is from.
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
        """Encoded images as this model takes them. Raises ValueError where it takes none."""
        if self.preprocessing is None:
            raise ValueError(
                "there is no model that takes images: it was trained on vectors, or checkpoint= is missing"
            )
        return EncodedImages(images, self.preprocessing.decoder), self.preprocessing.normalize

    @torch.no_grad()
    def embed(
        self, source: Source, prepare: Prepare, indices: Indices, *, mirrored: bool = False, shown: str | None = None
    ) -> Tensor:
        """Embeddings (n, D) in float32 of these examples, by this process alone, in their order.

        Args:
            mirrored: add those of the mirrored images.
            shown: what a progress bar calls the work.
        """
        if mirrored and self.preprocessing is None:
            raise ValueError("mirrored=true: there is no model that takes images")
        blocks = InOrder(source, indices, self.batch_size)
        numbers = range(len(blocks))
        coming: Iterable[Tensor | ValueError] = loaded(blocks, numbers, self.num_workers if len(numbers) > 1 else 0)
        if shown is not None:
            coming = self.shown(coming, f"Embedding {shown}", len(numbers))
        # Where the backbone is on a GPU, so is what comes out of it.
        embeddings = []
        training = self.backbone.training
        self.backbone.eval()
        try:
            with self.precision():
                for examples in coming:
                    if isinstance(examples, ValueError):
                        raise examples
                    inputs = prepare(examples.to(self.processes.device))
                    found = self.backbone(inputs).float()
                    if mirrored:
                        found = found + self.backbone(inputs.flip(-1)).float()
                    embeddings.append(found)
        finally:
            self.backbone.train(training)
        return torch.cat(embeddings) if embeddings else torch.empty(0, 0, device=self.processes.device)

    def embed_all(
        self, source: Source, prepare: Prepare, shown: str, *, mirrored: bool = False, unit_length: bool = True
    ) -> Tensor:
        """Embeddings (n, D) of all examples, of unit length unless told otherwise, on the host, on every process; each
        embeds a part.

        Raises:
            ValueError: NaN or Inf, or an image that cannot be read.
        """
        own = partial(self.embed, source, prepare, mirrored=mirrored, shown=shown)
        return self.gathered(len(source), own, shown, unit_length)

    def gathered(self, count: int, rows_of: Callable[[Indices], Tensor], what: str, unit_length: bool = True) -> Tensor:
        """So many rows (n, D), of which each process makes a part, on the host of each."""
        part = np.array_split(np.arange(count), self.processes.world_size)[self.processes.rank]
        found = self.together(lambda: rows_of(part))
        width = max(self.processes.gather(found.shape[1]))
        found = found if len(found) else found.new_empty(0, width)
        group = default_group()
        rows = gather_rows(found, gather_sizes(len(found), found.device, group), group).cpu()
        return unit(rows, what) if unit_length else finite(rows, what)

    def together(self, work: Callable[[], T]) -> T:
        """Raises on all processes what it raises on one, so that none waits for the others."""
        failure: Exception | None = None
        try:
            found = work()
        except (ValueError, OSError) as error:
            failure = error
        for each in self.processes.gather(failure and str(failure)):
            if each:
                raise ValueError(each) from failure
        return found

    def shown(self, work: Any, what: str, count: int | None = None) -> Iterable[Any]:
        """With a progress bar, of the first process, on a terminal."""
        return shown(work, what, len(work) if count is None else count, self.processes.is_rank_zero)


def unit(embeddings: Tensor, what: str) -> Tensor:
    """Brought to unit length, in place; zeros stay zeros. Raises ValueError for NaN or Inf."""
    norms = embeddings.norm(dim=1, keepdim=True)
    if not (torch.isfinite(norms) & (norms > TINY)).all():  # or squares are more than float32 holds, or less
        largest = finite(embeddings, what).abs().amax(1, keepdim=True)
        embeddings.div_(torch.where(largest > 0, largest, 1))
        norms = embeddings.norm(dim=1, keepdim=True).clamp_min_(TINY)
    return embeddings.div_(norms)


def finite(embeddings: Tensor, what: str) -> Tensor:
    if not torch.isfinite(embeddings).all():
        raise ValueError(f"{what}: hold NaN or Inf")
    return embeddings
