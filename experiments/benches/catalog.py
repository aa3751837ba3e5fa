"""`bench=catalog`: very many labels, numbered and grouped by class on disk, then opened and streamed."""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.augment import Unchanged
from data.catalogs.catalog import Catalog
from data.catalogs.class_ids import assign_class_ids
from data.catalogs.origin import Origin
from data.catalogs.scan import FileScan
from data.counter_rng import permute
from data.records import DataSet, Indices, RecordSet
from data.sets.split import hold_out
from data.streams import IdentityStream, InstanceStream

from .measure import Step, Subject, own_memory, resident

CHUNK = 2**20


def catalog(
    num_records: float, num_classes: float, num_heldout: list[int], batch: int, folder: str | None
) -> list[dict[str, Any]]:
    """Return a line for building the catalog of labels in random order, and one for opening it per `num_heldout`.

    Opening ends when both streams have returned a batch.

    Args:
        num_records: number of labels.
        num_heldout: numbers of held-out classes.
        folder: parent of the temporary files; None for the temporary folder.
    """
    with tempfile.TemporaryDirectory(dir=folder) as path:
        options = {"folder": path, "num_records": int(num_records), "num_classes": int(num_classes)}
        lines = [_measured("make", _make, **options)]
        for heldout in num_heldout:
            lines.append(_measured(f"open, {heldout} held out", _open, folder=path, num_heldout=heldout, batch=batch))
        size = sum(file.stat().st_size for file in Path(path).iterdir())
        what = {"records": int(num_records), "classes": int(num_classes), "disk_bytes": size}
        return [{**line, **what} for line in lines]


def _measured(name: str, build: Any, **options: Any) -> dict[str, Any]:
    """Measure in a new process: seconds, peak memory, and the part of it that no file backs."""
    subject = Subject(build, **options)
    figures = subject.turn()
    subject.close()
    return {
        "what": name,
        "took_seconds": figures["seconds"],
        "peak_bytes": figures["peak"],
        "own_bytes": figures["own"],
    }


def _figures(begin: float, before: float, own: float) -> Mapping[str, float]:
    return {
        "seconds": time.perf_counter() - begin,
        "peak": resident("VmHWM") - before,
        "own": own_memory() - own,
    }


def _make(folder: str, num_records: int, num_classes: int) -> Step:
    """Write labels as a scan does, evenly over the classes. The step numbers and groups them as a catalog does."""
    raw = Path(folder, "raw.bin")
    with raw.open("wb") as file:
        for start in range(0, num_records, CHUNK):
            records = np.arange(start, min(start + CHUNK, num_records))
            (permute(records, num_records, 0) % num_classes).tofile(file)
    Path(folder, "more.bin").touch()  # one label a record
    with Path(folder, "places.bin").open("wb") as file:
        file.truncate(8 * num_records)
    before, own = resident("VmRSS"), own_memory()

    def step() -> Mapping[str, float]:
        begin = time.perf_counter()
        assign_class_ids(Path(folder), [FileScan(np.arange(num_classes), None, num_records)], shared=False)
        about = {"ends": [num_records], "num_classes": num_classes, "numbered": True, "bad": 0}
        Path(folder, "catalog.json").write_text(json.dumps(about))
        return _figures(begin, before, own)

    return step


class Nothing:
    """A source of empty records."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Indices) -> Tensor:
        return torch.empty(len(indices), 0)


def _open(folder: str, num_heldout: int, batch: int) -> Step:
    before, own = resident("VmRSS"), own_memory()

    def step() -> Mapping[str, float]:
        begin = time.perf_counter()
        files = Catalog(Path(folder), Origin("list", ("/",)))
        records = RecordSet(Nothing(len(files)), files.labels, files.num_classes, files.by_class)
        train, heldout, names = hold_out(records, files.class_names, num_heldout, seed=0)
        data = DataSet(train, heldout, (0,), lambda examples: examples, Unchanged(), names)
        for stream in (InstanceStream(data, batch), IdentityStream(data, batch)):
            stream.batch(0)
            stream.batch(stream.batches_per_epoch)  # first batch of the second epoch
        return _figures(begin, before, own)

    return step
