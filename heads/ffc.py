"""FFC: no class centers, but a pool of recent features by a momentum copy of the backbone.

An Efficient Training Approach for Very Large Scale Face Recognition (Wang et al., CVPR 2022). The pool
holds two features for each of `queue_size` classes, the least recently seen class leaving first, so
memory does not grow with the number of classes. Probes come from the backbone, gallery features from its
momentum copy; a probe whose class is not in the pool is pushed away from what lies nearest.
"""

import copy
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from .core import counter_rng, dtypes
from .core.cost import Case, Cost, number_bytes
from .core.options import number, whole
from .core.row_state import RowState
from .group.batch import batch_fault, directions
from .group.collectives import default_group, gather_rows, gather_sizes, rank_and_size, sum_over_processes
from .head import Batch, Encode, Head
from .margins.margin import CosFace, Margin, checked_margin
from .objectives.autograd import refuse_second_derivative
from .objectives.rows import MIN_NORM
from .objectives.softmax import CHUNK_ROWS, MarginSoftmax
from .objectives.topk import streamed_topk
from .pool.class_pool import ClassPool, Plan
from .rows.optimizers import RowSGD

PUBLISHED = 0.99  # momentum of the gallery
HEADER = 2  # numbers that travel with the labels: the pool's checksum, and whether all values are finite


class FFC(Head):
    """The margin softmax over a pool of gallery features, for probes whose class is in it.

    Args:
        num_classes: C; bounds the labels, and is what a fractional `queue_size` is a fraction of.
        embedding_size: D.
        queue_size: classes in the pool; below 1 a share of C.
        margin: a margin that normalizes, CosFace(s=32, m=0.4) unless given.
        gallery_momentum: of the momentum copy, which follows the backbone once a step. A number is constant; None grows
            with the step up to 0.99, the constant of the published code; see `momentum`.
        outlier_weight: of the term for probes whose class is not in the pool: the mean of their k highest
            cosines, those below 0 as 0, with k = 2 in 10,000 of the slots, from 3 to 10.
        identity_share: of a batch's images, how many come as pairs of one class; 2/3 in the published code.
        mask_unfilled: leave slots that hold no class yet out. False fills them with random directions that
            act as negatives, as the published code does.
        seed: of these.
        dtype: in which features are stored, "fp32" or "bf16".
        process_group: the processes that share a batch; each holds the same pool.
    """

    streams = ("instance", "identity")

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        queue_size: float = 0.1,
        margin: Margin | None = None,
        gallery_momentum: float | None = None,
        outlier_weight: float = 1.0,
        identity_share: float = 0.5,
        mask_unfilled: bool = True,
        seed: int = 0,
        dtype: torch.dtype | str = torch.float32,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        num_classes = whole("num_classes", num_classes, 1)
        embedding_size = whole("embedding_size", embedding_size, 1)
        capacity = slots(queue_size, num_classes)
        self.margin = CosFace(s=32) if margin is None else checked_margin(margin)
        if not self.margin.normalize:
            raise ValueError(f"margin={self.margin}: FFC compares directions and needs a margin that normalizes")
        if gallery_momentum is not None and not 0 <= number("gallery_momentum", gallery_momentum) <= 1:
            raise ValueError(f"gallery_momentum={gallery_momentum} must lie in [0, 1]; null grows with the step")
        number("outlier_weight", outlier_weight, least=0)
        if not 0 < number("identity_share", identity_share) < 1:
            raise ValueError(f"identity_share={identity_share}: must lie between 0 and 1")
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.identity_share = identity_share
        self.gallery_momentum, self.outlier_weight, self.mask_unfilled = gallery_momentum, outlier_weight, mask_unfilled
        self.num_nearest = min(max(int(2e-4 * capacity), 3), 10)
        self.process_group = process_group if process_group is not None else default_group()
        self.pool = ClassPool(capacity)
        # Plain tensors as class centers are: DDP would broadcast all of a buffer at every step.
        shape = (2, self.pool.capacity, embedding_size)
        with torch.inference_mode(False):  # features made there could never be replaced in training
            self.queue = torch.zeros(shape, dtype=dtypes.named("dtype", dtype), device=device)
            if not mask_unfilled:
                random = torch.rand(
                    shape, dtype=torch.float32, generator=counter_rng.generator("queue", whole("seed", seed, 0))
                )
                self.queue.copy_(normalize(random, dim=2))
        self.next_row = np.zeros(self.pool.capacity, dtype=np.int64)
        self.checksum = 0  # of every change of the pool so far
        self.gallery: nn.Module | None = None
        self._encoder: list[nn.Module] = []  # in a list: it is no part of this module
        self._counts = {"in_pool_share": 0.0, "evicted_classes": 0.0, "gallery_images": 0.0}

    @classmethod
    def cost(
        cls,
        case: Case,
        *,
        row_state: Mapping[str, RowState],
        queue_size: float = 0.1,
        identity_share: float = 0.5,
        dtype: str = "fp32",
        **options: Any,
    ) -> Cost:
        """The pool is the same on all processes; `row_state` does not matter. The momentum copy of the backbone, and
        its pass over all images, come beside it."""
        Q = slots(queue_size, case.num_classes)
        D, M = case.embedding_size, case.batch // 2  # images of each of the two passes
        probes = M / case.world_size
        inside = identity_share + (1 - identity_share) * Q / case.num_classes  # of the probes; pairs always are
        sample = min(Q, 10_000)
        slot = 2 * D * number_bytes(dtype) + 8 + ClassPool(sample).nbytes / sample
        sent = 2 * case.sent(gathered=M * (4 * D + 8) + (8 + 8 * HEADER) * case.world_size, summed=16)
        return Cost(
            table_bytes=Q * slot,
            work_bytes=4 * (Q * probes + CHUNK_ROWS * 2 * (probes + D) + 4 * M * D),
            sent_bytes=sent,
            # Passes, features of a class; there, and back where the class is in the pool.
            multiply_adds=2 * 2 * Q * probes * D * (1 + inside),
            moved_bytes=2 * 2 * 2 * Q * D * number_bytes(dtype),
        )

    def stream_sizes(self, batch_size: int) -> dict[str, int]:
        """Pairs of one class and any images; half of all go into the pool at once."""
        identity = 2 * round(batch_size * self.identity_share / 2)
        instance = batch_size - identity
        if batch_size % 2 or not identity or not instance:
            raise ValueError(
                f"batch_size={batch_size}, identity_share={self.identity_share}: head=ffc takes {identity} images as "
                f"pairs of one class and halves the other {instance}; an even number of each is needed"
            )
        self._check_room(batch_size // 2)
        return {"instance": instance, "identity": identity}

    def prepare(self, encoder: nn.Module) -> None:
        """Takes the momentum copy of the backbone."""
        self.gallery = copy.deepcopy(encoder).requires_grad_(False)
        self._encoder = [encoder]

    def training_loss(self, encode: Encode, batch: Batch) -> Tensor:
        """Two passes, each image once probe and once gallery.

        Args:
            batch: "identity": (images (2b, ...), labels (2b,)), where b + i is another image of the class of i;
                "instance": any images and their labels.
        """
        if self.gallery is None:
            raise RuntimeError("call prepare(backbone) before training: FFC needs its momentum copy")
        pairs, pair_labels = batch["identity"]
        images, labels = batch["instance"]
        b, half = len(pairs) // 2, len(images) // 2
        both = torch.cat([pairs[:b], images[:half], pairs[b:], images[half:]])
        both_labels = torch.cat([pair_labels[:b], labels[:half], pair_labels[b:], labels[half:]])
        if self.micro_batch == 0 and torch.is_grad_enabled():
            self._follow()
        with torch.no_grad(), self.timer("gallery", both.device):
            features = self.gallery(both)
        probes = encode(both)
        (x, y), (x_labels, y_labels) = (t.split([b + half, len(t) - b - half]) for t in (probes, both_labels))
        x_features, y_features = features.split([len(x), len(y)])
        what_if = self(x, x_labels, y_features, y_labels, keep=False)
        learns = torch.is_grad_enabled()
        loss: Tensor = what_if + self(y, y_labels, x_features, x_labels, keep=learns)
        if learns:
            self.count_forward()
        return loss

    def forward(
        self, probe: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, *, keep: bool = True
    ) -> Tensor:
        """The loss of the probes against the pool with the gallery in it.

        Args:
            probe: (n, D) embeddings of this process, any float dtype; n may differ between processes and be 0.
            labels: (n,) integer class ids in [0, C).
            gallery: (m, D) features of the momentum copy; no gradient goes there.
            gallery_labels: (m,)
            keep: leave the gallery in the pool afterwards, also under `torch.no_grad()`: filling the pool needs no
                gradient. False, and eval mode, only ask what the loss would be.

        Returns:
            Scalar, float32: the mean margin softmax loss, over all processes, of the probes whose class is in
            the pool, once against each row of the pool's classes, plus `outlier_weight` times the mean term
            of the others. A mean over nothing is 0.

        Raises:
            ValueError: wrong shapes, dtypes or devices, labels outside [0, C), NaN or Inf, a pool smaller than the
                gallery of all processes; on all processes, also where one alone has such input.
            RuntimeError: in backward with `create_graph=True`.
        """
        self.check_group()
        device = self.queue.device
        with self.timer("forward", device), torch.autocast(device.type, enabled=False):
            fault = batch_fault(probe, labels, None, self.embedding_size, device) or batch_fault(
                gallery, gallery_labels, None, self.embedding_size, device
            )
            sizes = gather_sizes(0 if fault else len(gallery), device, self.process_group, fault)
            x_nD = directions(probe.float())
            features, keys, probe_classes = self._gather(x_nD, labels, gallery, gallery_labels, sizes)
            self._check_room(len(keys))
            plan = self.pool.plan(keys)
            change = _Change(self, plan, features)
            slots = self.pool.lookup(probe_classes, plan)
            loss, gradient = self._loss(x_nD, torch.from_numpy(slots), change)
            if self.training:
                self._counts["in_pool_share"] = float((slots >= 0).mean()) if len(slots) else 0.0
                self._counts["gallery_images"] = float(2 * len(keys))
                if keep:
                    self._counts["evicted_classes"] = float(len(plan.evicted))
                    change.commit()
            if gradient is None:
                return loss
            return _KnownGradient.apply(x_nD, loss, gradient)  # type: ignore[no-any-return]

    def optimizer(self, lr: float, *, rule: Callable[..., Any] = RowSGD, **options: Any) -> torch.optim.Optimizer:
        """Return an optimizer that counts the steps, so that loops and schedulers work as with other heads.

        There are no rows to update: `rule` and its options, which other heads need, have no effect.

        Raises:
            TypeError: an option that `rule` does not have.
        """
        inspect.signature(rule).bind(self, lr=lr, **options)
        return _StepCounter(self, lr)

    def topk(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        raise ValueError("FFC keeps no class centers: topk needs a head that does (full, pfc, forest)")

    def held_classes(self) -> Tensor:
        return torch.from_numpy(np.sort(self.pool.class_of[: self.pool.used]))

    def stats(self) -> dict[str, float]:
        """Classes in the pool, share of the probes whose class is in it, evictions of the last step, mean age."""
        ages = self.pool.ages()
        return {
            "active_classes": self.pool.used,
            **self._counts,
            "slot_age": float(ages.mean()) if len(ages) else 0.0,
            "memory_bytes": self.queue.nbytes + self.next_row.nbytes + self.pool.nbytes,
            **self.timer.milliseconds(),
        }

    def train(self, mode: bool = True) -> "FFC":
        """In eval mode the momentum copy has the backbone's floating buffers, such as running means."""
        super().train(mode)
        if not mode and self.gallery is not None:
            for ours, theirs in zip(self.gallery.buffers(), self._encoder[0].buffers(), strict=True):
                if ours.is_floating_point():
                    ours.copy_(theirs)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        pool = self.pool.state_dict()  # as tensors, which torch.load reads without a pickle's rights
        arrays = {name: torch.from_numpy(pool[name]) for name in ("slots", "classes")}
        return {
            "step": self.step,
            "pool": {**pool, **arrays},
            "queue": self.queue.cpu(),
            "next_row": torch.from_numpy(self.next_row),
            "checksum": self.checksum,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["queue"].shape != self.queue.shape:
            raise ValueError(
                f"queue_size={self.pool.capacity}, embedding_size={self.embedding_size}: the saved pool is "
                f"{list(state['queue'].shape[1:])}; resume with the options it was trained with"
            )
        pool = state["pool"]
        arrays = {name: np.array(torch.as_tensor(pool[name]).numpy()) for name in ("slots", "classes")}
        self.pool.load_state_dict({**pool, **arrays})
        self.queue.copy_(state["queue"])
        self.next_row = np.array(torch.as_tensor(state["next_row"]).numpy())
        self.step, self.micro_batch, self.checksum = state["step"], 0, state["checksum"]

    def extra_repr(self) -> str:
        return f"queue_size={self.pool.capacity}, margin={self.margin}, embedding_size={self.embedding_size}"

    def _apply(self, fn: Any, recurse: bool = True) -> "FFC":
        super()._apply(fn, recurse)
        self.queue = self.queue.to(fn(torch.empty(0, device=self.queue.device)).device)
        return self

    @property
    def momentum(self) -> float:
        """The momentum of this step.

        With a constant of 0.99 the copy lags 100 steps behind the backbone: a short training compares its probes with
        features of a backbone that has learned little. Unless a constant is given, the lag is a ninth of the steps so
        far, and at most 100.
        """
        if self.gallery_momentum is not None:
            return self.gallery_momentum
        return min(PUBLISHED, (1 + self.step) / (10 + self.step))

    @torch.no_grad()
    def _follow(self) -> None:
        assert self.gallery is not None
        for ours, theirs in zip(self.gallery.parameters(), self._encoder[0].parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.momentum)

    def _check_room(self, num_gallery: int) -> None:
        if num_gallery > self.pool.capacity:
            raise ValueError(
                f"queue_size={self.pool.capacity}: smaller than the {num_gallery} images that one batch of all "
                f"processes puts into the pool; {num_gallery} is the smallest that works"
            )

    def _gather(
        self, x_nD: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, sizes: list[int]
    ) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
        """Features (M, D) of all processes, their classes (M,), and the classes of this process's probes, on the
        host. What the others must know to raise together, or to find that pools differ, travels with the labels."""
        group, device = self.process_group, x_nD.device
        features = directions(gallery.detach().float())
        finite = torch.isfinite(x_nD.detach()).all() & torch.isfinite(features).all()
        outside = ((labels < 0) | (labels >= self.num_classes)).any()
        header = torch.stack([torch.tensor(self.checksum, device=device), finite.to(torch.int64) + 2 * outside])
        packed = gather_rows(
            torch.cat([header, gallery_labels.to(device, torch.int64)]), [size + HEADER for size in sizes], group
        )
        host = torch.cat([packed, labels.to(device, torch.int64)]).cpu().numpy()
        of_all, probe_classes = host[: len(packed)], host[len(packed) :]
        starts = np.cumsum([0, *(size + HEADER for size in sizes[:-1])])
        checksums, flags = of_all[starts], of_all[starts + 1]
        keys = np.delete(of_all, np.concatenate([starts, starts + 1]))
        assert (checksums == self.checksum).all(), "the processes hold different pools"
        if (flags & 2).any() or (len(keys) and not 0 <= keys.min() <= keys.max() < self.num_classes):
            raise ValueError(f"a label at step {self.step}: class ids must lie in [0, num_classes={self.num_classes})")
        if not (flags & 1).all():
            raise ValueError(
                f"embeddings hold NaN or Inf at step {self.step}; a lower learning rate, warm-up or gradient clipping "
                "usually cures it"
            )
        return gather_rows(features, sizes, group), keys, probe_classes

    def _loss(self, x_nD: Tensor, slot_n: Tensor, change: "_Change") -> tuple[Tensor, Tensor | None]:
        """Return the loss over all processes, and, where the probes require one, its gradient with respect to this
        process's probes times the number of processes, which DDP's averaging takes away."""
        wanted, x_nD = x_nD.requires_grad, x_nD.detach()
        inside, outside = (mask_n.nonzero()[:, 0].to(x_nD.device) for mask_n in (slot_n >= 0, slot_n < 0))
        slot_i = slot_n[slot_n >= 0]
        sums = x_nD.new_tensor([0.0, 0.0, len(inside), len(outside)])
        gradients = [torch.zeros_like(x_nD), torch.zeros_like(x_nD)]
        for rows in change.views():
            if len(inside):
                weight = x_nD.new_ones(len(inside))
                softmax = MarginSoftmax(x_nD[inside], weight, slot_i, rows, self.margin)
                sums[0] += softmax.loss(keep=wanted) * len(inside)
                if wanted:
                    gradients[0][inside] += softmax.backward(x_nD.new_tensor(float(len(inside))))[0]
            if len(outside) and len(rows) and self.outlier_weight:
                term, gradient = self._nearest(x_nD[outside], rows)
                sums[1] += term
                gradients[1][outside] += gradient
        sums = sum_over_processes(sums, self.process_group)
        scale = torch.stack([1 / sums[2].clamp(min=1), self.outlier_weight / sums[3].clamp(min=1)])
        loss, world_size = torch.dot(sums[:2], scale), rank_and_size(self.process_group)[1]
        if not wanted:
            return loss, None
        return loss, (gradients[0] * scale[0] + gradients[1] * scale[1]) * world_size

    def _nearest(self, x_oD: Tensor, rows: "_PoolRows") -> tuple[Tensor, Tensor]:
        """Sum over probes of the mean of their highest cosines, none below 0; and its gradient."""
        _, positions = streamed_topk(x_oD, rows, self.num_nearest, normalize=True)
        near_okD = normalize(rows.gather(positions.flatten()), eps=MIN_NORM).view(*positions.shape, -1)
        cos_ok = torch.einsum("od,okd->ok", x_oD, near_okD)
        share = (cos_ok > 0).to(x_oD.dtype) / positions.shape[1]
        return (cos_ok * share).sum(), torch.einsum("ok,okd->od", share, near_okD)


def slots(queue_size: float, num_classes: int) -> int:
    """Of a pool for `queue_size` classes, or a share of all."""
    capacity = round(queue_size * num_classes) if 0 < queue_size < 1 else queue_size
    if capacity == 0 < queue_size:
        raise ValueError(
            f"queue_size={queue_size}: this share of num_classes={num_classes} is no class at all; give the number of "
            f"classes, up to {num_classes}, or a larger share"
        )
    if not (capacity >= 1 and capacity == int(capacity) and capacity <= num_classes):
        raise ValueError(
            f"queue_size={queue_size}: a whole number of classes up to num_classes={num_classes}, or a share of "
            "them below 1, is needed"
        )
    return int(capacity)


class _Change:
    """What a planned gallery does to the pool's features: to look through, and to commit.

    A class new to the pool writes row 0; one that is there writes the row after its last, in turn. Of
    several images of a class each takes its turn, so that the last two remain.
    """

    def __init__(self, head: FFC, plan: Plan, features: Tensor):
        self.head, self.plan, self.features = head, plan, features
        self.num_rows = head.pool.used + len(plan.entered) - len(plan.evicted)
        self.slots, first, group, counts = np.unique(
            plan.slots, return_index=True, return_inverse=True, return_counts=True
        )
        was_there = plan.hit[first]
        start = np.where(was_there, head.next_row[self.slots], 0)
        self.next_row = (start + counts) % 2
        self.hit = was_there | (counts > 1)  # in this pass
        order = np.argsort(group, kind="stable")
        turn = np.empty(len(group), dtype=np.int64)
        turn[order] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
        row = (start[group] + turn) % 2
        # Which image of the gallery stays in each row of each slot; -1 for none. Later ones come last.
        self.writer = np.full((2, len(self.slots)), -1, dtype=np.int64)
        for later in (2, 1):
            chosen = np.flatnonzero(turn == counts[group] - later)
            self.writer[row[chosen], group[chosen]] = chosen

    def views(self) -> "list[_PoolRows]":
        """The pool twice: everyone's row 0, and row 1 of the classes hit in this pass with the others' row 0."""
        queue = self.head.queue
        count = self.num_rows if self.head.mask_unfilled else self.head.pool.capacity
        first = _PoolRows(queue[0], count, *self._written(0))
        row = queue[1][self._index(self.slots)].float()
        writer = np.where(self.hit, self.writer[1], self.writer[0])
        fresh = np.flatnonzero(writer >= 0)
        row[self._index(fresh)] = self.features[self._index(writer[fresh])]
        return [first, _PoolRows(queue[0], count, self.slots, row)]

    def commit(self) -> None:
        head = self.head
        for row in (0, 1):
            slots, features = self._written(row)
            head.queue[row][self._index(slots)] = features.to(head.queue.dtype)
        head.next_row[self.slots] = self.next_row
        head.pool.commit(self.plan)
        head.checksum = zlib.crc32(self.plan.slots.tobytes() + self.plan.evicted.tobytes(), head.checksum)

    def _written(self, row: int) -> tuple[NDArray[np.int64], Tensor]:
        """Slots whose `row` is written, and the features."""
        fresh = self.writer[row] >= 0
        return self.slots[fresh], self.features[self._index(self.writer[row][fresh])]

    def _index(self, places: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(places).to(self.features.device)


class _PoolRows:
    """Slots 0 to `count` of one row of the queue, some of them replaced; `Rows` for the softmax.

    Args:
        queue: (capacity, D)
        slots: sorted, those replaced.
        features: (len(slots), D), by what.
    """

    def __init__(self, queue: Tensor, count: int, slots: NDArray[np.int64], features: Tensor):
        self.queue, self.count, self.slots, self.features = queue, count, slots, features
        self.replaced = torch.from_numpy(slots).to(queue.device)

    def __len__(self) -> int:
        return self.count

    def gather(self, positions: Tensor) -> Tensor:
        rows = self.queue[positions].float()
        if len(self.slots):
            place = torch.searchsorted(self.replaced, positions).clamp(max=len(self.slots) - 1)
            rows = torch.where((self.replaced[place] == positions)[:, None], self.features[place], rows)
        return rows

    def slice(self, a: int, b: int) -> Tensor:
        rows = self.queue[a:b].float()
        first, last = np.searchsorted(self.slots, [a, b])
        if first < last:
            rows = rows.index_copy(0, self.replaced[first:last] - a, self.features[first:last])
        return rows

    def subset(self, positions: Tensor) -> "_PoolRows":
        rows = self.gather(positions)
        return _PoolRows(rows, len(rows), self.slots[:0], self.features[:0])

    def release(self) -> None:
        """Nothing is held that could be given back."""

    @property
    def changed(self) -> bool:
        return False  # their gradient is computed with the loss


class _KnownGradient(torch.autograd.Function):
    """A loss whose gradient was computed with it: the pool may change before backward."""

    @staticmethod
    def forward(ctx: Any, x_nD: Tensor, loss: Tensor, gradient_nD: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_nD)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        refuse_second_derivative()
        (gradient_nD,) = ctx.saved_tensors
        return gradient_nD * scale, None, None


class _StepCounter(torch.optim.Optimizer):
    """Stands where other heads have the optimizer of their rows.

    Its one parameter has a gradient of 1 at any time, for `torch.amp.GradScaler` to find no overflow in.
    """

    def __init__(self, head: FFC, lr: float):
        self.proxy = torch.zeros((), device=head.queue.device, requires_grad=True)
        super().__init__([{"params": [self.proxy]}], {"lr": number("lr", lr, least=0)})
        self.head = head
        head.has_optimizer = True
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.proxy.grad = torch.ones_like(self.proxy)

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self.head.timer("update", self.head.queue.device):
            self.head.advance()
        return loss
