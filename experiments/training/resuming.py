"""A training goes on from a checkpoint as what it was: with the options and the data that it began with."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from data.records import DataSet

from ..comparing.runs import flat, same

LABELS = 4096  # that the fingerprint of a data set is made of, at equal distances

# Beginnings of options that change how far a training goes, where it runs and how it is watched, but not what it is;
# sizes of batches are compared by the images that a step sees.
MAY_CHANGE = (
    *("logger.", "checkpoint.", "evaluate.", "fidelity.", "protocol.", "warm_start.", "trainer.max_"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.rendezvous", "trainer.log_interval"),
    *("trainer.accumulate_grad_batches", "head.store", "head.logits_budget_mb"),
    *("data.format", "data.source", "data.root", "data.labels", "data.cache_dir"),
)
THESE_TOO = ("resume", "objective", "num_workers", "batch_size", "store_dir", "protocol")


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


def about_data(data: DataSet, class_names: bytes) -> dict[str, Any]:
    """Return what a checkpoint tells of its data: counts, and a fingerprint of the names and of some labels.

    Its cost grows with the number of classes and not with that of records, of which no image is read.
    """
    records, classes = len(data.train), data.train.num_classes
    some = np.linspace(0, records - 1, min(records, LABELS)).astype(np.int64)
    labels = np.asarray(data.train.labels[some], dtype="<i8")
    fingerprint = hashlib.sha256(class_names + labels.tobytes()).hexdigest()
    return {"records": records, "classes": classes, "fingerprint": fingerprint}


def check_data(then: Mapping[str, Any], names_then: bytes, data: DataSet, resume: str) -> None:
    """Raise ValueError where the data are not those that a training began with: its rows are of those classes.

    Args:
        then: of `about_data`, in the checkpoint.
        names_then: the class names in it.
        resume: the option, for errors.
    """
    names_now = names_of(data)
    now = about_data(data, names_now)
    if then == now:
        return
    old, new = json.loads(names_then), json.loads(names_now)
    renamed = [number for number, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]]
    if then["classes"] != now["classes"]:
        told = f"it was trained on {then['classes']:,} classes, and the data now have {now['classes']:,}"
    elif renamed:
        number = renamed[0]
        told = (
            f"class {number:,} was {old[number]!r} when it was trained, and is {new[number]!r} in the data now "
            f"({len(renamed):,} of {len(old):,} classes have another name)"
        )
    elif then["records"] != now["records"]:
        told = f"it was trained on {then['records']:,} records, and the data now have {now['records']:,}"
    else:
        told = "the data have other labels or class names than those that it was trained on"
    raise ValueError(
        f"resume={resume}: {told}; resume with the data of then, or begin a new training from it with "
        "warm_start.checkpoint=, which knows classes by name"
    )


def names_of(data: DataSet) -> bytes:
    """Return the class names as JSON: a name may hold any character."""
    return json.dumps([str(name) for name in data.class_names]).encode()
