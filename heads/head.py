"""Head, the one interface, and CenterHead, the shared step of the heads that keep class centers.

A step of a CenterHead: gather the batch from all processes, *select* the classes that take part, turn
their rows into the exact margin softmax, and leave the gradient of the rows *pending* until the row
optimizer steps. Subclasses override `select`, and `selected` if they note anything of a step.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from .core import dtypes
from .core.cost import Case, Cost, number_bytes, state_bytes
from .core.matmul import MatMul
from .core.options import number, refuse_unknown, whole
from .core.row_state import RowState
from .core.timer import Timer
from .core.uncompiled import run_uncompiled
from .core.warn import warn_user
from .group.batch import batch_fault, check_values, directions, embeddings_fault, gather
from .group.collectives import (
    default_group,
    gather_columns,
    gather_rows,
    gather_sizes,
    portable,
    rank_and_size,
    restored,
)
from .group.sharding import positions
from .margins.margin import CosFace, Margin, checked_margin
from .objectives.autograd import streamed_loss
from .objectives.row_gradient import RowGradient
from .objectives.softmax import CHUNK_ROWS, MarginSoftmax
from .objectives.topk import streamed_topk
from .rows.active import ActiveRows
from .rows.centers import ClassCenters
from .rows.optimizers import RowOptimizer, RowSGD
from .rows.pending import MOST_WITHOUT_OPTIMIZER, PendingGradients

# Training batches without a step before a warning: where no optimizer was made, and where one may be accumulating.
FEW_FORWARDS, MANY_FORWARDS = MOST_WITHOUT_OPTIMIZER, 256

Encode = Callable[[Tensor], Tensor]
Batch = Mapping[str, tuple[Tensor, Tensor]]


class Head(nn.Module):
    """Turns embeddings and class labels into a loss; holds whatever stands for the classes.

    The loss is the mean over the batches of all processes, the same number on each. The gradient of
    this process's embeddings is multiplied by the number of processes, so that DDP's averaging gives
    the backbone the gradient of that mean. Backward changes nothing that the head holds: the
    optimizer from `optimizer()` does, in its `step()`.
    """

    streams: ClassVar[tuple[str, ...]] = ("instance",)  # the batch streams it trains on
    state_differs: ClassVar[bool] = False  # whether processes differ in more of their state than `sharded_state`

    def __init__(self) -> None:
        super().__init__()
        run_uncompiled(type(self))
        self.step = 0  # optimizer steps so far
        self.micro_batch = 0  # training forwards since the last of them
        self.has_optimizer = False  # whether one was made
        self.timer = Timer()
        self._told_of_steps = False

    def stream_sizes(self, batch_size: int) -> dict[str, int]:
        """How many of a step's images, over all processes, come from each of `streams`."""
        return {"instance": batch_size}

    def prepare(self, encoder: nn.Module) -> None:
        """Called once with the backbone before DDP wraps it, for heads that keep a copy of it."""

    def training_loss(self, encode: Encode, batch: Batch) -> Tensor:
        """The loss of one training batch: stream name -> (images, labels) of this process."""
        images, labels = batch["instance"]
        loss: Tensor = self(encode(images), labels)
        return loss

    def optimizer(self, lr: float, **options: Any) -> torch.optim.Optimizer:
        raise NotImplementedError

    def topk(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def held_classes(self) -> Tensor:
        """Of a head without class centers: ids, int64 and sorted, of what stands against an embedding at the moment."""
        raise NotImplementedError

    def stats(self) -> dict[str, float]:
        """Numbers worth logging, of this process."""
        raise NotImplementedError

    def advance(self) -> None:
        """Count a step of the optimizer."""
        self.step += 1
        self.micro_batch = 0

    def count_forward(self) -> None:
        """Count a training forward, and warn once where no optimizer of the head steps."""
        self.micro_batch += 1
        if self._told_of_steps or self.micro_batch <= (MANY_FORWARDS if self.has_optimizer else FEW_FORWARDS):
            return
        self._told_of_steps = True
        remedy = "call its step()" if self.has_optimizer else "make one with head.optimizer(lr) and call its step()"
        warn_user(
            f"{type(self).__name__} has seen {self.micro_batch} training batches since its optimizer last stepped and "
            f"learns nothing meanwhile; {remedy}. What stands for the classes is not among head.parameters()"
        )

    def check_group(self) -> None:
        """Raise where the head stands alone although a process group has been formed since it was made."""
        if vars(self).get("process_group", ...) is None and default_group() is not None:
            raise RuntimeError(
                f"this {type(self).__name__} was made before torch.distributed.init_process_group and holds all "
                "classes on each process; make it after the group"
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has no optimizer yet. It shares the default process group, which it looks up."""
        state = {**self.__dict__, "has_optimizer": False, "micro_batch": 0}
        if "process_group" in state:
            state["process_group"] = portable(state["process_group"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "process_group" in state:
            self.process_group = restored(state["process_group"])

    @classmethod
    def cost(cls, case: Case, *, row_state: Mapping[str, RowState], **options: Any) -> Cost:
        """What it will need of each process, before any of it exists.

        Args:
            row_state: what the row optimizer keeps of each row.
            options: of the constructor.
        """
        raise NotImplementedError

    def full_state_dict(self) -> dict[str, Any]:
        """Return the state dict with the rows of all processes, as plain tensors in host memory, for `torch.save`.

        All processes must call it; each of them needs memory for all classes while it runs. Heads on any number of
        processes load it. For heads too large for one process see torch.distributed.checkpoint.
        """
        state = self.state_dict()
        full = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in state.items()}
        return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in full.items()}

    @property
    def failure(self) -> str | None:
        """Why the next step will raise, asked between steps so that training can end in good order; None if not."""
        return None

    def sharded_state(self) -> dict[str, Tensor]:
        """Of the state dict, what each process holds a part of, by name; checkpoints write it in parts."""
        return {}


@dataclass(frozen=True)
class Selection:
    """The classes that take part in a step, of this process's shard.

    Args:
        ids: int64 (K,) rows of the shard, sorted, without duplicates, holding every positive of the
            global batch that the shard owns; None for all rows.
        log_q: (K,) log of the probability with which each row was drawn given the batch, to be
            subtracted from its logits (sampled-softmax correction); None for no correction.
    """

    ids: Tensor | None = None
    log_q: Tensor | None = None


class CenterOptions(TypedDict, total=False):
    """Keyword options of every `CenterHead`; it documents them."""

    margin: Margin | None
    seed: int
    logits_budget_mb: float
    process_group: ProcessGroup | None
    device: torch.device | str | None
    dtype: torch.dtype | str
    rounding: str
    store: str
    store_dir: str | os.PathLike[str] | None
    compute: str


class CenterHead(Head):
    """The exact margin softmax over the selected class centers.

    Args:
        num_classes: C over all processes.
        embedding_size: D.
        margin: a margin from `heads.margins`; CosFace(s=64, m=0.4) unless given.
        seed: of initial rows and of selection.
        logits_budget_mb: cosines, and after them the active rows, are kept from forward to backward and
            step, instead of being computed or gathered again, while all that is kept takes no more than
            this many MiB on this process.
        process_group: the processes that share the classes; all of the initialised default group, or
            this one alone, unless given.
        device: where the head computes; `head.to(device)` changes it.
        dtype: in which rows are stored: "fp32"; "bf16", with arithmetic in float32; or, to check numerics, "fp64".
        rounding: of what is stored in bf16, "stochastic" or "nearest".
        store: where rows live: on the "device", in "host" memory, or on "disk" in files of `store_dir`, which
            take space for rows that were written only.
        compute: "fp32", or "bf16" for matrix products of inputs rounded to bfloat16.
    """

    min_probability = 0.0  # see `FullFC`

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        margin: Margin | None = None,
        seed: int = 0,
        logits_budget_mb: float = 512,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
        rounding: str = "stochastic",
        store: str = "device",
        store_dir: str | os.PathLike[str] | None = None,
        compute: str = "fp32",
        **unknown: Any,
    ):
        refuse_unknown(type(self), unknown)
        super().__init__()
        num_classes = whole("num_classes", num_classes, 1)
        self.embedding_size = embedding_size = whole("embedding_size", embedding_size, 1)
        self.seed = seed = whole("seed", seed, 0)
        self.logits_budget_mb = number("logits_budget_mb", logits_budget_mb, least=0)
        self.margin = CosFace() if margin is None else checked_margin(margin)
        self.matmul = MatMul(compute)
        self.process_group = process_group if process_group is not None else default_group()
        self.centers = ClassCenters(
            num_classes,
            embedding_size,
            bias=not self.margin.normalize,
            seed=seed,
            process_group=self.process_group,
            device=device,
            dtype=dtypes.named("dtype", dtype),
            rounding=rounding,
            store=store,
            store_dir=store_dir,
        )
        self.pending = PendingGradients(self.centers.like.device)
        self.probing = False  # whether a selection is only looked at
        self.active_classes = self.sampled_negatives = 0
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Like parameters, copies and pickles leave gradients behind."""
        return {**super().__getstate__(), "pending": PendingGradients(self.centers.like.device)}

    def _apply(self, fn: Any, recurse: bool = True) -> "CenterHead":
        super()._apply(fn, recurse)
        self.pending.to(self.centers.like.device)
        return self

    @classmethod
    def cost(
        cls,
        case: Case,
        *,
        row_state: Mapping[str, RowState],
        active: int | None = None,
        dtype: str = "fp32",
        store: str = "device",
        logits_budget_mb: float = 512,
        **options: Any,
    ) -> Cost:
        """With `active` rows of this process in a step, all unless given."""
        N, D, K = case.batch, case.embedding_size, case.shard if active is None else active
        row, state = D * number_bytes(dtype), state_bytes(row_state)
        keeps_logits, keeps_rows = what_fits(4 * K * N, 4 * K * D, logits_budget_mb * 2**20)
        in_place = active is None and dtype == "fp32" and store != "disk"
        kept, kept_rows = 4 * K * N * keeps_logits, 4 * K * D * (keeps_rows and not in_place)
        chunk = 4 * min(CHUNK_ROWS, K) * (2 * N + 2 * D)
        return Cost(
            table_bytes=case.shard * (row + state),
            work_bytes=kept + kept_rows + chunk + 4 * 4 * N * D + 12 * K,
            # Embeddings, weights, labels and sizes out; target cosines, maxima, sums and the embeddings' gradient.
            sent_bytes=case.sent(gathered=N * (4 * (D + 1) + 8) + 8 * case.world_size, summed=4 * N * (D + 3)),
            multiply_adds=K * N * D * (3 if kept else 4),
            moved_bytes=K * (row * (2 if kept_rows or in_place else 3) + 2 * state),
        )

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        """The classes of this training step, from the gathered batch: (N, D) and (N,), all processes'.

        Random draws are keyed by step and micro-batch. With `probing` set it must change nothing: `heads.fidelity` asks
        what would have been drawn for other micro-batches, and a forward under `torch.no_grad()` only looks. What a
        step changes for later ones belongs into `selected`.
        """
        raise NotImplementedError

    def on_selected(self, embeddings: Tensor, labels: Tensor, ids: Tensor | None) -> None:
        """These rows of the shard, None for all, take part in a training step with this batch."""

    def forward(self, embeddings: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss over the global batch; in eval mode exact over all classes and without a trace.

        In training mode under `torch.no_grad()` it is the loss over classes selected as in training, and nothing that
        the head holds changes either. It runs as it is inside `torch.compile`.

        Args:
            embeddings: (n, D) of this process, any float dtype; n may differ between processes and be 0.
            labels: (n,) integer class ids in [0, C).
            weight: (n,) weight of each sample in the mean; ones unless given.

        Returns:
            Scalar, float32 (float64 for such rows).

        Raises:
            ValueError: wrong shapes, dtypes or devices, labels outside [0, C), NaN or Inf among the embeddings; on all
                processes, also where one alone has such input.
            RuntimeError: in backward, if the rows have changed since, or with `create_graph=True`.
        """
        self.check_group()
        device, learns = self.centers.like.device, self.training and torch.is_grad_enabled()
        with self.timer("forward", device), torch.autocast(device.type, enabled=False):
            fault = batch_fault(embeddings, labels, weight, self.embedding_size, device)
            sizes = gather_sizes(0 if fault else len(embeddings), device, self.process_group, fault)
            if learns and not embeddings.requires_grad:  # a frozen backbone still trains the rows
                embeddings = embeddings.clone() if embeddings.is_inference() else embeddings.detach()
                embeddings.requires_grad_()
            x_nD = self.to_rows_space(embeddings)
            batch = gather(x_nD, labels, weight, sizes, self.process_group)
            check_values(batch, self.centers.shard.num_classes, self.step)
            selection = Selection()
            if self.training:
                with self.only_looking(not learns):
                    selection = self.select_classes(batch.x_ND, batch.labels_N)
            num_active = self.centers.shard.size if selection.ids is None else len(selection.ids)
            keep_logits = keep_rows = False
            if x_nD.requires_grad:
                keep_logits, keep_rows = self._what_to_keep(num_active, len(batch.x_ND))
            rows = ActiveRows(self.centers, selection.ids, keep=keep_rows)
            if learns:
                self.on_selected(batch.x_ND, batch.labels_N, selection.ids)
                self._count(num_active, batch.labels_N)
            softmax = MarginSoftmax(
                batch.x_ND,
                batch.weight_N,
                position_N=self._positions(selection.ids, batch.labels_N),
                rows=rows,
                margin=self.margin,
                log_q_K=selection.log_q,
                group=self.process_group,
                min_probability=self.min_probability if self.training else 0.0,
                matmul=self.matmul if self.training else None,
                workspace=self.centers.workspace,
            )

            def wait_for_step(gradient: RowGradient, finite: Tensor) -> None:
                if learns:
                    self.pending.append(gradient, finite, has_optimizer=self.has_optimizer)

            return streamed_loss(
                x_nD,
                softmax,
                start=batch.start,
                keep=keep_logits,
                on_backward=wait_for_step,
                clock=self.timer,
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the pending gradients of the rows, as `zero_grad` of their optimizer does."""
        super().zero_grad(set_to_none)
        self.pending.clear()

    def optimizer(self, lr: float, *, rule: Callable[..., RowOptimizer] = RowSGD, **options: Any) -> RowOptimizer:
        """The optimizer of the rows: `rule` from `heads.rows.optimizers`, RowSGD unless given, with its options."""
        return rule(self, lr=lr, **options)

    @torch.no_grad()
    def topk(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k classes nearest to each embedding, exact over all processes' classes.

        Args:
            embeddings: (n, D) of this process; n may differ between processes.
            k: up to C.

        Returns:
            Cosines (inner products plus bias for `Softmax`), highest first, and class ids; both (n, k).
        """
        self.check_group()
        shard, device = self.centers.shard, self.centers.like.device
        if (k := whole("k", k, 1)) > shard.num_classes:
            raise ValueError(f"k={k}: must lie between 1 and the number of classes, {shard.num_classes}")
        with torch.autocast(device.type, enabled=False):
            fault = embeddings_fault(embeddings, self.embedding_size, device)
            sizes = gather_sizes(0 if fault else len(embeddings), device, self.process_group, fault)
            x_nD = self.to_rows_space(embeddings)
            x_ND = gather_rows(x_nD, sizes, self.process_group)
            values, ids = streamed_topk(
                x_ND, ActiveRows(self.centers, None, keep=False), k, normalize=self.margin.normalize
            )
        rank, _ = rank_and_size(self.process_group)
        widths = gather_sizes(values.shape[1], values.device, self.process_group)
        values_NM = gather_columns(values, widths, self.process_group)
        classes_NM = gather_columns(ids + shard.start, widths, self.process_group)
        first = sum(sizes[:rank])
        values_nM, classes_nM = values_NM[first : first + sizes[rank]], classes_NM[first : first + sizes[rank]]
        values_nk, best = values_nM.topk(k, dim=1)
        return values_nk, classes_nM.gather(1, best)

    def stats(self) -> dict[str, float]:
        """Of this process: classes and negatives of the last step, bytes held, mean milliseconds."""
        return {
            "active_classes": self.active_classes,
            "sampled_negatives": self.sampled_negatives,
            "memory_bytes": self.centers.memory_bytes,
            **self.timer.milliseconds(),
        }

    def to_rows_space(self, embeddings: Tensor) -> Tensor:
        """Embeddings (n, D) as rows meet them: of unit length, or with a last column of ones where there is a bias."""
        x_nD = embeddings.to(self.centers.like.dtype)
        if self.margin.normalize:
            return directions(x_nD)
        return torch.cat([x_nD, x_nD.new_ones(len(x_nD), 1)], dim=1)

    @contextmanager
    def only_looking(self, looking: bool = True) -> Iterator[None]:
        """Within it, `select` must leave no trace where `looking`."""
        before, self.probing = self.probing, self.probing or looking
        try:
            yield
        finally:
            self.probing = before

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Take the step only where the rows fit; `centers` reports what does not."""
        if not self.centers.faults(state_dict, f"{prefix}centers."):
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def sharded_state(self) -> dict[str, Tensor]:
        return {f"centers.{name}": tensor for name, tensor in self.centers.state_dict().items()}

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step, self.micro_batch = state["step"], 0

    def extra_repr(self) -> str:
        return f"margin={self.margin}, embedding_size={self.embedding_size}, seed={self.seed}"

    def _what_to_keep(self, num_active: int, batch_size: int) -> tuple[bool, bool]:
        row = num_active * self.centers.like.element_size()
        room = self.logits_budget_mb * 2**20 - self.pending.kept_bytes
        return what_fits(row * batch_size, row * self.centers.width, room)

    def _positions(self, ids: Tensor | None, labels_N: Tensor) -> Tensor:
        """Where each sample's class stands among the active rows (N,), -1 if another process owns it."""
        local_N = self.centers.shard.local(labels_N)
        if ids is None:
            return local_N
        position_N = positions(ids, local_N)
        assert torch.equal(position_N >= 0, local_N >= 0), "a selection must hold every positive of its shard"
        return position_N

    def _count(self, num_active: int, labels_N: Tensor) -> None:
        local_N = self.centers.shard.local(labels_N)
        self.active_classes = num_active
        self.sampled_negatives = num_active - len(torch.unique(local_N[local_N >= 0]))
        self.count_forward()
        if self.sampled_negatives == 0 and num_active < self.centers.shard.size and not self._warned:
            self._warned = True
            warn_user(
                f"step {self.step}: all {num_active} active classes of this process are positives of the batch and no "
                "negative was sampled; sample more classes or use a smaller batch"
            )


def what_fits(logits: float, rows: float, room: float) -> tuple[bool, bool]:
    """Cosines save a matrix product, rows save gathering them again: in this order, while these bytes fit."""
    return logits <= room, rows <= room - (logits if logits <= room else 0)
