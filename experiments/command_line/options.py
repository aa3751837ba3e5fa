"""Checks of options that need no torch: on the command line, and before any process of a run starts.

`experiments.run` checks each value of a command line, then the config of each run. `experiments.train` checks the
config again, because it may come from elsewhere.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..instantiate import instantiate
from ..option_types import checked, shown
from . import schema

TRAINING = dict(schema.declared(schema.Training))
MODEL_USE = dict(schema.declared(schema.ModelUse))
RUN = "give the folder of a run, or a checkpoint"
WORDS = (None, "auto", "mean", "random")  # values that are no paths
# Paths on the machine that trains -> what must be there.
PATHS = {
    **dict.fromkeys(("resume", "warm_start.checkpoint", "checkpoint"), RUN),
    "warm_start.rows": "give a .npy file of rows, mean or random",
}


def check(config: DictConfig) -> None:
    """Check the options of a training, and replace whole numbers written as 1e3.

    Raises:
        ValueError: a value is of another type or out of its range, a path does not exist, or two options disagree.
    """
    for name, kind in TRAINING.items():
        if _has(config, name):
            OmegaConf.update(config, name, checked(name, OmegaConf.select(config, name), kind))
            check_exists(name, OmegaConf.select(config, name))
    steps, epochs = config.trainer.max_steps, config.trainer.max_epochs
    if (steps is None) == (epochs is None):
        raise ValueError(
            f"trainer.max_steps={shown(steps)} and trainer.max_epochs={shown(epochs)} cannot be combined; give one and "
            "set the other to null"
        )
    if str(config.schedule.get("_target_")).startswith("experiments.training.schedule."):
        instantiate(config.schedule, num_steps=1000)  # raises for its own options; imports no torch


def check_exists(option: str, value: Any) -> None:
    """Raise ValueError if the option is a path on this machine that does not exist; URLs are not looked up."""
    if option not in PATHS or value in WORDS or "://" in str(value):
        return
    if not Path(str(value)).exists():
        raise ValueError(f"{option}={value} does not exist; {PATHS[option]}")


def _has(config: DictConfig, name: str) -> bool:
    parent, _, last = name.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and last in node
