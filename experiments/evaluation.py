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
from data.records import Indices, RecordSet
from data.streams import InOrder
from heads import CenterHead
from heads.collectives import default_group, gather_rows, gather_sizes, sum_over_processes

from .module import HeadModule
from .openset import open_set
from .recorder import Recorder


class Evaluation(L.Callback):
    """Every `interval` steps and at the end of the training; training records at the end only. Where no classes are
    held out, there is nothing to judge on but those."""

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
                module.share_buffers()
                metrics = {}
                if module.data.heldout is not None:
                    metrics = evaluate(trainer, module, module.data.heldout, self.far)
                    metrics = {f"val/{name}": value for name, value in metrics.items()}
                if self.train_records is not None and module.step == module.num_steps:
                    metrics |= against_all_centers(trainer, module, self.train_records)
                self.recorder.record(trainer, metrics, module.step)


@torch.no_grad()
def evaluate(trainer: L.Trainer, module: HeadModule, heldout: RecordSet, far: float) -> dict[str, float]:
    """Metrics of the held-out classes, embedded in eval mode at the precision of the training; on the first process."""
    embeddings, labels = embed(trainer, module, heldout, own_part(np.arange(len(heldout)), module))
    group = default_group()
    sizes = gather_sizes(len(embeddings), embeddings.device, group)
    embeddings, labels = (gather_rows(part, sizes, group).cpu() for part in (embeddings, labels))
    return open_set(embeddings, labels, far) if module.processes.first else {}


@torch.no_grad()
def against_all_centers(trainer: L.Trainer, module: HeadModule, count: int) -> dict[str, float]:
    """The exact loss and the share of right answers of training records drawn at random, not augmented."""
    head, records = module.head, module.data.train
    chosen = permute(np.arange(min(count, len(records))), len(records), module.config.seed)
    embeddings, labels = embed(trainer, module, records, own_part(chosen, module))
    head.eval()
    try:
        loss = head(embeddings, labels)
        right = (head.topk(embeddings, 1)[1][:, 0] == labels).sum()
    finally:
        head.train()
    right = sum_over_processes(right, default_group())
    return {"train/exact_loss": float(loss), "train/top1": float(right) / len(chosen)}


def own_part(indices: Indices, module: HeadModule) -> Indices:
    """What of it this process takes, where all share the work."""
    return np.array_split(indices, module.processes.world_size)[module.processes.rank]


@torch.no_grad()
def embed(trainer: L.Trainer, module: HeadModule, records: RecordSet, indices: Indices) -> tuple[Tensor, Tensor]:
    """Embeddings (n, D) and labels (n,) of these records, in order, in eval mode at the precision of the training."""
    loader = DataLoader(InOrder(records, indices), batch_size=None, generator=torch.Generator())
    embeddings, labels = [torch.empty(0, module.config.embedding_size)], [torch.empty(0, dtype=torch.int64)]
    module.backbone.eval()
    try:
        with trainer.precision_plugin.forward_context():
            for images, of_images in loader:
                embeddings.append(module.backbone(module.data.prepare(images.to(module.device))).float())
                labels.append(of_images)
    finally:
        module.backbone.train()
    return torch.cat([each.to(module.device) for each in embeddings]), torch.cat(labels).to(module.device)
