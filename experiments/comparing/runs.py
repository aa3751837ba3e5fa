"""Runs as their folders tell of them: config.yaml, summary.json, metrics.csv."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import COMPLETE, run_files

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, and what was measured after them
# Options that differ between repetitions of one run, or do not affect its result: whole groups, and single names.
IGNORED_GROUPS = ("logger.", "checkpoint.")
IGNORED = frozenset((
    *("seed", "resume", "head_name", "head._target_", "sweep_metric"),
    *("fidelity.interval", "evaluate.interval", "trainer.log_interval", "trainer.rendezvous"),
    *("store_dir", "head.store_dir", "data.cache_dir", "evaluate.train_records"),
))  # fmt: skip


class Whole(NamedTuple):
    """A whole number of a file."""

    name: str
    least: int
    optional: bool = False
    or_null: bool = False


OF_CONFIG = (
    Whole("batch_size", 1),
    Whole("trainer.accumulate_grad_batches", 1, optional=True),
    Whole("trainer.max_steps", 1, optional=True, or_null=True),
)
OF_SUMMARY = (Whole("steps", 0), Whole("seed", 0, optional=True), Whole("num_classes", 0, optional=True))


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        folder: where it is.
        summary: of its summary.json.
        options: of its config.yaml, by dotted keys.
    """

    folder: Path
    summary: dict[str, Any]
    options: dict[str, Any]

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """What metrics.csv holds, by name; of a step told twice the last."""
        found: dict[str, dict[int, float]] = defaultdict(dict)
        if (path := self.folder / "metrics.csv").exists():
            for row in csv.reader(run_files.lines(path)):
                with suppress(ValueError):  # a kill may have cut a line
                    step, _, name, value = row
                    found[name][int(step)] = float(value)
        return {
            name: (np.array(sorted(values), dtype=np.float64), np.array([values[step] for step in sorted(values)]))
            for name, values in found.items()
        }

    @property
    def target(self) -> str:
        """The class of the head, with its module."""
        return str(self.options.get("head._target_"))

    @property
    def head(self) -> str:
        """The name of the head as the user typed it; of runs that did not record it, the name of its class."""
        return str(self.options.get("head_name") or self.summary["head"])

    @property
    def images_per_step(self) -> int:
        return int(self.options["batch_size"]) * int(self.options.get("trainer.accumulate_grad_batches", 1))

    def along(self, axis: str, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """These steps as "steps", "images" or "seconds" of training; NaN where metrics.csv does not tell."""
        if axis == "steps":
            return steps
        if axis == "images":
            return steps * self.images_per_step
        measured, seconds = self.curves.get("train/seconds", (np.empty(0), np.empty(0)))
        if not len(measured):
            return np.full(len(steps), np.nan)
        return np.interp(steps, np.append(0, measured), np.append(0, seconds), right=np.nan)

    @property
    def ended(self) -> float:
        """When, in seconds of the clock."""
        return (self.folder / "summary.json").stat().st_mtime

    @property
    def validated(self) -> bool:
        return any(name.startswith("val/") for name in self.summary)


def load(paths: list[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Finished runs in and below these folders, in order of the folders, and the others with the reason.

    Raises:
        ValueError: a path is no folder.
    """
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder")
    folders = {config.parent.resolve() for path in paths for config in path.rglob("config.yaml") if not config.is_dir()}
    finished, left_out = [], []
    for folder in sorted(folders, key=_natural):
        if folder.name == ".hydra":
            continue
        try:
            config = run_files.config(folder / "config.yaml")
            kind = OmegaConf.select(config, "head._target_")
        except FileNotFoundError:  # a link to nothing
            continue
        except OSError as error:
            left_out.append((folder, f"config.yaml: {error.strerror}"))
            continue
        except (run_files.DamagedError, OmegaConfBaseException) as error:
            left_out.append(
                (folder, str(error) if isinstance(error, run_files.DamagedError) else "config.yaml is damaged")
            )
            continue
        if not isinstance(kind, str):
            continue  # of another command, or of another program
        run_or_reason = _read(folder, config)
        if isinstance(run_or_reason, Run):
            finished.append(run_or_reason)
        else:
            left_out.append((folder, run_or_reason))
    return _without_repetitions(finished, left_out)


def differing(runs: list[Run], beginnings: tuple[str, ...], *, without: bool = False) -> list[str]:
    """Options of these beginnings in which runs differ; of those that always vary together, the shortest name. A head
    without an option does not differ in it from another head.

    Args:
        without: of all other beginnings instead.
    """
    names = sorted({name for run in runs for name in run.options}, key=lambda name: (name.count("."), name))
    by_values: dict[tuple[str, ...], str] = {}
    for name in names:
        if matters(name) and name.startswith(beginnings) != without:
            values = tuple(normalized(run.options[name]) if name in run.options else "" for run in runs)
            owners = {run.target for run in runs if name in run.options}
            if len({value for value, run in zip(values, runs, strict=True) if run.target in owners}) > 1:
                by_values.setdefault(values, name)
    return list(by_values.values())


def matters(name: str) -> bool:
    """Return whether runs that differ in this option are runs of different things."""
    return name not in IGNORED and not name.startswith(IGNORED_GROUPS)


def names(folders: list[Path]) -> dict[Path, str]:
    """The shortest ends of their paths that tell them apart."""
    result = {}
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        for length in range(1, len(folder.parts) + 1):
            end = folder.parts[-length:]
            if all(other[-length:] != end for other in others):
                break
        result[folder] = "/".join(end)
    return result


def _read(folder: Path, config: DictConfig) -> Run | str:
    """The finished run in a folder, or why there is none."""
    try:
        run = Run(folder, {}, flatten(OmegaConf.to_container(config)))
        last = max((int(steps[-1]) for steps, _ in run.curves.values()), default=0)
    except run_files.DamagedError as error:
        return str(error)
    except (csv.Error, UnicodeDecodeError, OverflowError):
        return "metrics.csv is damaged"
    except OSError as error:
        return f"metrics.csv: {error.strerror}"
    if wrong := _wrong(run.options, OF_CONFIG):
        return f"config.yaml is damaged: {wrong}"
    if run.options.get("fidelity.interval") is None:  # then how would have been asked tells nothing
        for name in [name for name in run.options if name.startswith("fidelity.")]:
            del run.options[name]
    of_all = run.options.get("trainer.max_steps")
    where = f"step {last}{f' of {of_all}' if of_all else ''}"
    try:
        run.summary.update(run_files.summary(folder / "summary.json"))
    except FileNotFoundError:
        if not last:
            return "no summary.json: refused, still starting, or killed"
        return f"no summary.json: still running, or killed, last heard of at {where}"
    except OSError as error:
        return f"summary.json: {error.strerror}"
    except run_files.DamagedError as error:
        return str(error)
    if wrong := _wrong(run.summary, OF_SUMMARY):
        return f"summary.json is damaged: {wrong}"
    status, steps = run.summary.get("status"), int(run.summary["steps"])
    if not isinstance(status, str) or not isinstance(run.summary.get("head"), str):
        return "summary.json is damaged: it has no status or no head"
    if status not in COMPLETE:
        return f"{status} at step {steps}"
    if max(last, of_all if of_all and status == "finished" else 0) > steps:
        return f"its summary is of step {steps}: it goes on, or was killed, last heard of at {where}"
    return run


def _wrong(found: dict[str, Any], numbers: Sequence[Whole]) -> str:
    """Return what is no number where one belongs, or too large to reckon with; nothing if all is well."""
    for number in numbers:
        if number.name not in found:
            if not number.optional:
                return f"it has no {number.name}"
        elif not run_files.is_whole(found[number.name], number.least) and not (
            number.or_null and found[number.name] is None
        ):
            return f"{number.name} must be a whole number, at least {number.least}"
    for name, value in found.items():
        is_figure = "/" in name  # of summary.json
        if (is_figure or isinstance(value, int)) and not isinstance(value, bool) and not run_files.is_number(value):
            return f"{name[:50]} is no number, or too large a one"
    return ""


def _without_repetitions(runs: list[Run], left_out: list[tuple[Path, str]]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Runs of equal options and seed are no two samples: the newest stays."""
    alike: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        told = {name: normalized(value) for name, value in run.options.items() if matters(name)}
        key = [run.target, run.summary.get("num_classes"), run.summary.get("seed"), told]
        alike[json.dumps(key, sort_keys=True)].append(run)
    newest = {id(members[0]): max(members, key=lambda run: run.ended) for members in alike.values()}
    kept = {id(run) for run in newest.values()}
    for members in alike.values():
        newer = newest[id(members[0])]
        reason = f"the same options and seed as {newer.folder}, which is newer"
        left_out += [(run.folder, reason) for run in members if run is not newer]
    return [run for run in runs if id(run) in kept], left_out


def normalized(value: Any) -> str:
    """The same text for the same value of an option: 1 and 1.0."""
    return repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or (not node and prefix):
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in flatten(child, _join(prefix, name)).items()}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else str(name)


def _natural(folder: Path) -> list[tuple[int, str]]:
    """Folder 10 after folder 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in folder.parts]
