"""`python -m experiments.compare PATH...`: compare finished runs at equal images, steps or seconds of training.

A PATH is the folder of a run or any folder above. Runs are grouped by head and options. Each figure is a mean over
seeds with its standard deviation. The command prints tables and writes comparison.html, a page with plots that needs no
network, comparison.csv and differences.csv.
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

from .comparing.comparison import AXES, WITHIN, Comparison
from .comparing.figures import TIME, Figure, format_option, spread
from .comparing.loading import LeftOut, load
from .comparing.notes import notes_on
from .comparing.runs import short_names
from .tables import Cell, console, packed, readable

# Marks of values that are equivalent to the best, that cannot be distinguished from it, and that too few runs decide.
BEST, SAME, CLOSE, UNKNOWN = "*", "=", "≈", "?"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="the folder of a run, or one above")
    parser.add_argument(
        "--equal", choices=list(AXES), default="images", help="axis on which runs are compared at one point (images)"
    )
    parser.add_argument(
        "--at",
        type=float,
        metavar="NUMBER",
        help="the point on that axis (the last that all runs of a problem have reached)",
    )
    parser.add_argument(
        "--within",
        type=float,
        default=WITHIN,
        metavar="POINTS",
        help="points within which two heads count as equivalent (%(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of the page and the files (outputs/compare/DATE/TIME); created if it does not exist",
    )
    options = parser.parse_args()
    output = options.output or Path(f"outputs/compare/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}")
    try:
        shown = show(options.paths, options.equal, options.at, options.within)
        if shown is not None:
            write_files(*shown, output)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or output}: {error.strerror or error}")


NEVER_BEGAN = ("failed at step 0", "no summary.json: the run was refused, is starting, or was killed")
MAX_LISTED = 12  # left-out runs that are printed


def show(
    paths: list[Path], axis: str = "images", at: float | None = None, within: float = WITHIN
) -> tuple[Comparison, LeftOut] | None:
    """Print the tables of all finished runs under the paths, and the list of the other runs.

    Returns:
        The comparison and the runs that are left out; None if no run has finished.

    Raises:
        ValueError: there is no run, or `Comparison` refuses an argument.
    """
    finished, left_out = load(paths)
    if not finished and not left_out:
        raise ValueError(
            f"there is no run under {', '.join(map(str, paths))}; the folder of a run has config.yaml and summary.json"
        )
    screen = console()
    comparison = Comparison(finished, axis, at, within) if finished else None
    if comparison is not None:
        for table in tables(comparison, screen.width):
            screen.print(table)
        for note in notes_on(comparison, short_names([run.folder for run in finished])):
            screen.print(note, soft_wrap=True, highlight=False)
    # Runs that never began come last, and a long list is cut.
    listed = sorted(left_out, key=lambda entry: entry[1] in NEVER_BEGAN)
    for folder, reason in listed[:MAX_LISTED]:
        screen.print(f"Left out: {folder} ({reason})", soft_wrap=True, highlight=False)
    if len(listed) > MAX_LISTED:
        screen.print(f"Left out: {len(listed) - MAX_LISTED} more", highlight=False)
    return None if comparison is None else (comparison, left_out)


def write_files(comparison: Comparison, left_out: LeftOut, folder: Path) -> None:
    """Write the page and the CSV files."""
    from .comparing.page import page  # importing plotly takes time

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "comparison.html", page(comparison, left_out))
    write_whole(folder / "comparison.csv", _csv(group_lines(comparison)))
    write_whole(folder / "differences.csv", _csv(difference_lines(comparison)))
    screen = console()
    screen.print(f"In {folder}: comparison.html, comparison.csv, differences.csv", soft_wrap=True)
    screen.print(f"Page: {(folder / 'comparison.html').absolute().as_uri()}", soft_wrap=True, highlight=False)


def tables(comparison: Comparison, width: int) -> list[Table]:
    """Return tables of at most `width` characters, with a line for each head and its options.

    Cells have mean and standard deviation over seeds.
    """
    groups = comparison.groups
    keys = {"head": [group.head for group in groups]}
    if len(comparison.problems) > 1:
        keys["on"] = [group.problem for group in groups]
    for name in comparison.options:
        keys[name] = [format_option(group.options.get(name, "")) for group in groups]
    keys["runs"] = [str(len(group.runs)) for group in groups]
    figures = {
        figure.title: [_cell(comparison, figure, number) for number in range(len(groups))]
        for figure in comparison.figures
    }
    meanings = {
        BEST: "best",
        SAME: f"within {comparison.within:g} points of the best",
        CLOSE: "not distinguishable from the best",
        UNKNOWN: "too few runs to decide",
    }
    cells = [str(cell) for column in figures.values() for cell in column]
    marks = [f"{mark} {meaning}" for mark, meaning in meanings.items() if any(cell.endswith(mark) for cell in cells)]
    if any(len(group.runs) > 1 for group in groups):
        what = "mean ± standard deviation over seeds"
    else:
        what = "one run of each, so that differences may be noise; best in bold"
    title = "; ".join(filter(None, [f"{len(comparison.runs)} runs {comparison.where}", what, ", ".join(marks)]))
    return packed(keys, figures, title, width)


def group_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the lines of comparison.csv, one for each group."""
    lines = []
    for number, group in enumerate(comparison.groups):
        line: dict[str, Any] = {"head": group.head, "on": group.problem, **group.options, "runs": len(group.runs)}
        line["seeds"] = " ".join(str(run.summary.get("seed", "")) for run in group.runs)
        line[f"at_{comparison.axis}"] = comparison.at[group.problem]
        for figure in comparison.figures:
            values = comparison.columns(figure)[number]
            mean, deviation = spread(values) if values else (None, None)
            line |= {figure.name: mean, f"{figure.name} deviation": deviation}  # None becomes an empty cell
        lines.append(line)
    return lines


def difference_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the lines of differences.csv, one for each figure and two groups: first minus second.

    `p_holm` is corrected for all pairs of a problem in one figure.
    """
    lines = []
    for figure in comparison.figures:
        for problem in comparison.problems:
            pairs = {
                (i, j): gap
                for (i, j), gap in comparison.differences[figure.name].items()
                if comparison.groups[i].problem == problem
            }
            lines += [
                {
                    "figure": figure.name,
                    "on": problem,
                    "first": comparison.groups[i].label,
                    "second": comparison.groups[j].label,
                    "difference": gap.mean,
                    **dict(zip(("low", "high"), gap.interval or (None, None), strict=True)),
                    "beyond_noise": gap.beyond_noise,
                    "paired": gap.paired,
                    "p": gap.p,
                    "p_holm": verdict.p_holm,
                    "equivalent": verdict.equivalent,
                }
                for (i, j), verdict in comparison.judge(figure, pairs).items()
                for gap in (verdict.difference,)
            ]
    return lines


def format_value(figure: Figure, value: float) -> str:
    """Format the value of a figure, in the unit of its column."""
    if figure is TIME:
        return readable("seconds", value)
    if figure.kind == "fidelity" or figure.is_share:
        return f"{value:.4f}"
    return readable(figure.name, value)


def _cell(comparison: Comparison, figure: Figure, number: int) -> Cell:
    values = comparison.columns(figure)[number]
    if not values:
        return ""
    mean, deviation = spread(values)
    text = format_value(figure, mean)
    if deviation or (deviation is not None and not figure.name.endswith("bytes")):
        text += f" ± {format_value(figure, deviation)}"
    best = comparison.best(figure, comparison.groups[number].problem)
    if best == number:
        return Text(f"{text} {BEST}" if len(comparison.groups[number].runs) > 1 else text, "bold")
    if best is None or all(len(group.runs) == 1 for group in comparison.groups):
        return text
    verdict = comparison.against(figure, best)[number]
    if verdict.equivalent:
        return f"{text} {SAME}"
    return text if verdict.beyond_noise else f"{text} {UNKNOWN if verdict.beyond_noise is None else CLOSE}"


def _csv(lines: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.writer(text)
    writer.writerow(map(_harmless, names))
    writer.writerows([_harmless(line.get(name, "")) for name in names] for line in lines)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """Return a cell with an apostrophe before text that a spreadsheet would run as a formula. Numbers do not change."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


if __name__ == "__main__":
    main()
