"""What a training survives: being killed at any moment, and a disk that takes no more."""

import resource
import signal
import subprocess
import time

from experiments.checkpoints.storage import Folder
from tests.experiments.commands import ROOT, SMOKE, command, environment, processes_of
from tests.kill_and_resume import kill_and_resume


def test_killed_at_random_moments(tmp_path):
    struck = kill_and_resume(tmp_path, kills=2, steps=300, devices=1, seed=1)
    assert len(struck) == 2


def test_a_full_disk_costs_no_checkpoint_that_was_there(tmp_path):
    """Files of the training may not grow beyond a megabyte, for a while and at the end."""
    words = [*SMOKE, "trainer.max_steps=100000", "evaluate.interval=null", "logger.wandb.mode=disabled"]
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            command("experiments.run", *words, f"hydra.run.dir={tmp_path / 'run'}"),
            cwd=ROOT, env=environment(), stdout=printed, stderr=printed,
        )  # fmt: skip
    saved = Folder(tmp_path / "run" / "checkpoints")
    try:
        wait_until(lambda: len(saved.complete()) >= 2, process)
        training = processes_of("experiments.train", tmp_path / "run")[0]
        limit(training, 2**20)
        wait_until(lambda: (tmp_path / "printed").read_text().count("Training goes on without it") >= 2, process)
        before = saved.complete()
        assert len(before) == 2 and saved.pointed("latest") == before[-1]
        limit(training, resource.RLIM_INFINITY)
        wait_until(lambda: saved.complete()[-1] > before[-1], process)
        limit(training, 2**20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
    text = (tmp_path / "printed").read_text()
    newest = saved.complete()[-1]
    assert (
        f"warning: checkpoint.dir={saved}: step-" in text and "could not be written ([Errno 27] File too large)" in text
    )
    assert text.count("error: ") == 1 and text.rstrip().endswith("Make room or name another checkpoint.dir")
    assert f"resume={saved}/{newest} is complete" in text and "Traceback" not in text


def limit(process: int, size: int) -> None:
    """The largest file that the process may write."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def wait_until(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
