"""`python -m experiments.compare PATH...`: finished runs side by side, at equal images, steps or seconds of training.

A PATH is a run's folder or any folder above. Runs are grouped by head and options; each figure is a mean over seeds
with its deviation. Prints tables, and leaves comparison.html, a page with plots that opens without a network, and
comparison.csv and differences.csv.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m experiments.compare")


import argparse
import csv
import io
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from data.files import write_whole

from .comparing import runs
from .comparing.comparison import AXES, TIME, Comparison, Figure, plain, spread
from .tables import Cell, console, packed, readable

# Marks of what differs from the best by no more than the noise, and of what has too few runs to tell.
CLOSE, UNKNOWN = "≈", "?"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run's folder, or one above")
    parser.add_argument("--equal", choices=list(AXES), default="images", help="what the runs have in common (images)")
    parser.add_argument(
        "--at", type=float, metavar="NUMBER", help="how many of them (as many as all runs of a problem reached)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for page and files (outputs/compare/DATE/TIME); made if missing"
    )
    options = parser.parse_args()
    output = options.output or Path(f"outputs/compare/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}")
    try:
        found = show(options.paths, options.equal, options.at)
        if found is not None:
            leave(*found, output)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or output}: {error.strerror or error}")


LeftOut = list[tuple[Path, str]]
NEVER_BEGAN = ("failed at step 0", "no summary.json: refused, still starting, or killed")
TOLD = 12  # of what is left out, on the screen


def show(paths: list[Path], axis: str = "images", at: float | None = None) -> tuple[Comparison, LeftOut] | None:
    """Prints the tables of all finished runs under the paths, and what did not finish; None if none has.

    Raises:
        ValueError: there is no run; or as `Comparison`.
    """
    finished, left_out = runs.load(paths)
    if not finished and not left_out:
        raise ValueError(
            f"no run under {', '.join(map(str, paths))}: a run's folder holds config.yaml and summary.json"
        )
    screen = console()
    comparison = Comparison(finished, axis, at) if finished else None
    if comparison is not None:
        for table in tables(comparison, screen.width):
            screen.print(table)
        for note in comparison.notes(runs.names([run.folder for run in finished])):
            screen.print(note, soft_wrap=True, highlight=False)
    # Those that never began are told last, and of many some.
    told = sorted(left_out, key=lambda each: each[1] in NEVER_BEGAN)
    for folder, why in told[:TOLD]:
        screen.print(f"Left out: {folder} ({why})", soft_wrap=True, highlight=False)
    if len(told) > TOLD:
        screen.print(f"Left out: {len(told) - TOLD} more", highlight=False)
    return None if comparison is None else (comparison, left_out)


def leave(comparison: Comparison, left_out: LeftOut, folder: Path) -> None:
    """Writes the page and the files."""
    from .comparing.page import page  # plotly takes a while

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "comparison.html", page(comparison, left_out))
    write_whole(folder / "comparison.csv", _csv(group_lines(comparison)))
    write_whole(folder / "differences.csv", _csv(difference_lines(comparison)))
    console().print(f"In {folder}: comparison.html, comparison.csv, differences.csv", soft_wrap=True)


def tables(comparison: Comparison, width: int) -> list[Table]:
    """One line for each head and set of options, mean and spread over its seeds.

    As many tables as it takes for none to be wider than `width` characters.
    """
    groups = comparison.groups
    keys = {"head": [group.head for group in groups]}
    if len(comparison.problems) > 1:
        keys["on"] = [group.problem for group in groups]
    for name in comparison.options:
        keys[name] = [plain(group.options.get(name, "")) for group in groups]
    keys["runs"] = [str(len(group.runs)) for group in groups]
    figures = {
        figure.title: [_cell(comparison, figure, number) for number in range(len(groups))]
        for figure in comparison.figures
    }
    marks = "* best"
    if any(CLOSE in str(cell) for cells in figures.values() for cell in cells):
        marks += f", {CLOSE} no further from it than the noise"
    if any(str(cell).endswith(UNKNOWN) for cells in figures.values() for cell in cells):
        marks += f", {UNKNOWN} too few runs to tell"
    title = f"{len(comparison.runs)} runs {comparison.where}; mean ± deviation over seeds; {marks}"
    return packed(keys, figures, title, width)


def group_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """For comparison.csv: a line a group."""
    lines = []
    for number, group in enumerate(comparison.groups):
        line: dict[str, Any] = {"head": group.head, "on": group.problem, **group.options, "runs": len(group.runs)}
        line["seeds"] = " ".join(str(run.summary.get("seed", "")) for run in group.runs)
        line[f"at_{comparison.axis}"] = comparison.at[group.problem]
        for figure in comparison.figures:
            values = comparison.columns(figure)[number]
            mean, deviation = spread(values) if values else (None, None)
            line |= {figure.name: mean, f"{figure.name} deviation": deviation}  # None is written as nothing
        lines.append(line)
    return lines


def difference_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """For differences.csv: a line for a figure of two groups, first minus second."""
    return [
        {
            "figure": name,
            "on": comparison.groups[i].problem,
            "first": comparison.groups[i].label,
            "second": comparison.groups[j].label,
            "difference": found.mean,
            **dict(zip(("low", "high"), found.interval or (None, None), strict=True)),
            "beyond_noise": found.beyond_noise,
        }
        for name, pairs in comparison.differences.items()
        for (i, j), found in pairs.items()
    ]


def shown_value(figure: Figure, value: float) -> str:
    """As its column has it."""
    if figure.name.endswith("bytes"):
        return f"{value / 2**20:,.1f}"
    if figure is TIME:
        return readable("seconds", value)
    if figure.kind == "fidelity" or figure.name.startswith(("val/", "train/top1")):
        return f"{value:.4f}"
    return readable(figure.name, value)


def _cell(comparison: Comparison, figure: Figure, number: int) -> Cell:
    values = comparison.columns(figure)[number]
    if not values:
        return ""
    mean, deviation = spread(values)
    text = shown_value(figure, mean)
    if deviation is not None:
        text += f" ± {shown_value(figure, deviation)}"
    best = comparison.best(figure, comparison.groups[number].problem)
    if best == number:
        return Text(f"{text} *", "bold")
    if best is None or all(len(group.runs) == 1 for group in comparison.groups):
        return text
    found = comparison.between(figure, number, best)
    assert found is not None
    return text if found.beyond_noise else f"{text} {UNKNOWN if found.beyond_noise is None else CLOSE}"


def _csv(lines: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.writer(text)
    writer.writerow(map(_harmless, names))
    writer.writerows([_harmless(line.get(name, "")) for name in names] for line in lines)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """A spreadsheet takes text that begins so for a formula and runs it; numbers stay numbers."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


if __name__ == "__main__":
    main()
