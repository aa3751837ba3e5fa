"""`bench=startup`: time from a command to its first step, and of its imports, compared with importing torch alone."""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .measure import ratio

Measurements = dict[str, list[float]]  # case -> seconds of each repeat
TORCH = "import torch"


def startup(checkouts: list[str], words: list[str], repeats: int) -> list[dict[str, Any]]:
    """Return a line for each case and checkout: the median time, relative to `import torch` and to the first checkout.

    Args:
        checkouts: folders of this repository, or of others of its versions, measured in turns.
        words: arguments of `experiments.run`. Each run has two steps, and the sweep two runs.
        repeats: number of turns; one turn before them fills caches.

    Raises:
        ValueError: a folder is no checkout, or a command failed there.
    """
    folders = [Path(checkout).resolve() for checkout in checkouts]
    if missing := [folder for folder in folders if not (folder / "experiments" / "run.py").is_file()]:
        raise ValueError(f"checkouts={checkouts} must be folders of this repository; {missing[0]} has no experiments")
    found: list[Measurements] = [{} for _ in folders]
    for turn in range(1 + repeats):
        for folder, seconds in zip(folders, found, strict=True):
            for measure in (imports, run, sweep, plan):
                for case, value in measure(folder, words).items():
                    if turn:
                        seconds.setdefault(case, []).append(value)
    return [
        {
            "case": case,
            **({"checkout": str(folder)} if len(folders) > 1 else {}),
            "median_seconds": statistics.median(values),
            "over_torch": ratio(values, seconds[TORCH]),
            **({"over_first": ratio(values, found[0][case])} if len(folders) > 1 else {}),
        }
        for case in found[0]
        for folder, seconds in zip(folders, found, strict=True)
        for values in [seconds[case]]
    ]


def imports(folder: Path, words: list[str]) -> dict[str, float]:
    """Measure Python processes from their start to the end of imports."""
    code = "import {}, os; os._exit(0)"
    cases = {TORCH: "torch", "import of a training": "experiments.train"}
    return {case: elapsed(folder, ["-c", code.format(module)]) for case, module in cases.items()}


def run(folder: Path, words: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        begin = time.time()
        whole = elapsed(folder, ["-m", "experiments.run", *steps(words), f"hydra.run.dir={name}"])
        return {"first step of a command": first_step(Path(name)) - begin, "command of two steps": whole}


def sweep(folder: Path, words: list[str]) -> dict[str, float]:
    """Measure the second run of a sweep, from the end of the first one to its first step."""
    with tempfile.TemporaryDirectory() as name:
        elapsed(folder, ["-m", "experiments.run", "-m", "seed=0,1", *steps(words), f"hydra.sweep.dir={name}"])
        end = (Path(name) / "0" / "summary.json").stat().st_mtime
        return {"first step of the next run of a sweep": first_step(Path(name) / "1") - end}


def plan(folder: Path, words: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        return {"plan": elapsed(folder, ["-m", "experiments.plan", "num_classes=1e6", f"hydra.run.dir={name}"])}


def steps(words: list[str]) -> list[str]:
    return [*words, "trainer.max_steps=2", "trainer.log_interval=1"]


def first_step(folder: Path) -> float:
    """Return when a run logged its first loss, in seconds since the epoch."""
    with (folder / "metrics.csv").open(newline="") as file:
        return next(float(row["time"]) for row in csv.DictReader(file) if row["name"] == "train/loss")


def elapsed(folder: Path, arguments: list[str]) -> float:
    """Return the seconds of a Python command that succeeds."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"checkouts: python {' '.join(arguments)} failed in {folder}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - begin
