"""`python -m experiments.run`: trains one head, or with `-m` every combination of a sweep.

This process resolves the config, writes it to the run's folder, and starts `experiments.train` on it, or
`experiments.launch` where a run has several processes.
So each run of a sweep has processes, memory and loggers of its own, and the training code knows
neither Hydra nor how it was started.
"""

if __name__ == "__main__":
    if not __package__:
        raise SystemExit("error: write python -m experiments.run")
    from .command_line.arguments import check_or_exit

    check_or_exit()


import json
import os
import signal
import subprocess
import sys
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
from .launching import sweep
from .launching.exit_reason import ended, how_to_resume
from .launching.launch_config import CONFIG, child, let_output_fail, pending_config
from .launching.lock import check_free
from .launching.machine import check_batch, check_processes


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def job(config: DictConfig) -> float | None:
    """One run: of this command, or of its sweep. Returns its `sweep_metric` for sweepers."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    sweeping = settings.mode == RunMode.MULTIRUN
    if settings.sweeper.get("params") and not sweeping:
        sys.exit(f"error: experiment={settings.runtime.choices['experiment']}: is a study of several runs; add -m")
    if sweeping:
        print(f"\nRun {settings.job.num} of the sweep: {' '.join(settings.overrides.task)}", flush=True)
    if config.logger.wandb.group is None:
        config.logger.wandb.group = study(settings)
    if config.resume is None and int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        config.resume = "auto"  # a job that was put back into the queue
    OmegaConf.resolve(config)
    record_head_name(config, settings)
    if sweeping and config.checkpoint.dir is not None:
        config.checkpoint.dir += f"/{settings.job.num}"  # none removes the checkpoints of another
    # What an earlier run left stays what it is until this one trains: `experiments.train` then renames the file.
    pending = folder / pending_config()
    try:
        options.check(config)
        check_batch(config)
        program = "train" if check_processes(config) == 1 else "launch"
        check_free(folder, "hydra.run.dir")
        if config.checkpoint.dir is not None and "://" not in config.checkpoint.dir:
            check_free(Path(config.checkpoint.dir), "checkpoint.dir")
        write_whole(pending, OmegaConf.to_yaml(config))
    except ValueError as error:
        if sweeping:  # its other runs go on
            raise RuntimeError(f"run {settings.job.num} was refused: {error}") from None
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: hydra.run.dir={folder}: config.yaml could not be written ({error})")
    # Read when wandb is imported. How to upload an offline run is in the README.
    silent = {"WANDB_SILENT": "true"} if config.logger.wandb.mode == "offline" else {}
    words = [str(folder), *(["train"] if program == "launch" else []), pending.name]
    try:
        status = start([sys.executable, *child(program), *words], {**silent, **os.environ})
    finally:
        if pending.exists():  # it did not come to train
            with suppress(OSError):
                os.link(pending, folder / CONFIG)  # never in place of another's
            pending.unlink()
    if status == -signal.SIGTERM:  # before training had begun
        status = TERMINATED
    if status < 0:
        print(f"error: the training was ended by {ended(-status, config)}; {how_to_resume(config, folder)}")
        status = 128 - status
    if status in (INTERRUPTED, TERMINATED) or (status and not sweeping):
        sys.exit(status)  # of the sweep too: whoever sent the signal wants it to end
    if status:
        raise RuntimeError(f"run {settings.job.num} failed with status {status}: {folder}")
    if not sweeping or settings.sweeper._target_.endswith("BasicSweeper"):
        return None
    found = json.loads((folder / "summary.json").read_text())
    if config.sweep_metric not in found:
        raise ValueError(f"sweep_metric={config.sweep_metric}: the run tells none; it has {', '.join(found)}")
    return float(found[config.sweep_metric])


def study(settings: HydraConf) -> str:
    """What this run is compared with: the group of Weights & Biases. A sweep's folder, with its experiment."""
    words = [settings.runtime.choices.get("experiment")]
    if settings.mode == RunMode.MULTIRUN:
        folder = Path(settings.sweep.dir).resolve()
        words.append(f"{folder.parent.name}/{folder.name}")
    return " ".join(word for word in words if word) or "single runs"


def start(command: list[str], environment: dict[str, str]) -> int:
    """Runs the command, passing on Ctrl-C and SIGTERM; its exit status, negative if a signal ended it.

    It gets a process group of its own, so that Ctrl-C at a terminal reaches it once, through here.
    """
    process = subprocess.Popen(command, env=environment, process_group=0)
    previous = {
        number: signal.signal(number, lambda number, frame: process.send_signal(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        return process.wait()
    finally:
        process.terminate()
        process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_folders(words: Sequence[str]) -> None:
    """End with a sentence where the folder of a run cannot be made: Hydra makes it before it calls `job`."""
    for option, _, value in (word.partition("=") for word in words):
        if option not in ("hydra.run.dir", "hydra.sweep.dir"):
            continue
        folder = Path(value.strip("'\"")).absolute()
        there = next(each for each in (folder, *folder.parents) if each.exists() or each.is_symlink())
        if "${" not in value and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            sys.exit(f"error: {option}={value}: {there} is no folder that can be written to; choose another folder")


def main() -> None:
    let_output_fail()
    check_folders(sys.argv[1:])
    try:
        job()
    finally:
        if sweep.folder is not None:
            with suppress(ValueError):  # none of them has begun
                compare.show([sweep.folder])
                print(f"As a page: python -m experiments.compare {sweep.folder}")


if __name__ == "__main__":
    main()
