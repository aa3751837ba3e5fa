"""Kills a training at random moments, resumes it, and compares with one that nothing disturbed.

    python -m tests.kill_and_resume --kills 20

Every resume must go on from the newest complete checkpoint, and the losses must be those of the undisturbed training,
bit for bit. How long a training may take to begin follows from how long the undisturbed one took on this machine.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.checkpoints.storage import Folder, step_of
from tests.experiments.commands import ROOT, command, environment, metrics

DATA = ("head=pfc", "backbone=mlp", "data.augment=false", "data.heldout=0.05", "logger.wandb.mode=disabled")
OFTEN = ("checkpoint.interval=2", "trainer.log_interval=1", "evaluate.interval=null")


def kill_and_resume(
    folder: Path, kills: int, steps: int, devices: int, seed: int, seconds: float = float("inf")
) -> list[tuple[int, int, bool]]:
    """For each kill the last step trained, the step it goes on from, and whether it struck a save.

    Args:
        seconds: after so many there is no further kill; the losses are compared all the same.

    Raises:
        AssertionError: a resume failed, went on from an older step, or trained otherwise.
    """
    moments, begun = random.Random(seed), time.monotonic()
    words = [*DATA, *OFTEN, f"trainer.max_steps={steps}", f"trainer.devices={devices}"]
    whole, disturbed = folder / "whole", folder / "disturbed"
    Run(words, whole).finish(None)
    patience = 60 + 10 * (time.monotonic() - begun)
    struck: list[tuple[int, int, bool]] = []
    saved = 0
    while len(struck) < kills and saved < steps and time.monotonic() - begun < seconds:
        run = Run([*words, "resume=auto"], disturbed)
        share = (steps - saved) // (kills - len(struck) + 1)
        if not run.reach(saved + moments.randint(1, max(1, share)), patience):
            break  # it has trained to its end
        time.sleep(moments.uniform(0, 3 * run.seconds_per_step))
        kill_all(disturbed)
        run.process.wait()
        checkpoints = Folder(disturbed / "checkpoints")
        in_a_save = any(checkpoints.path.glob(".step-*"))
        complete, latest = checkpoints.complete(), checkpoints.resolve_alias("latest")
        # A kill may strike between a checkpoint and its pointer, also those of the first.
        assert latest in complete[-2:] or (latest is None and len(complete) < 2), f"latest is {latest} of {complete}"
        newest = step_of(complete[-1]) if complete else 0
        assert newest >= saved, f"step {saved} was saved, and {complete} are left"
        trained = list(metrics(disturbed, "train/loss"))
        assert trained == list(range(1, len(trained) + 1)), "metrics.csv has a gap"
        saved = newest
        struck.append((len(trained), saved, in_a_save))
    Run([*words, "resume=auto"], disturbed).finish(patience)
    losses, resumed = (metrics(each, "train/loss") for each in (whole, disturbed))
    assert len(losses) == steps and losses == resumed, "the losses differ"
    return struck


class Run:
    """One start of the training in a folder."""

    def __init__(self, words: list[str], folder: Path):
        self.path = folder / "metrics.csv"
        self.before = inode(self.path)
        self.printed = folder.with_name(f"{folder.name}.txt")
        self.seconds_per_step = 0.0
        with self.printed.open("w") as printed:
            self.process = subprocess.Popen(
                command("experiments.run", *words, f"hydra.run.dir={folder}"),
                cwd=ROOT,
                env=environment(),
                stdout=printed,
                stderr=printed,
            )

    def reach(self, step: int, patience: float) -> bool:
        """Wait until it has trained so far, or has ended; whether it still trains.

        Raises:
            AssertionError: it failed, or began no step for so many seconds.
        """
        first: tuple[float, int] | None = None
        reached, deadline = -1, time.monotonic() + patience
        while True:
            # A training puts a new metrics.csv in place of that before.
            there = 0 if inode(self.path) == self.before else max(metrics(self.path.parent, "train/loss"), default=0)
            if there > reached:
                reached, deadline = there, time.monotonic() + patience
            if there and first is None:
                first = time.monotonic(), there
            if there >= step:
                assert first is not None
                self.seconds_per_step = (time.monotonic() - first[0]) / max(1, there - first[1])
                return True
            if self.process.poll() is not None:
                self._check()
                return False
            assert time.monotonic() < deadline, f"no step after {reached} within {patience:.0f} s\n{self._told()}"
            time.sleep(0.02)

    def finish(self, patience: float | None) -> None:
        """Wait until it has ended. Raise AssertionError where it fails, or takes more seconds."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {patience:.0f} s\n{self._told()}") from None
        finally:
            self.process.terminate()
        self._check()

    def _check(self) -> None:
        assert self.process.returncode == 0, f"it ended with status {self.process.returncode}\n{self._told()}"

    def _told(self) -> str:
        return self.printed.read_text()[-2000:]


def inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def kill_all(folder: Path) -> None:
    """The command and all that it started."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(path.name) != os.getpid() and str(folder) in (path / "cmdline").read_text():
                os.kill(int(path.name), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help="after so many there is no further kill")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            struck = kill_and_resume(
                Path(folder), options.kills, options.steps, options.devices, options.seed, 60 * options.minutes
            )
        except AssertionError as error:
            kill_all(Path(folder))
            sys.exit(f"error: {error}")
    print(
        f"{len(struck)} kills of {options.kills}, after steps {', '.join(str(each[0]) for each in struck)}, "
        f"{sum(each[2] for each in struck)} of them in a save: all {options.steps} losses are those of the undisturbed "
        "training"
    )


if __name__ == "__main__":
    main()
