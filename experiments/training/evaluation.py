"""Evaluation while training: of the held-out classes, as `val/...`, by protocols, as `val/SET/...`, and of training
records against all class centers, as `train/exact_loss` and `train/top1`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from data.counter_rng import permute
from data.records import RecordSet
from heads import CenterHead
from heads.group.collectives import default_group, sum_over_processes

from ..models.model import BLOCK, Model
from ..protocols import EvaluationProtocol, Result, metrics_with_ci
from ..tables import bars_hidden
from .module import HeadModule
from .openset import open_set
from .recorder import Recorder


class Evaluation(L.Callback):
    """Every `interval` steps and at the end of the training; training records at the end only.

    Args:
        protocols: protocols besides the held-out classes.
    """

    def __init__(self, config: DictConfig, recorder: Recorder, protocols: Sequence[EvaluationProtocol] = ()):
        self.interval, self.far, self.recorder = config.interval, config.far, recorder
        self.train_records = config.train_records
        self.protocols = protocols
        self.notes: set[str] = set()  # that were printed
        self.failure: str | None = None  # of the protocols, at the last evaluation; the same on all processes

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, HeadModule)
        head = module.head
        for protocol in self.protocols:
            protocol.check(model_in(trainer, module))
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
        if (due and module.step) or module.ends:
            with self.recorder.paused(), bars_hidden():
                module.share_buffers()
                model, metrics = model_in(trainer, module), {}
                if module.data.heldout is not None:
                    metrics = evaluate(model, module.data.heldout, self.far)
                    metrics = {f"val/{name}": value for name, value in metrics.items()}
                metrics |= self._judged(model)
                if self.train_records is not None and module.ends:
                    head = cast(CenterHead, module.head)
                    metrics |= against_all_centers(
                        model, head, module.data.train, self.train_records, module.config.seed
                    )
                self.recorder.record(trainer, metrics, module.step)

    def _judged(self, model: Model) -> dict[str, float]:
        """What protocols find, on the first process. One that cannot judge is told of, and training goes on."""
        metrics: dict[str, float] = {}
        failures = []
        for protocol in self.protocols:
            failure = None
            try:
                for result in protocol(model):
                    self._note(result)
                    metrics |= {f"val/{result.name}/{name}": value for name, value in metrics_with_ci(result).items()}
            except (ValueError, OSError) as error:
                failure = str(error)
            # On the host: where there are GPUs, waiting has a limit there.
            failures += [each for each in model.processes.gather(failure) if each][:1]
        before, self.failure = self.failure, "; ".join(failures) or None
        if self.failure not in (None, before) and model.processes.is_rank_zero:
            print(f"\nwarning: {self.failure}. Training goes on without these figures.", flush=True)
        return metrics

    def _note(self, result: Result) -> None:
        """Print what must be known to read the figures, the first time."""
        for note in result.notes:
            if (line := f"\nnote: {result.name}: {note}") not in self.notes:
                self.notes.add(line)
                print(line, flush=True)


def evaluate(model: Model, heldout: RecordSet, far: float) -> dict[str, float]:
    """Metrics of the held-out classes, embedded in eval mode at the precision of the training; on the first process."""
    embeddings = model.embed_all(heldout.source, model.data().prepare, "held-out classes", unit_length=False)
    labels = torch.from_numpy(np.asarray(heldout.labels[np.arange(len(heldout))], dtype=np.int64))
    return open_set(embeddings, labels, far) if model.processes.is_rank_zero else {}


@torch.no_grad()
def against_all_centers(model: Model, head: CenterHead, records: RecordSet, count: int, seed: int) -> dict[str, float]:
    """The exact loss and the share of right answers of training records drawn at random, not augmented."""
    chosen = permute(np.arange(min(count, len(records))), len(records), seed)
    part = np.array_split(chosen, model.processes.world_size)[model.processes.rank]
    embeddings = model.embed(records.source, model.data().prepare, part)
    embeddings = embeddings if len(part) else embeddings.new_empty(0, head.embedding_size)
    labels = torch.from_numpy(np.asarray(records.labels[part], dtype=np.int64)).to(embeddings.device)
    head.eval()
    try:
        loss = head(embeddings, labels)
        right = (head.topk(embeddings, 1)[1][:, 0] == labels).sum()
    finally:
        head.train()
    right = sum_over_processes(right, default_group())
    return {"train/exact_loss": float(loss), "train/top1": float(right) / len(chosen)}


@dataclass(frozen=True)
class LiveCenters:
    """Of a head that trains: each process's shard."""

    head: CenterHead
    class_names: Sequence[str]

    @property
    def num_classes(self) -> int:
        return self.head.centers.shard.num_classes

    @property
    def normalize(self) -> bool:
        return self.head.margin.normalize

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        shard = self.head.centers.shard
        for start in range(0, shard.size, BLOCK):
            yield shard.start + start, self.head.centers.read(slice(start, min(start + BLOCK, shard.size)))


def model_in(trainer: L.Trainer, module: HeadModule) -> Model:
    """What trains, as it is judged: at the precision of the training."""
    head = module.head
    return Model(
        module.backbone,
        module.config.embedding_size,
        module.processes,
        trainer.precision_plugin.forward_context,
        module.data.preprocessing,
        lambda: module.data,
        LiveCenters(head, module.data.class_names) if isinstance(head, CenterHead) else None,
        module.config.num_workers,
    )
