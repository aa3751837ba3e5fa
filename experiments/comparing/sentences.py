"""Sentences at the top of the page of a comparison: what was trained, and what came out."""

import statistics
from collections.abc import Iterable
from typing import Any

from ..command_line.config_files import choices_of, defaults_of
from .comparison import Comparison
from .figures import MEMORY, Figure, format_option
from .runs import TARGET, Run, normalized

STEP = "head/step_ms"


def trained(comparison: Comparison, problem: str) -> str:
    """Return a sentence on the data, backbone, batches, margin and steps of a problem's runs."""
    runs = comparison.runs_of(problem)
    parts = [
        "Trained on " + (_shared("{}", "several data sets", map(data_of, runs)) or "unnamed data"),
        _shared("{} classes", "several numbers of classes", (run.summary.get("num_classes") for run in runs)),
        _shared("{} images held out", "several numbers of images held out", map(heldout_of, runs)),
        *(
            _shared(f"{group} {{}}", f"several {group}s", (choice_of(run, group) for run in runs))
            for group in ("backbone", "margin", "objective")
        ),
        _shared("batches of {}", "batches of several sizes", (run.images_per_step for run in runs)),
        _shared("{} steps", "several numbers of steps", (run.summary.get("steps") for run in runs)),
    ]
    return ", ".join(filter(None, parts)) + "."


def outcome(comparison: Comparison, problem: str, figure: Figure) -> str:
    """Return which group is best in a figure, which cannot be told from it, and which of these is cheapest."""
    best = comparison.best(figure, problem)
    if best is None:
        return f"No group is ahead in {figure.title}."
    columns = comparison.columns(figure)
    value = format_option(float(f"{statistics.fmean(columns[best]):.4g}"))
    groups = comparison.groups
    said = f"Best in {figure.title}: {groups[best].label} ({value})."
    here = [number for number, group in enumerate(groups) if group.problem == problem and columns[number]]
    if all(len(columns[number]) < 2 for number in here):
        return f"{said} Every group has one run, so that differences may be noise."
    verdicts = comparison.against(figure, best)
    alike = [number for number in here if number in verdicts and not verdicts[number].beyond_noise]
    if not alike:
        return f"{said} It differs from all others by more than noise."
    said += f" Not distinguishable from it: {', '.join(groups[number].label for number in alike)}."
    cheapest = _cheapest(comparison, [best, *alike])
    return f"{said} Of these, {cheapest}." if cheapest else said


def _cheapest(comparison: Comparison, numbers: list[int]) -> str:
    """Return which group needs the least memory for its head, and which the least time for its step."""
    found: dict[str, list[str]] = {}
    for what, name in (("the least time for its step", STEP), ("the least memory", MEMORY.name)):
        figure = next((figure for figure in comparison.figures if figure.name == name), None)
        columns = {} if figure is None else {n: comparison.columns(figure)[n] for n in numbers}
        means = {number: statistics.fmean(values) for number, values in columns.items() if values}
        if len(set(means.values())) > 1:
            label = comparison.groups[min(means, key=lambda number: means[number])].label
            found.setdefault(label, []).append(what)
    return ", and ".join(f"{label} needs {' and '.join(parts)}" for label, parts in found.items())


def data_of(run: Run) -> str | None:
    """Return the name that a user types for the data of a run, with the name and the size of its images."""
    named = run.options.get("data.format") or str(run.options.get(f"data.{TARGET}", "")).rpartition(".")[2]
    source, size = run.options.get("data.source"), run.options.get("data.size")
    sources = [source] if isinstance(source, str) else source or []
    parts = [str(named), ", ".join(str(path).rstrip("/").rpartition("/")[2] or str(path) for path in sources)]
    parts.append(f"of {size}x{size} pixels" if isinstance(size, int) else "")
    return " ".join(filter(None, parts)) or None


def heldout_of(run: Run) -> int | None:
    """Return the number of held-out images, on which rank-1 and TAR are measured; None if the run does not say."""
    count = run.summary.get("heldout_records")
    return None if count is None else int(count)


def choice_of(run: Run, group: str) -> str | None:
    """Return the choice of a group that has the run's class, with its s and m; the class for one of the user's own."""
    target = run.options.get(f"{group}.{TARGET}")
    if target is None:
        return None
    choices = (name for name in choices_of(group) if defaults_of(group, name).get(f"{group}.{TARGET}") == target)
    name = next(choices, str(target).rpartition(".")[2])
    numbers = [
        f"{key}={run.options[full]:g}" for key in ("s", "m") if _is_number(run.options.get(full := f"{group}.{key}"))
    ]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shared(one: str, several: str, values: Iterable[Any]) -> str:
    """Return `one` with the value that all runs have, or `several`; empty if a run has no value."""
    found = list(values)
    if None in found:
        return ""
    different = {normalized(value): value for value in found}
    if len(different) > 1:
        return several
    (value,) = different.values()
    return one.format(f"{value:,}" if isinstance(value, int) else value)
