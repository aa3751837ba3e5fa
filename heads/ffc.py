"""FFC: instead of class centers, a pool of recent features from an averaged copy of the backbone.

The pool holds two features for each of `queue_size` classes. The least recently seen class leaves first, so that memory
does not grow with the number of classes. Probes come from the backbone, gallery features from its averaged copy. A
probe whose class is not in the pool is pushed away from the nearest features.

Source: Wang et al., "An Efficient Training Approach for Very Large Scale Face Recognition", CVPR 2022.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from .core import dtypes
from .core.cost import Case, Cost
from .core.options import make_options, whole
from .core.row_state import RowState
from .core.step_counter import StepCounter
from .group.collectives import default_group, rank_and_size
from .group.positives import Positives
from .head import Batch, Encode, Head
from .margins.batch import MarginBatch
from .margins.class_counts import checked_counts
from .margins.cosface import CosFace
from .objectives.loss_state import LossState
from .pool.averaged import move_towards, take_buffers
from .pool.class_pool import ClassPool, Plan
from .pool.cost import pool_cost
from .pool.feature_queue import FeatureQueue, QueueChange
from .pool.gather import gather_gallery
from .pool.loss import pool_loss
from .pool.options import FFCOptions, checked_pool_margin
from .rows.optimizers import RowSGD


class FFC(Head):
    """Margin softmax over a pool of gallery features, for probes whose class is in the pool.

    The head maps probes (n, D) with labels (n,), and gallery features (m, D) with labels (m,), to a loss. All processes
    hold the same pool. The optimizer counts the steps::

        head = FFC(num_classes=1_000_000, embedding_size=512, queue_size=10_000)
        steps = head.optimizer(lr=0.1)
        head(backbone(images), labels, averaged(others), other_labels).backward()
        steps.step()

    Source: Wang et al., "An Efficient Training Approach for Very Large Scale Face Recognition", CVPR 2022.

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range.

    Examples:
        >>> backbone, head = torch.nn.Linear(32, 16), FFC(num_classes=1000, embedding_size=16, queue_size=100)
        >>> head.prepare(backbone)
        >>> pairs, others = torch.arange(4).repeat(2), torch.arange(8)  # images i and 4 + i are a pair
        >>> batch = {"identity": (torch.randn(8, 32), pairs), "instance": (torch.randn(8, 32), others)}
        >>> loss = head.training_loss(backbone, batch)
    """

    Options = FFCOptions
    options: FFCOptions
    streams = ("instance", "identity")

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ):
        super().__init__()
        self.options = make_options(type(self), options)
        self.num_classes = whole("num_classes", num_classes, 1)
        self.embedding_size = whole("embedding_size", embedding_size, 1)
        self.margin = CosFace(s=32) if self.options.margin is None else self.options.margin
        self.process_group = process_group if process_group is not None else default_group()
        self.pool = ClassPool(self.options.slots(self.num_classes))
        self.num_nearest = min(max(int(2e-4 * self.pool.capacity), 3), 10)
        self.features = FeatureQueue(
            self.pool,
            self.embedding_size,
            dtype=dtypes.named("dtype", self.options.dtype),
            device=device,
            random_seed=None if self.options.mask_unfilled else self.options.seed,
        )
        counts = checked_counts(self.options.class_counts, self.margin, self.num_classes)
        self.loss_state = LossState(self.pool.capacity, self.queue, None, counts)
        self.gallery: nn.Module | None = None
        self._encoder: list[nn.Module] = []  # in a list, so that it is not a submodule
        self._counts = {"in_pool_share": 0.0, "evicted_classes": 0.0, "gallery_images": 0.0}

    @property
    def queue(self) -> Tensor:
        """The features of the pool, (2, slots, D)."""
        return self.features.rows

    @classmethod
    def cost(cls, case: Case, options: Any, *, row_state: Mapping[str, RowState]) -> Cost:
        """Return the cost of a step, without the averaged copy of the backbone and its pass over all images.

        Args:
            case: numbers of classes, columns, images and processes. Each process holds the whole pool.
            options: an instance of `Options`.
            row_state: has no effect.
        """
        return pool_cost(case, options)

    def stream_sizes(self, batch_size: int) -> dict[str, int]:
        """Return the numbers of paired images ("identity") and of others ("instance") in a batch.

        Raises:
            ValueError: a number is 0 or odd, or half of the batch does not fit into the pool.
        """
        share = self.options.identity_share
        identity = 2 * round(batch_size * share / 2)
        instance = batch_size - identity
        if batch_size % 2 or not identity or not instance:
            raise ValueError(
                f"batch_size={batch_size} with identity_share={share} gives head=ffc {identity} images as pairs of one "
                f"class and {instance} others; both numbers must be even and above 0"
            )
        self._check_room(batch_size // 2)
        return {"instance": instance, "identity": identity}

    def prepare(self, encoder: nn.Module) -> None:
        """Make the averaged copy of the backbone."""
        self.gallery = copy.deepcopy(encoder).requires_grad_(False)
        self._encoder = [encoder]

    def training_loss(self, encode: Encode, batch: Batch) -> Tensor:
        """Return the loss of two passes, in which each image is once a probe and once in the gallery.

        Args:
            encode: the backbone.
            batch: "identity": (images (2b, ...), labels (2b,)), where image b + i has the class of image i.
                "instance": any images and their labels.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        if self.gallery is None:
            raise RuntimeError("FFC needs its averaged copy of the backbone; call prepare(backbone) before training")
        pairs, pair_labels = batch["identity"]
        images, labels = batch["instance"]
        b, half = len(pairs) // 2, len(images) // 2
        both = torch.cat([pairs[:b], images[:half], pairs[b:], images[half:]])
        both_labels = torch.cat([pair_labels[:b], labels[:half], pair_labels[b:], labels[half:]])
        if self.micro_batch == 0 and torch.is_grad_enabled():
            move_towards(self.gallery, self._encoder[0], self.momentum)
        with torch.no_grad(), self.timer("gallery", both.device):
            features = self.gallery(both)
        probes = encode(both)
        (x, y), (x_labels, y_labels) = (t.split([b + half, len(t) - b - half]) for t in (probes, both_labels))
        x_features, y_features = features.split([len(x), len(y)])
        unkept = self(x, x_labels, y_features, y_labels, keep=False)
        learns = torch.is_grad_enabled()
        loss: Tensor = unkept + self(y, y_labels, x_features, x_labels, keep=learns)
        if learns:
            self.count_forward()
        return loss

    def forward(
        self, probe: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, *, keep: bool = True
    ) -> Tensor:
        """Return the loss of the probes against the pool with the gallery in it.

        Args:
            probe: (n, D) embeddings of this process, any float dtype; n may differ between processes and be 0.
            labels: (n,) integer class ids in [0, C).
            gallery: (m, D) features of the averaged copy; they get no gradient.
            gallery_labels: (m,) integer class ids in [0, C).
            keep: leave the gallery in the pool, also under `torch.no_grad()`. With False, and in eval mode, the pool
                does not change.

        Returns:
            Scalar, float32. It is the mean margin softmax loss of the probes of all processes whose class is in the
            pool, summed over the pool's two rows. The mean term of the other probes is added, multiplied by
            `outlier_weight`. A mean over no probes is 0.

        Raises:
            ValueError: wrong shapes, dtypes or devices, labels outside [0, C), NaN or Inf, or a pool smaller than the
                gallery of all processes. Raised on all processes, also if only one has such input.
            RuntimeError: in backward, with `create_graph=True`.
        """
        self.check_group()
        device = self.queue.device
        with self.timer("forward", device), torch.autocast(device.type, enabled=False):
            batch = gather_gallery(
                probe,
                labels,
                gallery,
                gallery_labels,
                embedding_size=self.embedding_size,
                num_classes=self.num_classes,
                checksum=self.features.checksum,
                step=self.step,
                device=device,
                group=self.process_group,
            )
            self._check_room(len(batch.classes))
            plan = self.pool.plan(batch.classes)
            change = QueueChange(self.features, plan, batch.features)
            slots = self.pool.lookup(batch.probe_classes, plan)
            loss = pool_loss(
                batch.x_nD,
                batch.norm_n,
                torch.from_numpy(slots),
                change.views(),
                margin=checked_pool_margin(self.margin).at(self.step),
                batch=self._margin_batch(batch.norm_n.detach(), labels, kept=keep),
                outlier_weight=self.options.outlier_weight,
                num_nearest=self.num_nearest,
                group=self.process_group,
            )
            if self.training:
                self._record(slots, plan, kept=keep)
                if keep:
                    change.commit()
            return loss

    def _margin_batch(self, norm_n: Tensor, labels_n: Tensor, *, kept: bool) -> MarginBatch:
        key = (self.options.seed, self.step, self.micro_batch, kept, rank_and_size(self.process_group)[0])
        return self.loss_state.margin_batch(self.margin, norm_n, Positives(labels_n.to(torch.int64)), key)

    def _record(self, slots: NDArray[np.int64], plan: Plan, *, kept: bool) -> None:
        """Record the numbers that `stats` returns."""
        self._counts["in_pool_share"] = float((slots >= 0).mean()) if len(slots) else 0.0
        self._counts["gallery_images"] = float(2 * len(plan.slots))
        if kept:
            self._counts["evicted_classes"] = float(len(plan.evicted))

    def optimizer(self, lr: float, *, rule: Callable[..., Any] = RowSGD, **options: Any) -> torch.optim.Optimizer:
        """Return an optimizer that counts the steps, so that loops and schedulers work as with other heads.

        There are no rows to update: `rule` and its options, which other heads need, have no effect.

        Raises:
            TypeError: an option that `rule` does not have.
        """
        inspect.signature(rule).bind(self, lr=lr, **options)
        return StepCounter(self, lr, self.queue.device)

    def topk(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        raise ValueError("FFC has no class centers and no topk; use a head with class centers (full, pfc, forest)")

    def held_classes(self) -> Tensor:
        return torch.from_numpy(np.sort(self.pool.class_of[: self.pool.used]))

    def stats(self) -> dict[str, float]:
        """Return classes in the pool, share of probes whose class is in it, evictions of the last step, mean age."""
        ages = self.pool.ages()
        return {
            "active_classes": self.pool.used,
            **self._counts,
            "slot_age": float(ages.mean()) if len(ages) else 0.0,
            "memory_bytes": self.features.nbytes + self.pool.nbytes,
            **self.timer.milliseconds(),
        }

    def train(self, mode: bool = True) -> "FFC":
        """Set the mode; in eval mode the averaged copy takes the backbone's floating buffers, such as running means."""
        super().train(mode)
        if not mode and self.gallery is not None:
            take_buffers(self.gallery, self._encoder[0])
        return self

    def get_extra_state(self) -> dict[str, Any]:
        return {"step": self.step, **self.features.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["queue"].shape != self.queue.shape:
            raise ValueError(
                f"the pool of queue_size={self.pool.capacity} and embedding_size={self.embedding_size} cannot load a "
                f"pool of {list(state['queue'].shape[1:])}; resume with the options of the saved head"
            )
        self.features.load_state_dict(state)
        self.step, self.micro_batch = state["step"], 0

    def extra_repr(self) -> str:
        return f"queue_size={self.pool.capacity}, margin={self.margin}, embedding_size={self.embedding_size}"

    def _apply(self, fn: Any, recurse: bool = True) -> "FFC":
        super()._apply(fn, recurse)
        self.features.rows = self.queue.to(fn(torch.empty(0, device=self.queue.device)).device)
        return self

    @property
    def momentum(self) -> float:
        """Momentum of the copy of the backbone in this step."""
        return self.options.momentum(self.step)

    def _check_room(self, num_gallery: int) -> None:
        if num_gallery > self.pool.capacity:
            raise ValueError(
                f"queue_size={self.pool.capacity} is smaller than the {num_gallery} images that one batch of all "
                f"processes puts into the pool; {num_gallery} is the smallest that works"
            )
