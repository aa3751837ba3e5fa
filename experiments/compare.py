"""`python -m experiments.compare PATH...`: finished runs side by side, means over seeds, best figures marked.

A path is a run's folder or any folder above; a sweep prints the same table when it ends.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from .tables import console, packed, readable

# Column title -> (name in summary.json, whether more is better; None where neither is)
FIGURES: dict[str, tuple[str, bool | None]] = {
    "rank-1": ("val/rank1", True),
    "TAR@FAR 1e-3": ("val/tar_at_far_1e-3", True),
    "verification": ("val/verification_accuracy", True),
    "loss": ("train/loss", None),
    "exact loss": ("train/exact_loss", False),
    "top-1": ("train/top1", True),
    "mass covered": ("head/mass_covered", None),
    "images/s": ("throughput/images_per_second", True),
    "head ms/step": ("head/step_ms", False),
    "active classes": ("head/active_classes", None),
    "head MiB": ("memory/head_bytes", False),
    "peak MiB": ("memory/peak_bytes", False),
}
# What differs between runs of one thing, or says nothing about it.
NOT_OPTIONS = ("seed", "resume", "logger.", "num_workers", "checkpoint.", "head._target_", "head.probe")


@dataclass(frozen=True)
class Run:
    folder: Path
    summary: dict[str, Any]
    options: dict[str, Any]  # dotted key -> value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run's folder, or one above")
    try:
        show(parser.parse_args().paths)
    except ValueError as error:
        sys.exit(f"error: {error}")


def show(paths: list[Path]) -> None:
    """Prints the table of all finished runs under the paths, and what did not finish."""
    finished, unfinished = load(paths)
    if not finished and not unfinished:
        raise ValueError(
            f"no run under {', '.join(map(str, paths))}: a run's folder holds config.yaml and summary.json"
        )
    screen = console()
    for table in tables(finished, screen.width) if finished else []:
        screen.print(table)
    for folder, why in unfinished:
        screen.print(f"Left out: {folder} ({why})", soft_wrap=True, highlight=False)


def load(paths: list[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Finished runs, and the others with the reason, in order of their folders."""
    finished, unfinished = [], []
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder")
    folders = {config.parent.resolve() for path in paths for config in path.rglob("config.yaml")}
    for folder in sorted(folders, key=_natural):
        if folder.name == ".hydra":
            continue
        try:
            summary = json.loads((folder / "summary.json").read_text())
        except FileNotFoundError:
            unfinished.append((folder, "no summary.json: still running, or killed"))
            continue
        except ValueError:
            unfinished.append((folder, "summary.json is damaged"))
            continue
        if summary["status"] != "finished":
            unfinished.append((folder, f"{summary['status']} at step {summary['steps']}"))
            continue
        options = flat(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
        finished.append(Run(folder, summary, options))
    return finished, unfinished


def tables(runs: list[Run], width: int) -> list[Table]:
    """One line for each head and set of options, mean and spread over its seeds.

    As many tables as it takes for none to be wider than `width` characters.
    """
    shown = differing(runs)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        key = (run.summary["head"], *(str(run.options.get(name, "")) for name in shown))
        groups.setdefault(key, []).append(run)
    figures: dict[str, list[str]] = {}
    for title, (name, _) in FIGURES.items():
        columns = [[float(run.summary[name]) for run in members if name in run.summary] for members in groups.values()]
        if any(columns):
            figures[title] = [_cell(title, columns, line) for line in range(len(groups))]
    keys = {title: [key[i] for key in groups] for i, title in enumerate(("head", *shown))}
    keys["runs"] = [str(len(members)) for members in groups.values()]
    return packed(keys, figures, f"{len(runs)} runs; mean ± deviation over seeds; * best", width)


def differing(runs: list[Run]) -> list[str]:
    """Options that are not the same in all runs that have them; of those that always agree, the shortest name."""
    names = sorted({name for run in runs for name in run.options}, key=lambda name: (name.count("."), name))
    by_values: dict[tuple[str, ...], str] = {}
    for name in names:
        if not name.startswith(NOT_OPTIONS):
            values = tuple(str(run.options.get(name, "")) for run in runs)
            if len({value for value, run in zip(values, runs, strict=True) if name in run.options}) > 1:
                by_values.setdefault(values, name)
    return list(by_values.values())


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in flat(child, _join(prefix, name)).items()}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else str(name)


def _cell(title: str, columns: list[list[float]], line: int) -> str:
    values = columns[line]
    if not values:
        return ""
    name, more_is_better = FIGURES[title]
    means = [statistics.fmean(column) for column in columns if column]
    mean = statistics.fmean(values)
    text = _figure(name, mean)
    if len(values) > 1:
        text += f" ± {_figure(name, statistics.stdev(values))}"
    # A figure that is the same everywhere has no best.
    if more_is_better is not None and len(set(means)) > 1 and mean == (max if more_is_better else min)(means):
        text = f"[bold]{text} *[/bold]"
    return text


def _figure(name: str, value: float) -> str:
    if name.endswith("bytes"):
        return f"{value / 2**20:,.1f}"
    return f"{value:.4f}" if name.startswith("val/") else readable(name, value)


def _natural(folder: Path) -> list[tuple[int, str]]:
    """Folder 10 after folder 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in folder.parts]


if __name__ == "__main__":
    main()
