"""`python -m experiments.evaluate checkpoint=RUN protocol=NAME`: evaluate a model by the protocols of the field.

Prints a table with 95% intervals, and writes evaluation.json and a plot of each result. With `trainer.devices=N`, N
processes share the images; the results are the same.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.evaluate")
    from .command_line.arguments import check_or_exit

    check_or_exit("evaluate")


import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from data.files import write_whole

from .cli import command, model
from .command_line import arguments
from .launching.processes import joined
from .protocols import Result, build_protocols
from .protocols.plots import plot, thinned
from .tables import console, readable


def evaluate(config: DictConfig, folder: Path) -> list[Result]:
    """Evaluate a model by all chosen protocols; return the results on process 0, which writes them to the folder.

    Raises:
        ValueError: an option, a file or the model does not fit.
    """
    if not config.protocol:
        names = ", ".join(path.stem for path in sorted((arguments.CONF / "protocol").glob("*.yaml")))
        raise ValueError(f"protocol=[] must name a protocol; choose from {names}")
    with joined(config) as processes:
        protocols = build_protocols(config)
        evaluated = model(config, processes)
        for protocol in protocols:
            protocol.check(evaluated)
        results = [result for protocol in protocols for result in protocol(evaluated)]
        if processes.is_rank_zero:
            print_results(results)
            write_results(results, config.checkpoint, folder)
    return results


def print_results(results: list[Result]) -> None:
    """Print the counts, a table and the notes of each result."""
    screen = console()
    for result in results:
        counts = ", ".join(f"{value:,} {name}" for name, value in result.counts.items())
        screen.print(f"\n{result.name}: {counts}")
        screen.print(table(result))
        for note in result.notes:
            screen.print(note)


def table(result: Result) -> Table:
    """Return the metrics of a result with their intervals."""
    rows = Table("", "", "95% interval")
    rows.columns[1].justify = "right"
    for name, value in result.metrics.items():
        ends = [readable("", end) for end in result.intervals.get(name, ())]
        rows.add_row(name, readable("", value), " .. ".join(ends))
    return rows


def write_results(results: list[Result], checkpoint: str | None, folder: Path) -> None:
    """Write evaluation.json, and a plot of each result."""
    for result in results:
        plot(result, folder / f"{result.name}.png")
    content = {"checkpoint": checkpoint, "results": [as_json(result) for result in results]}
    write_whole(folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
    plots = ", ".join(f"{result.name}.png" for result in results)
    console().print(f"In {folder}: evaluation.json, {plots}", soft_wrap=True)


def as_json(result: Result) -> dict[str, Any]:
    """Return the entry of a result in evaluation.json."""
    curves: dict[str, Any] = {}
    if "rates" in result.curves:
        rates = result.curves["rates"]
        cuts = thinned(rates)
        curves["roc"] = {"far": rates.far[cuts].tolist(), "tar": rates.tar[cuts].tolist()}
        curves["roc"]["threshold"] = [None, *rates.thresholds[cuts][1:].tolist()]
    if "cmc" in result.curves:
        ranks, shares = result.curves["cmc"]
        curves["cmc"] = {"rank": ranks.tolist(), "share": shares.tolist()}
    return {
        "name": result.name,
        "metrics": result.metrics,
        "intervals_95": result.intervals,
        "counts": result.counts,
        "notes": result.notes,
        "curves": curves,
    }


if __name__ == "__main__":
    command("evaluate", evaluate)
