"""Fidelity during training, as `fidelity/...`: the share of the exact gradient that the head keeps."""

from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from data.options import whole
from heads import CenterHead, Head
from heads.fidelity import loss_fidelity, selection_fidelity
from heads.fidelity.figures import check_options
from heads.group.sharding import Shard

from ..tables import bars_hidden
from .class_means import class_means
from .evaluation import live_model
from .module import HeadModule
from .recorder import Recorder


class Fidelity(L.Callback):
    """A callback that measures fidelity on the head's own batch, every `interval` steps and at the last step.

    It runs between forward and backward pass, changes nothing in the training, and pauses its clock.
    """

    def __init__(self, config: DictConfig, recorder: Recorder):
        check_options(config.probes, config.repeats, config.hardest)
        whole("fidelity.class_images", config.class_images, 1)
        self.config, self.recorder = config, recorder
        # Embeddings, labels, record numbers and loss of the last forward.
        self._call: tuple[Tensor, Tensor, Tensor | None, Tensor] | None = None
        self._metrics: dict[str, float] = {}
        self._class_counts: NDArray[np.int64] | None = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        if self.config.interval is not None:
            module.head.check_fidelity()
            if not isinstance(module.head, CenterHead):
                self._check(module)
                if module.head.margin.uses_class_counts:  # type: ignore[union-attr]
                    self._class_counts = module.data.train.class_counts()
            module.head.register_forward_hook(lambda head, inputs, loss: self._keep_call(module, inputs, loss))

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        if self._call is None:
            return
        assert isinstance(module, HeadModule)
        (embeddings, labels, records, own_loss), self._call = self._call, None
        probes, hardest = self.config.probes, self.config.hardest
        with self.recorder.paused(), bars_hidden():
            if isinstance(module.head, CenterHead):
                self._metrics = selection_fidelity(
                    module.head,
                    embeddings,
                    labels,
                    records=records,
                    probes=probes,
                    repeats=self.config.repeats,
                    hardest=hardest,
                )
            else:
                self._metrics = loss_fidelity(
                    own_loss,
                    embeddings,
                    labels,
                    means=self._means(trainer, module),
                    held=module.head.held_classes(),
                    num_classes=module.data.train.num_classes,
                    margin=module.head.margin.at(module.head.step),  # type: ignore[operator, union-attr]
                    class_counts=self._class_counts,
                    group=module.head.process_group,  # type: ignore[arg-type]
                    probes=probes,
                    hardest=hardest,
                )

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        if self._metrics and module.step_is_complete:
            metrics, self._metrics = self._metrics, {}
            with self.recorder.paused():
                named = {f"fidelity/{name}": value for name, value in metrics.items()}
                self.recorder.record(trainer, named, module.step)

    def _check(self, module: HeadModule) -> None:
        """Raise ValueError if a head without class centers lacks what its fidelity is computed from."""
        kind, head = type(module.head), module.head
        missing = [name for name in ("margin", "process_group") if not hasattr(head, name)]
        if kind.held_classes is Head.held_classes:
            missing.append("held_classes()")
        if missing:
            raise ValueError(
                f"fidelity.interval={self.config.interval} cannot be used with {kind.__name__}: a head without class "
                f"centers must define {' and '.join(missing)}; null measures nothing"
            )
        self._shard(module)

    def _keep_call(self, module: HeadModule, inputs: tuple[Tensor, ...], loss: Tensor) -> None:
        """Keep the inputs of the last forward in the first micro-batch of a step that is due."""
        is_first_micro_batch = (module.loader.handed_out - 1) % module.accumulate == 0
        is_due = (module.step + 1) % self.config.interval == 0 or module.step + 1 == module.num_steps
        if module.head.training and loss.requires_grad and is_first_micro_batch and is_due:
            embeddings, labels, *rest = inputs
            self._call = (embeddings, labels, rest[1] if module.head.needs_records else None, loss)

    @torch.no_grad()
    def _means(self, trainer: L.Trainer, module: HeadModule) -> Tensor:
        """Return the mean embeddings (classes of this process's shard, D) by the current backbone."""
        shard, model = self._shard(module), live_model(trainer, module)
        classes = np.arange(shard.start, shard.stop)
        return class_means(model, module.data, classes, self.config.class_images, "all classes")[0]

    def _shard(self, module: HeadModule) -> Shard:
        """Return the classes whose means this process computes for a head without class centers.

        Raises:
            ValueError: there are fewer classes than processes.
        """
        return Shard(module.data.train.num_classes, module.processes.rank, module.processes.world_size)
