"""Lightning strategies whose checkpoints hold the rows of every process."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from heads import CenterHead, Head
from heads.rows.centers import LAYOUT
from heads.rows.layout import layout_fault

from ..checkpoints.attempts import CheckpointError
from ..checkpoints.checkpoint import write
from ..checkpoints.manifest import InitialRows
from ..checkpoints.storage import open_store
from ..checkpoints.stored import CENTERS, Stored
from ..launching.processes import Processes
from .module import HeadModule


class ShardedCheckpointMixin:
    """Separation of the head's rows, and of state local to one process, from the state that Lightning collects."""

    restore_checkpoint_after_setup = True  # row state exists once the optimizers do
    _failure: Exception | None = None
    lightning_module: L.LightningModule | None

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the state dict, empty on failure: an index is saved through a file, and no process may wait for one
        that failed."""
        try:
            return super().lightning_module_state_dict()  # type: ignore[misc, no-any-return]
        except (OSError, RuntimeError) as error:
            self._failure = error
            return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        module = self._module()
        failure, self._failure = self._failure, None
        if module.processes.any(failure is not None):
            reason = failure or "another process failed"
            raise CheckpointError(f"{filepath} cannot be written: the state could not be collected ({reason})")
        rows, local_keys = rows_of(module.head), local_state_keys(module)
        weights = checkpoint["state_dict"]
        local = {"random": checkpoint.pop("random"), "state_dict": {key: weights[key] for key in local_keys}}
        checkpoint["state_dict"] = {key: weights[key] for key in weights if key not in rows and key not in local_keys}
        folder, _, name = str(filepath).rpartition("/")
        write(checkpoint, local, rows, open_store(folder), name, module.processes, row_initialization(module.head))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, its rows directly into the live rows.

        Rows are read last, once everything else is known to fit, because a store on disk must not be overwritten in
        vain.
        """
        module = self._module()
        stored = Stored(str(checkpoint_path))
        checkpoint: dict[str, Any] = stored.shared(module.processes)
        if "step" not in checkpoint:
            raise ValueError(
                f"resume={checkpoint_path} holds imported weights and no training; start a training from them with "
                "warm_start.checkpoint="
            )
        module.origin.check(checkpoint)
        shapes = {key: tensor.shape for key, tensor in checkpoint["state_dict"].items() if key.startswith("backbone.")}
        if shapes != {f"backbone.{key}": tensor.shape for key, tensor in module.backbone.state_dict().items()}:
            raise ValueError(
                f"resume={checkpoint_path} has weights of another backbone; resume with the one it was trained with"
            )
        rows = rows_of(module.head)
        check_layout(stored, checkpoint["state_dict"], module.head)
        stored.fill(rows, module.processes)
        local = stored.local(module.processes)
        checkpoint["random"] = local["random"]
        checkpoint["state_dict"] |= local["state_dict"] | rows
        return checkpoint

    def _module(self) -> HeadModule:
        assert isinstance(self.lightning_module, HeadModule)
        return self.lightning_module


class SingleDevice(ShardedCheckpointMixin, SingleDeviceStrategy):
    pass


class Replicated(ShardedCheckpointMixin, DDPStrategy):
    """One process per device, all starting with the backbone of process 0. The module averages its gradients."""

    def configure_ddp(self) -> None:
        module = self._module()
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)


def strategy_for(processes: Processes) -> SingleDevice | Replicated:
    return SingleDevice(processes.device) if processes.world_size == 1 else Replicated()


def rows_of(head: Head) -> dict[str, Tensor]:
    """Return the head's rows and row state, by their names in the state dict of a HeadModule."""
    return {f"head.{name}": tensor for name, tensor in head.sharded_state().items()}


def check_layout(stored: Stored, state_dict: Mapping[str, Any], head: Head) -> None:
    """Raise ValueError if the rows of a checkpoint are in another order than those of a head."""
    if not isinstance(head, CenterHead) or not rows_of(head):
        return
    if fault := layout_fault(state_dict.get(f"{CENTERS}{LAYOUT}"), head.centers.layout):
        raise ValueError(f"{stored.option}={stored.path} cannot be used: {fault}")


def row_initialization(head: Head) -> InitialRows | None:
    """Return what the initial rows are drawn from; None for a head that stores none."""
    if not isinstance(head, CenterHead) or not head.centers.learned:
        return None
    rows, of_classes = head.centers, head.class_centers is not None
    scattered = rows.layout is not None
    return InitialRows(rows.seed, rows.embedding_size, rows.bias, rows.rows_per_class, of_classes, scattered)


def local_state_keys(module: HeadModule) -> list[str]:
    """Return the keys of the state dict whose values differ between processes, apart from the rows."""
    return ["head._extra_state"] if module.head.state_differs else []
