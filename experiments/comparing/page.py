"""The page of a comparison: one HTML file with its data, its plots and plotly inside."""

import html
import json
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from . import runs
from .comparison import AXES, Comparison, Figure, plain, spread

PARTS = Path(__file__).with_name("page")
CURVES = ("val/", "train/", "fidelity/", "throughput/", "head/step_ms")  # beginnings of what is drawn against time


def page(comparison: Comparison, left_out: list[tuple[Path, str]]) -> str:
    """The HTML."""
    from plotly.offline import get_plotlyjs

    parts = {name: (PARTS / f"page.{name}").read_text() for name in ("html", "css", "js")}
    # No tag, not of the end of a script nor any other, must stand in one.
    data = json.dumps(content(comparison, left_out), allow_nan=False).replace("<", "\\u003c")
    filled = {"style": parts["css"], "plotly": get_plotlyjs(), "data": data, "script": parts["js"]}
    filled["title"] = html.escape(title(comparison))
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filled[place[1]], parts["html"])


def title(comparison: Comparison) -> str:
    heads = list(dict.fromkeys(group.head for group in comparison.groups))
    return f"{', '.join(heads)}: {len(comparison.runs)} runs"


def content(comparison: Comparison, left_out: list[tuple[Path, str]]) -> dict[str, Any]:
    """What the page's script draws: figures, groups with their values and curves, and differences."""
    names = runs.names([run.folder for run in comparison.runs] + [folder for folder, _ in left_out])
    figures = {figure.name: figure for figure in comparison.figures}
    curves = sorted({name for run in comparison.runs for name in run.curves if name.startswith(CURVES)})
    curves = [name for name in curves if name not in ("train/seconds", "train/lr")]
    return {
        "title": title(comparison),
        "made": f"{datetime.now():%Y-%m-%d %H:%M}",
        "equal": comparison.axis,
        "where": comparison.where,
        "axes": AXES,
        "problems": [
            {"name": problem or "all runs", "point": comparison.point(problem)} for problem in comparison.problems
        ],
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
                "curves": {name: found for name in curves if (found := comparison.curve(group, name))},
            }
            for number, group in enumerate(comparison.groups)
        ],
        "curves": [{"name": name, "title": figures[name].title if name in figures else name} for name in curves],
        "differences": {
            name: [[i, j, found.mean, *(found.interval or (None, None))] for (i, j), found in pairs.items()]
            for name, pairs in comparison.differences.items()
        },
        "notes": comparison.notes(names),
        "leftOut": [{"name": names[folder], "why": why} for folder, why in left_out],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    better = None if figure.more_is_better is None else "more" if figure.more_is_better else "less"
    unit = "bytes" if figure.name.endswith("bytes") else "number" if figure.kind == "cost" else "share"
    return {"name": figure.name, "title": figure.title, "better": better, "kind": figure.kind, "unit": unit}


def _option(value: Any) -> Any:
    """A number, or how it is written."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else plain(value)


def _spread(values: list[float]) -> dict[str, Any] | None:
    return dict(zip(("mean", "deviation"), spread(values), strict=True)) if values else None
