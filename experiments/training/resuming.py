"""A training goes on from a checkpoint as what it was: with the options and the data that it began with."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.records import DataSet

from ..comparing.runs import flatten, normalized
from ..models.fingerprint import difference

# Options that change how long a training runs, where it runs and how it is observed, but not what is trained: whole
# groups, and single names. Batch sizes are compared elsewhere, by the images that a step sees.
GROUPS_THAT_MAY_CHANGE = ("logger.", "checkpoint.", "evaluate.", "fidelity.", "protocol.", "warm_start.")
MAY_CHANGE = frozenset((
    *("resume", "head_name", "sweep_metric", "protocol", "num_workers", "batch_size", "store_dir"),
    *("trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "trainer.accumulate_grad_batches"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.rendezvous", "trainer.log_interval"),
    *("head.store", "head.store_dir", "head.logits_budget_mb"),
    *("data.format", "data.source", "data.root", "data.labels", "data.cache_dir"),
))  # fmt: skip


def check(began_with: Mapping[str, Any], config: DictConfig) -> None:
    """Raises ValueError for an option that would be ignored, or change in the midst of a training.

    Args:
        began_with: the config in the checkpoint that `config.resume` names. What only one of both has is of another
            version of this program, or of another head.
    """
    then, now = flatten(began_with), flatten(OmegaConf.to_container(config, resolve=True))
    both = sorted({*then} & {*now}, key=lambda name: (name.count("."), name))
    changed = [
        name
        for name in both
        if name not in MAY_CHANGE
        and not name.startswith(GROUPS_THAT_MAY_CHANGE)
        and normalized(then[name]) != normalized(now[name])
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
