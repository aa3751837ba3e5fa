"""The index of a shard's rows, refreshed while training changes them."""

from typing import Any

import torch
from torch import Tensor

from ..rows.class_rows import ClassRows
from .index import Index
from .refresh import IndexRefresh
from .vectors import CenterVectors


class ShardIndex(IndexRefresh):
    """An index of this process's rows, with a record of the rows that changed since it was built.

    Args:
        template: an index with the options of those to be built; never built itself.
        centers: the rows.
        normalize: whether rows are compared by their cosines. Otherwise by inner products plus bias.
        background: as in `IndexRefresh`.

    Attributes:
        changed: (rows,) whether a row has changed since the last refresh began.
    """

    def __init__(self, template: Index, centers: ClassRows, *, normalize: bool, background: bool):
        super().__init__(background=background)
        self.template, self.centers, self.normalize = template, centers, normalize
        self.changed = torch.zeros(centers.shard.size, dtype=torch.bool)
        self._reread = torch.empty(0, dtype=torch.long)  # changed rows that the last refresh reads

    def mark_changed(self, ids: Tensor | None, device: torch.device) -> None:
        """Record that training changes these rows; None for all rows."""
        if self.template.refreshable:
            self.changed = self.changed.to(device)
            self.changed[slice(None) if ids is None else ids] = True

    def update(self, *, step: int, interval: int, **options: Any) -> None:
        """Adopt a finished index, and start the next refresh if it is due.

        Args:
            step: optimizer step.
            interval: steps from this refresh to the next one.
            options: options of `Index.build`.

        Raises:
            RuntimeError: a blocking refresh failed.
        """
        self.collect()
        if self.repeat(step):
            self.changed[self._reread.to(self.changed.device)] = True
        if step < self.next_refresh or self.running:
            return
        self.next_refresh = step + interval
        changed, current = self.changed.nonzero()[:, 0], self.current
        self._reread = changed
        self.changed.zero_()
        options = {**options, "step": step, "background": self.background}

        def build() -> Index:
            vectors = CenterVectors(self.centers, columns=self.centers.embedding_size if self.normalize else None)
            longest = 0.0 if self.normalize else vectors.longest()
            if current is not None and longest <= current.radius:
                vectors.radius = current.radius
                index = current.rebuilt(vectors, changed, **options)
            else:
                vectors.radius = 1.5 * longest  # room for rows to grow
                index = self.template.empty_copy()
                index.build(vectors, **options)
            index.radius = vectors.radius
            return index

        self.start(step, build)

    def query(self, x_ND: Tensor, k: int) -> Tensor:
        """Return the k nearest rows of each embedding (N, k), nearest first; -1 where fewer were found."""
        assert self.current is not None
        return self.current.query(self.queries(x_ND), k)

    def queries(self, x_ND: Tensor) -> Tensor:
        """Return embeddings in the space of the indexed vectors."""
        x_ND = x_ND.detach().float()
        return x_ND if self.normalize else torch.cat([x_ND, x_ND.new_zeros(len(x_ND), 1)], dim=1)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the current index and the rows that changed since it was built; None without an index."""
        if self.current is None:
            return None
        changed = self.changed.cpu()  # since the current index was begun, not the one being built
        if self.running or self.failed:
            changed = changed.clone()
            changed[self._reread.cpu()] = True
        return {
            "kind": type(self.current).__name__,
            "shard": self._shard(),
            "state": self.current.state_dict(),
            "as_of": self.as_of,
            "next_refresh": self.next_refresh,
            "changed": changed,
            "radius": self.current.radius,
        }

    def load_state_dict(self, state: dict[str, Any] | None, step: int) -> None:
        """Load an index of the same kind and the same rows; otherwise a new one is due at this step."""
        self.wait()
        if state is None or (state["kind"], state["shard"]) != (type(self.template).__name__, self._shard()):
            self.current, self.next_refresh = None, step
            return
        index = self.template.empty_copy()
        index.load_state_dict(state["state"])
        index.radius = state["radius"]
        self.current, self.as_of = index, state["as_of"]
        with torch.inference_mode(False):  # later steps could not write into an inference tensor
            self.next_refresh, self.changed = state["next_refresh"], state["changed"].clone()

    def _shard(self) -> list[int]:
        shard = self.centers.shard
        return [shard.start, shard.stop, shard.num_classes, self.centers.width]
