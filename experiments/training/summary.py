"""The summary of a run: summary.json, and the table that is printed at its end."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from data.files import write_whole

from .. import provenance
from ..comparing.runs import Run
from ..head_name import head_name
from ..tables import console, readable
from .module import HeadModule
from .recorder import Recorder


class Summary:
    """The content of summary.json.

    Attributes:
        failure: reason why summary.json could not be written, or None.
    """

    failure: str | None = None

    def __init__(self, config: DictConfig, folder: Path, recorder: Recorder):
        self.config, self.folder, self.recorder = config, folder, recorder

    def write(self, module: HeadModule, status: str) -> dict[str, Any]:
        """Write summary.json, completely or not at all, and return its content.

        An existing file is kept and returned if nothing was trained. A failure to write is reported and kept in
        `failure`.
        """
        path = self.folder / "summary.json"
        if not self.recorder.has_trained and path.exists():
            existing: dict[str, Any] = json.loads(path.read_text())
            return existing
        if self.recorder.has_trained:
            measured = {**self.recorder.latest, **self.recorder.measure(module)}
        else:  # the training was complete, and a kill prevented its summary
            measured = {name: float(values[-1]) for name, (_, values) in Run(self.folder, {}, {}).curves.items()}
        heldout = module.data.heldout
        summary = {
            "status": status,
            "head": head_name(self.config),
            "num_classes": module.data.train.num_classes,
            "num_records": len(module.data.train),
            **({"heldout_classes": heldout.num_classes, "heldout_records": len(heldout)} if heldout else {}),
            "embedding_size": module.embedding_size,
            "world_size": module.processes.world_size,
            "seed": self.config.seed,
            "steps": module.step,
            "epochs": round(module.epoch, 3),
            **provenance.about(),
            **dict(sorted(measured.items())),
        }
        try:
            write_whole(path, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            self.failure = f"{path} could not be written ({error})"
            print(f"\nwarning: {self.failure}", flush=True)
        return summary


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print the summary as a table, and the names of the files in the run's folder."""
    table = Table(title=f"{summary['head']}: {summary['status']}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in summary.items():
        if name != "status" and value is not None:
            table.add_row(name, readable(name, value))
    screen = console()
    screen.print(table)
    checkpoints = ", checkpoints/" if (folder / "checkpoints").exists() else ""
    screen.print(f"In {folder}: config.yaml, metrics.csv, summary.json{checkpoints}", soft_wrap=True)
