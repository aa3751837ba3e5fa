"""Lightning strategies whose checkpoints hold the rows of every process."""

from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from heads import CenterHead, Head

from ..checkpoints.checkpoint import CheckpointError, Stored, write
from ..checkpoints.storage import open_store
from ..launching.processes import Processes
from . import resuming
from .module import HeadModule


class ShardedCheckpointMixin:
    """Takes the head's rows, and what is of one process alone, out of what Lightning collects."""

    restore_checkpoint_after_setup = True  # the row state exists once the optimizers do
    _failure: Exception | None = None
    lightning_module: L.LightningModule | None

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """An index goes through a file: where that fails on one process, no other may wait for it."""
        try:
            return super().lightning_module_state_dict()  # type: ignore[misc, no-any-return]
        except (OSError, RuntimeError) as error:
            self._failure = error
            return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        module = self._module()
        failure, self._failure = self._failure, None
        if module.processes.any(failure is not None):
            raise CheckpointError(f"{filepath}: the state could not be collected ({failure or 'by another process'})")
        rows, own_keys = rows_of(module.head), own_state_keys(module)
        weights = checkpoint["state_dict"]
        own = {"random": checkpoint.pop("random"), "state_dict": {key: weights[key] for key in own_keys}}
        checkpoint["state_dict"] = {key: weights[key] for key in weights if key not in rows and key not in own_keys}
        folder, _, name = str(filepath).rpartition("/")
        write(checkpoint, own, rows, open_store(folder), name, module.processes, initial_of(module.head))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads straight into the live rows, once all else is known to fit: a store on disk is not to be spoilt."""
        module = self._module()
        stored = Stored(str(checkpoint_path))
        checkpoint: dict[str, Any] = stored.shared(module.processes)
        if "step" not in checkpoint:
            raise ValueError(
                f"resume={checkpoint_path}: it holds imported weights and no training; begin one from them with "
                "warm_start.checkpoint="
            )
        resuming.check(checkpoint["config"], module.config)
        resuming.check_data(checkpoint["data"], checkpoint["class_names"], module.data, module.config.resume)
        there = {key: each.shape for key, each in checkpoint["state_dict"].items() if key.startswith("backbone.")}
        if there != {f"backbone.{key}": each.shape for key, each in module.backbone.state_dict().items()}:
            raise ValueError(
                f"resume={checkpoint_path}: its backbone is another; resume with the one it was trained with"
            )
        rows = rows_of(module.head)
        stored.fill(rows, module.processes)
        own = stored.own(module.processes)
        checkpoint["random"] = own["random"]
        checkpoint["state_dict"] |= own["state_dict"] | rows
        return checkpoint

    def _module(self) -> HeadModule:
        assert isinstance(self.lightning_module, HeadModule)
        return self.lightning_module


class SingleDevice(ShardedCheckpointMixin, SingleDeviceStrategy):
    pass


class Replicated(ShardedCheckpointMixin, DDPStrategy):
    """All processes begin with the first one's backbone. The module averages its gradients itself."""

    def configure_ddp(self) -> None:
        module = self._module()
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)


def strategy_for(processes: Processes) -> SingleDevice | Replicated:
    return SingleDevice(processes.device) if processes.world_size == 1 else Replicated()


def rows_of(head: Head) -> dict[str, Tensor]:
    """Its rows and row state, by their names in the state dict of a HeadModule."""
    return {f"head.{name}": tensor for name, tensor in head.sharded_state().items()}


def initial_of(head: Head) -> dict[str, int] | None:
    """Return how rows that were never written are drawn; None for a head without class centers."""
    if not isinstance(head, CenterHead):
        return None
    return {"seed": head.centers.seed, "embedding_size": head.centers.embedding_size}


def own_state_keys(module: HeadModule) -> list[str]:
    return ["head._extra_state"] if module.head.state_differs else []
