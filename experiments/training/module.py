"""The LightningModule: one backbone, one head, two optimizers and their schedules.

Optimization is manual because the head's rows are not parameters. The module counts steps itself: Lightning's
`global_step` belongs to one call of `fit`, this count to the whole training.
"""

import inspect
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.records import DataSet
from data.streams import Batch, BatchLoader
from heads import Head
from heads.group.collectives import default_group, max_over_processes

from ..launching.processes import Processes
from .gradients import average_gradients
from .precision import LossScale
from .resuming import Origin


class HeadModule(L.LightningModule):
    """A backbone and a head in training. `assemble` builds one from a config.

    Args:
        backbone: images (N, *shape) to embeddings (N, embedding_size).
        head: prepared with this backbone.
        data: the loader's data set, which also prepares batches.
        loader: loader of all batches of the training.
        optimizers: maps (backbone, head, num_steps) to the optimizers of the backbone and of the rows, and the
            schedules of both. It is called once the module is on its device, because row state is created there.
        origin: the part of a checkpoint that states the config and the data of the training.
        accumulate: batches of one optimizer step.
        gradient_clip_val: largest norm of the backbone's gradient; None for no limit.
        loss_scale: loss scaling of fp16; None in other precisions.
        allow_finished: whether a checkpoint of the last step may be loaded, because it is from the run's own folder.

    Attributes:
        step: optimizer steps so far, including skipped ones.
        skipped_steps: steps skipped because a gradient overflowed.
        num_steps: steps of the whole training.
        out_of_time: whether this step is the last by the clock; see `TimeLimit`.
        last_loss: mean loss over the micro-batches of the last step; a detached scalar.
        last_lr: learning rate of the backbone in the last step.
    """

    out_of_time = False

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        data: DataSet,
        loader: BatchLoader,
        optimizers: Callable[[nn.Module, Head, int], Any],
        *,
        origin: Origin,
        processes: Processes,
        embedding_size: int,
        accumulate: int = 1,
        gradient_clip_val: float | None = None,
        loss_scale: LossScale | None = None,
        allow_finished: bool = False,
    ):
        super().__init__()
        if loss_scale is not None:
            check_advance(head)
        self.automatic_optimization = False
        self.backbone, self.head = backbone, head
        self.data, self.loader, self.build_optimizers = data, loader, optimizers
        self.origin, self.processes, self.embedding_size = origin, processes, embedding_size
        self.accumulate, self.gradient_clip_val, self.loss_scale = accumulate, gradient_clip_val, loss_scale
        self.allow_finished = allow_finished
        self.num_steps = loader.num_batches // accumulate
        self.step = self.skipped_steps = 0
        self.last_loss = torch.zeros(())
        self.last_lr = 0.0
        self._loss_sum = torch.zeros(())

    @property
    def epoch(self) -> float:
        """Passes over the training records so far."""
        return self.loader.handed_out * self.loader.batch_size / len(self.data.train)

    @property
    def step_is_complete(self) -> bool:
        """True if no micro-batch waits for the optimizers."""
        return self.loader.handed_out % self.accumulate == 0

    @property
    def is_last_step(self) -> bool:
        """True if the last step of the training, or of its time, is complete."""
        return self.step == self.num_steps or (self.out_of_time and self.step_is_complete)

    @property
    def failure(self) -> str | None:
        """Reason why this process cannot train another step, known while the last one is complete; None if it can."""
        return self.loader.failure or self.head.failure

    def train_dataloader(self) -> BatchLoader:
        return self.loader

    def configure_optimizers(self) -> Any:
        return self.build_optimizers(self.backbone, self.head, self.num_steps)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return {
            name: (self.data.finish(examples, draws), labels, *rest)
            for name, (examples, labels, draws, *rest) in batch.items()
        }

    def on_train_start(self) -> None:
        """Leave dropout and batch statistics of a backbone without parameters to train as they are."""
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self.head.training_loss(self._encode, batch)
        self.manual_backward(loss / self.accumulate)
        self._loss_sum = self._loss_sum.to(loss.device) + loss.detach() / self.accumulate
        if self.step_is_complete:
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
        if self.gradient_clip_val is not None:
            # A list, since torch warns about a generator without parameters.
            nn.utils.clip_grad_norm_([*self.backbone.parameters()], self.gradient_clip_val)
        if self.loss_scale is None:
            backbone.step()
            skipped = False
        else:
            skipped = not self.loss_scale.step(backbone)
        if skipped:
            self.skipped_steps += 1
            self.head.advance(applied=False)
        else:
            rows.step()
            for schedule in self.lr_schedulers():  # type: ignore[union-attr]
                schedule.step()  # type: ignore[union-attr]
        backbone.zero_grad()
        rows.zero_grad()
        self.step += 1
        self.last_loss, self._loss_sum = self._loss_sum, torch.zeros_like(self._loss_sum)

    def share_buffers(self) -> None:
        """Broadcast the buffers of process 0: each process has batch statistics of its own part of the batches."""
        if self.processes.world_size > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)

    def on_train_end(self) -> None:
        """Raise RuntimeError if the processes ended with different backbones, which is a bug."""
        all_parameters = [p.detach().flatten().double() for p in self.backbone.parameters()]
        if self.processes.world_size == 1 or not all_parameters:
            return
        parameters = torch.cat(all_parameters)
        sums = torch.stack([parameters.sum(), parameters.square().sum()])
        low_and_high = torch.cat([-sums, sums])
        if not torch.equal(max_over_processes(low_and_high.clone(), default_group()), low_and_high):
            raise RuntimeError("the processes ended with different backbones")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(step=self.step, loader=self.loader.state_dict(), random=self._random_states())
        checkpoint.update(self.origin.state)
        if self.loss_scale is not None:
            checkpoint.update(loss_scale=self.loss_scale.state_dict(), skipped_steps=self.skipped_steps)
        # Lightning would resume by its own count of batches, and the loader by its count of samples.
        del checkpoint["loops"]

    def _random_states(self) -> tuple[Tensor, Tensor | None]:
        """Return the states of the generators of the host and the GPU, from which dropout, for example, draws."""
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint["step"]
        self.loader.load_state_dict(checkpoint["loader"])
        if self.loader.handed_out != self.step * self.accumulate:
            raise ValueError(
                f"batch_size={self.loader.batch_size} and trainer.accumulate_grad_batches={self.accumulate} differ "
                f"from the checkpoint, which was written after {self.step} steps and {checkpoint['loader']['samples']} "
                "samples; resume with the sizes it was trained with"
            )
        if self.step >= self.num_steps and not self.allow_finished:
            raise ValueError(
                f"resume={self.origin.resume} is at step {self.step:,}, and the training has {self.num_steps:,} steps; "
                "raise trainer.max_steps or trainer.max_epochs, or evaluate it with experiments.evaluate"
            )
        host, device = checkpoint["random"]
        torch.set_rng_state(host)
        if device is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(device, self.device)
        if self.loss_scale is not None and "loss_scale" in checkpoint:
            self.loss_scale.load_state_dict(checkpoint["loss_scale"])
            self.skipped_steps = checkpoint["skipped_steps"]


def check_advance(head: Head) -> None:
    """Raise ValueError if a head cannot be told that fp16 has skipped a step."""
    parameters = inspect.signature(head.advance).parameters.values()
    if not any(parameter.name == "applied" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(
            f"trainer.precision=16-mixed skips the steps whose gradient overflows, and {type(head).__name__}.advance() "
            "has no argument for that; define it as advance(self, applied=True), and change nothing if it is False"
        )
