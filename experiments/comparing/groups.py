"""Groups of runs that differ in their seed only, by head, options and problem."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .figures import format_option
from .runs import TARGET, Run, differing_options, normalized

# Options of the problem by how they begin. Figures are compared within one problem only.
PROBLEM_OPTIONS = ("data.", "noise.", "protocol.", "evaluate.far")


@dataclass(frozen=True)
class Group:
    """Runs of one head with the same options but different seeds.

    Attributes:
        head: its name, or its class with the module if heads of two classes have one name.
        options: the options in which groups differ, if the head has them.
        problem: classes, data and faults, as far as groups differ in them.
        runs: the runs.
    """

    head: str
    options: dict[str, Any]
    problem: str
    runs: list[Run] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """True for the full head, the reference of all others."""
        return self.runs[0].target.endswith(".FullFC")

    @property
    def label(self) -> str:
        """The head with its options."""
        return " ".join([self.head, *(f"{name}={format_option(value)}" for name, value in self.options.items())])


def grouped(runs: list[Run], options: list[str]) -> list[Group]:
    """Group runs by head, problem and these options, which the groups have by their names as shown.

    The full head comes first, then the others by name. Groups of one head are sorted by their options.
    """
    problem_options = [
        name
        for name in differing_options(runs, PROBLEM_OPTIONS)
        if not name.startswith("protocol.") or _differ_where_given(runs, name)
    ]
    several_sizes = len({run.summary.get("num_classes") for run in runs}) > 1
    names = [name for _, name in {(run.target, run.head) for run in runs}]
    short = _short_classes(runs, options)
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        head = run.target if names.count(run.head) > 1 else run.head
        own = {name: run.options[name] for name in options if name in run.options}
        parts = [f"{name}={run.options[name]}" for name in problem_options if name in run.options]
        if several_sizes and "num_classes" in run.summary:
            parts.insert(0, f"{run.summary['num_classes']:,} classes")
        problem = ", ".join(parts)
        key = (head, problem, *(f"{name}={normalized(value)}" for name, value in own.items()))
        shown = {shown_name(name): short.get(f"{name}={value}", value) for name, value in own.items()}
        groups.setdefault(key, Group(head, shown, problem)).runs.append(run)
    return sorted(
        groups.values(),
        key=lambda group: (
            not group.is_full,
            group.head,
            [_sort_key(group.options.get(shown_name(name))) for name in options],
            _sort_key(group.runs[0].summary.get("num_classes")),
        ),
    )


def shown_name(option: str) -> str:
    """Return the name by which an option is shown: `objective` for `objective._target_`."""
    return option.removesuffix(f".{TARGET}")


def _short_classes(runs: list[Run], options: list[str]) -> dict[str, str]:
    """Return the names without modules of the classes in these options, by `option=class`, if they are distinct."""
    result: dict[str, str] = {}
    for option in options:
        classes = {str(run.options[option]) for run in runs if option.endswith(TARGET) and option in run.options}
        names = {f"{option}={value}": value.rpartition(".")[2] for value in classes}
        if len(set(names.values())) == len(classes):
            result |= names
    return result


def _differ_where_given(runs: Sequence[Run], name: str) -> bool:
    """Return whether runs have several values of an option. A run without a protocol only lacks its figures."""
    return len({normalized(run.options[name]) for run in runs if name in run.options}) > 1


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Return a key that sorts None first, then numbers, then text."""
    if value is None:
        return (-1, 0.0, "")
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
