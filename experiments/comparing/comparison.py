"""A comparison of runs: groups by head and options, at a point that all runs have reached, with the noise over seeds.

Figures are compared within one problem only: the same classes, data and faults. The table has groups of all problems.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from .differences import Difference, Name, Verdict, difference, verdicts
from .figures import FIGURES, TIME, Figure, figure_of_protocol
from .groups import PROBLEM_OPTIONS, Group, grouped, shown_name
from .runs import Run, differing_options

AXES = {"images": "images", "steps": "steps", "seconds": "s of training"}
POINTS = 300  # most points of a drawn curve
ROUNDING = 1e-9  # relative rounding error of the clock
POINT = 0.01  # a point of a share, such as rank-1
WITHIN = 0.2  # points within which two heads count as equivalent


class Comparison:
    """Runs compared at one point.

    Args:
        runs: at least one.
        axis: compare at equal "images", "steps" or "seconds" of training.
        at: the point; None for the last point that all runs of a problem have reached.
        within: points within which two heads count as equivalent in a figure that is a share.

    Attributes:
        options: options in which groups differ, by their names as shown.
        groups: groups of runs; those of one head are neighbours.
        problems: names of the problems.
        at: the point of each problem.
        figures: figures that any run has.

    Raises:
        ValueError: an unknown axis, or a point or number of points that is not positive.
    """

    def __init__(self, runs: list[Run], axis: str = "images", at: float | None = None, within: float = WITHIN):
        if axis not in AXES:
            raise ValueError(f"--equal {axis} must be one of {', '.join(AXES)}")
        if at is not None and not 0 < at < float("inf"):
            raise ValueError(f"--at {at} must be a number above 0")
        if not 0 < within < 100:
            raise ValueError(f"--within {within} must be a number of points above 0 and below 100, such as {WITHIN}")
        if axis == "seconds" and not any("train/seconds" in run.curves for run in runs):
            raise ValueError("--equal seconds needs train/seconds in metrics.csv, which no run has; use --equal images")
        self.runs, self.axis, self.asked, self.within = runs, axis, at, within
        options = differing_options(runs, PROBLEM_OPTIONS, without=True)
        self.options = list(map(shown_name, options))
        self.groups = grouped(runs, options)
        self.problems = list(dict.fromkeys(group.problem for group in self.groups))
        self.at = {problem: at or self._reached_by_all(problem) for problem in self.problems}
        known = {figure.name for figure in FIGURES}
        others = sorted({name for run in runs for name in run.summary if name.startswith("val/")} - known)
        of_protocols = [figure for name in others if (figure := figure_of_protocol(name))]
        self._columns: dict[str, list[list[float]]] = {}
        self.figures = [figure for figure in (*FIGURES, *of_protocols) if any(map(len, self.columns(figure)))]

    def columns(self, figure: Figure) -> list[list[float]]:
        """Return the values of each group at the point of the comparison, of the runs that have the figure."""
        if figure.name not in self._columns:
            self._columns[figure.name] = [
                [value for run in group.runs if (value := self.value(run, figure, self.at[group.problem])) is not None]
                for group in self.groups
            ]
        return self._columns[figure.name]

    def value(self, run: Run, figure: Figure, at: float) -> float | None:
        """Return a figure at a point, interpolated between two measurements; None if the run has none there."""
        if figure is TIME:
            return self._time(run, at)
        if not figure.is_curve:
            value = run.summary.get(figure.name)
            return None if value is None or not np.isfinite(value) else float(value)
        steps, values = run.curves.get(figure.name, (np.empty(0), np.empty(0)))
        places = run.axis_values(self.axis, steps)
        known = ~np.isnan(places)
        # The clock's rounding must not exclude the last measurement.
        if not known.any() or not places[known][0] * (1 - ROUNDING) <= at <= places[known][-1] * (1 + ROUNDING):
            return None
        value = float(np.interp(at, places[known], values[known]))
        return value if np.isfinite(value) else None

    @cached_property
    def differences(self) -> dict[str, dict[tuple[int, int], Difference]]:
        """Differences by figure and by two groups of one problem that have it: first minus second."""
        result: dict[str, dict[tuple[int, int], Difference]] = {}
        for figure in self.figures:
            columns = self.columns(figure)
            result[figure.name] = {
                (i, j): self._difference(figure, i, j)
                for i, j in combinations(range(len(self.groups)), 2)
                if columns[i] and columns[j] and self.groups[i].problem == self.groups[j].problem
            }
        return result

    def between(self, figure: Figure, first: int, second: int) -> Difference | None:
        """Return the difference of two groups, first minus second; None if they are not compared."""
        pairs = self.differences[figure.name]
        if (first, second) in pairs:
            return pairs[first, second]
        reverse = pairs.get((second, first))
        return None if reverse is None else reverse.reversed()

    def against(self, figure: Figure, reference: int) -> dict[int, Verdict]:
        """Return the verdicts on all other groups that are compared with a reference, by their numbers."""
        others = (i for i in range(len(self.groups)) if i != reference)
        gaps = {i: gap for i in others if (gap := self.between(figure, i, reference)) is not None}
        return self.judge(figure, gaps)

    def judge(self, figure: Figure, gaps: Mapping[Name, Difference]) -> dict[Name, Verdict]:
        """Judge differences in a figure together. Only those of shares can be equivalent."""
        return verdicts(gaps, self.within * POINT if figure.is_share else None)

    def _difference(self, figure: Figure, first: int, second: int) -> Difference:
        """Compare two groups: run by run if both have the same seeds and batches, else as independent groups."""
        runs = [self._by_batches(figure, self.groups[number]) for number in (first, second)]
        if runs[0].keys() == runs[1].keys() and len(runs[0]) == len(self.columns(figure)[first]):
            return difference(list(runs[0].values()), [runs[1][key] for key in runs[0]], paired=True)
        return difference(self.columns(figure)[first], self.columns(figure)[second])

    def _by_batches(self, figure: Figure, group: Group) -> dict[tuple[Any, ...], float]:
        """Return the values of a group by the batches of its runs."""
        values = {run.batches: self.value(run, figure, self.at[group.problem]) for run in group.runs}
        return {key: value for key, value in values.items() if value is not None}

    def best(self, figure: Figure, problem: str) -> int | None:
        """Return the group with the best mean; None if there is no choice."""
        means = {
            number: statistics.fmean(values)
            for number, values in enumerate(self.columns(figure))
            if values and self.groups[number].problem == problem
        }
        if figure.more_is_better is None or len(set(means.values())) < 2:
            return None
        return (max if figure.more_is_better else min)(means, key=lambda number: means[number])

    def curve(self, group: Group, name: str) -> dict[str, list[float | None]]:
        """Return mean and deviation over the runs that have a curve, where all of them were being measured.

        Returns:
            Lists for "mean", "deviation" and each axis; an empty dict if the runs have no common steps.
        """
        runs = [run for run in group.runs if name in run.curves]
        curves = [run.curves[name] for run in runs]
        if not curves:
            return {}
        begin, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
        steps = np.unique(np.concatenate([steps for steps, _ in curves]))
        steps = steps[(steps >= begin) & (steps <= end)]
        if not len(steps):
            return {}
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).astype(np.int64))]
        values = np.array([np.interp(steps, *curve) for curve in curves])
        timed = [run for run in runs if "train/seconds" in run.curves] or runs
        places = {axis: np.mean([run.axis_values(axis, steps) for run in timed], axis=0) for axis in AXES}
        deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
        return {
            **{axis: for_json(axis_values) for axis, axis_values in places.items()},
            "mean": for_json(values.mean(0)),
            "deviation": for_json(deviation),
        }

    def point(self, problem: str) -> str:
        """Return the point of a problem with its unit."""
        at = self.at[problem]
        return f"{at:,.0f} {AXES[self.axis]}" if at >= 10 else f"{at:.3g} {AXES[self.axis]}"

    @property
    def where(self) -> str:
        """The point of the comparison in words."""
        points = list(dict.fromkeys(self.point(problem) for problem in self.problems))
        return f"at {points[0]}" if len(points) == 1 else f"at equal {self.axis}"

    def runs_of(self, problem: str) -> list[Run]:
        """Return the runs of a problem."""
        return [run for group in self.groups if group.problem == problem for run in group.runs]

    def end(self, run: Run) -> float:
        """Return the last point of a run."""
        steps = float(run.summary["steps"])
        return float(run.axis_values(self.axis, np.array([steps]))[0])

    def _reached_by_all(self, problem: str) -> float:
        """Return the last point that all runs of a problem have reached."""
        ends = [self.end(run) for run in self.runs_of(problem)]
        return float(np.nanmin(ends)) if not np.isnan(ends).all() else float("nan")

    def _time(self, run: Run, at: float) -> float | None:
        """Return the seconds of training up to a point."""
        per_step = run.images_per_step if self.axis == "images" else 1
        seconds = at if self.axis == "seconds" else float(run.axis_values("seconds", np.array([at / per_step]))[0])
        return seconds if at <= self.end(run) * (1 + ROUNDING) and not np.isnan(seconds) else None


def for_json(values: Iterable[float | None]) -> list[float | None]:
    """Return numbers with seven digits, and None for NaN, which JSON has not."""
    return [None if value is None or not math.isfinite(value) else float(f"{value:.7g}") for value in values]
