"""Content of an offline run of Weights & Biases, read from its file: records in the log format of LevelDB."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 2**15
FULL, LAST = 1, 4  # kinds of fragments that end a record


def ids(folder: Path) -> list[str]:
    """Return the run ids of all parts in the folder of a run."""
    return [path.name.rpartition("-")[2] for path in sorted(folder.glob("wandb/offline-run-*"))]


def read(folder: Path) -> dict[str, Any]:
    """Return project, group, name, job_type, config, history, summary and exit of the only offline run in a folder."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    content: dict[str, Any] = {"config": {}, "history": [], "summary": {}}
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            content |= {
                "group": run.run_group,
                "name": run.display_name,
                "tags": list(run.tags),
                "job_type": run.job_type,
            }
            content |= {"project": run.project}
            content["config"] |= _items(run.config.update)
        elif kind == "config":
            content["config"] |= _items(record.config.update)
        elif kind == "history":
            content["history"].append(_items(record.history.item))
        elif kind == "summary":
            content["summary"] |= _items(record.summary.update)
        elif kind == "exit":
            content["exit"] = record.exit.exit_code
    return content


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[Record]:
    assert data[:4] == b":W&B"
    place, whole = 7, b""
    while place < len(data):
        room = BLOCK - place % BLOCK
        if room < 7:  # no fragment begins so near to the end of a block
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
