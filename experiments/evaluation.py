"""Evaluation while training: of the held-out classes, as `val/...`, and of training records against all class centers,
as `train/exact_loss` and `train/top1`."""

from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from data.keyed import permute
from data.streams import InOrder
from heads import CenterHead

from .module import HeadModule
from .openset import open_set
from .recorder import Recorder


class Evaluation(L.Callback):
    """Every `interval` steps and at the end of the training; training records at the end only."""

    def __init__(self, config: DictConfig, recorder: Recorder):
        if config.interval is not None and config.interval < 1:
            raise ValueError(f"evaluate.interval={config.interval}: must be at least 1; null evaluates at the end only")
        if not 0 < config.far < 1:
            raise ValueError(f"evaluate.far={config.far}: a rate in (0, 1) is needed")
        if config.train_records is not None and config.train_records < 1:
            raise ValueError(f"evaluate.train_records={config.train_records}: must be at least 1; null for none")
        self.interval, self.far, self.recorder = config.interval, config.far, recorder
        self.train_records = config.train_records

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        head = module.head
        if self.train_records is not None and not isinstance(head, CenterHead):
            raise ValueError(
                f"evaluate.train_records={self.train_records}: {type(head).__name__} keeps no class centers to hold "
                "them against; null for none"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        due = self.interval and module.step % self.interval == 0 and module.between_steps
        if (due and module.step) or module.step == module.num_steps:
            with self.recorder.paused():
                metrics = evaluate(trainer, module, self.far)
                metrics = {f"val/{name}": value for name, value in metrics.items()}
                if self.train_records is not None and module.step == module.num_steps:
                    metrics |= against_all_centers(trainer, module, self.train_records)
                self.recorder.record(trainer, metrics, module.step)


@torch.no_grad()
def evaluate(trainer: L.Trainer, module: HeadModule, far: float) -> dict[str, float]:
    """Metrics of the held-out classes, embedded in eval mode at the precision of the training."""
    embeddings, labels = embed(trainer, module, InOrder(module.data, module.data.heldout))
    return open_set(embeddings.cpu(), labels, far)


@torch.no_grad()
def against_all_centers(trainer: L.Trainer, module: HeadModule, count: int) -> dict[str, float]:
    """The exact loss and the share of right answers of training records drawn at random, not augmented."""
    head, records = module.head, module.data.train
    chosen = permute(np.arange(min(count, len(records))), len(records), module.config.seed)
    embeddings, labels = embed(trainer, module, InOrder(module.data, records, chosen))
    labels = labels.to(embeddings.device)
    head.eval()
    try:
        loss = head(embeddings, labels)
        nearest = head.topk(embeddings, 1)[1][:, 0]
    finally:
        head.train()
    return {"train/exact_loss": float(loss), "train/top1": float((nearest == labels).float().mean())}


def embed(trainer: L.Trainer, module: HeadModule, records: InOrder) -> tuple[Tensor, Tensor]:
    """Embeddings (n, D), where the model is, and labels (n,)."""
    loader = DataLoader(records, batch_size=None, generator=torch.Generator())
    module.backbone.eval()
    try:
        with trainer.precision_plugin.forward_context():
            parts = [(module.backbone(images.to(module.device)).float(), labels) for images, labels in loader]
    finally:
        module.backbone.train()
    embeddings, labels = zip(*parts, strict=True)
    return torch.cat(embeddings), torch.cat(labels)
