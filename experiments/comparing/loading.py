"""Loading of finished runs from folders that may also contain unfinished, damaged and unrelated ones."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import COMPLETE, run_files
from .runs import Run, flatten, matters, normalized

LeftOut = list[tuple[Path, str]]  # folders of runs that are not compared, with the reason


class WholeNumber(NamedTuple):
    """A whole number that a file must contain."""

    name: str
    least: int
    optional: bool = False
    or_null: bool = False


NUMBERS_OF_CONFIG = (
    WholeNumber("batch_size", 1),
    WholeNumber("trainer.accumulate_grad_batches", 1, optional=True),
    WholeNumber("trainer.max_steps", 1, optional=True, or_null=True),
)
NUMBERS_OF_SUMMARY = (
    WholeNumber("steps", 0),
    WholeNumber("seed", 0, optional=True),
    WholeNumber("num_classes", 0, optional=True),
)


def load(paths: list[Path]) -> tuple[list[Run], LeftOut]:
    """Load the finished runs in and below these folders, in the order of their folders.

    Returns:
        The runs, and the folders of other runs with the reason why they are left out.

    Raises:
        ValueError: a path is not a folder.
    """
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder; give the folder of a run, or one above")
    folders = {config.parent.resolve() for path in paths for config in path.rglob("config.yaml") if not config.is_dir()}
    finished: list[Run] = []
    left_out: LeftOut = []
    for folder in sorted(folders, key=_natural):
        if folder.name == ".hydra":
            continue
        try:
            config = run_files.config(folder / "config.yaml")
            target = OmegaConf.select(config, "head._target_")
        except FileNotFoundError:  # a broken link
            continue
        except OSError as error:
            left_out.append((folder, f"config.yaml: {error.strerror}"))
            continue
        except (run_files.DamagedError, OmegaConfBaseException) as error:
            is_damaged = isinstance(error, run_files.DamagedError)
            left_out.append((folder, str(error) if is_damaged else "config.yaml is damaged"))
            continue
        if not isinstance(target, str):
            continue  # a config of another command or program
        run_or_reason = _read(folder, config)
        if isinstance(run_or_reason, Run):
            finished.append(run_or_reason)
        else:
            left_out.append((folder, run_or_reason))
    return _without_repetitions(finished, left_out)


def _read(folder: Path, config: DictConfig) -> Run | str:
    """Return the finished run in a folder, or the reason why it is left out."""
    try:
        run = Run(folder, {}, flatten(OmegaConf.to_container(config)))
        last = max((int(steps[-1]) for steps, _ in run.curves.values()), default=0)
    except run_files.DamagedError as error:
        return str(error)
    except (csv.Error, UnicodeDecodeError, OverflowError):
        return "metrics.csv is damaged"
    except OSError as error:
        return f"metrics.csv: {error.strerror}"
    if fault := _fault(run.options, NUMBERS_OF_CONFIG):
        return f"config.yaml is damaged: {fault}"
    if run.options.get("fidelity.interval") is None:  # the other options of a measurement that is off do not matter
        for name in [name for name in run.options if name.startswith("fidelity.")]:
            del run.options[name]
    max_steps = run.options.get("trainer.max_steps")
    progress = f"its last entry is of step {last}{f' of {max_steps}' if max_steps else ''}"
    try:
        run.summary.update(run_files.summary(folder / "summary.json"))
    except FileNotFoundError:
        if not last:
            return "no summary.json: the run was refused, is starting, or was killed"
        return f"no summary.json: the run is in progress or was killed, {progress}"
    except OSError as error:
        return f"summary.json: {error.strerror}"
    except run_files.DamagedError as error:
        return str(error)
    if fault := _fault(run.summary, NUMBERS_OF_SUMMARY):
        return f"summary.json is damaged: {fault}"
    status, steps = run.summary.get("status"), int(run.summary["steps"])
    if not isinstance(status, str) or not isinstance(run.summary.get("head"), str):
        return "summary.json is damaged: it has no status or no head"
    if status not in COMPLETE:
        return f"{status} at step {steps}"
    if max(last, max_steps if max_steps and status == "finished" else 0) > steps:
        return f"its summary is of step {steps}: the run was resumed and is in progress or was killed, {progress}"
    return run


def _fault(values: dict[str, Any], numbers: Sequence[WholeNumber]) -> str:
    """Return a sentence on the first value that is no usable number; an empty string if there is none."""
    for number in numbers:
        if number.name not in values:
            if not number.optional:
                return f"it has no {number.name}"
        elif not run_files.is_whole(values[number.name], number.least) and not (
            number.or_null and values[number.name] is None
        ):
            return f"{number.name} must be a whole number of at least {number.least}"
    for name, value in values.items():
        is_figure = "/" in name  # in summary.json
        if (is_figure or isinstance(value, int)) and not isinstance(value, bool) and not run_files.is_number(value):
            return f"{name[:50]} is not a number, or too large"
    return ""


def _without_repetitions(runs: list[Run], left_out: LeftOut) -> tuple[list[Run], LeftOut]:
    """Keep the newest of runs with equal options and seed, which are not independent samples."""
    repetitions: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        options = {name: normalized(value) for name, value in run.options.items() if matters(name)}
        key = [run.target, run.summary.get("num_classes"), run.summary.get("seed"), options]
        repetitions[json.dumps(key, sort_keys=True)].append(run)
    newest = {id(members[0]): max(members, key=lambda run: run.end_time) for members in repetitions.values()}
    kept = {id(run) for run in newest.values()}
    for members in repetitions.values():
        newer = newest[id(members[0])]
        reason = f"the same options and seed as {newer.folder}, which is newer"
        left_out += [(run.folder, reason) for run in members if run is not newer]
    return [run for run in runs if id(run) in kept], left_out


def _natural(folder: Path) -> list[tuple[int, str]]:
    """Return a sort key with folder 10 after folder 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in folder.parts]
