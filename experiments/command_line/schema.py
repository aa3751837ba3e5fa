"""Types and rules of the options that belong to no class. Imports no torch.

Defaults and meanings are in conf/: `--help` prints them from there.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_type_hints

from ..option_types import Rule


def is_row_source(value: str) -> bool:
    """Return whether a value is a word of `warm_start.rows`, or the name of an array's file."""
    return value in ("mean", "random") or value.endswith(".npy")


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}")


Natural = Annotated[int, Rule(lambda value: value >= 0, "a whole number of at least 0")]
Count = Annotated[int, Rule(lambda value: value >= 1, "a whole number of at least 1")]
Seed = Annotated[int, Rule(lambda value: 0 <= value < 2**32, "a whole number from 0 to 2^32 - 1")]
Positive = Annotated[float, Rule(lambda value: 0 < value < math.inf, "a number above 0")]
Rate = Annotated[float, Rule(lambda value: 0 <= value < math.inf, "a learning rate of at least 0")]
Share = Annotated[float, Rule(lambda value: 0 < value < 1, "a rate in (0, 1)")]
Metric = Annotated[str, Rule(lambda value: value.startswith("val/"), "a metric of the evaluation, such as val/rank1")]
Precision = Annotated[str, one_of("32-true", "bf16-mixed", "16-mixed")]
Accelerator = Annotated[str, one_of("auto", "cpu", "gpu", "cuda")]
PROFILERS = {"simple": "SimpleProfiler", "advanced": "AdvancedProfiler", "pytorch": "PyTorchProfiler"}


@dataclass
class OfLightning:
    """Arguments of Lightning's Trainer that a run takes as `+trainer.NAME=VALUE`. Options of a run set all others."""

    benchmark: bool
    detect_anomaly: bool
    deterministic: bool
    profiler: Annotated[str, one_of(*PROFILERS)] | None


@dataclass
class Processes:
    accelerator: Accelerator
    devices: Count
    num_nodes: Count
    rendezvous: str | None
    precision: Precision


@dataclass
class Trainer(Processes, OfLightning):
    max_steps: Count | None
    max_epochs: Positive | None
    max_time: Any  # `TimeLimit` reads it
    accumulate_grad_batches: Count
    gradient_clip_val: Positive | None
    freeze_backbone: bool
    compile: bool
    sync_batchnorm: bool
    log_interval: Count


@dataclass
class Evaluate:
    interval: Count | None
    train_records: Count | None
    far: Share


@dataclass
class Fidelity:
    interval: Count | None
    probes: Count
    repeats: Count
    hardest: Count
    class_images: Count


@dataclass
class Checkpoint:
    dir: str | None
    interval: Count | None
    minutes: Positive | None
    keep: Count
    best: Metric | None
    best_mode: Annotated[str, one_of("max", "min")]


@dataclass
class WarmStart:
    checkpoint: str | None
    classes: Annotated[str, one_of("name", "id")]
    rows: Annotated[str, Rule(is_row_source, "mean, random, or the path of a .npy file of rows")]
    images: Count


@dataclass
class Wandb:
    mode: Annotated[str, one_of("online", "offline", "disabled")]
    project: str
    entity: str | None
    group: str | None
    name: str | None
    tags: Any


@dataclass
class Logger:
    tensorboard: bool
    mlflow: str | None
    trackio: bool
    wandb: Wandb


@dataclass
class PartOptimizer:
    lr: Rate | None


@dataclass
class Optimizer:
    lr: Rate
    backbone: PartOptimizer
    rows: PartOptimizer


@dataclass
class Training:
    """Options of `experiments.run`."""

    seed: Seed
    batch_size: Count
    embedding_size: Count
    num_workers: Natural
    resume: str | None
    sweep_metric: str
    trainer: Trainer
    optimizer: Optimizer
    evaluate: Evaluate
    fidelity: Fidelity
    checkpoint: Checkpoint
    warm_start: WarmStart
    logger: Logger


@dataclass
class ModelUse:
    """Options of the commands that use a trained model; see conf/cli/default.yaml."""

    checkpoint: str | None
    num_workers: Natural
    batch_size: Count
    trainer: Processes


def declared(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and the declared type of each option."""
    for name, kind in get_type_hints(schema, include_extras=True).items():
        if is_dataclass(kind):
            yield from declared(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", kind
