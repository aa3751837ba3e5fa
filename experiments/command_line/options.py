"""Rules for the options of a training that can be checked without torch: before any process of it starts.

`experiments.run` checks each value of a command line, then the config of each run; `experiments.train` checks again,
since a config may come from elsewhere.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.options import flag, whole

from ..instantiate import instantiate

Rule = Callable[[str, Any], Any]  # option, value -> the value as it is used; raises ValueError
Rules = Mapping[str, Rule]
LARGEST_SEED = 2**32 - 1
PATHS = ("resume", "warm_start.checkpoint", "checkpoint")  # on the machine that trains
# Arguments of Lightning's Trainer that a run takes as `+trainer.NAME=VALUE`; all others are set by options of its own.
OF_LIGHTNING = ("benchmark", "detect_anomaly", "deterministic", "profiler")
PROFILERS = {"simple": "SimpleProfiler", "advanced": "AdvancedProfiler", "pytorch": "PyTorchProfiler"}


def null_or(rule: Rule) -> Rule:
    return lambda option, value: None if value is None else rule(option, value)


def at_least(least: int) -> Rule:
    """A whole number."""
    return lambda option, value: whole(option, value, least)


def one_of(*choices: str) -> Rule:
    def rule(option: str, value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"{option}={value}: must be one of {', '.join(choices)}")
        return value

    return rule


def number(holds: Callable[[float], bool], words: str) -> Rule:
    """A number, also an infinite one, for which `holds` is true."""

    def rule(option: str, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not holds(value):
            raise ValueError(f"{option}={value}: {words}")
        return value

    return rule


def a_seed(option: str, value: Any) -> int:
    if whole(option, value, 0) > LARGEST_SEED:
        raise ValueError(f"{option}={value}: must lie between 0 and 2^32 - 1")
    return int(value)


def of_an_evaluation(option: str, value: Any) -> Any:
    if not str(value).startswith("val/"):
        raise ValueError(f"{option}={value}: must be a metric of the evaluation, such as val/rank1; null for none")
    return value


def there(option: str, value: Any) -> Any:
    """A path on this machine that exists; a URL is not looked at."""
    is_path = isinstance(value, str | int) and not isinstance(value, bool)
    if is_path and value != "auto" and "://" not in str(value) and not Path(str(value)).exists():
        raise ValueError(
            f"{option}={value}: there is no such file or folder; give the folder of a run, or a checkpoint"
        )
    return value


POSITIVE = number(lambda value: 0 < value < math.inf, "must be positive; null for none")
RATE = number(lambda value: 0 <= value < math.inf, "a learning rate must be a number, 0 or above")
RULES: Rules = {
    "seed": a_seed,
    **dict.fromkeys(("batch_size", "embedding_size"), at_least(1)),
    "num_workers": at_least(0),
    **dict.fromkeys(("resume", "warm_start.checkpoint"), null_or(there)),
    "warm_start.classes": one_of("name", "id"),
    "warm_start.rows": one_of("mean", "random"),
    "warm_start.images": at_least(1),
    "optimizer.lr": RATE,
    **dict.fromkeys(("optimizer.backbone.lr", "optimizer.rows.lr"), null_or(RATE)),
    "trainer.max_steps": null_or(at_least(1)),
    "trainer.max_epochs": null_or(POSITIVE),
    **dict.fromkeys(("trainer.accumulate_grad_batches", "trainer.log_interval"), at_least(1)),
    "trainer.gradient_clip_val": null_or(POSITIVE),
    "trainer.precision": one_of("32-true", "bf16-mixed", "16-mixed"),
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda"),
    **dict.fromkeys(("trainer.benchmark", "trainer.detect_anomaly", "trainer.deterministic"), flag),
    "trainer.profiler": null_or(one_of(*PROFILERS)),
    "evaluate.interval": null_or(at_least(1)),
    "evaluate.train_records": null_or(at_least(1)),
    "evaluate.far": number(lambda value: 0 < value < 1, "a rate in (0, 1) is needed"),
    "fidelity.interval": null_or(at_least(1)),
    "checkpoint.interval": null_or(at_least(1)),
    "checkpoint.minutes": null_or(POSITIVE),
    "checkpoint.keep": at_least(1),
    "checkpoint.best": null_or(of_an_evaluation),
    "checkpoint.best_mode": one_of("max", "min"),
    "logger.wandb.mode": one_of("online", "offline", "disabled"),
}
# Of the commands that use a trained model.
RULES_IN_USE: Rules = {
    "checkpoint": null_or(there),
    "num_workers": at_least(0),
    "batch_size": at_least(1),
    **{name: RULES[name] for name in ("trainer.precision", "trainer.accelerator")},
}


def check(config: DictConfig) -> None:
    """Check a training's options, and put whole numbers written as 1e3 into the config as they are used.

    Raises:
        ValueError: an option breaks its rule.
    """
    for name, rule in RULES.items():
        if _has(config, name):
            OmegaConf.update(config, name, rule(name, OmegaConf.select(config, name)))
    steps, epochs = config.trainer.max_steps, config.trainer.max_epochs
    if (steps is None) == (epochs is None):
        raise ValueError(f"trainer.max_steps={steps}, trainer.max_epochs={epochs}: give one and set the other to null")
    if str(config.schedule.get("_target_")).startswith("experiments.training.schedule."):
        instantiate(config.schedule, num_steps=1000)  # raises for its own options; imports no torch


def _has(config: DictConfig, name: str) -> bool:
    parent, _, last = name.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and last in node
