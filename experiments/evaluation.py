"""Evaluation while training: embeds the held-out classes and logs the metrics as `val/...`."""

from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from data.streams import HeldOut

from .module import HeadModule
from .openset import open_set
from .recorder import Recorder


class Evaluation(L.Callback):
    """Every `interval` steps and at the end of the training."""

    def __init__(self, config: DictConfig, recorder: Recorder):
        if config.interval is not None and config.interval < 1:
            raise ValueError(f"evaluate.interval={config.interval}: must be at least 1; null evaluates at the end only")
        if not 0 < config.far < 1:
            raise ValueError(f"evaluate.far={config.far}: a rate in (0, 1) is needed")
        self.interval, self.far, self.recorder = config.interval, config.far, recorder

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        due = self.interval and module.step % self.interval == 0 and module.between_steps
        if (due and module.step) or module.step == module.num_steps:
            with self.recorder.paused():
                metrics = evaluate(trainer, module, self.far)
                self.recorder.record(trainer, {f"val/{name}": value for name, value in metrics.items()}, module.step)


@torch.no_grad()
def evaluate(trainer: L.Trainer, module: HeadModule, far: float) -> dict[str, float]:
    """Metrics of the held-out classes, embedded in eval mode at the precision of the training."""
    loader = DataLoader(HeldOut(module.data), batch_size=None, generator=torch.Generator())
    module.backbone.eval()
    try:
        with trainer.precision_plugin.forward_context():
            parts = [(module.backbone(images.to(module.device)).float().cpu(), labels) for images, labels in loader]
    finally:
        module.backbone.train()
    embeddings, labels = zip(*parts, strict=True)
    return open_set(torch.cat(embeddings), torch.cat(labels), far)
