"""The origin of a training, stated in its checkpoints: a resumed training must have the same options and data."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.records import DataSet

from ..comparing.runs import flatten, normalized
from ..models.fingerprint import describe_data, difference, encode_class_names
from ..models.trained import describe_model

# Options that change how long a training runs, where it runs and how it is observed, but not what is trained: whole
# groups, and single names. Batch sizes are compared elsewhere, by the images of a step.
GROUPS_THAT_MAY_CHANGE = ("logger.", "checkpoint.", "evaluate.", "fidelity.", "protocol.", "warm_start.")
MAY_CHANGE = frozenset((
    *("resume", "head_name", "sweep_metric", "protocol", "num_workers", "batch_size", "store_dir"),
    *("trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "trainer.accumulate_grad_batches"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.rendezvous", "trainer.log_interval"),
    "trainer.compile",
    *("head.store", "head.store_dir", "head.logits_budget_mb"),
    *("data.format", "data.source", "data.root", "data.labels", "data.cache_dir"),
))  # fmt: skip


class Origin:
    """The config and the data of a training, as its checkpoints state them.

    Attributes:
        resume: the option of this run, for messages.
    """

    def __init__(self, config: DictConfig, data: DataSet):
        self.config, self.data, self.resume = config, data, config.resume

    @cached_property
    def state(self) -> dict[str, Any]:
        """The part of a checkpoint that states the origin. It is computed once, when a checkpoint needs it."""
        class_names = encode_class_names(self.data)
        return {
            "class_names": class_names,
            "data": describe_data(self.data, class_names),
            "model": describe_model(self.config, self.data.shape, self.data.preprocessing),
            "config": OmegaConf.to_container(self.config, resolve=True),
        }

    def check(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise ValueError if a checkpoint has another origin."""
        check(checkpoint["config"], self.config)
        check_data(checkpoint["data"], checkpoint["class_names"], self.data, self.resume)


def check(began_with: Mapping[str, Any], config: DictConfig) -> None:
    """Raise ValueError for an option that would be ignored, or would change during a training.

    Args:
        began_with: the config in the checkpoint that `config.resume` names. An option that only one of the two configs
            has belongs to another version of this program or to another head, and is not compared.
    """
    then, now = flatten(began_with), flatten(OmegaConf.to_container(config, resolve=True))
    common = sorted({*then} & {*now}, key=lambda name: (name.count("."), name))
    changed = [
        name
        for name in common
        if name not in MAY_CHANGE
        and not name.startswith(GROUPS_THAT_MAY_CHANGE)
        and normalized(then[name]) != normalized(now[name])
    ]
    if changed:
        # head.sample_rate, for example, repeats sample_rate: one of them is enough.
        shown = [name for name in changed if not any(name.endswith(f".{other}") for other in changed)]
        shown = [name for name in shown if name.endswith("._target_")] or shown  # another head has other options
        before, after = ([f"{name}={values[name]}" for name in shown] for values in (then, now))
        raise ValueError(
            f"resume={config.resume} was trained with {', '.join(before)}, and this run has {', '.join(after)}; resume "
            "with the options it was trained with, or start a new training from it with warm_start.checkpoint="
        )


def check_data(then: Mapping[str, Any], names_then: bytes, data: DataSet, resume: str) -> None:
    """Raise ValueError if the data are not those of the checkpoint: its rows belong to those classes.

    Args:
        then: data description in the checkpoint.
        names_then: class names in the checkpoint.
        resume: the option, for messages.
    """
    if (changed := difference(then, names_then, data)) is not None:
        raise ValueError(
            f"resume={resume} has other data: {changed}; resume with the data it was trained on, or start a new "
            "training from it with warm_start.checkpoint=, which matches classes by name"
        )
