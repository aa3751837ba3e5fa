"""`python -m experiments.run`: train one head, or with `-m` every combination of a sweep.

This process resolves the config, writes it to the run's folder, and has another process run `experiments.train` on it,
or `experiments.launch` for several processes. Each run of a sweep therefore has its own processes, memory and loggers,
and the training code depends neither on Hydra nor on how it was started.
"""

import sys

if __name__ == "__main__":
    if not __package__:
        raise SystemExit("error: write python -m experiments.run")
    from .launching.start import preload

    preload(sys.argv[1:])  # torch is imported while the config is checked and composed
    from .command_line.arguments import check_or_exit

    check_or_exit()

import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from data.files import write_whole

from . import INTERRUPTED, TERMINATED, compare
from .command_line import options
from .head_name import record_head_name
from .imports import end_imports
from .launching import sweep
from .launching.exit_reason import ended, how_to_resume
from .launching.launch_config import CONFIG, let_output_fail, pending_config
from .launching.lock import check_free
from .launching.machine import check_batch, check_processes
from .launching.start import end_preloaded, run_preloaded


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def job(config: DictConfig) -> float | None:
    """Run one training, alone or as a part of a sweep. Return its `sweep_metric` for sweepers that use it."""
    settings = HydraConfig.get()
    folder, is_sweep = Path(settings.runtime.output_dir), settings.mode == RunMode.MULTIRUN
    if settings.sweeper.get("params") and not is_sweep:
        sys.exit(f"error: experiment={settings.runtime.choices['experiment']} is a study of several runs; add -m")
    if is_sweep:
        print(f"\nRun {settings.job.num} of the sweep: {' '.join(settings.overrides.task)}", flush=True)
    complete(config, settings)
    # An earlier config of this folder stays until this run trains: `experiments.train` then renames the file.
    pending = folder / pending_config()
    try:
        program = check(config, folder)
        write_whole(pending, OmegaConf.to_yaml(config))
    except ValueError as error:
        if is_sweep:  # the other runs of the sweep continue
            raise RuntimeError(f"run {settings.job.num} was refused: {error}") from None
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: hydra.run.dir={folder}: config.yaml could not be written ({error})")
    status = train(config, folder, program, pending, is_sweep=is_sweep)
    if status in (INTERRUPTED, TERMINATED) or (status and not is_sweep):
        sys.exit(status)  # a signal ends the sweep too
    if status:
        raise RuntimeError(f"run {settings.job.num} failed with status {status}: {folder}")
    if not is_sweep or settings.sweeper._target_.endswith("BasicSweeper"):
        return None
    return sweep_metric(config.sweep_metric, folder)


def complete(config: DictConfig, settings: HydraConf) -> None:
    """Set the options that depend on how the run was started."""
    if config.logger.wandb.group is None:
        config.logger.wandb.group = study(settings)
    if config.resume is None and int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        config.resume = "auto"  # SLURM has put the job back into the queue
    OmegaConf.resolve(config)
    record_head_name(config, settings)
    if settings.mode == RunMode.MULTIRUN and config.checkpoint.dir is not None:
        config.checkpoint.dir += f"/{settings.job.num}"  # so that no run removes the checkpoints of another


def study(settings: HydraConf) -> str:
    """Return the group of Weights & Biases that a run is compared in: its experiment and the folder of its sweep."""
    words = [settings.runtime.choices.get("experiment")]
    if settings.mode == RunMode.MULTIRUN:
        folder = Path(settings.sweep.dir).resolve()
        words.append(f"{folder.parent.name}/{folder.name}")
    return " ".join(word for word in words if word) or "single runs"


def check(config: DictConfig, folder: Path) -> str:
    """Return the program that trains: `train` in one process, or `launch`.

    Raises:
        ValueError: an option is wrong, the machine is too small, or another training uses a folder.
    """
    options.check(config)
    check_batch(config)
    program = "train" if check_processes(config) == 1 else "launch"
    check_free(folder, "hydra.run.dir")
    if config.checkpoint.dir is not None and "://" not in config.checkpoint.dir:
        check_free(Path(config.checkpoint.dir), "checkpoint.dir")
    return program


def train(config: DictConfig, folder: Path, program: str, pending: Path, *, is_sweep: bool) -> int:
    """Run the training with the config in the file `pending`. Return its exit status."""
    wandb = config.logger.wandb.mode
    # The README says how to upload an offline run.
    silent = {"WANDB_SILENT": os.environ.get("WANDB_SILENT", "true")} if wandb == "offline" else {}
    words = [f"experiments.{program}", str(folder), *(["train"] if program == "launch" else []), pending.name]
    try:
        modules = ["wandb"] if wandb != "disabled" and program == "train" else []
        status = run_preloaded(words, silent, modules, others_follow=is_sweep)
    finally:
        if pending.exists():  # training did not begin
            with suppress(OSError):
                os.link(pending, folder / CONFIG)  # fails if the folder has the config of an earlier run
            pending.unlink()
    if -status in (signal.SIGINT, signal.SIGTERM):  # before training began
        return 128 - status
    if status < 0:
        print(f"error: the training was ended by {ended(-status, config)}; {how_to_resume(config, folder)}")
        return 128 - status
    return status


def sweep_metric(name: str, folder: Path) -> float:
    """Return a metric of a run's summary."""
    summary = json.loads((folder / "summary.json").read_text())
    if name not in summary:
        raise ValueError(f"sweep_metric={name} is not in summary.json of the run; available: {', '.join(summary)}")
    return float(summary[name])


def check_folders(words: Sequence[str]) -> None:
    """Exit with a message if the folder of a run cannot be created: Hydra creates it before it calls `job`."""
    for option, _, value in (word.partition("=") for word in words):
        if option not in ("hydra.run.dir", "hydra.sweep.dir"):
            continue
        folder = Path(value.strip("'\"")).absolute()
        parent = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
        if "${" not in value and not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            sys.exit(
                f"error: {option}={value} cannot be used: {parent} is not a writable folder; choose another folder"
            )


def main() -> None:
    end_imports()
    let_output_fail()
    check_folders(sys.argv[1:])
    try:
        job()
    finally:
        end_preloaded()
        if sweep.folder is not None:
            with suppress(ValueError):  # no run has begun
                compare.show([sweep.folder])
                print(f"As a page: python -m experiments.compare {sweep.folder}")


if __name__ == "__main__":
    main()
