"""Failures that a training survives: a kill at any moment, and a full disk."""

import errno
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.checkpoints.storage import Folder, step_of
from experiments.instantiate import instantiate
from experiments.train import train
from experiments.training import metrics_csv, wandb_run
from experiments.training import summary as run_summary
from tests.data.made_sets import SIDE, images, write_folder
from tests.experiments.commands import ROOT, SMOKE, command, config, environment, metrics, processes_of, summary
from tests.kill_and_resume import kill_and_resume


def test_killed_at_random_moments(tmp_path):
    struck = kill_and_resume(tmp_path, kills=2, steps=120, devices=1, seed=1)
    assert len(struck) == 2


def test_a_full_disk_keeps_earlier_checkpoints(tmp_path):
    """The files of the training cannot grow for a while, and at the end."""
    words = [*SMOKE, "trainer.max_steps=100000", "evaluate.interval=null", "logger.wandb.mode=disabled"]
    with (tmp_path / "printed").open("w") as printed:
        copies = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=printed)
    process = subprocess.Popen(
        command("experiments.run", *words, f"hydra.run.dir={tmp_path / 'run'}"),
        cwd=ROOT, env=environment(), stdout=copies.stdin, stderr=copies.stdin,
    )  # fmt: skip
    copies.stdin.close()
    saved = Folder(tmp_path / "run" / "checkpoints")
    try:
        wait_until(lambda: len(saved.complete()) >= 2, process)
        training = processes_of("experiments.launching.preloaded", f"hydra.run.dir={tmp_path / 'run'}")[0]
        limit(training, 0)
        wait_until(lambda: (tmp_path / "printed").read_text().count("Training continues.") >= 2, process)
        wait_until(lambda: "metrics.csv could not be written" in (tmp_path / "printed").read_text(), process)
        before = saved.complete()
        assert len(before) == 2 and saved.resolve_alias("latest") == before[-1]
        limit(training, resource.RLIM_INFINITY)
        wait_until(lambda: saved.complete()[-1] > before[-1], process)
        wait_until(lambda: max(metrics(tmp_path / "run", "train/loss")) >= step_of(saved.complete()[-1]), process)
        limit(training, 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
        copies.wait()
    text = (tmp_path / "printed").read_text()
    newest = saved.complete()[-1]
    assert (
        f"warning: checkpoint.dir={saved}: step-" in text and "could not be written ([Errno 27] File too large)" in text
    )
    assert text.count("error: ") == 1 and text.rstrip().endswith("Make room or set another checkpoint.dir")
    assert f"resume={saved}/{newest} is complete" in text and "Traceback" not in text
    assert text.count("metrics.csv could not be written") <= 2 and "summary.json could not be written" in text
    steps = list(metrics(tmp_path / "run", "train/loss"))
    assert steps == list(range(5, steps[-1] + 1, 5)) and not list((tmp_path / "run").glob(".metrics*"))


def test_a_damaged_image_of_a_heldout_class_costs_no_training(tmp_path, capsys):
    """The evaluations fail, the training ends with its checkpoint, and the command names the image."""
    write_folder(tmp_path / "set", images([number // 4 for number in range(24)]))
    words = ["data=folder", f"data.source={tmp_path / 'set'}", f"data.size={SIDE}", "data.num_heldout=2", "head=full"]
    words += ["backbone=mlp", "batch_size=8", "trainer.max_steps=4", "evaluate.interval=2", "trainer.accelerator=cpu"]
    (tmp_path / "run").mkdir()
    composed = config(*words, "logger.wandb.mode=disabled")
    trained_on = instantiate(composed.data).class_names
    for path in (tmp_path / "set").glob("*/*.jpg"):
        if path.parent.name not in trained_on:
            path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(
        ValueError, match=r"\.jpg: it is not an image .*the training is complete, and experiments.evaluate"
    ):
        train(composed, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == "step-00000004"
    found = summary(tmp_path / "run")
    assert found["status"] == "finished" and (found["heldout_classes"], found["heldout_records"]) == (2, 8)
    printed = capsys.readouterr().out
    assert "2 classes of 8 records held out" in printed and "Training continues without these metrics" in printed


def test_unwritable_logs_are_an_error_at_the_end(tmp_path, monkeypatch, capsys):
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_summary, "write_whole", full)
    monkeypatch.setattr(metrics_csv, "append_whole", full)
    words = [*SMOKE, "evaluate.interval=null", "logger.wandb.mode=disabled"]
    saved = tmp_path / "checkpoints" / "step-00000020"
    message = (
        rf"{tmp_path}/metrics.csv lacks its last lines \(.* No space left on device\); {tmp_path}/summary.json could "
        rf"not be written \(.*\); the training is finished, and resume={saved} is complete$"
    )
    with pytest.raises(ValueError, match=message):
        train(config(*words), tmp_path)
    assert capsys.readouterr().out.count("metrics.csv could not be written") == 1


def test_weights_and_biases_may_fail_alone(tmp_path, monkeypatch, capsys):
    def dies(*arguments: object, **options: object) -> None:
        raise BrokenPipeError("its service is gone")

    monkeypatch.setattr(wandb_run.WandbLogger, "log_metrics", dies)
    assert train(config(*SMOKE, "evaluate.interval=null", "logger.wandb.mode=offline"), tmp_path) == 0
    assert capsys.readouterr().out.count("Weights & Biases stopped logging (BrokenPipeError(") == 1
    assert summary(tmp_path)["steps"] == 20 and list(metrics(tmp_path, "train/loss")) == [5, 10, 15, 20]


PRINTS = """
import resource
from experiments.launching.launch_config import let_output_fail

let_output_fail()
print("before")
resource.setrlimit(resource.RLIMIT_FSIZE, (7, resource.RLIM_INFINITY))
for _ in range(1000):
    print("lost")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("after")
"""


def test_a_run_continues_when_output_cannot_be_printed(tmp_path):
    with (tmp_path / "printed").open("w") as printed:
        subprocess.run([sys.executable, "-c", PRINTS], cwd=ROOT, stdout=printed, check=True)
    assert (tmp_path / "printed").read_text() == "before\nafter\n"


def limit(process: int, size: int) -> None:
    """Set the largest file size that the process may write."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def wait_until(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
