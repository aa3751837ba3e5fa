"""The common part of the commands that use a trained model: their start in one or several processes, and the model."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from data.files import write_whole
from data.options import several
from data.records import DataSet

from . import INTERRUPTED
from .command_line import arguments
from .command_line.schema import Count, Natural
from .imports import end_imports
from .launching.launch_config import child, end_with_parent
from .launching.machine import check_processes
from .launching.processes import Processes
from .launching.start import start
from .models.model import Model
from .models.trained import Trained, model_of
from .option_types import checked

REPORT_SECONDS = 3


def command(name: str, work: Callable[[DictConfig, Path], Any], config_name: str | None = None) -> None:
    """Run `python -m experiments.NAME`: check its options, start its processes, and report errors as one message.

    Args:
        name: name of the command.
        work: the work of one process, called with the config and the folder for results.
        config_name: name of the primary config; by default the name of the command.
    """
    end_imports()
    if "RANK" in os.environ:  # experiments.launch started this process
        end_with_parent()
        with report_errors(name, os.environ["RANK"]):
            work(OmegaConf.load(Path(sys.argv[1], "config.yaml")), Path(sys.argv[1]))  # type: ignore[arg-type]
        return

    def job(config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        OmegaConf.resolve(config)
        with report_errors(name):
            write_whole(folder / "config.yaml", OmegaConf.to_yaml(config))
            if "trainer" not in config or check_processes(config) == 1:
                work(config, folder)
            elif status := start([sys.executable, *child("launch"), str(folder), name], dict(os.environ)):
                sys.exit(status)

    # Hydra takes a relative path as relative to this file.
    hydra.main(config_path=str(arguments.CONF), config_name=config_name or name, version_base="1.3")(job)()


@contextmanager
def report_errors(name: str, rank: str = "0") -> Iterator[None]:
    """End this process with a message for an error that a user can correct.

    If all processes fail with the same error, rank 0 prints the message first, and the launcher ends the others.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if rank != "0":
            time.sleep(REPORT_SECONDS)
            sys.exit(f"error: process {rank}: {error}")
        sys.exit(f"error: {error}")
    except OSError as error:  # no permission, or a full disk
        sys.exit(f"error: {error.filename or name}: {error.strerror or error}")


def model(config: DictConfig, processes: Processes) -> Model:
    """Return the model of `checkpoint=` and print its description, or without one a model that embeds nothing."""
    if config.checkpoint is None:
        return Model(torch.nn.Identity(), 0, processes, nullcontext, None, _no_data)
    trained = Trained(config.checkpoint, trust=several(config.trust))
    if processes.is_rank_zero:
        print(trained, flush=True)
    return model_of_config(config, trained, processes)


def model_of_config(config: DictConfig, trained: Trained, processes: Processes) -> Model:
    """Return a trained model with the precision, batches and workers of the config."""
    batch_size = checked("batch_size", config.batch_size, Count)
    num_workers = checked("num_workers", config.num_workers, Natural)
    return model_of(trained, processes, config.trainer.precision, num_workers, batch_size)


def needed(config: DictConfig, *names: str) -> None:
    """Check paths that have no default. Raise ValueError for one that is missing, or is no single path."""
    for name in names:
        if config[name] is None:
            raise ValueError(f"{name}=null must be a path")
        if isinstance(config[name], bool) or not isinstance(config[name], str | int):
            raise ValueError(f"{name}={config[name]} must be one path")
        config[name] = str(config[name])  # Hydra reads 2024 as a number


def _no_data() -> DataSet:
    raise ValueError(
        "checkpoint=null needs features for everything that is compared; give checkpoint=, or files of features"
    )
