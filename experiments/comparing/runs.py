"""A run as its folder describes it, and the options in which runs differ."""

import csv
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import run_files
from ..command_line.config_files import choices_of, defaults_of

TARGET = "_target_"
# Groups whose class says enough if its options have their defaults.
NAMED_BY_CLASS = ("backbone", "margin", "objective", "optimizer", "schedule")
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, and the values measured after them
# Options that differ between repetitions of one run, or do not affect its result: whole groups, and single names.
IGNORED_GROUPS = ("logger.", "checkpoint.")
IGNORED = frozenset((
    *("seed", "resume", "head_name", "head._target_", "sweep_metric"),
    *("fidelity.interval", "evaluate.interval", "trainer.log_interval", "trainer.rendezvous"),
    *("store_dir", "head.store_dir", "data.cache_dir", "evaluate.train_records"),
))  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        folder: its folder.
        summary: content of summary.json.
        options: content of config.yaml, by dotted keys.
    """

    folder: Path
    summary: dict[str, Any]
    options: dict[str, Any]

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Curves in metrics.csv by name. If a step occurs twice, its last value counts."""
        values_by_step: dict[str, dict[int, float]] = defaultdict(dict)
        if (path := self.folder / "metrics.csv").exists():
            for row in csv.reader(run_files.lines(path)):
                with suppress(ValueError):  # a killed run may leave half a line
                    step, _, name, value = row
                    values_by_step[name][int(step)] = float(value)
        return {
            name: (np.array(sorted(values), dtype=np.float64), np.array([values[step] for step in sorted(values)]))
            for name, values in values_by_step.items()
        }

    @property
    def target(self) -> str:
        """The class of the head, with its module."""
        return str(self.options.get("head._target_"))

    @property
    def head(self) -> str:
        """The name of the head as the user typed it; of runs that did not record it, the name of its class."""
        return str(self.options.get("head_name") or self.summary["head"])

    def has_default(self, name: str) -> bool:
        """Return whether an option has the default that conf/ gives it for the run's head, objective, margin etc."""
        value = normalized(self.options[name])
        return any(name in choice and normalized(choice[name]) == value for choice in self._defaults)

    def is_of_head(self, name: str) -> bool:
        """Return whether an option is one of the run's head, rather than of all heads."""
        return name in self._defaults[0]

    @cached_property
    def _defaults(self) -> list[dict[str, Any]]:
        """The defaults of the head, and of the choices of other groups that have the run's classes, except classes."""
        found = [defaults_of("head", self.head)]
        for group in NAMED_BY_CLASS:
            for choice in (defaults_of(group, name) for name in choices_of(group)):
                classes = {name: value for name, value in choice.items() if name.endswith(TARGET)}
                if all(self.options.get(name) == value for name, value in classes.items()):
                    found.append({name: value for name, value in choice.items() if name not in classes})
        return found

    @property
    def images_per_step(self) -> int:
        """Images of an optimizer step, over all processes."""
        return int(self.options["batch_size"]) * int(self.options.get("trainer.accumulate_grad_batches", 1))

    @property
    def batches(self) -> tuple[Any, ...]:
        """The seed and the options of the head that determine the batches of a run on given data."""
        own = (self.options.get(f"head.{name}") for name in ("images_per_class", "identity_share"))
        return (self.summary.get("seed"), self.images_per_step, *own)

    def axis_values(self, axis: str, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert steps to "steps", "images" or "seconds" of training; NaN if metrics.csv has no time for them."""
        if axis == "steps":
            return steps
        if axis == "images":
            return steps * self.images_per_step
        measured, seconds = self.curves.get("train/seconds", (np.empty(0), np.empty(0)))
        if not len(measured):
            return np.full(len(steps), np.nan)
        return np.interp(steps, np.append(0, measured), np.append(0, seconds), right=np.nan)

    @property
    def end_time(self) -> float:
        """The time at which the run ended, in seconds since the epoch."""
        return (self.folder / "summary.json").stat().st_mtime

    @property
    def is_evaluated(self) -> bool:
        """True if the run has an evaluation of held-out classes or by a protocol."""
        return any(name.startswith("val/") for name in self.summary)


def differing_options(runs: list[Run], prefixes: tuple[str, ...], *, without: bool = False) -> list[str]:
    """Return the options with these prefixes in which runs differ.

    Of options that always vary together, the shortest name is returned. A head that lacks an option does not differ in
    it from another head, but a head's own option with a value of the user's is returned. Without `prefixes`, an option
    is left out if it has a default in all runs that have it: that of the run's head, or of its objective, margin etc.

    Args:
        runs: the runs.
        prefixes: how the names of the options begin.
        without: return the options with other prefixes instead.
    """
    names = sorted({name for run in runs for name in run.options}, key=lambda name: (name.count("."), name))
    by_values: dict[tuple[str, ...], str] = {}
    for name in names:
        if matters(name) and name.startswith(prefixes) != without:
            values = tuple(normalized(run.options[name]) if name in run.options else "" for run in runs)
            targets = {run.target for run in runs if name in run.options}
            if without and all(run.has_default(name) for run in runs if name in run.options):
                continue
            having = [run for run in runs if run.target in targets]
            is_own = without and len(having) < len(runs) and all(run.is_of_head(name) for run in having)
            if is_own or len({value for value, run in zip(values, runs, strict=True) if run.target in targets}) > 1:
                by_values.setdefault(values, name)
    return list(by_values.values())


def matters(name: str) -> bool:
    """Return whether an option affects the result, so that runs which differ in it are no repetitions."""
    return name not in IGNORED and not name.startswith(IGNORED_GROUPS)


def short_names(folders: list[Path]) -> dict[Path, str]:
    """Return the shortest ends of the paths that distinguish the folders."""
    result = {}
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        for length in range(1, len(folder.parts) + 1):
            end = folder.parts[-length:]
            if all(other[-length:] != end for other in others):
                break
        result[folder] = "/".join(end)
    return result


def normalized(value: Any) -> str:
    """Return equal text for equal values of an option, such as 1 and 1.0."""
    if isinstance(value, dict):  # a schedule
        return f"{{{', '.join(f'{step}: {normalized(each)}' for step, each in value.items())}}}"
    return repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dicts by dotted keys. A schedule {step: number} is one value."""
    is_schedule = isinstance(node, dict) and all(isinstance(key, int | float) for key in node)
    if not isinstance(node, dict) or (is_schedule and prefix):
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in flatten(child, _join(prefix, name)).items()}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else str(name)
