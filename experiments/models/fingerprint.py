"""The description of a training's data in its checkpoint. It detects changed data: class centers have numbers only."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.records import DataSet

LABELS = 4096  # evenly spaced labels in the fingerprint of a data set


def encode_class_names(data: DataSet) -> bytes:
    """Return the class names as JSON: a name may hold any character."""
    return json.dumps([str(name) for name in data.class_names]).encode()


def describe_data(data: DataSet, class_names: bytes) -> dict[str, Any]:
    """Return the counts of records and classes, and a fingerprint of the class names and some labels.

    The cost grows with the number of classes, not with the number of records. No image is read.

    Args:
        class_names: result of `encode_class_names`.
    """
    records, classes = len(data.train), data.train.num_classes
    some = np.linspace(0, records - 1, min(records, LABELS)).astype(np.int64)
    labels = np.asarray(data.train.targets[some], dtype="<i8")
    fingerprint = hashlib.sha256(class_names + labels.tobytes()).hexdigest()
    return {"records": records, "classes": classes, "fingerprint": fingerprint}


def difference(then: Mapping[str, Any], names_then: bytes, data: DataSet) -> str | None:
    """Return how data differ from those of a training; None if they are the same.

    Args:
        then: result of `describe_data` in the checkpoint.
        names_then: result of `encode_class_names` in the checkpoint.
    """
    names_now = encode_class_names(data)
    now = describe_data(data, names_now)
    if then == now:
        return None
    if then["classes"] != now["classes"]:
        return f"the checkpoint was trained on {then['classes']:,} classes, and the data now have {now['classes']:,}"
    old, new = json.loads(names_then), json.loads(names_now)
    renamed = [number for number, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]]
    if renamed:
        number = renamed[0]
        return (
            f"class {number:,} was {old[number]!r} in the training, and is {new[number]!r} in the data now "
            f"({len(renamed):,} of {len(old):,} classes have other names)"
        )
    if then["records"] != now["records"]:
        return f"the checkpoint was trained on {then['records']:,} records, and the data now have {now['records']:,}"
    return "the data have other labels or class names than in the training"
