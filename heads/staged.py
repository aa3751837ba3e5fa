"""Staged: heads that share class centers in one training, each from a step on.

Training with sampled classes first, and with all classes last, is the schedule of LVFace (You et al., "LVFace:
Progressive Cluster Optimization for Large Vision Models in Face Recognition", ICCV 2025).
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from .center_head import CenterHead
from .core.cost import Case, Cost, largest
from .core.options import make_options, option, option_fields
from .core.row_state import RowState
from .core.schedule import is_schedule, plain, value_at
from .core.uncompiled import METHODS
from .forest import HashingForest
from .full import FullFC
from .group.batch import GlobalBatch
from .indexes import Index
from .indexes.index import check_index
from .knn import KNNSoftmax
from .pfc import PartialFC
from .rows.options import CenterOptions
from .selection.selection import Selection

HEADS: dict[str, type[CenterHead]] = {
    "full": FullFC,
    "pfc": PartialFC,
    "forest": HashingForest,
    "knn": KNNSoftmax,
}
STAGES = {0: "pfc", 1000: "full"}
# Names that a stage's head may override: those of its selection, and of what it reports and saves of that.
OF_SELECTION = {
    *("select_classes", "on_selected", "end_selection", "active_shares", "draws_blocks", "cost", "Options", "options"),
    *("state_differs", "stats", "failure", "get_extra_state", "set_extra_state", "without_local", "extra_repr"),
}


@dataclass(frozen=True)
class Stage:
    """The head of a stage: its class, the options that it does not share, and all of its options."""

    kind: type[CenterHead]
    own: Mapping[str, Any]
    options: Any


@dataclass(frozen=True, kw_only=True)
class StagedOptions(CenterOptions):
    """Options of `Staged`."""

    stages: dict[int, Any] | None = option(
        None,
        "Head from each step on, {step: head}: a class, functools.partial(CLASS, option=value, ...) with options of "
        "its own, or a name in `heads`. None for {0: 'pfc', 1000: 'full'}.",
    )
    heads: dict[str, Any] | None = option(
        None,
        "Heads that `stages` may name, {name: head}, as classes or partial calls. None for full, pfc, forest and knn "
        "with their defaults.",
    )
    index: Index | None = option(
        None,
        "An index from `heads.indexes`, not built yet, for the stages that search one and have none of their own. "
        "None for that of each head.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_index(self.index)
        assert self.resolved  # raises for wrong stages

    @cached_property
    def resolved(self) -> dict[int, Stage]:
        """The stages by their first steps, in order."""
        given = STAGES if self.stages is None else self.stages
        if not isinstance(given, Mapping):
            raise ValueError(f"stages={given!r} must be {{step: head}}, such as {STAGES}")
        return {step: self._stage(step, head) for step, head in plain("stages", given).items()}

    def _stage(self, step: int, head: Any) -> Stage:
        """Return a stage, after a check of its options.

        Raises:
            TypeError: an option that the head does not have.
            ValueError: what was given is no head that can be a stage, or an option is out of range.
        """
        heads = HEADS if self.heads is None else self.heads
        if isinstance(head, str):
            if head not in heads:
                raise ValueError(f"stages={{{step}: {head!r}}} must name one of {', '.join(map(str, heads))}")
            head = heads[head]
        own: dict[str, Any] = {}
        positional, kind = False, head
        while isinstance(kind, partial):
            own, positional, kind = {**kind.keywords, **own}, positional or bool(kind.args), kind.func
        fault = _fault(kind)
        shared = {name: getattr(self, name) for name in option_fields(CenterOptions)}
        if not fault and positional:
            fault = f"must give the options of {kind.__name__} by name"
        if not fault and (twice := sorted({*shared, "process_group", "device", "centers"} & own.keys())):
            fault = f"must not set {twice[0]} of {kind.__name__}, which all stages share; give it to Staged"
        if fault:
            raise ValueError(f"stages={{{step}: ...}} {fault}")
        if "index" in option_fields(kind) and own.get("index") is None:
            own = {**own, "index": self.index}
        return Stage(kind, own, make_options(kind, {**shared, **own}))

    def start_of(self, step: int) -> int:
        """Return the step at which the stage of this step begins."""
        return max(start for start in self.resolved if start <= step)


def _fault(kind: Any) -> str:
    """Return why a class cannot be the head of a stage; empty if it can."""
    if not (isinstance(kind, type) and issubclass(kind, CenterHead)) or kind is CenterHead:
        name = getattr(kind, "__name__", repr(kind))
        return f"must be a head with class centers, such as {', '.join(HEADS)}, and {name} is none"
    bases = kind.__mro__[: kind.__mro__.index(CenterHead)]
    changed = {name for base in bases for name in vars(base) if hasattr(CenterHead, name) and not name.startswith("__")}
    changed -= {*METHODS} if all(_is_inherited(kind, name) for name in METHODS) else set()
    if issubclass(kind, Staged) or changed - OF_SELECTION:
        return (
            f"must be a head that differs from others by its selection of classes alone, such as {', '.join(HEADS)}, "
            f"and {kind.__name__} differs by more"
        )
    return ""


def _is_inherited(kind: type[CenterHead], name: str) -> bool:
    """Return whether a method is that of `CenterHead`, also where the first instance has wrapped it."""
    return inspect.unwrap(getattr(kind, name)) is inspect.unwrap(getattr(CenterHead, name))


class Staged(CenterHead):
    """Heads that share class centers in one training: each selects the classes of a step from its own step on.

    Rows, row state, margin and objective are those of this head. The loss of a step is that of the stage's head with
    the same rows, step and seed. An index or a graph belongs to its stage: building it begins with the stage, and it is
    dropped at the end of the stage. Schedules of a stage's options count the steps from the beginning of the training.

    The head maps embeddings (n, D) and labels (n,) to a loss. Its rows learn from an optimizer of their own::

        stages = {0: functools.partial(PartialFC, sample_rate=0.1), 1000: FullFC}
        head = Staged(num_classes=10_000, embedding_size=512, stages=stages)
        rows = head.optimizer(lr=0.1)
        head(embeddings, labels).backward()
        rows.step()

    Source: You et al., "LVFace: Progressive Cluster Optimization for Large Vision Models in Face Recognition",
    ICCV 2025, which samples classes first and uses all of them last.

    Raises:
        TypeError: an option that the head, or the head of a stage, does not have.
        ValueError: an option is out of range, or a head cannot be a stage.

    Examples:
        >>> sampled = functools.partial(PartialFC, sample_rate=0.1)
        >>> head = Staged(num_classes=1000, embedding_size=16, stages={0: sampled, 500: FullFC})
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
        >>> int(head.stats()["active_classes"])
        100
    """

    Options = StagedOptions
    options: StagedOptions
    state_differs = True  # as that of some stages

    def __init__(self, num_classes: int, embedding_size: int, **options: Any):
        super().__init__(num_classes, embedding_size, **options)
        self._stage: list[CenterHead] = []  # in a list, so that it is not a submodule
        for start in reversed(self.options.resolved):  # raises for options that do not fit, before the training
            self._enter(start)

    @classmethod
    def draws_blocks(cls, options: Any) -> bool:
        return any(stage.kind.draws_blocks(stage.options) for stage in options.resolved.values())

    @classmethod
    def active_shares(cls, num_classes: int, options: Any) -> list[float]:
        return [
            share
            for stage in options.resolved.values()
            for share in stage.kind.active_shares(num_classes, stage.options)
        ]

    @classmethod
    def cost(cls, case: Case, options: Any, *, row_state: Mapping[str, RowState]) -> Cost:
        """Return the cost of a step: of each part, the largest value over the stages."""
        return largest(stage.kind.cost(case, stage.options, row_state=row_state) for stage in options.resolved.values())

    @property
    def stage(self) -> CenterHead:
        """The head of the last selection, with the state of this head."""
        head = self._stage[0]
        head.step, head.micro_batch, head.probing = self.step, self.micro_batch, self.probing
        head.training, head.timer, head.counts = self.training, self.timer, self.counts
        head.margin, head.loss_state, head.figures = self.margin, self.loss_state, self.figures
        return head

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        if (start := self.options.start_of(self.step)) != self._start:
            self._enter(start)
        return self.stage.select_classes(embeddings, labels)

    def on_selected(self, batch: GlobalBatch, ids: Tensor | None) -> None:
        self.stage.on_selected(batch, ids)

    def end_selection(self) -> None:
        self.stage.end_selection()

    def stats(self) -> dict[str, float]:
        """Return the numbers of the stage's head, and the number of the stage, from 0."""
        return {**self.stage.stats(), "stage": list(self.options.resolved).index(self._start)}

    def scheduled(self, step: int) -> dict[str, float]:
        own = self.options.resolved[self.options.start_of(step)].own
        values = {name: value_at(value, step) for name, value in own.items() if is_schedule(value)}
        return {**super().scheduled(step), **values}

    @property
    def failure(self) -> str | None:
        return self.stage.failure if self._start == self.options.start_of(self.step) else None

    def get_extra_state(self) -> dict[str, Any]:
        start = self.options.start_of(self.step)
        own = self.stage.get_extra_state() if self._start == start else None
        return {**super().get_extra_state(), "stage": {**self._name(start), "state": own}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        start = self.options.start_of(self.step)
        self._enter(start)
        saved = state.get("stage", {"state": None})  # that of another class has none
        if saved["state"] is not None and saved == {**self._name(start), "state": saved["state"]}:
            self.stage.set_extra_state(saved["state"])

    def without_local(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return extra state without what the stage's head drops."""
        stage = state["stage"]
        own = None if stage["state"] is None else self.stage.without_local(stage["state"])
        return {**state, "stage": {**stage, "state": own}}

    def extra_repr(self) -> str:
        stages = ", ".join(f"{start}: {stage.kind.__name__}" for start, stage in self.options.resolved.items())
        return f"stages={{{stages}}}, {super().extra_repr()}"

    def _name(self, start: int) -> dict[str, Any]:
        return {"start": start, "kind": self.options.resolved[start].kind.__name__}

    def _enter(self, start: int) -> None:
        """Begin the stage of this first step, without what an earlier head of it has built."""
        if self._stage:
            self._stage[0].end_selection()
        self._stage, self._start = [self._made(start)], start
        self.min_probability = self._stage[0].min_probability

    def _made(self, start: int) -> CenterHead:
        """Return a new head of a stage."""
        stage = self.options.resolved[start]
        shared = {name: getattr(self.options, name) for name in option_fields(CenterOptions)}
        return stage.kind(
            self.num_classes,
            self.embedding_size,
            process_group=self.process_group,
            device=self.centers.like.device,
            centers=self.centers,
            **shared,
            **stage.own,
        )
