"""What a checkpoint tells of its data, so that others are not taken for them: class centers go by number."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.records import DataSet

LABELS = 4096  # that the fingerprint of a data set is made of, at equal distances


def names_of(data: DataSet) -> bytes:
    """Return the class names as JSON: a name may hold any character."""
    return json.dumps([str(name) for name in data.class_names]).encode()


def about_data(data: DataSet, class_names: bytes) -> dict[str, Any]:
    """Return counts, and a fingerprint of the names and of some labels.

    Its cost grows with the number of classes and not with that of records, of which no image is read.

    Args:
        class_names: of `names_of`.
    """
    records, classes = len(data.train), data.train.num_classes
    some = np.linspace(0, records - 1, min(records, LABELS)).astype(np.int64)
    labels = np.asarray(data.train.labels[some], dtype="<i8")
    fingerprint = hashlib.sha256(class_names + labels.tobytes()).hexdigest()
    return {"records": records, "classes": classes, "fingerprint": fingerprint}


def difference(then: Mapping[str, Any], names_then: bytes, data: DataSet) -> str | None:
    """Return in what way data are others than those of a training; None where they are the same.

    Args:
        then, names_then: of `about_data` and `names_of`, as the checkpoint has them.
    """
    names_now = names_of(data)
    now = about_data(data, names_now)
    if then == now:
        return None
    if then["classes"] != now["classes"]:
        return f"it was trained on {then['classes']:,} classes, and the data now have {now['classes']:,}"
    old, new = json.loads(names_then), json.loads(names_now)
    renamed = [number for number, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]]
    if renamed:
        number = renamed[0]
        return (
            f"class {number:,} was {old[number]!r} when it was trained, and is {new[number]!r} in the data now "
            f"({len(renamed):,} of {len(old):,} classes have another name)"
        )
    if then["records"] != now["records"]:
        return f"it was trained on {then['records']:,} records, and the data now have {now['records']:,}"
    return "the data have other labels or class names than those that it was trained on"
