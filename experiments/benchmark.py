"""`python -m experiments.benchmark bench=NAME`: measure time and memory, as ratios within one run.

The command prints a table and writes benchmark.json, and for most benchmarks a plot in benchmark.png.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.benchmark")
    from .command_line.arguments import check_or_exit

    check_or_exit("benchmark")


import json
import platform
import sys
from pathlib import Path
from typing import Any

import hydra
import matplotlib
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from .instantiate import instantiate
from .tables import console, packed, readable

# Endings of the names of measured figures; all other names are options.
FIGURES = (
    "_ms",
    "_share",
    "_error",
    "loss",
    "bytes",
    "per_second",
    "over_floor",
    "over_held",
    "over_formula",
    "over_limit",
    "over_first",
    "over_linked_list",
    "ns_per_key",
    "over_median",
    "_seconds",
    "mean_age",
    "before_index",
    "speedup",
)
HIDDEN = ("baseline_forward_ms", "baseline_backward_ms", "baseline_update_ms", "baseline_spread_ms")  # JSON only


@hydra.main(config_path="../conf", config_name="benchmark", version_base="1.3")
def job(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        lines = instantiate(config.bench, _convert_="all")
    except ValueError as error:
        sys.exit(f"error: {error}")
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    (folder / "benchmark.json").write_text(json.dumps({"machine": machine, "lines": lines}, indent=2) + "\n")
    screen = console()
    for table in tables(lines, screen.width):
        screen.print(table)
    if all("step_ms" in line and "num_classes" in line and "active" in line for line in lines):
        plot(lines, folder / "benchmark.png")
    screen.print(f"In {folder}", soft_wrap=True)


def tables(lines: list[dict[str, Any]], width: int) -> list[Table]:
    """Return tables with a line for each case. Options with the same value in all cases go into the title."""
    names = list(dict.fromkeys(name for line in lines for name in line if name not in HIDDEN))
    columns = {name: [readable(name, line[name]) if name in line else "" for line in lines] for name in names}
    measured = [name for name in names if name.endswith(FIGURES) or name in FIGURES]
    same = [name for name in names if name not in measured and len(lines) > 1 and len(set(columns[name])) == 1]
    keys = {name: columns[name] for name in names if name not in same and name not in measured}
    title = ", ".join(f"{name} {columns[name][0]}" for name in same)
    return packed(keys, {name: columns[name] for name in measured}, title, width)


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Plot milliseconds per step against the number of classes and of active classes, on logarithmic axes."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    series: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        rate = f" r={line['sample_rate']:g}" if line.get("head", "pfc") == "pfc" else ""
        series.setdefault(f"{line.get('head', 'ours')}{rate}", []).append(line)
    for panel, x, title in zip(panels, ("num_classes", "active"), ("classes", "active classes"), strict=True):
        for color, (name, members) in enumerate(series.items()):
            members = sorted(members, key=lambda line: line[x])
            places = [line[x] for line in members]
            panel.errorbar(
                places,
                [line["step_ms"] for line in members],
                yerr=[line["spread_ms"] for line in members],
                marker="o",
                color=f"C{color}",
                label=name,
            )
            if all("baseline_step_ms" in line for line in members):
                baseline = members[0].get("baseline", "baseline")
                times = [line["baseline_step_ms"] for line in members]
                panel.plot(places, times, "x--", color=f"C{color}", alpha=0.6, label=f"{baseline} for {name}")
        panel.set(xscale="log", yscale="log", xlabel=title)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds per step")
    panels[1].legend(fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    job()


if __name__ == "__main__":
    main()
