"""Results of a study: a CSV file with a line for each run, from which tables and plots are drawn."""

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.files import write_whole

KEYS = ("arm", "stage", "number", "steps", "status", "version", "commit", "words")
# Figures of a run's summary.json that are kept; fidelity has several.
FIGURES = (
    *("num_classes", "val/rank1", "val/tar_at_far_1e-4", "val/verification_accuracy", "train/loss", "train/seconds"),
    *("head/step_ms", "head/active_classes", "memory/head_bytes"),
)
FIDELITY = "fidelity/"
DIGITS = 6


@dataclass(frozen=True)
class Job:
    """A run of a study that is to be made.

    Attributes:
        number: number of the trial, or the seed.
        words: overrides of `experiments.run`, separated by spaces.
    """

    study: str
    arm: str
    stage: str
    number: int
    steps: int
    words: str


@dataclass(frozen=True)
class Result:
    """A run of a study that was made, with the version and commit that made it."""

    arm: str
    stage: str
    number: int
    steps: int
    status: str
    version: str
    commit: str
    words: str
    figures: dict[str, float] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        """Return a figure; None if the run failed or has no such figure."""
        value = self.figures.get(name)
        return value if value is not None and math.isfinite(value) else None

    @classmethod
    def of(cls, job: Job, summary: dict[str, Any]) -> "Result":
        """Return the result of a job from its summary, which is empty if the run failed."""
        figures = {
            name: float(f"{summary[name]:.{DIGITS}g}")
            for name in sorted(summary, key=lambda name: (name not in FIGURES, name))
            if name in FIGURES or name.startswith(FIDELITY)
        }
        about = {name: str(summary.get(name, "")) for name in ("version", "commit")}
        status = str(summary.get("status", "failed"))
        return cls(job.arm, job.stage, job.number, job.steps, status, words=job.words, figures=figures, **about)


class Results:
    """The results in a file, which is written after each run.

    Args:
        path: the CSV file; it need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.all: list[Result] = []
        if path.exists():
            with path.open(newline="") as file:
                for line in csv.DictReader(file):
                    figures = {name: float(value) for name, value in line.items() if name not in KEYS and value}
                    keys = {name: line[name] for name in KEYS}
                    numbers = {name: int(keys.pop(name)) for name in ("number", "steps")}
                    self.all.append(Result(**keys, **numbers, figures=figures))  # type: ignore[arg-type]

    def of(self, arm: str, stage: str) -> list[Result]:
        """Return the results of an arm in a stage, by number."""
        return sorted((r for r in self.all if (r.arm, r.stage) == (arm, stage)), key=lambda result: result.number)

    def has(self, job: Job) -> bool:
        """Return whether the job has been done with the same words."""
        return any(result.words == job.words and result.stage == job.stage for result in self.of(job.arm, job.stage))

    def add(self, result: Result) -> None:
        """Add a result, in place of one of the same arm, stage and number, and write the file."""
        place = (result.arm, result.stage, result.number)
        self.all = [other for other in self.all if (other.arm, other.stage, other.number) != place]
        self.all.append(result)
        self.write()

    def write(self) -> None:
        """Write the file. Lines keep the order of their arms, stages and numbers."""
        names = list(dict.fromkeys(name for result in self.all for name in result.figures))
        names.sort(key=lambda name: (name not in FIGURES, FIGURES.index(name) if name in FIGURES else 0, name))
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((*KEYS[:-1], *names, KEYS[-1]))
        arms = list(dict.fromkeys(result.arm for result in self.all))
        for result in sorted(self.all, key=lambda r: (arms.index(r.arm), r.stage, r.number)):
            keys = [getattr(result, name) for name in KEYS]
            writer.writerow(
                (
                    *keys[:-1],
                    *(f"{result.figures[n]:.{DIGITS}g}" if n in result.figures else "" for n in names),
                    keys[-1],
                )
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, text.getvalue())
