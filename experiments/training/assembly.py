"""Assembly of a training: a module, its callbacks and a Lightning trainer from one resolved config.

A notebook can call it too:

    module, callbacks, trainer = assemble(config, folder)
    trainer.fit(module)
    callbacks.stop.restore_handlers()  # handlers of Ctrl-C
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import lightning as L
from lightning.pytorch import profilers
from omegaconf import DictConfig

from ..checkpoints.finding import checkpoint_dir
from ..checkpoints.storage import CheckpointStore, step_of
from ..command_line.schema import PROFILERS, OfLightning
from ..head_parts import head_options
from ..launching.capacity import check_capacity
from ..launching.launch_config import CONFIG
from ..launching.processes import Processes, device_for
from ..models.backbone import build_backbone
from ..protocols import EvaluationProtocol
from .builders import (
    build_data,
    build_evaluation_protocols,
    build_head,
    build_loader,
    build_optimizers,
    build_warm_start,
    is_trained,
)
from .ending import GracefulStop
from .evaluation import Evaluation
from .fidelity import Fidelity
from .folder import FolderClaim
from .metrics_csv import MetricsCSV
from .module import HeadModule
from .precision import LossScale, plugin_for
from .progress import ProgressBar
from .recorder import Recorder
from .resuming import Origin
from .saving import Saving
from .strategy import strategy_for
from .time_limit import TimeLimit
from .trackers import Trackers
from .wandb_run import WandbRun
from .warm_start import WarmStart


@dataclass
class Callbacks:
    """The callbacks of a training. Lightning calls them in the order of the fields."""

    wandb_run: WandbRun | None
    trackers: Trackers | None
    folder_claim: FolderClaim
    time_limit: TimeLimit
    recorder: Recorder
    stop: GracefulStop
    fidelity: Fidelity
    evaluation: Evaluation
    warm_start: WarmStart | None
    saving: Saving
    progress: ProgressBar | None

    def in_order(self) -> list[L.Callback]:
        return [callback for callback in vars(self).values() if callback is not None]


def assemble(
    config: DictConfig,
    folder: Path,
    processes: Processes | None = None,
    checkpoint: str | None = None,
    config_name: str = CONFIG,
) -> tuple[HeadModule, Callbacks, L.Trainer]:
    """Build a training, in the order in which its parts draw random numbers.

    Args:
        config: resolved and checked.
        folder: folder of the run; it must exist.
        processes: processes of the run; by default this process alone.
        checkpoint: checkpoint that `trainer.fit` will resume from, or None.
        config_name: file in `folder` that becomes config.yaml when training starts.

    Raises:
        ValueError: an option, the data or a file does not fit; on all processes.
    """
    processes = processes or Processes(0, 1, device_for(config.trainer.accelerator))
    store = checkpoint_dir(folder, config.checkpoint.dir)
    check_start(config, processes, store, checkpoint)
    L.seed_everything(config.seed, verbose=False)
    data = build_data(config, processes)
    check_capacity(config, data.train.num_classes, processes, store, len(data.train))
    protocols = build_evaluation_protocols(config, data)
    warm_start = build_warm_start(config, data, checkpoint)
    backbone = build_backbone(config, data.shape, data.preprocessing)
    if warm_start is not None:
        warm_start.load_backbone(backbone)  # before the head is prepared, which may copy it
    if config.trainer.freeze_backbone:
        backbone.requires_grad_(False)
    if config.trainer.compile:
        backbone.compile()  # in place, so that the names of its weights stay
    head = build_head(config, data, backbone)
    module = HeadModule(
        backbone,
        head,
        data,
        build_loader(config, data, head, processes),
        partial(build_optimizers, config),
        origin=Origin(config, data),
        processes=processes,
        embedding_size=config.embedding_size,
        accumulate=config.trainer.accumulate_grad_batches,
        gradient_clip_val=config.trainer.gradient_clip_val,
        # Without parameters no gradient of the backbone can underflow, and the scaler would find none to check.
        loss_scale=LossScale(processes) if config.trainer.precision == "16-mixed" and is_trained(backbone) else None,
        allow_finished=checkpoint is not None and checkpoint.startswith(f"{store}/"),
    )
    if not processes.is_rank_zero:  # initial weights are the same on all processes, later draws differ
        L.seed_everything((config.seed + processes.rank) % 2**32, verbose=False)
    resumed_step = step_of(checkpoint.rpartition("/")[2]) if checkpoint else 0
    callbacks = build_callbacks(config, folder, config_name, processes, store, protocols, warm_start, resumed_step)
    return module, callbacks, build_trainer(config, folder, processes, callbacks, resumed_step)


def check_start(config: DictConfig, processes: Processes, store: CheckpointStore, checkpoint: str | None) -> None:
    """Raise ValueError if the devices lack an option, the head refuses one, or the store holds another training."""
    with suppress(NotImplementedError):
        head_options(config)
    if config.trainer.sync_batchnorm and processes.device.type == "cpu":
        raise ValueError(
            "trainer.sync_batchnorm=true needs GPUs; on CPU each process keeps its own statistics, so set it to false"
        )
    if config.trainer.compile and processes.device.type == "cpu" and not which(os.environ.get("CXX", "g++")):
        raise ValueError("trainer.compile=true needs a C++ compiler on CPU; install g++, or set it to false")
    complete = store.complete()
    if complete and checkpoint != f"{store}/{complete[-1]}":
        raise ValueError(
            f"checkpoint.dir={store} already holds {complete[-1]} of another training; resume from it with "
            "resume=auto, remove it, or train in another folder"
        )


def build_callbacks(
    config: DictConfig,
    folder: Path,
    config_name: str,
    processes: Processes,
    store: CheckpointStore,
    protocols: Sequence[EvaluationProtocol],
    warm_start: WarmStart | None,
    resumed_step: int,
) -> Callbacks:
    """Build the callbacks. Trackers and the progress bar belong to process 0."""
    log_interval = config.trainer.log_interval
    recorder = Recorder(log_interval, config.batch_size * config.trainer.accumulate_grad_batches)
    return Callbacks(
        wandb_run=WandbRun(config, folder) if processes.is_rank_zero else None,
        trackers=Trackers(config, folder, resumed_step) if processes.is_rank_zero else None,
        folder_claim=FolderClaim(folder, config_name, processes.is_rank_zero),
        time_limit=TimeLimit(config.trainer.max_time),
        recorder=recorder,
        stop=GracefulStop(processes),
        fidelity=Fidelity(config.fidelity, recorder),
        evaluation=Evaluation(config.evaluate, recorder, protocols, config.seed),
        warm_start=warm_start,
        saving=Saving(config.checkpoint, store, recorder),
        progress=ProgressBar(recorder, log_interval) if processes.is_rank_zero else None,
    )


def build_trainer(
    config: DictConfig, folder: Path, processes: Processes, callbacks: Callbacks, resumed_step: int
) -> L.Trainer:
    """Build Lightning's trainer, which runs the loop. This package handles steps, checkpoints and logs."""
    return L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=strategy_for(processes),
        plugins=[plugin_for(config.trainer.precision, processes.device)],
        sync_batchnorm=config.trainer.sync_batchnorm,
        max_epochs=1,  # the loader runs through all steps in one of Lightning's epochs
        logger=[MetricsCSV(folder, resumed_step)] if processes.is_rank_zero else [],
        callbacks=callbacks.in_order(),  # type: ignore[arg-type]
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **lightning_options(config, folder),
    )


def lightning_options(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Return what `+trainer.NAME=` passes to Lightning's Trainer. A profile is written to the run's folder."""
    arguments = {name: config.trainer[name] for name in OfLightning.__annotations__ if name in config.trainer}
    if arguments.get("profiler") is not None:
        arguments["profiler"] = getattr(profilers, PROFILERS[arguments["profiler"]])(folder, "profile")
    return arguments
