"""Kill a training at random moments, resume it, and compare it with an undisturbed one.

    python -m tests.kill_and_resume --kills 20

Every resume must continue from the newest complete checkpoint. The losses must be those of the undisturbed training,
bit for bit. The time allowed to begin a training follows from the duration of the undisturbed one.
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
    """Return for each kill the last step trained, the step to resume from, and whether it interrupted a save.

    Args:
        seconds: time after which no further kill follows; the losses are compared all the same.

    Raises:
        AssertionError: a resume failed, continued from an older step, or trained with other losses.
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
            break  # the training has finished
        time.sleep(moments.uniform(0, 3 * run.seconds_per_step))
        kill_all(disturbed)
        run.process.wait()
        checkpoints = Folder(disturbed / "checkpoints")
        in_a_save = any(checkpoints.path.glob(".step-*"))
        complete, latest = checkpoints.complete(), checkpoints.resolve_alias("latest")
        # A kill may come between a checkpoint and its pointer, also those of the first checkpoint.
        assert latest in complete[-2:] or (latest is None and len(complete) < 2), f"latest is {latest} of {complete}"
        newest = step_of(complete[-1]) if complete else 0
        assert newest >= saved, f"step {saved} was saved, but only {complete} are left"
        trained = list(metrics(disturbed, "train/loss"))
        assert trained == list(range(1, len(trained) + 1)), "metrics.csv has a gap"
        saved = newest
        struck.append((len(trained), saved, in_a_save))
    Run([*words, "resume=auto"], disturbed).finish(patience)
    losses, resumed = (metrics(run, "train/loss") for run in (whole, disturbed))
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
        """Wait until the training has reached a step or has ended; return whether it still trains.

        Raises:
            AssertionError: it failed, or began no step for `patience` seconds.
        """
        first: tuple[float, int] | None = None
        reached, deadline = -1, time.monotonic() + patience
        while True:
            # A training replaces the metrics.csv of an earlier one.
            latest = 0 if inode(self.path) == self.before else max(metrics(self.path.parent, "train/loss"), default=0)
            if latest > reached:
                reached, deadline = latest, time.monotonic() + patience
            if latest and first is None:
                first = time.monotonic(), latest
            if latest >= step:
                assert first is not None
                self.seconds_per_step = (time.monotonic() - first[0]) / max(1, latest - first[1])
                return True
            if self.process.poll() is not None:
                self._check()
                return False
            assert time.monotonic() < deadline, f"no step after {reached} within {patience:.0f} s\n{self._output()}"
            time.sleep(0.02)

    def finish(self, patience: float | None) -> None:
        """Wait until the training has ended. Raise AssertionError if it fails or takes longer than `patience`."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the training did not end within {patience:.0f} s\n{self._output()}") from None
        finally:
            self.process.terminate()
        self._check()

    def _check(self) -> None:
        assert self.process.returncode == 0, (
            f"the training ended with status {self.process.returncode}\n{self._output()}"
        )

    def _output(self) -> str:
        return self.printed.read_text()[-2000:]


def inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def kill_all(folder: Path) -> None:
    """Kill the command and all processes that it started."""
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
    parser.add_argument("--minutes", type=float, default=30, help="time after which no further kill follows")
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
        f"{len(struck)} kills of {options.kills}, after steps {', '.join(str(kill[0]) for kill in struck)}, "
        f"{sum(kill[2] for kill in struck)} of them during a save; all {options.steps} losses equal those of the "
        "undisturbed training"
    )


if __name__ == "__main__":
    main()
