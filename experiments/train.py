"""One training: `python -m experiments.train RUN_FOLDER [CONFIG]` in each process of a run.

`experiments.run` starts it, or `experiments.launch` for several processes. It reads the resolved config.yaml of the run
and does not depend on sweeps.
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
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from . import COMPLETE, INTERRUPTED, run_files
from .checkpoints.finding import find
from .command_line import options
from .head_name import head_name
from .imports import end_imports
from .launching.launch_config import CONFIG, end_with_parent, let_output_fail
from .launching.processes import Processes, joined
from .training.assembly import Callbacks, assemble
from .training.folder import exclusive_access
from .training.metrics_csv import MetricsCSV
from .training.module import HeadModule
from .training.summary import Summary, print_summary

SECONDS_FOR_RANK_ZERO = 3  # time to print its error before other processes do
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def train(config: DictConfig, folder: Path, config_name: str = CONFIG) -> int:
    """Train to the end, write summary.json, and return the exit status.

    Args:
        config_name: the config's file in the folder; it becomes config.yaml when training starts.

    Raises:
        ValueError: the options, the data or a file do not fit, or the training cannot continue.
    """
    options.check(config)
    with joined(config) as processes, exclusive_access(processes, config, folder):
        return _train(processes, config, folder, config_name)


def _train(processes: Processes, config: DictConfig, folder: Path, config_name: str) -> int:
    checkpoint = find(config.resume, folder, config.checkpoint.dir)
    module, callbacks, trainer = assemble(config, folder, processes, checkpoint, config_name)
    summary = Summary(config, folder, callbacks.recorder)
    content, status = {}, "failed"
    try:
        if processes.is_rank_zero:
            print(description(module, folder), flush=True)
        trainer.fit(module, ckpt_path=checkpoint, weights_only=False)
        status = status_of(module, callbacks)
    finally:
        # A failed run also keeps its measurements.
        if processes.is_rank_zero and not callbacks.folder_claim.is_refused:
            content = summary.write(module, status)
        if callbacks.wandb_run is not None:
            callbacks.wandb_run.finish(content, exit_code=0 if status in COMPLETE else 1)
        if callbacks.trackers is not None:
            callbacks.trackers.finish(content, is_complete=status in COMPLETE)
        callbacks.stop.restore_handlers()
    if processes.is_rank_zero:
        print_summary(content, folder)
    if (failure := failure_of(status, callbacks, trainer, summary)) is not None:
        raise ValueError(failure)
    return callbacks.stop.status if status == "interrupted" else 0


def description(module: HeadModule, folder: Path) -> str:
    """Return one line on what is trained."""
    parameters = sum(p.numel() for p in module.backbone.parameters())
    heldout = module.data.heldout
    of = f"{heldout.num_classes:,} classes of {len(heldout):,} records" if heldout else "none"
    held_out = f"{of} held out (data.num_heldout)"
    return (
        f"{head_name(module.origin.config)} over {module.data.train.num_classes:,} classes, "
        f"{len(module.data.train):,} training records, {held_out}; "
        f"{module.backbone.__class__.__name__} of {parameters:,} parameters; "
        f"{module.num_steps:,} steps of {module.loader.batch_size * module.accumulate}; "
        f"{module.processes.world_size} {'processes' if module.processes.world_size > 1 else 'process'}; {folder}"
    )


def status_of(module: HeadModule, callbacks: Callbacks) -> str:
    """Return the status of a training that ended after a complete step."""
    if module.step == module.num_steps:
        return "finished"
    if callbacks.stop.failure is not None:
        return "failed"
    return "interrupted" if callbacks.stop.status else "out of time"


def failure_of(status: str, callbacks: Callbacks, trainer: L.Trainer, summary: Summary) -> str | None:
    """Return what failed in a training that saved its last step, and how to continue; None for success."""
    saving, evaluation = callbacks.saving, callbacks.evaluation
    if status == "failed":
        return f"{callbacks.stop.failure}; {saving.state_of_store()}"
    if evaluation.failure and status in COMPLETE:
        return f"{evaluation.failure}; the training is complete, and experiments.evaluate can evaluate it"
    if saving.failure and status in COMPLETE:
        return f"{saving.failure}; the training is complete"
    logs = [logger.failure for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
    if failures := [failure for failure in (*logs, summary.failure) if failure]:
        return f"{'; '.join(failures)}; the training is {status}, and {saving.state_of_store()}"
    return None


def main() -> None:
    end_imports()
    end_with_parent()
    let_output_fail()
    # Lightning calls a deprecated function of torch.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
    warnings.formatwarning = lambda message, *where, **more: f"warning: {message}\n"
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if len(sys.argv) not in (2, 3):
        sys.exit("error: write python -m experiments.train RUN_FOLDER; experiments.run creates that folder")
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
    gc.collect()  # frees the process group that the error held; see `joined`
    if failure is None:
        sys.exit(status)
    if (rank := os.environ.get("RANK", "0")) != "0":
        # If all processes fail with the same error, process 0 prints it, and the launcher ends the others.
        time.sleep(SECONDS_FOR_RANK_ZERO)
        sys.exit(f"error: process {rank}: {failure}")
    sys.exit(f"error: {failure}")


if __name__ == "__main__":
    main()
