"""The LightningModule: a backbone and a head, two optimizers, one schedule.

Optimization is manual because the head's rows are no parameters. Steps are counted here: Lightning's
`global_step` belongs to one call of `fit`, this count to the whole training.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from data.records import DataSet
from data.streams import STREAMS, Batch, BatchLoader
from heads import Head
from heads.group.collectives import default_group, max_over_processes

from ..instantiate import instantiate
from ..launching.processes import Processes
from ..models import fingerprint
from ..models.backbone import build_backbone
from ..models.trained import about
from .gradients import average_gradients
from .precision import LossScale


class HeadModule(L.LightningModule):
    """Trains `config.backbone` and `config.head` on a data set.

    Args:
        begin: changes the backbone before the head sees it.

    Attributes:
        step: optimizer steps so far, those skipped for overflow among them.
        skipped_steps: of these.
        num_steps: of the whole training.
        out_of_time: whether this step is the last by the clock; see `TimeLimit`.
        may_be_finished: whether a checkpoint of the last step is one to resume from, as that of its own folder is.
        last_loss: of the last step, the mean over its micro-batches; a detached scalar.
        last_lr: the backbone's learning rate in the last step.
    """

    head: Head
    may_be_finished = False
    out_of_time = False

    def __init__(
        self,
        config: DictConfig,
        data: DataSet,
        processes: Processes,
        begin: Callable[[nn.Module], None] = lambda backbone: None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.config, self.data, self.processes = config, data, processes
        self.backbone = build_backbone(config, data.shape)
        begin(self.backbone)
        self.head = instantiate(
            config.head,
            num_classes=data.train.num_classes,
            embedding_size=config.embedding_size,
            margin=instantiate(config.margin),
            seed=config.seed,
        )
        self.head.prepare(self.backbone)
        self.accumulate = config.trainer.accumulate_grad_batches
        streams = {
            name: STREAMS[name](data, size, seed=config.seed, rank=processes.rank, world_size=processes.world_size)
            for name, size in self.head.stream_sizes(config.batch_size).items()
        }
        self.num_steps = number_of_steps(config, len(data.train) // config.batch_size)
        self.loader = BatchLoader(
            streams, self.num_steps * self.accumulate, config.batch_size, config.num_workers, ahead=self.accumulate
        )
        self.loss_scale = LossScale(processes) if config.trainer.precision == "16-mixed" else None
        self.step = self.skipped_steps = 0
        self.last_loss = torch.zeros(())
        self.last_lr = 0.0
        self._loss_sum = torch.zeros(())

    @property
    def epoch(self) -> float:
        """Passes over the training records so far."""
        return self.loader.handed_out * self.config.batch_size / len(self.data.train)

    @property
    def between_steps(self) -> bool:
        """Whether no micro-batch waits for the optimizers."""
        return self.loader.handed_out % self.accumulate == 0

    @property
    def ends(self) -> bool:
        """Whether the last step is done: of the training, or of its time."""
        return self.step == self.num_steps or (self.out_of_time and self.between_steps)

    @property
    def failure(self) -> str | None:
        """Why this process cannot train another step, known while the last one is complete; None if it can."""
        return self.loader.failure or self.head.failure

    def train_dataloader(self) -> BatchLoader:
        return self.loader

    def configure_optimizers(self) -> Any:
        options = self.config.optimizer
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        backbone = instantiate(options.backbone)(trained, lr=_lr_of(options.backbone, options.lr))
        rule = {"rule": instantiate(options.rows)} if "_target_" in (options.rows or {}) else {}  # a head may have none
        rows = self.head.optimizer(lr=_lr_of(options.rows, options.lr), **rule)
        factor = instantiate(self.config.schedule, num_steps=self.num_steps)
        schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in (backbone, rows)]
        return [backbone, rows], schedules

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (self.data.finish(examples, draws), labels) for name, (examples, labels, draws) in batch.items()}

    def training_step(self, batch: dict[str, tuple[Tensor, Tensor]], batch_idx: int) -> None:
        loss = self.head.training_loss(self._encode, batch)
        self.manual_backward(loss / self.accumulate)
        self._loss_sum = self._loss_sum.to(loss.device) + loss.detach() / self.accumulate
        if self.between_steps:
            self._optimizer_step()

    def _encode(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.backbone(images)
        return embeddings if self.loss_scale is None else self.loss_scale.apply(embeddings)

    def _optimizer_step(self) -> None:
        backbone, rows = (wrapped.optimizer for wrapped in self.optimizers())  # type: ignore[attr-defined, misc, union-attr]
        if self.processes.world_size > 1:
            average_gradients(self.backbone.parameters())
        self.last_lr = backbone.param_groups[0]["lr"]
        if self.loss_scale is not None:
            self.loss_scale.unscale(backbone)
        if self.config.trainer.gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.backbone.parameters(), self.config.trainer.gradient_clip_val)
        if self.loss_scale is None:
            backbone.step()
            skipped = False
        else:
            skipped = not self.loss_scale.step(backbone)
        if skipped:
            self.skipped_steps += 1
            self.head.advance()
        else:
            rows.step()
            for schedule in self.lr_schedulers():  # type: ignore[union-attr]
                schedule.step()  # type: ignore[union-attr]
        backbone.zero_grad()
        rows.zero_grad()
        self.step += 1
        self.last_loss, self._loss_sum = self._loss_sum, torch.zeros_like(self._loss_sum)

    def share_buffers(self) -> None:
        """The first process's buffers for all: each has statistics of its own part of the batches."""
        if self.processes.world_size > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)

    def on_train_end(self) -> None:
        """Raises RuntimeError where processes ended with different backbones, which no training should."""
        if self.processes.world_size == 1:
            return
        parameters = torch.cat([p.detach().flatten().double() for p in self.backbone.parameters()])
        sums = torch.stack([parameters.sum(), parameters.square().sum()])
        low_and_high = torch.cat([-sums, sums])
        if not torch.equal(max_over_processes(low_and_high.clone(), default_group()), low_and_high):
            raise RuntimeError("the processes ended with different backbones")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(step=self.step, loader=self.loader.state_dict(), random=self._random_states())
        checkpoint["class_names"] = self._class_names
        checkpoint["data"] = self._about_data
        checkpoint["model"] = self._about
        checkpoint["config"] = OmegaConf.to_container(self.config, resolve=True)
        if self.loss_scale is not None:
            checkpoint.update(loss_scale=self.loss_scale.state_dict(), skipped_steps=self.skipped_steps)
        # Lightning's own count of batches would fight with the loader's over where to resume.
        del checkpoint["loops"]

    @cached_property
    def _class_names(self) -> bytes:
        return fingerprint.names_of(self.data)

    @cached_property
    def _about_data(self) -> dict[str, Any]:
        return fingerprint.about_data(self.data, self._class_names)

    @cached_property
    def _about(self) -> dict[str, Any]:
        return about(self.config, self.data.shape, self.data.preprocessing)

    def _random_states(self) -> tuple[Tensor, Tensor | None]:
        """Of the host and of the GPU, for what draws without a key, such as dropout."""
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint["step"]
        self.loader.load_state_dict(checkpoint["loader"])
        if self.loader.handed_out != self.step * self.accumulate:
            raise ValueError(
                f"batch_size={self.config.batch_size}, trainer.accumulate_grad_batches={self.accumulate}: the "
                f"checkpoint is of {self.step} steps and {checkpoint['loader']['samples']} samples; resume with the "
                "sizes it was trained with"
            )
        if self.step >= self.num_steps and not self.may_be_finished:
            raise ValueError(
                f"resume={self.config.resume}: is of step {self.step:,}, and nothing is left to train of "
                f"{self.num_steps:,}; raise trainer.max_steps or max_epochs, or judge it with experiments.evaluate"
            )
        host, device = checkpoint["random"]
        torch.set_rng_state(host)
        if device is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(device, self.device)
        if self.loss_scale is not None and "loss_scale" in checkpoint:
            self.loss_scale.load_state_dict(checkpoint["loss_scale"])
            self.skipped_steps = checkpoint["skipped_steps"]


def _lr_of(part: DictConfig | None, common: float) -> float:
    """Return the learning rate of one of the two optimizers: its own, or else `optimizer.lr`."""
    own = None if part is None else part.get("lr")
    return common if own is None else own


def number_of_steps(config: DictConfig, batches_per_epoch: int) -> int:
    options = config.trainer
    steps = options.max_steps
    if steps is None:
        steps = round(options.max_epochs * batches_per_epoch / options.accumulate_grad_batches)
    if steps < 1:
        raise ValueError(f"the training has {steps} steps: raise trainer.max_steps or trainer.max_epochs")
    return int(steps)
