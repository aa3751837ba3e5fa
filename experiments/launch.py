"""`python -m experiments.launch RUN_FOLDER [PROGRAM [CONFIG]]`: start the processes of a run, on each machine.

This module calls torchrun's launcher as a library. A wrong option therefore gives one message, and exit statuses are
kept. If one process dies, the others are stopped.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m experiments.launch")


import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .imports import end_imports
from .launching.exit_reason import ended, how_to_resume
from .launching.launch_config import CONFIG, child
from .launching.processes import device_for

SHUTDOWN_SECONDS = 120  # time in which processes finish a step and write a checkpoint


def launch(folder: Path, program: str = "train", config_name: str = CONFIG) -> int:
    """Start the processes and return the exit status.

    The status is 0, that of the process that failed first, or 128 plus the signal that ended the run.
    """
    options = OmegaConf.load(folder / config_name).trainer
    device_for(options.accelerator, options.devices - 1)  # raises for the last process, before any starts
    words = [str(folder), *([config_name] if program == "train" else [])]
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.devices)))
    config = OmegaConf.load(folder / config_name)  # a training renames the file
    assert isinstance(config, DictConfig)
    settings = LaunchConfig(
        min_nodes=options.num_nodes,
        max_nodes=options.num_nodes,
        nproc_per_node=options.devices,
        run_id="headcount",
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous(options.rendezvous),
        max_restarts=0,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="headcount-", ignore_cleanup_errors=True) as logs:
            settings.logs_specs = DefaultLogsSpecs(log_dir=logs)  # the launcher never removes a folder of its own
            elastic_launch(settings, sys.executable)(*child(program), *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            hint = f"; {how_to_resume(config, folder)}" if program == "train" else ""
            message = f"error: process {rank} was ended by {ended(-failure.exitcode, config)}; the others were stopped"
            print(message + hint, file=sys.stderr)
            return 128 - failure.exitcode
        return int(failure.exitcode)
    except SignalException as signal:
        return 128 + int(signal.sigval)
    return 0


def rendezvous(option: str | None) -> str:
    """Return HOST:PORT where the machines of a run meet; for `slurm` the first machine and a port of this job."""
    if option != "slurm":
        return option or "localhost:0"
    try:
        nodes, job = os.environ["SLURM_JOB_NODELIST"], int(os.environ["SLURM_JOB_ID"])
    except KeyError as error:
        raise ValueError(
            f"trainer.rendezvous=slurm needs a job of SLURM, but {error} is not set; give HOST:PORT instead"
        ) from None
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"trainer.rendezvous=slurm cannot be resolved ({error}); give HOST:PORT instead") from error
    return f"{names.split()[0]}:{20000 + job % 10000}"


def main() -> None:
    end_imports()
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    folder = Path(sys.argv[1])
    try:
        sys.exit(launch(folder, *sys.argv[2:]))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
