"""Kills a training at random moments, resumes it, and compares with one that nothing disturbed.

    python -m tests.kill_and_resume --kills 20

Every resume must go on from the newest complete checkpoint, and the losses must be those of the undisturbed training,
bit for bit.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from experiments.checkpoints.storage import Folder, step_of
from tests.experiments.commands import ROOT, call, command, environment, metrics

DATA = ("head=pfc", "backbone=mlp", "data.augment=false", "data.heldout=0.05", "logger.wandb.mode=disabled")
OFTEN = ("checkpoint.interval=2", "trainer.log_interval=1", "evaluate.interval=null")
PATIENCE = 120  # seconds for a training to begin


def kill_and_resume(folder: Path, kills: int, steps: int, devices: int, seed: int) -> list[tuple[int, int, bool]]:
    """For each kill the last step trained, the step it goes on from, and whether it struck a save.

    Raises:
        AssertionError: a resume failed, went on from an older step, or trained otherwise.
    """
    moments = random.Random(seed)
    words = [*DATA, *OFTEN, f"trainer.max_steps={steps}", f"trainer.devices={devices}"]
    disturbed = [*words, "resume=auto", f"hydra.run.dir={folder / 'disturbed'}"]
    struck = []
    saved = 0
    for _ in range(kills):
        before = inode(folder / "disturbed" / "metrics.csv")
        process = subprocess.Popen(
            command("experiments.run", *disturbed), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
        )
        wait_for_step(process, folder / "disturbed" / "metrics.csv", before, saved + 1)
        time.sleep(moments.uniform(0, 1.5))
        kill_all(folder / "disturbed")
        process.wait()
        checkpoints = folder / "disturbed" / "checkpoints"
        in_a_save = any(checkpoints.glob(".step-*"))
        complete = Folder(checkpoints).complete()
        assert Folder(checkpoints).pointed("latest") in complete[-2:], f"latest dangles beside {complete}"
        assert step_of(complete[-1]) >= saved, f"step {saved} was saved, and {complete[-1]} is left"
        trained = list(metrics(folder / "disturbed", "train/loss"))
        assert trained == list(range(1, len(trained) + 1)), "metrics.csv has a gap"
        saved = step_of(complete[-1])
        struck.append((len(trained), saved, in_a_save))
        if saved == steps:
            break
    call("experiments.run", *disturbed)
    call("experiments.run", *words, f"hydra.run.dir={folder / 'whole'}")
    whole, resumed = (metrics(folder / name, "train/loss") for name in ("whole", "disturbed"))
    assert len(whole) == steps and whole == resumed, "the losses differ"
    return struck


def wait_for_step(process: subprocess.Popen, path: Path, before: int, step: int) -> None:
    """Until the training, which puts a new metrics.csv in place of that before, has trained so far, or has ended."""
    deadline = time.monotonic() + PATIENCE
    while inode(path) == before or max(metrics(path.parent, "train/loss"), default=0) < step:
        status = process.poll()
        assert status in (None, 0), f"the resume failed with status {status}"
        assert time.monotonic() < deadline, f"no step {step} within {PATIENCE} s"
        if status == 0:
            return
        time.sleep(0.02)


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
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        struck = kill_and_resume(Path(folder), options.kills, options.steps, options.devices, options.seed)
    for last, saved, in_a_save in struck:
        print(f"killed after step {last}{' in a save' if in_a_save else ''}, went on from {saved}")
    print(f"{len(struck)} kills, {sum(each[2] for each in struck)} of them in a save; every loss is the same")


if __name__ == "__main__":
    main()
