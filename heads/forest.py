"""Dynamic class selection by a hashing forest (Zhang et al., "Accelerated Training for Massive Classification via
Dynamic Class Selection", AAAI 2018): the classes nearest to the batch, for they hold the softmax's mass."""

from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from .core import counter_rng
from .core.cost import Case, Cost
from .core.options import number, whole
from .core.schedule import Schedule
from .fidelity.full_softmax import coverage
from .head import CenterHead, CenterOptions, Selection
from .indexes import Annoy, Index
from .indexes.refresh import ATTEMPTS, IndexRefresh
from .indexes.vectors import CenterVectors
from .selection.allocation import Allocation
from .selection.sampling import filled


class HashingForest(CenterHead):
    """The margin softmax over this shard's positives, the classes nearest to the batch, and uniform others.

    An index of each shard's rows finds the nearest. It is refreshed every `interval` steps; before the first is
    there, all negatives are uniform.

    Args:
        num_active: classes in a step, of all processes: a number of them, or up to 1 a share of C; or
            {from this step on: number}. Positives are always among them, also when they are more.
        neighbours_share: of the negatives, how many shall be nearest classes; 0 is PartialFC. What the batch's
            neighbours leave free, since they overlap, is filled up uniformly.
        index: an index of `heads.indexes`, not built yet; `Annoy()` unless given.
        interval: steps between refreshes of the index; a number or {from this step on: number}.
        build: "background" rebuilds it in a thread or process of its own, from rows as they are when read, and the
            old one serves meanwhile. "blocking" lets training wait, and makes runs reproducible.
        log_q: subtract the log of the probability with which a uniform negative was drawn from its logit, so that
            they stand for all classes that are not nearest.
        target_mass: of the negative softmax mass, how much the active classes shall hold; classes, the index's
            `search_scale` and the interval then follow what probes find, from where the options start. Needs
            `probe_interval`.
        probe_interval: every so many steps, `probes` embeddings of the batch meet all class centers, to tell how much
            of their softmax the active classes hold, and how many of the nearest the index finds; None for never. A
            probe reads all rows once.
        options: of `CenterHead`.
    """

    state_differs = True  # each process indexes its own rows

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        num_active: Schedule = 0.1,
        neighbours_share: float = 1.0,
        index: Index | None = None,
        interval: Schedule = 100,
        build: str = "background",
        log_q: bool = False,
        target_mass: float | None = None,
        probe_interval: int | None = None,
        probes: int = 8,
        **options: Unpack[CenterOptions],
    ):
        if not 0 <= number("neighbours_share", neighbours_share) <= 1:
            raise ValueError(f"neighbours_share={neighbours_share}: a share of the negatives in [0, 1] is needed")
        if build not in ("background", "blocking"):
            raise ValueError(f"build={build!r}: must be 'background' or 'blocking'")
        allocation = Allocation(whole("num_classes", num_classes, 1), num_active, interval, target_mass)
        super().__init__(num_classes, embedding_size, **options)
        if probe_interval is not None and (probe_interval < 1 or probe_interval != int(probe_interval)):
            raise ValueError(
                f"probe_interval={probe_interval}: whole steps, at least 1, are needed; null for no probes"
            )
        probes = whole("probes", probes, 1)
        if index is not None and not isinstance(index, Index):
            raise ValueError(f"index={index!r} must be an index object, such as index=Annoy(num_trees=50) or Exact()")
        if target_mass is not None and probe_interval is None:
            raise ValueError(f"target_mass={target_mass}: needs probe_interval, the steps between its corrections")
        self.allocation = allocation
        self.neighbours_share, self.log_q = neighbours_share, log_q
        self.index = index if index is not None else Annoy()  # not built: the current one is in `index_refresh`
        self.index_refresh = IndexRefresh(background=build == "background")
        self.next_refresh = 0  # the step at which it is due
        self._changed = torch.zeros(self.centers.shard.size, dtype=torch.bool)  # since the last refresh began
        self._taken_in = torch.empty(0, dtype=torch.long)  # what had changed by then
        self.probe_interval, self.probes = probe_interval, probes
        self.probed: dict[str, float] = {}  # what the last probe found
        self.nearest_negatives = 0
        self._asked = 0  # neighbours per embedding in the last step

    @classmethod
    def cost(
        cls,
        case: Case,
        *,
        num_active: Schedule = 0.1,
        neighbours_share: float = 1.0,
        index: Index | None = None,
        **options: Any,
    ) -> Cost:
        """At the first step's `num_active`; making the index comes beside it."""
        share = Allocation(case.num_classes, num_active, 1, None).num_active(0) / case.num_classes
        active = min(case.shard, max(1, round(share * case.shard)))
        cost = super().cost(case, active=active if active < case.shard else None, **options)
        vectors, D = index if index is not None else Annoy(), case.embedding_size
        neighbours = -(-round(neighbours_share * active) // case.batch) + 1
        return replace(
            cost,
            index_bytes=case.shard * vectors.bytes_per_vector(D),
            multiply_adds=cost.multiply_adds + case.batch * vectors.multiply_adds(case.shard, D, neighbours),
        )

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        shard = self.centers.shard
        share = self.allocation.num_active(self.step) / shard.num_classes
        quota = min(shard.size, max(1, round(share * shard.size)))
        if quota == shard.size:
            return Selection()
        local = shard.local(labels)
        positives = torch.unique(local[local >= 0])
        nearest = self._nearest(embeddings, positives, max(quota - len(positives), 0))
        self.nearest_negatives = len(nearest)
        chosen = torch.cat([positives, nearest]).sort().values
        generator = counter_rng.generator(
            "selection", self.seed, self.step, self.micro_batch, shard.start, device=labels.device
        )
        return filled(chosen, shard.size, quota, generator, log_q=embeddings if self.log_q else None)

    def on_selected(self, embeddings: Tensor, labels: Tensor, ids: Tensor | None) -> None:
        if self.index.refreshable:
            self._changed = self._changed.to(labels.device)
            self._changed[slice(None) if ids is None else ids] = True
        if self.probe_interval is not None and self.step % self.probe_interval == 0 and self.micro_batch == 0:
            with self.timer("forward/probe", embeddings.device):
                self._probe(embeddings[: self.probes], labels[: self.probes], ids)

    def stats(self) -> dict[str, float]:
        """Besides those of `CenterHead`: the nearest among the negatives of the last step, the index's age in steps
        and what its making took, and what the last probe found."""
        refresh = self.index_refresh
        built = {"index_age": self.step - refresh.as_of, "build_seconds": refresh.seconds} if refresh.current else {}
        return {**super().stats(), "nearest_negatives": self.nearest_negatives, **built, **self.probed}

    @property
    def failure(self) -> str | None:
        return self.index_refresh.error

    def get_extra_state(self) -> dict[str, Any]:
        state = {**super().get_extra_state(), "allocation": self.allocation.state_dict()}
        if (index := self.index_refresh.current) is not None:
            changed = self._changed.cpu()  # since the index in force was begun, not the one under way
            if self.index_refresh.running or self.index_refresh.failed:
                changed = changed.clone()
                changed[self._taken_in.cpu()] = True
            state["index"] = {
                "kind": type(index).__name__,
                "shard": self._place(),
                "state": index.state_dict(),
                "as_of": self.index_refresh.as_of,
                "next_renewal": self.next_refresh,
                "changed": changed,
                "radius": index.radius,
            }
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        if "allocation" in state:
            self.allocation.load_state_dict(state["allocation"])
        self.index_refresh.wait()
        saved = state.get("index")
        if saved is None or (saved["kind"], saved["shard"]) != (type(self.index).__name__, self._place()):
            self.index_refresh.current, self.next_refresh = None, self.step  # other rows than were indexed
            return
        index = self.index.empty_copy()
        index.load_state_dict(saved["state"])
        self.index_refresh.current, self.index_refresh.as_of = index, saved["as_of"]
        index.radius = saved["radius"]
        with torch.inference_mode(False):  # or no later step could write into it
            self.next_refresh, self._changed = saved["next_renewal"], saved["changed"].clone()

    def full_state_dict(self) -> dict[str, Any]:
        """Return that of `CenterHead` without the index, which holds the rows of one process and is built again."""
        state = super().full_state_dict()
        state["_extra_state"].pop("index", None)
        return state

    def extra_repr(self) -> str:
        return f"index={self.index}, neighbours_share={self.neighbours_share}, {super().extra_repr()}"

    def _nearest(self, x_ND: Tensor, positives: Tensor, room: int) -> Tensor:
        """Up to `neighbours_share` of `room` classes of this shard that are no positives, nearest ones first."""
        count = round(self.neighbours_share * room)
        self._asked = -(-count // len(x_ND)) + 1 if count and len(x_ND) else 0  # and its own class
        if not self._asked:
            return positives[:0]
        refresh = self.index_refresh
        if not (self.probing and refresh.background):  # waiting for it would be the same at any moment of a step
            self._refresh_index()
        if refresh.current is None:
            return positives[:0]
        with self.timer("forward/query", x_ND.device):
            found_Nk = refresh.current.query(self._queries(x_ND), self._asked)
        ids = found_Nk.T.flatten()  # all first neighbours, then all second ones
        ids = ids[(ids >= 0) & ~torch.isin(ids, positives)]
        distinct, group = torch.unique(ids, return_inverse=True)
        places = torch.arange(len(ids), device=ids.device)
        first = torch.full_like(distinct, len(ids)).scatter_reduce_(0, group, places, "amin")
        return distinct[first.argsort()[:count]]

    def _refresh_index(self) -> None:
        refresh = self.index_refresh
        if refresh.error is not None and self.micro_batch == 0:  # the step that found out is complete
            raise RuntimeError(refresh.error)
        refresh.collect()
        if refresh.failed:
            refresh.failed = False
            self._changed[self._taken_in.to(self._changed.device)] = True
            if refresh.failures < ATTEMPTS:  # later at the interval
                self.next_refresh = self.step
        if self.step < self.next_refresh or refresh.running:
            return
        self.next_refresh = self.step + self.allocation.interval(self.step)
        changed, current = self._changed.nonzero()[:, 0], refresh.current
        self._taken_in = changed
        self._changed.zero_()
        options: dict[str, Any] = {"seed": self.seed, "step": self.step, "search_scale": self.allocation.search_scale}
        options["background"] = refresh.background

        def make() -> Index:
            vectors = CenterVectors(self.centers)
            longest = 0.0 if self.margin.normalize else vectors.longest()
            if current is not None and longest <= current.radius:
                vectors.radius = current.radius
                index = current.rebuilt(vectors, changed, **options)
            else:
                vectors.radius = 1.5 * longest  # with room to grow
                index = self.index.empty_copy()
                index.build(vectors, **options)
            index.radius = vectors.radius
            return index

        refresh.start(self.step, make)

    @torch.no_grad()
    def _probe(self, x_QD: Tensor, labels_Q: Tensor, ids: Tensor | None) -> None:
        """The mass covered, and the recall of the index, of as many neighbours as were asked for."""
        refresh, k = self.index_refresh, max(self._asked - 1, 1)
        found = coverage(self, x_QD, labels_Q, ids, k=k)
        self.probed = {"mass_covered": float(found.mass_Q.mean()), "mass_reachable": float(found.perfect_Q.mean())}
        self.allocation.observe(self.probed["mass_covered"], self.probed["mass_reachable"])
        if refresh.current is not None and (k := found.nearest_Qk.shape[1]):
            answer = refresh.current.query(self._queries(x_QD), k + 1)
            answer[answer == self.centers.shard.local(labels_Q)[:, None]] = -1
            hits = (answer[:, :, None] == found.nearest_Qk[:, None]).any(1)
            self.probed["index_recall"] = float(hits.float().mean())

    def _queries(self, x_ND: Tensor) -> Tensor:
        x_ND = x_ND.detach().float()
        return x_ND if self.margin.normalize else torch.cat([x_ND, x_ND.new_zeros(len(x_ND), 1)], dim=1)

    def _place(self) -> list[int]:
        shard = self.centers.shard
        return [shard.start, shard.stop, shard.num_classes, self.centers.width]
