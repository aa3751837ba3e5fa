"""Evaluation during training.

Held-out classes give `val/...`, protocols `val/SET/...`, and training records compared with all class centers
`train/exact_loss` and `train/top1`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from data.counter_rng import permute
from data.records import RecordSet
from heads import CenterHead, Head
from heads.group.collectives import default_group, sum_over_processes
from heads.rows.class_rows import ClassRows

from ..models.model import BLOCK, Model, by_class
from ..protocols import EvaluationProtocol, Result, metrics_with_ci
from ..tables import bars_hidden
from .module import HeadModule
from .openset import open_set
from .recorder import Recorder


class Evaluation(L.Callback):
    """A callback that evaluates every `interval` steps and at the end; training records at the end only.

    Args:
        protocols: used in addition to the held-out classes.
        seed: draws the training records.

    Attributes:
        failure: failures of the last evaluation, such as an unreadable image, the same on all processes; or None.
    """

    failure: str | None = None

    def __init__(
        self, config: DictConfig, recorder: Recorder, protocols: Sequence[EvaluationProtocol] = (), seed: int = 0
    ):
        self.interval, self.far, self.recorder = config.interval, config.far, recorder
        self.train_records, self.seed = config.train_records, seed
        self.protocols = protocols
        self._printed_notes: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        for protocol in self.protocols:
            protocol.check(live_model(trainer, module))
        if self.train_records is not None:
            self._check_topk(module)

    def _check_topk(self, module: HeadModule) -> None:
        """Raise ValueError if the head cannot compare an embedding with all classes."""
        try:
            module.head.topk(torch.zeros(1, module.embedding_size, device=module.device), 1)
        except ValueError as error:
            raise ValueError(
                f"evaluate.train_records={self.train_records} compares records with all classes: {error}. Or set it to "
                "null"
            ) from error

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, HeadModule)
        is_due = self.interval and module.step and module.step % self.interval == 0 and module.step_is_complete
        if not is_due and not module.is_last_step:
            return
        with self.recorder.paused(), bars_hidden():
            module.share_buffers()
            model = live_model(trainer, module)
            metrics = self._metrics(model, module.data.heldout)
            if self.train_records is not None and module.is_last_step:
                metrics |= against_all_classes(model, module.head, module.data.train, self.train_records, self.seed)
            self.recorder.record(trainer, metrics, module.step)

    def _metrics(self, model: Model, heldout: RecordSet | None) -> dict[str, float]:
        """Return the metrics of the held-out classes and of the protocols, on process 0.

        A failure is reported, and the training continues: it must not cost what was trained.
        """
        measures = [partial(self._heldout_metrics, model, heldout)] if heldout is not None else []
        measures += [partial(self._protocol_metrics, model, protocol) for protocol in self.protocols]
        metrics: dict[str, float] = {}
        failures = []
        for measure in measures:
            failure = None
            try:
                for found in measure():
                    metrics |= found
            except (ValueError, OSError) as error:
                failure = str(error)
            # Gathered on the host, because waiting has a time limit on GPUs.
            failures += [message for message in model.processes.gather(failure) if message][:1]
        before, self.failure = self.failure, "; ".join(failures) or None
        if self.failure not in (None, before) and model.processes.is_rank_zero:
            print(f"\nwarning: {self.failure}. Training continues without these metrics.", flush=True)
        return metrics

    def _heldout_metrics(self, model: Model, heldout: RecordSet) -> Iterator[dict[str, float]]:
        yield {f"val/{name}": value for name, value in evaluate(model, heldout, self.far).items()}

    def _protocol_metrics(self, model: Model, protocol: EvaluationProtocol) -> Iterator[dict[str, float]]:
        for result in protocol(model):
            self._print_notes(result)
            yield {f"val/{result.name}/{name}": value for name, value in metrics_with_ci(result).items()}

    def _print_notes(self, result: Result) -> None:
        """Print the notes that explain the metrics, the first time."""
        for note in result.notes:
            if (line := f"\nnote: {result.name}: {note}") not in self._printed_notes:
                self._printed_notes.add(line)
                print(line, flush=True)


def evaluate(model: Model, heldout: RecordSet, far: float) -> dict[str, float]:
    """Return the metrics of the held-out classes, embedded in eval mode at the training's precision; on process 0."""
    embeddings = model.embed_all(heldout.source, model.data().prepare, "held-out classes", unit_length=False)
    labels = torch.from_numpy(np.asarray(heldout.labels[np.arange(len(heldout))], dtype=np.int64))
    return open_set(embeddings, labels, far) if model.processes.is_rank_zero else {}


@torch.no_grad()
def against_all_classes(model: Model, head: Head, records: RecordSet, count: int, seed: int) -> dict[str, float]:
    """Return the exact loss and the top-1 accuracy of `count` random training records without augmentation.

    For records with several labels, the top-1 accuracy is that of the first one, and the others are left out.
    """
    chosen = permute(np.arange(min(count, len(records))), len(records), seed)
    part = np.array_split(chosen, model.processes.world_size)[model.processes.rank]
    embeddings = model.embed(records.source, model.data().prepare, part)
    embeddings = embeddings if len(part) else embeddings.new_empty(0, model.embedding_size)
    labels = torch.from_numpy(np.asarray(records.targets[part], dtype=np.int64)).to(embeddings.device)
    first, *others = labels.T if labels.ndim == 2 else [labels]
    head.eval()
    try:
        loss = head(embeddings, labels)
        nearest = head.topk(embeddings, min(1 + len(others), records.num_classes))[1]
        left_out = torch.zeros_like(nearest, dtype=torch.bool)
        for other in others:
            left_out |= nearest == other[:, None]
        nearest_class = nearest.gather(1, left_out.int().argmin(1, keepdim=True))[:, 0]
        correct = (nearest_class == first).sum()
    finally:
        head.train()
    correct = sum_over_processes(correct, default_group())
    return {"train/exact_loss": float(loss), "train/top1": float(correct) / len(chosen)}


@dataclass(frozen=True)
class LiveCenters:
    """Class centers of a head in training: the shard of each process."""

    rows: ClassRows
    normalize: bool
    class_names: Sequence[str]

    @property
    def num_classes(self) -> int:
        return self.rows.shard.num_classes

    def slots(self, classes: Tensor) -> Tensor:
        return self.rows.slots(classes.to(self.rows.like.device)).cpu()

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        width, shard = self.rows.embedding_size if self.normalize else self.rows.width, self.rows.shard
        for start in range(0, shard.size, BLOCK):
            rows = self.rows.read(slice(start, min(start + BLOCK, shard.size)))[:, :width]
            yield shard.start + start, by_class(rows, self.rows.rows_per_class)


def live_model(trainer: L.Trainer, module: HeadModule) -> Model:
    """Return the model in training as protocols see it, at the precision of the training."""
    head, centers = module.head, None
    if isinstance(head, CenterHead) and head.class_centers is not None:
        centers = LiveCenters(head.class_centers, head.margin.normalize, module.data.class_names)
    return Model(
        module.backbone,
        module.embedding_size,
        module.processes,
        trainer.precision_plugin.forward_context,
        module.data.preprocessing,
        lambda: module.data,
        centers,
        module.loader.num_workers,
    )
