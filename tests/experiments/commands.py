"""Run the commands as a user does, from the repository root, in processes of their own."""

import atexit
import contextlib
import csv
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from experiments.checkpoints.stored import Stored
from experiments.command_line.arguments import CONF
from tests.experiments.forked import Commands

ROOT = Path(__file__).resolve().parents[2]
# Warnings are errors in the commands too; the exceptions are those of pyproject.toml.
ENVIRONMENT = {"PYTHONWARNINGS": "error::UserWarning,error::RuntimeWarning", "COLUMNS": "200"}
AT_IMPORT = dict(os.environ)  # before any test changes it
SMOKE = ("experiment=smoke", "data.heldout=0.05")


def config(*overrides: object, name: str = "config") -> DictConfig:
    """Return the config that these overrides give, for use in this process."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(map(str, overrides)))


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}


def call(*words: object, status: int = 0) -> str:
    """Return the output of `python -m WORDS` on both channels; its exit status must be `status`.

    The command is a fork of a process with the imports, unless a test has changed variables that are read at a start.
    """
    variables = environment()
    if forks().fits(variables):
        found, out, err = forks().run(list(map(str, words)), variables)
    else:
        done = subprocess.run(
            command(*words), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
        )
        found, out, err = done.returncode, done.stdout, done.stderr
    assert found == status, out + err
    return out + err


@cache
def forks() -> Commands:
    """Return the process that commands are forks of, which starts at the first call and ends with this process."""
    started = Commands(ROOT, {**AT_IMPORT, **ENVIRONMENT})
    atexit.register(started.close)
    return started


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def metrics(folder: Path, name: str) -> dict[int, float]:
    """Return the values of a metric by step."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == name}


def processes_of(*words: object) -> list[int]:
    """Return the ids of the processes whose command line has all of these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if set(map(str, words)) <= set((path / "cmdline").read_text().split("\0")):
                found.append(int(path.name))
    return sorted(found)


def stored_rows(checkpoint: Path) -> dict[str, Tensor]:
    """Return rows and row state of all classes."""
    stored = Stored(str(checkpoint))
    names = [name for name in stored.tensors if name.startswith("head.centers.")]
    return {name: stored.read_rows(name, 0, stored.tensors[name].size[0]) for name in names}
