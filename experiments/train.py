"""One training, as one set of processes: `python -m experiments.train RUN_FOLDER [CONFIG]` in each.

`experiments.run` starts it, or `experiments.launch` where there are several. It reads the run's resolved config.yaml
and knows nothing of sweeps.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m experiments.train")


import errno
import gc
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import profilers
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from . import COMPLETE, INTERRUPTED, run_files
from .checkpoints.finding import checkpoint_dir, find
from .checkpoints.storage import step_of
from .command_line import options
from .command_line.hints import did_you_mean
from .command_line.schema import PROFILERS, OfLightning
from .head_name import head_name
from .instantiate import instantiate
from .launching.capacity import check_capacity
from .launching.launch_config import CONFIG, end_with_parent, let_output_fail
from .launching.processes import Processes, joined
from .protocols import EvaluationProtocol, build_protocols
from .training.ending import StopOnInterrupt
from .training.evaluation import Evaluation
from .training.fidelity import Fidelity
from .training.folder import TakesOver, alone
from .training.logs import MetricsCSV
from .training.module import HeadModule
from .training.openset import names as open_set_names
from .training.precision import plugin_for
from .training.progress import ProgressBar
from .training.recorder import Recorder, print_summary
from .training.saving import Saving
from .training.strategy import strategy_for
from .training.time_limit import TimeLimit
from .training.wandb_run import WandbRun
from .training.warm_start import WarmStart

SPEAK_SECONDS = 3
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def train(config: DictConfig, folder: Path, config_name: str = CONFIG) -> int:
    """Trains to the end and leaves summary.json; the exit status.

    Args:
        config_name: the file of the folder that the config is from; it becomes config.yaml when training starts.
    """
    options.check(config)
    with joined(config) as processes, alone(processes, config, folder):
        return train_in(processes, config, folder, config_name)


def train_in(processes: Processes, config: DictConfig, folder: Path, config_name: str) -> int:
    precision = plugin_for(config.trainer.precision, processes.device)
    if config.trainer.sync_batchnorm and processes.device.type == "cpu":
        raise ValueError("trainer.sync_batchnorm=true: needs GPUs; on CPU each process keeps statistics of its own")
    checkpoint, checkpoints = (
        find(config.resume, folder, config.checkpoint.dir),
        checkpoint_dir(folder, config.checkpoint.dir),
    )
    if (there := checkpoints.complete()) and checkpoint != f"{checkpoints}/{there[-1]}":
        raise ValueError(
            f"checkpoint.dir={checkpoints}: this training would mix with {there[-1]} there; go on from that with "
            "resume=auto, or remove it, or train in another folder"
        )
    L.seed_everything(config.seed, verbose=False)
    data = instantiate(config.noise, _partial_=True)(instantiate(config.data))
    found = processes.gather((data.train.num_classes, len(data.train), len(data.heldout or ())))
    for rank, (classes, records, heldout) in enumerate(found):
        if found[rank] != found[0]:
            raise ValueError(
                f"data: process {rank} finds {records:,} training records of {classes:,} classes and {heldout:,} held "
                f"out, the first {found[0][1]:,} of {found[0][0]:,} and {found[0][2]:,}; all machines must see "
                "the same files, or have the same typefaces"
            )
    check_capacity(config, data.train.num_classes, processes, checkpoints)
    protocols = build_protocols(config)
    if config.checkpoint.best is not None:
        check_best(config.checkpoint.best, open_set_names(config.evaluate.far) if data.heldout else [], protocols)
    started: list[L.Callback] = []
    if config.warm_start.checkpoint is not None and checkpoint is None:
        started = [warm := WarmStart(config.warm_start)]
        module = HeadModule(config, data, processes, warm.load_backbone)
    else:
        module = HeadModule(config, data, processes)
    if not processes.is_rank_zero:  # initial weights are the same on all; what is drawn later is not
        L.seed_everything((config.seed + processes.rank) % 2**32, verbose=False)
    module.may_be_finished = checkpoint is not None and checkpoint.startswith(f"{checkpoints}/")
    recorder = Recorder(folder, config.trainer.log_interval, processes)
    interrupt = StopOnInterrupt(processes)
    evaluation = Evaluation(config.evaluate, recorder, protocols)
    saving = Saving(config.checkpoint, checkpoints, recorder)
    takes_over = TakesOver(folder, config_name, processes.is_rank_zero)
    callbacks = [
        takes_over,
        TimeLimit(config.trainer.max_time),
        recorder,
        interrupt,
        Fidelity(config.fidelity, recorder),
        evaluation,
        *started,
        saving,
    ]
    loggers: list[Logger] = []
    wandb_run = None
    if processes.is_rank_zero:
        wandb_run = WandbRun(config, folder)
        callbacks = [wandb_run, *callbacks, ProgressBar(recorder, config.trainer.log_interval)]
        lines = MetricsCSV(folder, resumed_step=step_of(checkpoint.rpartition("/")[2]) if checkpoint else 0)
        loggers.append(lines)
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        strategy=strategy_for(processes),
        plugins=[precision],
        sync_batchnorm=config.trainer.sync_batchnorm,
        max_epochs=1,  # of Lightning: the loader itself runs through all steps
        logger=loggers,
        callbacks=callbacks,  # type: ignore[arg-type]
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **of_lightning(config, folder),
    )
    status = "failed"
    try:
        if processes.is_rank_zero:
            print(describe(module, folder), flush=True)
        trainer.fit(module, ckpt_path=checkpoint, weights_only=False)
        status = status_of(module, interrupt)
    finally:
        # Also of a failed run: what was measured until then.
        summary = recorder.write_summary(module, status) if processes.is_rank_zero and not takes_over.refused else {}
        if wandb_run is not None:
            wandb_run.finish(summary, exit_code=0 if status in COMPLETE else 1)
        interrupt.restore()
    if processes.is_rank_zero:
        print_summary(summary, folder)
    if status == "failed":
        raise ValueError(f"{interrupt.failure}; {saving.left()}")
    if evaluation.failure and status in COMPLETE:
        raise ValueError(f"{evaluation.failure}; the training is complete, and experiments.evaluate can judge it")
    if saving.failure and status in COMPLETE:
        raise ValueError(f"{saving.failure}; the training is complete")
    if processes.is_rank_zero and (lost := [each for each in (lines.failure, recorder.failure) if each]):
        raise ValueError(f"{'; '.join(lost)}; the training is {status}, and {saving.left()}")
    return interrupt.status if status == "interrupted" else 0


def check_best(best: str, of_heldout: Sequence[str], protocols: Sequence[EvaluationProtocol]) -> None:
    """Check, as far as it is known before training, that the evaluation will measure the metric `checkpoint.best`.

    Args:
        of_heldout: names of the figures of the held-out classes.

    Raises:
        ValueError: it will not.
    """
    known = [f"val/{name}" for name in of_heldout]
    sets = [f"val/{name}/" for protocol in protocols for name in protocol.names]
    if not known and not sets:
        raise ValueError(
            f"checkpoint.best={best}: no classes are held out and no protocol is chosen; give data.num_heldout, or "
            "protocol=lfw"
        )
    if best not in known and not best.startswith(tuple(sets)):
        there = ", ".join([*known, *(f"{each}..." for each in sets)])
        raise ValueError(f"checkpoint.best={best}: {did_you_mean(best, known)}the evaluation measures {there}")


def of_lightning(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Return what `+trainer.NAME=` passes on to Lightning's Trainer. A profile is written to the run's folder."""
    given = {name: config.trainer[name] for name in OfLightning.__annotations__ if name in config.trainer}
    if given.get("profiler") is not None:
        given["profiler"] = getattr(profilers, PROFILERS[given["profiler"]])(folder, "profile")
    return given


def status_of(module: HeadModule, interrupt: StopOnInterrupt) -> str:
    """Return how a training ended whose last step is complete."""
    if module.step == module.num_steps:
        return "finished"
    if interrupt.failure is not None:
        return "failed"
    return "interrupted" if interrupt.status else "out of time"


def describe(module: HeadModule, folder: Path) -> str:
    parameters = sum(p.numel() for p in module.backbone.parameters())
    return (
        f"{head_name(module.config)} over {module.data.train.num_classes:,} classes, "
        f"{len(module.data.train):,} training records"
        f"{'' if module.data.heldout else ', none held out (data.num_heldout)'}; "
        f"{module.backbone.__class__.__name__} of {parameters:,} parameters; "
        f"{module.num_steps:,} steps of {module.config.batch_size * module.accumulate}; "
        f"{module.processes.world_size} {'processes' if module.processes.world_size > 1 else 'process'}; {folder}"
    )


def main() -> None:
    end_with_parent()
    let_output_fail()
    warnings.filterwarnings(
        "ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning
    )  # Lightning
    warnings.formatwarning = lambda message, *where, **more: f"warning: {message}\n"
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if len(sys.argv) not in (2, 3):
        sys.exit("error: write python -m experiments.train RUN_FOLDER; experiments.run makes that folder")
    folder, config_name = Path(sys.argv[1]), (*sys.argv[2:], CONFIG)[0]
    try:
        config = run_files.config(folder / config_name)
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except run_files.DamagedError as error:
        sys.exit(f"error: {folder}: {error}")
    status, failure = 0, None
    try:
        status = train(config, folder, config_name)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or (isinstance(error, OSError) and error.errno not in NO_ROOM):
            raise
        failure = str(error)
    gc.collect()  # also of what the error held; see `joined`
    if failure is None:
        sys.exit(status)
    if (rank := os.environ.get("RANK", "0")) != "0":
        time.sleep(SPEAK_SECONDS)  # where all fail alike, the first has spoken, and the launcher ends the others
        sys.exit(f"error: process {rank}: {failure}")
    sys.exit(f"error: {failure}")


if __name__ == "__main__":
    main()
