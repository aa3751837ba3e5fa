"""Hashing forest: dynamic selection of the classes nearest to the batch, which hold most of the softmax's mass.

Source: Zhang et al., "Accelerated Training for Massive Classification via Dynamic Class Selection", AAAI 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .center_head import CenterHead
from .core import counter_rng
from .core.cost import Case, Cost
from .core.options import number, option, whole
from .core.row_state import RowState
from .core.schedule import Schedule
from .fidelity.reference import coverage
from .group.batch import GlobalBatch
from .indexes import Annoy, Index
from .indexes.index import check_index
from .indexes.refresh import check_build
from .indexes.shard_index import ShardIndex
from .rows.options import CenterOptions
from .selection.allocation import Allocation
from .selection.nearest import nearest_first
from .selection.sampling import filled
from .selection.selection import Selection


@dataclass(frozen=True, kw_only=True)
class HashingForestOptions(CenterOptions):
    """Options of `HashingForest`."""

    num_active: Schedule = option(
        0.1,
        "Number of classes in a step over all processes, or their share of C if it is at most 1; or {step: value} to "
        "change it from each step on. Positives always take part, even if there are more of them.",
    )
    neighbours_share: float = option(
        1.0,
        "Share of the negatives, in [0, 1], that are nearest classes. Uniform negatives fill the rest, also where the "
        "neighbours of the batch overlap. 0 is PartialFC.",
    )
    index: Index | None = option(None, "An index from `heads.indexes`, not built yet. None for Annoy().")
    interval: Schedule = option(
        100, "Steps between refreshes of the index; or {step: value} to change it from each step on."
    )
    build: str = option(
        "background",
        'How the index is refreshed: "background" builds the next index during training while the current one is '
        'used, from rows that still change. "blocking" makes training wait, and makes runs reproducible.',
    )
    log_q: bool = option(
        False,
        "Subtract from each uniform negative's logit the log of the probability with which it was drawn. Uniform "
        "negatives then represent all classes that are not nearest.",
    )
    target_mass: float | None = option(
        None,
        "Share of the negative softmax mass, in (0, 1), that the active classes should hold. Probes then adapt "
        "num_active, interval and the search scale of the index. Needs probe_interval. None for no target.",
    )
    probe_interval: int | None = option(
        None,
        "Steps between probes. A probe reads all rows once, and compares embeddings of the batch with all "
        "class centers. None for no probes.",
    )
    probes: int = option(8, "Embeddings per probe.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= number("neighbours_share", self.neighbours_share) <= 1:
            raise ValueError(
                f"neighbours_share={self.neighbours_share} must be in [0, 1]; it is a share of the negatives"
            )
        check_build(self.build)
        check_index(self.index)
        if self.probe_interval is not None:
            object.__setattr__(self, "probe_interval", whole("probe_interval", self.probe_interval, 1))
        object.__setattr__(self, "probes", whole("probes", self.probes, 1))
        if self.target_mass is not None and self.probe_interval is None:
            raise ValueError(
                f"target_mass={self.target_mass} needs probes; set probe_interval, the steps between its corrections"
            )


class HashingForest(CenterHead):
    """Margin softmax over the positives of each shard, the classes nearest to the batch, and uniform negatives.

    An index of each shard's rows finds the nearest classes. It is refreshed every `interval` steps. All negatives are
    uniform until the first index is ready. Probes report the share of the softmax mass that the active classes hold,
    and the share of the nearest classes that the index finds.

    The head maps embeddings (n, D) and labels (n,) to a loss. Its rows learn from an optimizer of their own::

        head = HashingForest(num_classes=1_000_000, embedding_size=512, num_active=0.01)
        rows = head.optimizer(lr=0.1)
        head(embeddings, labels).backward()
        rows.step()

    Source: Zhang et al., "Accelerated Training for Massive Classification via Dynamic Class Selection", AAAI 2018.

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range.
        RuntimeError: in forward, if the index could not be built.

    Examples:
        >>> head = HashingForest(num_classes=1000, embedding_size=16, num_active=100, index=Exact(), build="blocking")
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
        >>> int(head.stats()["active_classes"])
        100
    """

    Options = HashingForestOptions
    options: HashingForestOptions
    state_differs = True  # each process indexes its own rows

    def __init__(self, num_classes: int, embedding_size: int, **options: Any):
        super().__init__(num_classes, embedding_size, **options)
        self.allocation = self._allocation(self.centers.shard.num_classes, self.options)
        index = Annoy() if self.options.index is None else self.options.index
        self.index_refresh = ShardIndex(
            index, self.centers, normalize=self.margin.normalize, background=self.options.build == "background"
        )
        self.probed: dict[str, float] = {}  # results of the last probe
        self.nearest_negatives = 0
        self._num_queried = 0  # neighbours per embedding in the last step

    @staticmethod
    def _allocation(num_classes: int, options: HashingForestOptions) -> Allocation:
        return Allocation(num_classes, options.num_active, options.interval, options.target_mass)

    @classmethod
    def active_shares(cls, num_classes: int, options: Any) -> list[float]:
        return cls._allocation(num_classes, options).shares()

    @classmethod
    def cost(cls, case: Case, options: Any, *, row_state: Mapping[str, RowState]) -> Cost:
        """Return the cost of a step without that of building the index. Of each schedule, the largest value counts."""
        cost = super().cost(case, options, row_state=row_state)
        active = min(case.shard, max(1, round(max(cls.active_shares(case.num_classes, options)) * case.shard)))
        index, D = Annoy() if options.index is None else options.index, case.embedding_size
        neighbours = -(-round(options.neighbours_share * active) // case.batch) + 1
        return replace(
            cost,
            index_bytes=case.shard * index.bytes_per_vector(D),
            multiply_adds=cost.multiply_adds + case.batch * index.multiply_adds(case.shard, D, neighbours),
        )

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        shard = self.centers.shard
        quota = self.allocation.quota(self.step, shard)
        if quota == shard.size:
            return Selection()
        local = shard.local(labels)
        positives = torch.unique(local[local >= 0])
        nearest = self._nearest(embeddings, positives, max(quota - len(positives), 0))
        self.nearest_negatives = len(nearest)
        chosen = torch.cat([positives, nearest]).sort().values
        generator = counter_rng.generator(
            "selection", self.options.seed, self.step, self.micro_batch, shard.start, device=labels.device
        )
        return filled(chosen, shard.size, quota, generator, log_q=embeddings if self.options.log_q else None)

    def on_selected(self, batch: GlobalBatch, ids: Tensor | None) -> None:
        self.index_refresh.mark_changed(ids, batch.x_ND.device)
        every, probes = self.options.probe_interval, self.options.probes
        if every is not None and self.step % every == 0 and self.micro_batch == 0:
            with self.timer("forward/probe", batch.x_ND.device):
                self._probe(batch.chosen(list(range(min(probes, len(batch.x_ND))))), ids)

    def stats(self) -> dict[str, float]:
        """Return the numbers of `CenterHead`, and of the index.

        Those of the index are the number of nearest negatives in the last step, the age of the index in steps, the
        seconds that building it took, and the results of the last probe.
        """
        refresh = self.index_refresh
        built = {"index_age": self.step - refresh.as_of, "build_seconds": refresh.seconds} if refresh.current else {}
        return {**super().stats(), "nearest_negatives": self.nearest_negatives, **built, **self.probed}

    @property
    def failure(self) -> str | None:
        return self.index_refresh.error

    def get_extra_state(self) -> dict[str, Any]:
        state = {**super().get_extra_state(), "allocation": self.allocation.state_dict()}
        if (index := self.index_refresh.state_dict()) is not None:
            state["index"] = index
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if "allocation" in state:
            self.allocation.load_state_dict(state["allocation"])
        super().set_extra_state(state)
        self.index_refresh.load_state_dict(state.get("index"), self.step)

    def without_local(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return extra state without the index, which holds rows of one process and is built again."""
        return {name: value for name, value in state.items() if name != "index"}

    def extra_repr(self) -> str:
        index, share = self.index_refresh.template, self.options.neighbours_share
        return f"index={index}, neighbours_share={share}, {super().extra_repr()}"

    def _nearest(self, x_ND: Tensor, positives: Tensor, room: int) -> Tensor:
        """Return the nearest classes of this shard that are not positives, at most `neighbours_share` of `room`."""
        count = round(self.options.neighbours_share * room)
        self._num_queried = -(-count // len(x_ND)) + 1 if count and len(x_ND) else 0  # one more for the own class
        if not self._num_queried:
            return positives[:0]
        refresh = self.index_refresh
        if not (self.probing and refresh.background):  # a blocking refresh gives the same index at any point of a step
            self._refresh_index()
        if refresh.current is None:
            return positives[:0]
        with self.timer("forward/query", x_ND.device):
            nearest_Nk = refresh.query(x_ND, self._num_queried)
        return nearest_first(nearest_Nk, positives, count)

    def _refresh_index(self) -> None:
        """Adopt a finished index, and start to build the next one if it is due."""
        refresh = self.index_refresh
        if refresh.error is not None and self.micro_batch == 0:  # the step in which it failed is complete
            raise RuntimeError(refresh.error)
        refresh.update(
            step=self.step,
            interval=self.allocation.interval(self.step),
            seed=self.options.seed,
            search_scale=self.allocation.search_scale,
        )

    @torch.no_grad()
    def _probe(self, batch: GlobalBatch, ids: Tensor | None) -> None:
        """Measure the mass that the selected rows `ids` hold, and the recall of the index at its usual k."""
        refresh, k = self.index_refresh, max(self._num_queried - 1, 1)
        covered = coverage(self, batch, Selection(ids), k=k)
        self.probed = {"mass_covered": float(covered.mass_Q.mean()), "mass_reachable": float(covered.perfect_Q.mean())}
        self.probed |= {f"{name}_exact": figure for name, figure in covered.figures.items()}
        if self.objective.sparse:
            self.probed["support_missed"] = float((covered.missing_Q > 0).double().mean())
        self.allocation.observe(self.probed["mass_covered"], self.probed["mass_reachable"])
        if refresh.current is not None and (k := covered.nearest_Qk.shape[1]):
            answer = refresh.query(batch.x_ND, k + 1)
            answer[batch.positives.among(answer, self.centers.shard)] = -1
            hits = (answer[:, :, None] == covered.nearest_Qk[:, None]).any(1)
            self.probed["index_recall"] = float(hits.float().mean())
