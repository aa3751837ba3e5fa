"""The page of a comparison: one HTML file that contains its data, its plots and plotly."""

import html
import json
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from .comparison import AXES, Comparison, for_json
from .figures import MEMORY, Figure, format_option, spread
from .floor import memory_floor
from .loading import LeftOut
from .notes import notes_on
from .runs import short_names
from .sentences import outcome, trained

PARTS = Path(__file__).with_name("page")
SCRIPTS = ("values", "selection", "axes", "plots", "tables", "controls")  # in the order in which the page runs them
CURVES = ("val/", "train/", "fidelity/", "throughput/", "head/step_ms")  # prefixes of the curves that are drawn


def page(comparison: Comparison, left_out: LeftOut) -> str:
    """Return the HTML."""
    from plotly.offline import get_plotlyjs

    # In JSON "<" is escaped, so that the data cannot contain a tag such as the end of the script.
    data = json.dumps(content(comparison, left_out), allow_nan=False).replace("<", "\\u003c")
    filled = {
        "title": html.escape(title(comparison)),
        "style": (PARTS / "page.css").read_text(),
        "plotly": get_plotlyjs(),
        "data": data,
        "script": "\n".join((PARTS / f"{name}.js").read_text() for name in SCRIPTS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filled[place[1]], (PARTS / "page.html").read_text())


def title(comparison: Comparison) -> str:
    """Return the names of the heads and the number of runs."""
    heads = list(dict.fromkeys(group.head for group in comparison.groups))
    return f"{', '.join(heads)}: {len(comparison.runs)} runs"


def content(comparison: Comparison, left_out: LeftOut) -> dict[str, Any]:
    """Return what the script draws: figures, groups with their values and curves, and differences."""
    names = short_names([run.folder for run in comparison.runs] + [folder for folder, _ in left_out])
    figures = {figure.name: figure for figure in comparison.figures}
    curves = sorted({name for run in comparison.runs for name in run.curves if name.startswith(CURVES)})
    curves = [name for name in curves if name not in ("train/images", "train/seconds", "train/lr")]
    return {
        "title": title(comparison),
        "created": f"{datetime.now():%Y-%m-%d %H:%M}",
        "equal": comparison.axis,
        "where": comparison.where,
        "axes": AXES,
        "sweepMetric": sweep_metric(comparison),
        "memory": MEMORY.name,
        "problems": [_problem(comparison, problem) for problem in comparison.problems],
        "figures": [_figure(figure) for figure in comparison.figures],
        "options": comparison.options,
        "groups": [
            {
                "head": group.head,
                "isFull": group.is_full,
                "label": group.label,
                "options": {name: _option(value) for name, value in group.options.items()},
                "problem": comparison.problems.index(group.problem),
                "runs": [{"seed": run.summary.get("seed"), "folder": str(run.folder)} for run in group.runs],
                "values": {name: _spread(comparison.columns(figure)[number]) for name, figure in figures.items()},
                "each": {
                    name: for_json([comparison.value(run, figure, comparison.at[group.problem]) for run in group.runs])
                    for name, figure in figures.items()
                },
                "curves": {name: curve for name in curves if (curve := comparison.curve(group, name))},
            }
            for number, group in enumerate(comparison.groups)
        ],
        "curves": [{"name": name, "title": figures[name].title if name in figures else name} for name in curves],
        "differences": {
            name: [
                [i, j, gap.mean, *(gap.interval or (None, None)), gap.p, gap.paired, verdict.equivalent]
                for (i, j), verdict in comparison.judge(figure, comparison.differences[name]).items()
                for gap in (verdict.difference,)
            ]
            for name, figure in figures.items()
        },
        "within": comparison.within,
        "notes": notes_on(comparison, names),
        "leftOut": [{"name": names[folder], "reason": reason} for folder, reason in left_out],
    }


def sweep_metric(comparison: Comparison) -> str | None:
    """Return the figure that the runs name as `sweep_metric`; None if they name none or several."""
    names = {run.options.get("sweep_metric") for run in comparison.runs}
    name = names.pop()
    return str(name) if name and not names else None


def main_figure(comparison: Comparison) -> Figure | None:
    """Return the figure that the first sentences speak of: the sweep's metric, or else the first one of quality."""
    measured = [figure for figure in comparison.figures if figure.more_is_better is not None]
    wanted = [figure for figure in measured if figure.name == sweep_metric(comparison)]
    return next(iter([*wanted, *(figure for figure in measured if figure.kind == "quality")]), None)


def _problem(comparison: Comparison, problem: str) -> dict[str, Any]:
    floor = memory_floor(comparison, problem)
    return {
        "name": problem or "all runs",
        "trained": trained(comparison, problem),
        "outcome": outcome(comparison, problem, figure) if (figure := main_figure(comparison)) else "",
        "point": comparison.point(problem),
        "floor": None if floor is None else {"bytes": floor.bytes, "text": floor.sentence},
    }


def _figure(figure: Figure) -> dict[str, Any]:
    better = None if figure.more_is_better is None else "more" if figure.more_is_better else "less"
    unit = "bytes" if figure.name.endswith("bytes") else "number" if figure.kind == "cost" else "share"
    return {
        "name": figure.name,
        "title": figure.title,
        "better": better,
        "kind": figure.kind,
        "unit": unit,
        "meaning": figure.meaning,
    }


def _option(value: Any) -> Any:
    """Return a number unchanged, and any other value as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else format_option(value)


def _spread(values: list[float]) -> dict[str, Any] | None:
    return dict(zip(("mean", "deviation"), spread(values), strict=True)) if values else None
