"""Train each head for many small steps, and measure the resources of its process.

    python -m tests.soak --steps 20000

After a while, memory, file descriptors, threads and child processes must not grow. At the end, nothing may be left in
the temporary folder and in shared memory.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.experiments.commands import ROOT, command, environment, metrics, processes_of

CASES = {
    "full": ["head=full"],
    "pfc": ["head=pfc", "num_workers=1"],
    "pfc on disk": ["head=pfc", "store=disk", "dtype=bf16"],
    "ffc": ["head=ffc", "queue_size=64"],
    "virtual": ["head=virtual", "num_anchors=16"],
    "forest": ["head=forest", "num_active=40", "interval=50"],
    "forest ivf": ["head=forest", "num_active=40", "interval=50", "index=ivf"],
}
SMALL = ["data=sphere", "data.num_classes=320", "data.size=16", "data.num_heldout=20", "backbone=mlp", "batch_size=16"]
SMALL += ["embedding_size=16", "evaluate.interval=null", "checkpoint.interval=500", "trainer.accelerator=cpu"]
SMALL += ["trainer.log_interval=100", "logger.wandb.mode=disabled"]
INTERVAL = 0.5  # seconds between two measurements
MEMORY = 8 * 2**20  # allowed growth in bytes between the second and the last quarter: half a KiB per step
MORE = 3  # allowed difference of descriptors, threads or children, some of which exist for a moment only
SHARED = Path("/dev/shm")
TORCH = "torchinductor_"  # its cache, one for all processes of a user


@dataclass(frozen=True)
class Usage:
    """Resources of a training process: resident bytes; counts of descriptors, threads, children and temporary files."""

    memory: int
    descriptors: int
    threads: int
    children: int
    files: int


def soak(words: list[str], steps: int, seconds: float) -> tuple[int, str]:
    """Train for `steps` or `seconds`, whichever ends first; return the steps trained and a sentence of figures.

    Raises:
        AssertionError: a resource grew, or something was left behind.
    """
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        run, temporary = Path(name, "run"), Path(name, "temporary")
        temporary.mkdir()
        before = set(SHARED.iterdir())
        with Path(name, "printed").open("w") as printed:
            process = subprocess.Popen(
                command("experiments.run", *SMALL, *words, f"trainer.max_steps={steps}", f"hydra.run.dir={run}"),
                cwd=ROOT,
                env={"OMP_NUM_THREADS": "1", **environment(), "TMPDIR": str(temporary)},
                stdout=printed,
                stderr=printed,
            )
        try:
            measured = measurements(process, run, temporary, time.monotonic() + seconds)
            status = process.wait(60 + seconds)
        finally:
            process.terminate()
        output = Path(name, "printed").read_text()[-2000:]
        assert status in (0, 128 + signal.SIGTERM), f"the training ended with status {status}\n{output}"
        left = [path.name for path in temporary.iterdir() if not path.name.startswith(TORCH)] + abandoned(before)
        assert not left, f"left behind: {', '.join(left)}"
        trained = max(metrics(run, "train/loss"))
        return trained, check_flat(measured)


def measurements(process: subprocess.Popen[bytes], run: Path, temporary: Path, deadline: float) -> list[Usage]:
    """Measure the training from its first logged steps to its end; end it after the deadline."""
    measured: list[Usage] = []
    asked_to_end = False
    while process.poll() is None:
        time.sleep(INTERVAL)
        if (run / "metrics.csv").exists():
            with contextlib.suppress(OSError, ValueError):  # the training has just ended
                measured.append(usage(training_in(run), temporary))
        if time.monotonic() > deadline and not asked_to_end:
            process.send_signal(signal.SIGTERM)
            asked_to_end = True
    return measured


def training_in(run: Path) -> int:
    """Return the id of the training process, which is the parent of its data workers."""
    return min(processes_of("experiments.launching.preloaded", f"hydra.run.dir={run}"))


def usage(process: int, temporary: Path) -> Usage:
    of = Path("/proc", str(process))
    sizes = dict(line.split(":") for line in (of / "smaps_rollup").read_text().splitlines()[1:])
    tasks = list((of / "task").iterdir())
    children = " ".join((task / "children").read_text() for task in tasks).split()
    return Usage(
        1024 * int(sizes["Rss"].split()[0]),
        len(list((of / "fd").iterdir())),
        len(tasks),
        len(children),
        len(list(temporary.iterdir())),
    )


def check_flat(measured: list[Usage]) -> str:
    """Compare the second quarter of the measurements with the last one; return a sentence of figures."""
    quarter = len(measured) // 4
    assert quarter >= 4, f"only {len(measured)} measurements; train for longer"
    early, late = measured[quarter : 2 * quarter], measured[-quarter:]
    grown = median(one.memory for one in late) - median(one.memory for one in early)
    assert grown <= MEMORY, f"memory grew by {grown / 2**20:.1f} MiB to {late[-1].memory / 2**20:.0f} MiB"
    for what in ("descriptors", "threads", "children", "files"):
        most = [max(getattr(one, what) for one in part) for part in (early, late)]
        assert most[1] <= most[0] + MORE, f"{what}: {most[1]} at the end, {most[0]} before"
    usual = {name: median(getattr(one, name) for one in late) for name in ("memory", "descriptors", "threads")}
    return (
        f"memory {grown / 2**20:+.1f} MiB of {usual['memory'] / 2**20:.0f}, {usual['descriptors']:.0f} descriptors, "
        f"{usual['threads']:.0f} threads"
    )


def abandoned(before: set[Path]) -> list[str]:
    """Return the new entries of shared memory that no process has open or mapped."""
    new = {str(path) for path in set(SHARED.iterdir()) - before}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            maps = (process / "maps").read_text()
            opened = {str(link.readlink()) for link in (process / "fd").iterdir()}
            new -= {path for path in new if path in opened or path in maps}
    return sorted(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument(
        "--minutes", type=float, default=8, help="for all heads; each gets an equal share of the remaining time"
    )
    parser.add_argument("--only", choices=CASES, help="train this case only")
    options = parser.parse_args()
    chosen = [options.only] if options.only else list(CASES)
    end = time.monotonic() + 60 * options.minutes
    failed = False
    for number, name in enumerate(chosen):
        try:
            trained, figures = soak(CASES[name], options.steps, (end - time.monotonic()) / (len(chosen) - number))
            print(f"{name}: flat over {trained:,} steps; {figures}", flush=True)
        except AssertionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
