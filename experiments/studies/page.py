"""The page of results: its tables and plots, each drawn from the CSV file of a study."""

import re
from collections.abc import Callable
from pathlib import Path

from data.files import write_whole

from . import plots, report
from .results import Results

Draw = Callable[[Results, Path], None]
# Names of tables in docs/results.md -> the study and how its table is drawn.
TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "hanzi_factors": ("hanzi_factors", lambda results: report.main_table(results, "full", ("pfc", "small"))),
    "hanzi_heads": ("hanzi_heads", lambda results: report.main_table(results, "full")),
    "hanzi_heads tuned": ("hanzi_heads", report.tuned_table),
    "hanzi_margins": ("hanzi_margins", lambda results: report.main_table(results, "cosface")),
    "hanzi_margins tuned": ("hanzi_margins", report.tuned_table),
    "sphere_heads": ("sphere_heads", lambda results: report.main_table(results, "full", timed="pfc")),
    "sphere_heads tuned": ("sphere_heads", report.tuned_table),
    "portraits": ("portraits", lambda results: report.main_table(results, "full")),
    "sphere_million": ("sphere_million", lambda results: report.cost_table(results, "full")),
    "sphere_number": ("sphere_number", report.number_table),
}
# Pictures in docs/results -> the study and how it is drawn.
PLOTS: dict[str, tuple[str, Draw]] = {
    "hanzi_factors": ("hanzi_factors", lambda results, path: plots.dots(results, "full", path)),
    "hanzi_heads": ("hanzi_heads", lambda results, path: plots.dots(results, "full", path)),
    "hanzi_margins": ("hanzi_margins", lambda results, path: plots.dots(results, "cosface", path)),
    "portraits": ("portraits", lambda results, path: plots.dots(results, "full", path)),
    "sphere_heads": ("sphere_heads", lambda results, path: plots.dots(results, "full", path)),
    "sphere_number": ("sphere_number", plots.number),
}
BLOCK = re.compile(r"(<!-- (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def redraw(docs: Path) -> list[Path]:
    """Redraw the tables in results.md and the pictures in results/. Return the files that were written.

    Raises:
        ValueError: the page names a table that is not in `TABLES`, or a study without results.
    """
    path = docs / "results.md"
    text = path.read_text()
    write_whole(path, BLOCK.sub(lambda match: f"{match[1]}\n{table(docs, match['name'])}\n\n{match[3]}", text))
    written = [path]
    for name, (study, draw) in PLOTS.items():
        if f"results/{name}.png" in text:
            written.append(docs / "results" / f"{name}.png")
            draw(results_of(docs, study), written[-1])
    return written


def table(docs: Path, name: str) -> str:
    """Return a table of the page."""
    if name not in TABLES:
        raise ValueError(f"results.md has the table {name!r}, which must be one of {', '.join(TABLES)}")
    study, draw = TABLES[name]
    return draw(results_of(docs, study))


def results_of(docs: Path, study: str) -> Results:
    """Return the results of a study. Raise ValueError if there are none."""
    path = docs / "results" / f"{study}.csv"
    if not path.exists():
        raise ValueError(f"{path} does not exist; python -m experiments.study tuned={study} writes it")
    return Results(path)
