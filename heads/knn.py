"""KNN softmax: the positives, and the classes nearest to them by a graph between class centers.

Source: Song et al., "Large-Scale Training System for 100-Million Classification at Alibaba", KDD 2020
(arXiv 2102.06025).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .center_head import CenterHead
from .core import counter_rng
from .core.cost import Case, Cost
from .core.options import option, whole
from .core.row_state import RowState
from .core.schedule import Schedule, values_of
from .indexes import Exact, Index
from .indexes.class_graph import ClassGraph, neighbours_per_shard
from .indexes.index import check_index
from .indexes.refresh import check_build
from .rows.options import CenterOptions
from .selection.allocation import Allocation
from .selection.nearest import nearest_first
from .selection.sampling import filled
from .selection.selection import Selection


@dataclass(frozen=True, kw_only=True)
class KNNSoftmaxOptions(CenterOptions):
    """Options of `KNNSoftmax`."""

    num_active: Schedule = option(
        0.1,
        "Number of classes in a step over all processes, or their share of C if it is at most 1; or {step: value} to "
        "change it from each step on. Positives always take part, even if there are more of them.",
    )
    neighbours: int = option(
        100,
        "Neighbours of each class in the graph, over all processes: each finds its share of them, rounded up, among "
        "its own classes. Uniform negatives fill the rest of the active classes.",
    )
    interval: Schedule = option(
        100, "Steps between builds of the graph; or {step: value} to change it from each step on."
    )
    index: Index | None = option(
        None, "An index from `heads.indexes`, not built yet, in which a build finds the neighbours. None for Exact()."
    )
    build: str = option(
        "background",
        'How the graph is built: "background" builds the next graph during training while the current one is used, '
        'from rows that still change. "blocking" makes training wait, and makes runs reproducible.',
    )
    log_q: bool = option(
        False,
        "Subtract from each uniform negative's logit the log of the probability with which it was drawn. Uniform "
        "negatives then represent all classes that are not neighbours.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "neighbours", whole("neighbours", self.neighbours, 1))
        check_build(self.build)
        check_index(self.index)


class KNNSoftmax(CenterHead):
    """Margin softmax over the positives of each shard, their neighbours among the class centers, and uniform negatives.

    A graph holds the nearest classes of each class. A step only looks the positives up in it, without a search. It is
    built anew every `interval` steps; all negatives are uniform until the first graph is ready. If there are more
    neighbours than `num_active` allows, the nearest of all positives come first, then the second nearest, and so on.

    The head maps embeddings (n, D) and labels (n,) to a loss. Its rows learn from an optimizer of their own::

        head = KNNSoftmax(num_classes=1_000_000, embedding_size=512, num_active=0.01)
        rows = head.optimizer(lr=0.1)
        head(embeddings, labels).backward()
        rows.step()

    Source: Song et al., "Large-Scale Training System for 100-Million Classification at Alibaba", KDD 2020
    (arXiv 2102.06025).

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range.
        RuntimeError: in forward, if the graph could not be built.

    Examples:
        >>> options = {"neighbours": 20, "index": Exact(), "build": "blocking"}
        >>> head = KNNSoftmax(num_classes=1000, embedding_size=16, num_active=100, **options)
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
        >>> int(head.stats()["active_classes"])
        100
    """

    Options = KNNSoftmaxOptions
    options: KNNSoftmaxOptions
    state_differs = True  # each process has the neighbours in its own shard

    def __init__(self, num_classes: int, embedding_size: int, **options: Any):
        super().__init__(num_classes, embedding_size, **options)
        self.allocation = self._allocation(self.centers.shard.num_classes, self.options)
        self.graph = ClassGraph(
            Exact() if self.options.index is None else self.options.index,
            self.centers,
            self.options.neighbours,
            normalize=self.margin.normalize,
            background=self.options.build == "background",
        )
        self.nearest_negatives = 0

    @staticmethod
    def _allocation(num_classes: int, options: KNNSoftmaxOptions) -> Allocation:
        return Allocation(num_classes, options.num_active, options.interval)

    @classmethod
    def active_shares(cls, num_classes: int, options: Any) -> list[float]:
        return cls._allocation(num_classes, options).shares()

    @classmethod
    def cost(cls, case: Case, options: Any, *, row_state: Mapping[str, RowState]) -> Cost:
        """Return the cost of a step, with its share of a build of the graph; of each schedule, the most costly value.

        The index exists only during a build. Beside it are two graphs, the current one and the next.
        """
        cost = super().cost(case, options, row_state=row_state)
        index, C, D = Exact() if options.index is None else options.index, case.num_classes, case.embedding_size
        neighbours = neighbours_per_shard(options.neighbours, C, case.shard)
        builds = 1 / min(values_of(options.interval))  # for each step
        return replace(
            cost,
            index_bytes=case.shard * index.bytes_per_vector(D) + 2 * 4 * C * neighbours,
            sent_bytes=cost.sent_bytes + builds * case.sent(gathered=4 * C * D),
            multiply_adds=cost.multiply_adds + builds * C * index.multiply_adds(case.shard, D, neighbours + 1),
        )

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        shard = self.centers.shard
        if self.allocation.num_active(self.step) == shard.num_classes:
            return Selection()
        self._update_graph()  # on all processes, also on those whose classes are all active
        quota = self.allocation.quota(self.step, shard)
        if quota == shard.size:
            return Selection()
        local = shard.local(labels)
        positives = torch.unique(local[local >= 0])
        nearest = self._nearest(labels, positives, max(quota - len(positives), 0))
        self.nearest_negatives = len(nearest)
        chosen = torch.cat([positives, nearest]).sort().values
        generator = counter_rng.generator(
            "selection", self.options.seed, self.step, self.micro_batch, shard.start, device=labels.device
        )
        return filled(chosen, shard.size, quota, generator, log_q=embeddings if self.options.log_q else None)

    def end_selection(self) -> None:
        self.graph.abandon()

    def stats(self) -> dict[str, float]:
        """Return the numbers of `CenterHead`, and of the graph.

        Those of the graph are the number of neighbours among the negatives of the last step, its age in steps, and the
        seconds that building it took.
        """
        graph = self.graph
        built = {} if graph.current is None else {"graph_age": self.step - graph.as_of, "build_seconds": graph.seconds}
        return {**super().stats(), "nearest_negatives": self.nearest_negatives, **built}

    @property
    def failure(self) -> str | None:
        return self.graph.error

    def get_extra_state(self) -> dict[str, Any]:
        state, graph = super().get_extra_state(), self.graph.state_dict()
        return state if graph is None else {**state, "graph": graph}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.graph.load_state_dict(state.get("graph"), self.step)

    def without_local(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return extra state without the graph, which has neighbours in one shard and is built again."""
        return {name: value for name, value in state.items() if name != "graph"}

    def extra_repr(self) -> str:
        return f"neighbours={self.options.neighbours}, index={self.graph.template}, {super().extra_repr()}"

    def _nearest(self, labels: Tensor, positives: Tensor, room: int) -> Tensor:
        """Return at most `room` neighbours of the labels that are classes of this shard and no positives."""
        if self.graph.current is None or not room:
            return positives[:0]
        return nearest_first(self.graph.neighbours(labels[labels >= 0]), positives, room)

    def _update_graph(self) -> None:
        """Adopt a finished graph, and start to build the next one if it is due."""
        graph = self.graph
        if graph.error is not None and self.micro_batch == 0:  # the step in which it failed is complete
            raise RuntimeError(graph.error)
        if not (self.probing and graph.background):  # a blocking build gives the same graph at any point of a step
            with self.timer("forward/graph", self.centers.like.device):
                interval = self.allocation.interval(self.step)
                graph.update(step=self.step, interval=interval, seed=self.options.seed)
