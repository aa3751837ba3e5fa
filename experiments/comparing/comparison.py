"""Runs side by side: grouped by head and options, at a point that all have reached, with the noise over seeds.

Figures are compared within one problem only: the same classes, data and faults. Runs of others stand beside them.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .differences import Difference, difference
from .runs import Run, differing, normalized

AXES = {"images": "images", "steps": "steps", "seconds": "s of training"}
OF_THE_PROBLEM = ("data.", "noise.", "protocol.", "evaluate.far")  # beginnings of options
POINTS = 300  # of a curve that is drawn


@dataclass(frozen=True)
class Figure:
    """What is told of a run.

    Args:
        name: in summary.json.
        title: of its column.
        more_is_better: None where neither is.
        along: measured again and again while training, so that it can be told at any point.
    """

    name: str
    title: str
    more_is_better: bool | None
    along: bool = False

    @property
    def kind(self) -> str:
        """quality, fidelity or cost."""
        first = self.name.partition("/")[0]
        return {"val": "quality", "train": "quality", "fidelity": "fidelity"}.get(first, "cost")


TIME = Figure("time", "training s", False)  # to the point of the comparison
FIGURES = (
    Figure("val/rank1", "rank-1", True, along=True),
    Figure("val/tar_at_far_1e-3", "TAR@FAR 1e-3", True, along=True),
    Figure("val/verification_accuracy", "verification", True, along=True),
    Figure("train/exact_loss", "exact loss", False, along=True),
    Figure("train/top1", "top-1", True, along=True),
    Figure("train/loss", "loss", None, along=True),  # each head has its own
    TIME,
    Figure("throughput/images_per_second", "images/s", True),
    Figure("head/step_ms", "head ms/step", False),
    Figure("head/active_classes", "active classes", None),
    Figure("memory/head_bytes", "head MiB", False),
    Figure("memory/peak_bytes", "peak MiB", False),
    Figure("fidelity/mass", "mass", True, along=True),
    Figure("fidelity/gradient_cosine", "gradient cosine", True, along=True),
    Figure("fidelity/gradient_norm_ratio", "gradient norm ratio", None, along=True),
    Figure("fidelity/gradient_bias", "gradient bias", False, along=True),
    Figure("fidelity/gradient_variance", "gradient variance", False, along=True),
    Figure("fidelity/hardest_recall", "hardest recall", True, along=True),
    Figure("fidelity/class_means_cosine", "cosine to class means", None, along=True),
    Figure("fidelity/class_means_norm_ratio", "norm ratio to class means", None, along=True),
)
# Of protocols, as val/SET/..., and at other rates: by how the last part begins.
MORE_IS_BETTER = ("accuracy", "rank", "tar_at", "val_at", "tpir", "map", "auc", "top")


@dataclass(frozen=True)
class Group:
    """Runs of one head with the same options, but for their seeds.

    Attributes:
        head: its name, or its class with its module where heads of two classes have one name.
        options: those in which groups differ, where the head has them.
        problem: what it was trained on, as far as groups differ in that.
    """

    head: str
    options: dict[str, Any]
    problem: str
    runs: list[Run] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether this is the full head, the reference of all others."""
        return self.runs[0].target.endswith(".FullFC")

    @property
    def label(self) -> str:
        return " ".join([self.head, *(f"{name}={plain(value)}" for name, value in self.options.items())])


class Comparison:
    """
    Args:
        runs: at least one.
        axis: at equal "images", "steps" or "seconds" of training.
        at: how many of these; as many as all runs of a problem have reached, unless given.

    Attributes:
        groups: of one head side by side.
        at: the point of each problem.

    Raises:
        ValueError: an unknown axis; a point that is not positive.
    """

    def __init__(self, runs: list[Run], axis: str = "images", at: float | None = None):
        if axis not in AXES:
            raise ValueError(f"--equal {axis}: must be one of {', '.join(AXES)}")
        if at is not None and not 0 < at < float("inf"):
            raise ValueError(f"--at {at}: a number above 0 is needed")
        if axis == "seconds" and not any("train/seconds" in run.curves for run in runs):
            raise ValueError("--equal seconds: no run tells its time (train/seconds in metrics.csv); --equal images")
        self.runs, self.axis, self.asked = runs, axis, at
        self.options = differing(runs, OF_THE_PROBLEM, without=True)
        self.groups = self._grouped()
        self.problems = list(dict.fromkeys(group.problem for group in self.groups))
        self.at = {problem: at or self._reached_by_all(problem) for problem in self.problems}
        known = {figure.name for figure in FIGURES}
        others = sorted({name for run in runs for name in run.summary if name.startswith("val/")} - known)
        of_protocols = [Figure(name, name.removeprefix("val/"), True, along=True) for name in others if _is_rate(name)]
        self._columns: dict[str, list[list[float]]] = {}
        self.figures = [each for each in (*FIGURES, *of_protocols) if any(map(len, self.columns(each)))]

    def values(self, group: Group, figure: Figure) -> list[float]:
        """Of the runs that have it, at the point of the comparison."""
        found = [self.value(run, figure, self.at[group.problem]) for run in group.runs]
        return [value for value in found if value is not None]

    def columns(self, figure: Figure) -> list[list[float]]:
        """The values of each group."""
        if figure.name not in self._columns:
            self._columns[figure.name] = [self.values(group, figure) for group in self.groups]
        return self._columns[figure.name]

    def value(self, run: Run, figure: Figure, at: float) -> float | None:
        """Interpolated between two measurements; None where the run has none, or not at this point."""
        if figure is TIME:
            return self._time(run, at)
        if not figure.along:
            found = run.summary.get(figure.name)
            return None if found is None or not np.isfinite(found) else float(found)
        steps, values = run.curves.get(figure.name, (np.empty(0), np.empty(0)))
        places = run.along(self.axis, steps)
        there = ~np.isnan(places)
        # Of the last measurement a rounding of the clock must not take anything away.
        if not there.any() or not places[there][0] * (1 - 1e-9) <= at <= places[there][-1] * (1 + 1e-9):
            return None
        value = float(np.interp(at, places[there], values[there]))
        return value if np.isfinite(value) else None

    @cached_property
    def differences(self) -> dict[str, dict[tuple[int, int], Difference]]:
        """By figure, of each two groups of one problem that have it: first minus second."""
        result: dict[str, dict[tuple[int, int], Difference]] = {}
        for figure in self.figures:
            columns = self.columns(figure)
            result[figure.name] = {
                (i, j): difference(columns[i], columns[j])
                for i, j in combinations(range(len(self.groups)), 2)
                if columns[i] and columns[j] and self.groups[i].problem == self.groups[j].problem
            }
        return result

    def between(self, figure: Figure, first: int, second: int) -> Difference | None:
        """Of two groups, first minus second; None where there is none."""
        found = self.differences[figure.name]
        if (first, second) in found:
            return found[first, second]
        if (turned := found.get((second, first))) is None:
            return None
        ends = turned.interval
        return Difference(-turned.mean, None if ends is None else (-ends[1], -ends[0]))

    def best(self, figure: Figure, problem: str) -> int | None:
        """The group with the best mean; None where there is nothing to choose."""
        means = {
            number: statistics.fmean(values)
            for number, values in enumerate(self.columns(figure))
            if values and self.groups[number].problem == problem
        }
        if figure.more_is_better is None or len(set(means.values())) < 2:
            return None
        return (max if figure.more_is_better else min)(means, key=lambda number: means[number])

    def curve(self, group: Group, name: str) -> dict[str, list[float | None]]:
        """Mean and deviation over the runs that have it, where any of them was measured while all went on."""
        runs = [run for run in group.runs if name in run.curves]
        curves = [run.curves[name] for run in runs]
        if not curves:
            return {}
        first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
        steps = np.unique(np.concatenate([steps for steps, _ in curves]))
        steps = steps[(steps >= first) & (steps <= last)]
        if not len(steps):
            return {}
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).astype(np.int64))]
        values = np.array([np.interp(steps, *each) for each in curves])
        timed = [run for run in runs if "train/seconds" in run.curves] or runs
        places = {axis: np.mean([run.along(axis, steps) for run in timed], axis=0) for axis in AXES}
        deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
        return {
            **{axis: _numbers(each) for axis, each in places.items()},
            "mean": _numbers(values.mean(0)),
            "deviation": _numbers(deviation),
        }

    def notes(self, names: dict[Path, str]) -> list[str]:
        """What a reader should know before comparing."""
        notes = []
        silent = [names[run.folder] for run in self.runs if not run.validated]
        if silent:
            notes.append(f"Without any evaluation, so costs only: {', '.join(silent)}")
        if len(self.problems) > 1:
            notes.append(
                f"{len(self.problems)} problems ({'; '.join(self.problems)}): best figures and differences are of each "
                "alone"
            )
        for problem in self.problems:
            ends = {names[run.folder]: self._last(run) for run in self._runs_of(problem)}
            beyond = [name for name, end in ends.items() if end > self.at[problem] * 1.001]
            if beyond and self.asked is None:
                first = min(ends, key=lambda name: ends[name])
                notes.append(
                    f"At {self.point(problem)}, where {first} ended, though {len(beyond)} of {len(ends)} went on; --at "
                    "sets another point"
                )
            if short := [name for name, end in ends.items() if end < self.at[problem] * (1 - 1e-9)]:
                notes.append(f"Ended before {self.point(problem)}: {', '.join(short)}")
        if lone := [group.label for group in self.groups if len(group.runs) == 1]:
            several = len(lone) < len(self.groups)
            notes.append(f"One run tells no noise: {', '.join(lone) if several else 'give each several seeds'}")
        timeless = [names[run.folder] for run in self.runs if "train/seconds" not in run.curves]
        if timeless and self.axis == "seconds":
            notes.append(f"Their metrics.csv tells no time, so they are not at equal seconds: {', '.join(timeless)}")
        late = [
            names[run.folder]
            for group in self.groups
            for run in group.runs
            if run.validated
            and all(
                self.value(run, figure, self.at[group.problem]) is None
                for figure in self.figures
                if figure.name.startswith("val/")
            )
        ]
        if late:
            notes.append(f"Not evaluated by then (evaluate.interval sets when): {', '.join(late)}")
        return notes

    def point(self, problem: str) -> str:
        at = self.at[problem]
        return f"{at:,.0f} {AXES[self.axis]}" if at >= 10 else f"{at:.3g} {AXES[self.axis]}"

    @property
    def where(self) -> str:
        """At which point, in words."""
        points = list(dict.fromkeys(self.point(problem) for problem in self.problems))
        return f"at {points[0]}" if len(points) == 1 else f"at equal {self.axis}"

    def _grouped(self) -> list[Group]:
        of_problem = differing(self.runs, OF_THE_PROBLEM)
        several = len({run.summary.get("num_classes") for run in self.runs}) > 1
        names = [name for _, name in {(run.target, run.head) for run in self.runs}]
        ambiguous = {name for name in names if names.count(name) > 1}
        groups: dict[tuple[str, ...], Group] = {}
        for run in self.runs:
            head = run.target if run.head in ambiguous else run.head
            options = {name: run.options[name] for name in self.options if name in run.options}
            told = [f"{name}={run.options[name]}" for name in of_problem if name in run.options]
            classes = [f"{run.summary['num_classes']:,} classes"] if several and "num_classes" in run.summary else []
            problem = ", ".join([*classes, *told])
            key = (head, problem, *(f"{name}={normalized(value)}" for name, value in options.items()))
            groups.setdefault(key, Group(head, options, problem)).runs.append(run)
        # The full head first, the yardstick, then the others by name; their options by size.
        return sorted(
            groups.values(),
            key=lambda group: (
                not group.is_full,
                group.head,
                [_order(group.options.get(name)) for name in self.options],
                _order(group.runs[0].summary.get("num_classes")),
            ),
        )

    def _runs_of(self, problem: str) -> list[Run]:
        return [run for group in self.groups if group.problem == problem for run in group.runs]

    def _last(self, run: Run) -> float:
        """How far it came."""
        steps = float(run.summary["steps"])
        return float(run.along(self.axis, np.array([steps]))[0])

    def _reached_by_all(self, problem: str) -> float:
        ends = [self._last(run) for run in self._runs_of(problem)]
        return float(np.nanmin(ends)) if not np.isnan(ends).all() else float("nan")

    def _time(self, run: Run, at: float) -> float | None:
        """Seconds of training to the point."""
        per_step = run.images_per_step if self.axis == "images" else 1
        found = at if self.axis == "seconds" else float(run.along("seconds", np.array([at / per_step]))[0])
        return found if at <= self._last(run) * (1 + 1e-9) and not np.isnan(found) else None


def _order(value: Any) -> tuple[int, float, str]:
    """Nothing, then numbers, then words."""
    if value is None:
        return (-1, 0.0, "")
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and deviation; one value has none."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def plain(value: Any) -> str:
    """An option as people write it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_rate(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith(MORE_IS_BETTER) and not last.endswith(("_low", "_high", "_se"))


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers as JSON has them: six digits, and nothing for NaN."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
