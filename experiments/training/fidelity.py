"""Fidelity while training, as `fidelity/...`: how much of the exact gradient the head keeps, now and then."""

from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from data.options import whole
from heads import CenterHead, Head
from heads.fidelity import loss_fidelity, selection_fidelity
from heads.fidelity.figures import check_options
from heads.group.sharding import Shard

from ..tables import bars_hidden
from .class_means import class_means
from .evaluation import model_in
from .module import HeadModule
from .recorder import Recorder


class Fidelity(L.Callback):
    """Every `interval` steps, and at the last, the head's own batch is looked at, between forward and backward pass.

    Nothing of the training changes, and its clocks stand still.
    """

    def __init__(self, config: DictConfig, recorder: Recorder):
        check_options(config.probes, config.repeats, config.hardest)
        whole("fidelity.class_images", config.class_images, 1)
        self.config, self.recorder = config, recorder
        self._call: tuple[Tensor, Tensor, Tensor] | None = None  # embeddings, labels and loss of the last forward
        self._found: dict[str, float] = {}

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        if self.config.interval is not None:
            if not isinstance(module.head, CenterHead):
                self._check(module)
            module.head.register_forward_hook(lambda head, inputs, loss: self._note(module, inputs, loss))

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        if self._call is None:
            return
        assert isinstance(module, HeadModule)
        (embeddings, labels, own_loss), self._call = self._call, None
        probes, hardest = self.config.probes, self.config.hardest
        with self.recorder.paused(), bars_hidden():
            if isinstance(module.head, CenterHead):
                self._found = selection_fidelity(
                    module.head, embeddings, labels, probes=probes, repeats=self.config.repeats, hardest=hardest
                )
            else:
                self._found = loss_fidelity(
                    own_loss,
                    embeddings,
                    labels,
                    means=self._means(trainer, module),
                    held=module.head.held_classes(),
                    num_classes=module.data.train.num_classes,
                    margin=module.head.margin,  # type: ignore[arg-type]
                    group=module.head.process_group,  # type: ignore[arg-type]
                    probes=probes,
                    hardest=hardest,
                )

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        if self._found and module.between_steps:
            found, self._found = self._found, {}
            with self.recorder.paused():
                self.recorder.record(trainer, {f"fidelity/{name}": value for name, value in found.items()}, module.step)

    def _check(self, module: HeadModule) -> None:
        """Of a head without class centers. Raises ValueError where it cannot be judged."""
        kind, head = type(module.head), module.head
        lacks = [name for name in ("margin", "process_group") if not hasattr(head, name)]
        if kind.held_classes is Head.held_classes:
            lacks.append("held_classes()")
        if lacks:
            raise ValueError(
                f"fidelity.interval={self.config.interval}: {kind.__name__} has no class centers, and without them "
                f"{' and '.join(lacks)} would be needed; null for never"
            )
        self._shard(module)

    def _note(self, module: HeadModule, inputs: tuple[Tensor, ...], loss: Tensor) -> None:
        """Of the first micro-batch of a step that is due; of several forwards in it, the last."""
        first = (module.loader.handed_out - 1) % module.accumulate == 0
        due = (module.step + 1) % self.config.interval == 0 or module.step + 1 == module.num_steps
        if module.head.training and loss.requires_grad and first and due:
            embeddings, labels, *_ = inputs
            self._call = (embeddings, labels, loss)

    @torch.no_grad()
    def _means(self, trainer: L.Trainer, module: HeadModule) -> Tensor:
        """Mean embeddings (classes of this process's shard, D), of the backbone as it is."""
        wanted = np.ones(module.data.train.num_classes, dtype=bool)
        model = model_in(trainer, module)
        return class_means(model, module.data, wanted, self._shard(module), self.config.class_images, "all classes")[1]

    def _shard(self, module: HeadModule) -> Shard:
        """The classes whose means this process makes, where the head has no centers. Raises ValueError for too few."""
        return Shard(module.data.train.num_classes, module.processes.rank, module.processes.world_size)
