"""A training goes on from a checkpoint as what it was: with the options and the data that it began with."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.records import DataSet

from ..comparing.runs import flat, same
from ..models.fingerprint import difference

# Beginnings of options that change how far a training goes, where it runs and how it is watched, but not what it is;
# sizes of batches are compared by the images that a step sees.
MAY_CHANGE = (
    *("logger.", "checkpoint.", "evaluate.", "fidelity.", "protocol.", "warm_start.", "trainer.max_"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.rendezvous", "trainer.log_interval"),
    *("trainer.accumulate_grad_batches", "head.store", "head.logits_budget_mb"),
    *("data.format", "data.source", "data.root", "data.labels", "data.cache_dir"),
)
THESE_TOO = ("resume", "sweep_metric", "num_workers", "batch_size", "store_dir", "protocol")


def check(began_with: Mapping[str, Any], config: DictConfig) -> None:
    """Raises ValueError for an option that would be ignored, or change in the midst of a training.

    Args:
        began_with: the config in the checkpoint that `config.resume` names. What only one of both has is of another
            version of this program, or of another head.
    """
    then, now = flat(began_with), flat(OmegaConf.to_container(config, resolve=True))
    both = sorted({*then} & {*now}, key=lambda name: (name.count("."), name))
    changed = [
        name
        for name in both
        if not name.startswith(MAY_CHANGE) and name not in THESE_TOO and same(then[name]) != same(now[name])
    ]
    if changed:
        # Of an option that others repeat, as head.sample_rate does sample_rate, one is enough.
        told = [name for name in changed if not any(name.endswith(f".{other}") for other in changed)]
        told = [name for name in told if name.endswith("._target_")] or told  # another head, say, has other options
        before, after = ([f"{name}={values[name]}" for name in told] for values in (then, now))
        raise ValueError(
            f"resume={config.resume}: was trained with {', '.join(before)}, and this run has {', '.join(after)}; go on "
            "with the options that it began with, or begin a new training from it with warm_start.checkpoint="
        )


def check_data(then: Mapping[str, Any], names_then: bytes, data: DataSet, resume: str) -> None:
    """Raise ValueError where the data are not those that a training began with: its rows are of those classes.

    Args:
        then, names_then: what the checkpoint tells of its data.
        resume: the option, for errors.
    """
    if (told := difference(then, names_then, data)) is not None:
        raise ValueError(
            f"resume={resume}: {told}; resume with the data of then, or begin a new training from it with "
            "warm_start.checkpoint=, which knows classes by name"
        )
