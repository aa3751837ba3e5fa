"""Lightning strategies whose checkpoints hold the rows of every process."""

from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from heads import Head

from ..checkpoints.checkpoint import CheckpointError, read, write
from ..checkpoints.storage import place
from ..processes import Processes
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
        write(checkpoint, own, rows, place(folder), name, module.processes)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads straight into the live rows, once their shapes are known to fit."""
        module = self._module()
        rows = rows_of(module.head)
        checkpoint: dict[str, Any]
        checkpoint, own = read(str(checkpoint_path), rows, module.processes)
        there = {key: each.shape for key, each in checkpoint["state_dict"].items() if key.startswith("backbone.")}
        if there != {f"backbone.{key}": each.shape for key, each in module.backbone.state_dict().items()}:
            raise ValueError(
                f"resume={checkpoint_path}: its backbone is another; resume with the one it was trained with"
            )
        checkpoint["random"] = own["random"]
        checkpoint["state_dict"] |= own["state_dict"] | rows
        return checkpoint

    def _module(self) -> HeadModule:
        assert isinstance(self.lightning_module, HeadModule)
        return self.lightning_module


class SingleDevice(ShardedCheckpointMixin, SingleDeviceStrategy):
    pass


class DDP(ShardedCheckpointMixin, DDPStrategy):
    pass


def strategy_for(processes: Processes) -> SingleDevice | DDP:
    return SingleDevice(processes.device) if processes.world_size == 1 else DDP()


def rows_of(head: Head) -> dict[str, Tensor]:
    """Its rows and row state, by their names in the state dict of a HeadModule."""
    return {f"head.{name}": tensor for name, tensor in head.sharded_state().items()}


def own_state_keys(module: HeadModule) -> list[str]:
    return ["head._extra_state"] if module.head.state_differs else []
