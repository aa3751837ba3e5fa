"""`python -m experiments.evaluate checkpoint=RUN protocol=NAME`: a model as the field judges it.

Prints a table with 95% intervals, and leaves evaluation.json and a picture of each result. With `trainer.devices=N`
it is N processes that share the images; the figures are the same.
"""

import json
import logging
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from data.files import write_whole
from data.records import DataSet

from . import INTERRUPTED, arguments
from .model import Model
from .plots import plot, thinned
from .processes import Processes, joined
from .protocols import Result, judges_of
from .run import start
from .tables import console, readable
from .trained import Trained, describe, model_of
from .world import end_with_parent, number_of_processes


def evaluate(config: DictConfig, folder: Path) -> list[Result]:
    """What all protocols find, on the first process; written there too.

    Raises:
        ValueError: options, files or a model that do not fit.
    """
    if not config.protocol:
        names = ", ".join(path.stem for path in sorted((arguments.CONF / "protocol").glob("*.yaml")))
        raise ValueError(f"protocol=[]: choose of {names}")
    with joined(config) as processes:
        judges = judges_of(config)
        model, about = loaded(config, processes)
        if processes.first:
            print(about, flush=True)
        results = [result for judge in judges for result in judge(model)]
        if processes.first:
            leave(results, config.checkpoint, folder)
    return results


def loaded(config: DictConfig, processes: Processes) -> tuple[Model, str]:
    """The model of `checkpoint=`, and what it is."""
    if config.batch_size < 1 or config.num_workers < 0:
        raise ValueError(
            f"batch_size={config.batch_size}, num_workers={config.num_workers}: at least 1 and at least 0 are needed"
        )
    if config.checkpoint is None:
        return Model(torch.nn.Identity(), processes, nullcontext, None, _no_data), "Features, without a model"
    trained = Trained(config.checkpoint)
    return model_of(trained, processes, config.trainer.precision, config.num_workers, config.batch_size), describe(
        trained
    )


def _no_data() -> DataSet:
    raise ValueError("checkpoint=null: without a model all that is compared must be given, as features")


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
                "curves": curves,
            }
        )
        screen.print(table(result))
        plot(result, folder / f"{result.name}.png")
    write_whole(folder / "evaluation.json", json.dumps({"checkpoint": checkpoint, "results": told}, indent=2) + "\n")
    screen.print(f"In {folder}: evaluation.json, {', '.join(f'{each.name}.png' for each in results)}", soft_wrap=True)


def table(result: Result) -> Table:
    counts = ", ".join(f"{value:,} {name}" for name, value in result.counts.items())
    made = Table("", "", "95% interval", title=f"{result.name}: {counts}", title_justify="left")
    made.columns[1].justify = "right"
    for name, value in result.metrics.items():
        low, high = result.intervals.get(name, (np.nan, np.nan))
        interval = f"{readable('', low)} .. {readable('', high)}" if name in result.intervals else ""
        made.add_row(name, readable("", value), interval)
    return made


@hydra.main(config_path="../conf", config_name="evaluation", version_base="1.3")
def job(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    OmegaConf.resolve(config)
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(config))
    try:
        if number_of_processes(config) > 1:
            sys.exit(start([sys.executable, "-m", "experiments.launch", str(folder), "evaluate"], dict(os.environ)))
        evaluate(config, folder)
    except ValueError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    warnings.filterwarnings(
        "ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning
    )  # Lightning
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        if "RANK" not in os.environ:
            arguments.check_or_exit("evaluation")
            job()
            return
        end_with_parent()  # one of several, started by experiments.launch
        evaluate(OmegaConf.load(Path(sys.argv[1], "config.yaml")), Path(sys.argv[1]))  # type: ignore[arg-type]
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
