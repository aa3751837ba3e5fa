"""The files of a catalog: built once, out of core, and validated by their sizes."""

import json
import sys
from pathlib import Path

import numpy as np
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from .class_ids import assign_class_ids
from .origin import Origin
from .scan import FileScan, ScanOutputs, scan_file


def build_catalog(folder: Path, origin: Origin) -> None:
    """Scan all files of an origin and write their catalog. `catalog.json` is written last."""
    scans: list[FileScan] = []
    with (
        (folder / "places.bin").open("wb") as places,
        (folder / "raw.bin").open("wb") as labels,
        (folder / "more.bin").open("wb") as more,
        (folder / "bad.txt").open("w", encoding="utf-8") as bad,
        _progress() as progress,
    ):
        for file in origin.open(folder):
            task = progress.add_task(f"Listing {file.path}", total=None)

            def show(count: int, task: TaskID = task) -> None:
                progress.update(task, completed=count)

            scans.append(scan_file(file, folder, ScanOutputs(places, labels, more, bad), show))
            progress.remove_task(task)
    num_classes = assign_class_ids(folder, scans, origin.shared)
    about = {
        "ends": np.cumsum([scan.count for scan in scans]).tolist(),
        "num_classes": num_classes,
        "labels_per_image": max(scan.width for scan in scans),
        "numbered": all(scan.names is None for scan in scans) and (origin.shared or len(scans) == 1),
        "bad": sum(scan.num_bad for scan in scans),
        "sizes": {path.name: path.stat().st_size for path in folder.iterdir()},
    }
    (folder / "catalog.json").write_text(json.dumps(about))


def is_intact(folder: Path) -> bool:
    """Return whether all files of a catalog exist with the sizes they were written with."""
    try:
        sizes = json.loads((folder / "catalog.json").read_text())["sizes"]
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}, {task.completed:,}", markup=False),
        TimeElapsedColumn(),
        transient=True,
        disable=not sys.stdout.isatty(),
    )
