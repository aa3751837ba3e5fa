"""Notes on a comparison: what a reader must know before comparing the figures."""

from pathlib import Path

from .comparison import Comparison
from .floor import memory_floor


def notes_on(comparison: Comparison, names: dict[Path, str]) -> list[str]:
    """Return the notes on a comparison.

    Args:
        comparison: the comparison.
        names: short names of the runs by folder.
    """
    notes = []
    if unevaluated := [names[run.folder] for run in comparison.runs if not run.is_evaluated]:
        notes.append(f"Runs without an evaluation, compared by costs only: {', '.join(unevaluated)}")
    if len(comparison.problems) > 1:
        notes.append(
            f"{len(comparison.problems)} problems ({'; '.join(comparison.problems)}): best figures and differences are "
            "computed within each problem"
        )
    notes += [note for problem in comparison.problems for note in _on_point(comparison, problem, names)]
    for problem in comparison.problems:
        if floor := memory_floor(comparison, problem):
            notes.append(floor.sentence + (f" on {problem}" if len(comparison.problems) > 1 else ""))
    if single := [group.label for group in comparison.groups if len(group.runs) == 1]:
        which = ", ".join(single) if len(single) < len(comparison.groups) else "all groups"
        notes.append(f"One run gives no error bar; run several seeds: {which}")
    untimed = [names[run.folder] for run in comparison.runs if "train/seconds" not in run.curves]
    if untimed and comparison.axis == "seconds":
        notes.append(f"Runs without times in metrics.csv, not compared at equal seconds: {', '.join(untimed)}")
    if late := _evaluated_later(comparison, names):
        notes.append(f"Runs not evaluated by then (evaluate.interval sets when): {', '.join(late)}")
    return notes


def _on_point(comparison: Comparison, problem: str, names: dict[Path, str]) -> list[str]:
    """Return the notes on runs that went beyond the point of a problem, or ended before it."""
    notes = []
    at = comparison.at[problem]
    ends = {names[run.folder]: comparison.end(run) for run in comparison.runs_of(problem)}
    beyond = [name for name, end in ends.items() if end > at * 1.001]
    if beyond and comparison.asked is None:
        shortest = min(ends, key=lambda name: ends[name])
        notes.append(
            f"Compared at {comparison.point(problem)}, the end of {shortest}; {len(beyond)} of {len(ends)} runs are "
            "longer. --at sets another point"
        )
    if short := [name for name, end in ends.items() if end < at * (1 - 1e-9)]:
        notes.append(f"Runs that ended before {comparison.point(problem)}: {', '.join(short)}")
    return notes


def _evaluated_later(comparison: Comparison, names: dict[Path, str]) -> list[str]:
    """Return the names of evaluated runs that have no evaluation at the point of the comparison."""
    figures = [figure for figure in comparison.figures if figure.name.startswith("val/")]
    return [
        names[run.folder]
        for group in comparison.groups
        for run in group.runs
        if run.is_evaluated
        and all(comparison.value(run, figure, comparison.at[group.problem]) is None for figure in figures)
    ]
