"""`python -m experiments.evaluate checkpoint=RUN protocol=NAME`: evaluate a model by the protocols of the field.

Prints a table with 95% intervals, and leaves evaluation.json and a picture of each result. With `trainer.devices=N`
it is N processes that share the images; the figures are the same.
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
    """What all protocols find, on the first process; written there too.

    Raises:
        ValueError: options, files or a model that do not fit.
    """
    if not config.protocol:
        names = ", ".join(path.stem for path in sorted((arguments.CONF / "protocol").glob("*.yaml")))
        raise ValueError(f"protocol=[]: choose of {names}")
    with joined(config) as processes:
        protocols = build_protocols(config)
        judged = model(config, processes)
        for protocol in protocols:
            protocol.check(judged)
        results = [result for protocol in protocols for result in protocol(judged)]
        if processes.is_rank_zero:
            leave(results, config.checkpoint, folder)
    return results


def leave(results: list[Result], checkpoint: str | None, folder: Path) -> None:
    """evaluation.json, a picture of each result, and tables on the screen."""
    screen = console()
    told = []
    for result in results:
        curves: dict[str, Any] = {}
        if "rates" in result.curves:
            rates = result.curves["rates"]
            cuts = thinned(rates)
            curves["roc"] = {"far": rates.far[cuts].tolist(), "tar": rates.tar[cuts].tolist()}
            curves["roc"]["threshold"] = [None, *rates.thresholds[cuts][1:].tolist()]
        if "cmc" in result.curves:
            curves["cmc"] = dict(zip(("rank", "share"), (each.tolist() for each in result.curves["cmc"]), strict=True))
        told.append(
            {
                "name": result.name,
                "metrics": result.metrics,
                "intervals_95": result.intervals,
                "counts": result.counts,
                "notes": result.notes,
                "curves": curves,
            }
        )
        counts = ", ".join(f"{value:,} {name}" for name, value in result.counts.items())
        screen.print(f"\n{result.name}: {counts}")
        screen.print(table(result))
        for note in result.notes:
            screen.print(note)
        plot(result, folder / f"{result.name}.png")
    write_whole(folder / "evaluation.json", json.dumps({"checkpoint": checkpoint, "results": told}, indent=2) + "\n")
    pictures = ", ".join(f"{each.name}.png" for each in results)
    screen.print(f"In {folder}: evaluation.json, {pictures}", soft_wrap=True)


def table(result: Result) -> Table:
    made = Table("", "", "95% interval")
    made.columns[1].justify = "right"
    for name, value in result.metrics.items():
        ends = [readable("", end) for end in result.intervals.get(name, ())]
        made.add_row(name, readable("", value), " .. ".join(ends))
    return made


if __name__ == "__main__":
    command("evaluate", evaluate)
