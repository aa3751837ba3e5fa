"""`python -m experiments.benchmark bench=NAME`: measure time and memory, as ratios within one run.

The command prints a table and what the machine computes and copies per second. It writes them to benchmark.json, and
for some benchmarks a plot to benchmark.png.
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

from heads.objectives.softmax import CHUNK_ROWS

from .benches.rates import BATCH, EMBEDDING_SIZE, machine_rates
from .imports import end_imports
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
    "over_torch",
    "_seconds",
    "mean_age",
    "before_index",
    "speedup",
)
AXES = {"num_classes": "classes", "active": "active classes"}
MARKERS = "osD^vPX*"


@hydra.main(config_path="../conf", config_name="benchmark", version_base="1.3")
def job(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    device = config.bench.get("device", "cpu")
    rates = [machine_rates(device)]
    try:
        lines = instantiate(config.bench, _convert_="all")
    except ValueError as error:
        sys.exit(f"error: {error}")
    rates.append(machine_rates(device))
    threads = torch.get_num_threads()
    machine = {"torch": torch.__version__, "threads": threads, "machine": platform.machine(), "rates": rates}
    (folder / "benchmark.json").write_text(json.dumps({"machine": machine, "lines": lines}, indent=2) + "\n")
    screen = console()
    for table in tables(lines, screen.width):
        screen.print(table)
    screen.print(f"Machine before and after: {described(rates)}, {threads} threads", soft_wrap=True)
    if all({"head", "step_ms", *AXES} <= line.keys() for line in lines):
        plot(lines, folder / "benchmark.png")
    screen.print(f"In {folder}", soft_wrap=True)


def tables(lines: list[dict[str, Any]], width: int) -> list[Table]:
    """Return tables with a line for each case. Options with the same value in all cases go into the title."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    columns = {name: [readable(name, line[name]) if name in line else "" for line in lines] for name in names}
    measured = [name for name in names if is_figure(name)]
    same = [name for name in names if name not in measured and len(lines) > 1 and len(set(columns[name]) - {""}) == 1]
    keys = {name: columns[name] for name in names if name not in same and name not in measured}
    title = ", ".join(f"{name} {max(columns[name])}" for name in same)
    return packed(keys, {name: columns[name] for name in measured}, title, width)


def is_figure(name: str) -> bool:
    """Return whether a column is measured; others are options."""
    return name.endswith(FIGURES)


def described(rates: list[dict[str, float]]) -> str:
    """Return the rates of the machine as a sentence."""
    product, copy, gather = (
        " and ".join(f"{rate[name]:.3g}" for rate in rates)
        for name in ("gflop_per_second", "copy_gb_per_second", "gather_gb_per_second")
    )
    sizes = f"{CHUNK_ROWS} x {EMBEDDING_SIZE} by {EMBEDDING_SIZE} x {BATCH}"
    return (
        f"{product} GFLOP/s in float32 products of {sizes}, {copy} GB/s in contiguous copies, {gather} GB/s in gathers "
        f"of single rows of {4 * EMBEDDING_SIZE} bytes"
    )


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Plot milliseconds per step against the number of classes and of active classes, on logarithmic axes."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for panel, (x, title) in zip(panels, AXES.items(), strict=True):
        for number, (name, members) in enumerate(series(lines).items()):
            members = sorted(members, key=lambda line: line[x])
            ours = "over_floor" in members[0] or members[0]["over_first"] == 1
            panel.errorbar(
                [line[x] for line in members],
                [line["step_ms"] for line in members],
                yerr=[line["spread_ms"] for line in members],
                color=f"C{number}",
                marker=MARKERS[number % len(MARKERS)],
                markerfacecolor=f"C{number}" if ours else "white",
                linestyle="-" if ours else "--",
                label=name,
            )
        panel.set(xscale="log", yscale="log", xlabel=title)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds per step")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def series(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of each head and baseline, by its name and the options that differ among its lines."""
    result: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        own = [other for other in lines if other["head"] == line["head"]]
        options = [name for name in line if name not in ("head", *AXES) and not is_figure(name)]
        differing = [name for name in options if len({other.get(name) for other in own}) > 1]
        title = ", ".join([line["head"], *(f"{name} {readable(name, line[name])}" for name in differing)])
        result.setdefault(title, []).append(line)
    return result


def main() -> None:
    end_imports()
    job()


if __name__ == "__main__":
    main()
