"""Locks of folders: one training at a time, released by the death of its holder."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.launching import lock
from experiments.launching.lock import check_free, locked
from experiments.train import train
from tests.experiments.commands import ROOT, SMOKE, config, metrics

HOLDS = """
import os, sys, time
from pathlib import Path
from experiments.launching.lock import locked

with locked(Path(sys.argv[1]), "x"):
    if os.fork() == 0:  # as data workers are
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(folder: Path):
    """Hold the lock in another process, which has a child. Kill the process at the end, and then its child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


def test_a_lock_ends_with_its_holder_while_children_live(tmp_path):
    with held(tmp_path) as holder:
        with pytest.raises(
            ValueError, match=rf"x={tmp_path} is in use: process {holder.pid} on .* is training there; wait"
        ):
            check_free(tmp_path, "x")
        holder.kill()
        holder.wait()
        with locked(tmp_path, "x"):
            assert (tmp_path / lock.FILE).read_text().startswith(f"process {os.getpid()} on ")
    check_free(tmp_path / "missing", "x")
    assert not (tmp_path / "missing").exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("option", ["hydra.run.dir", "checkpoint.dir"])
def test_a_folder_in_use_is_refused_until_its_holder_dies(option, tmp_path):
    run, checkpoints = tmp_path / "run", tmp_path / "checkpoints"
    words = [*SMOKE, "resume=auto", "logger.wandb.mode=disabled", f"checkpoint.dir={checkpoints}"]
    words += ["evaluate.interval=null", "trainer.log_interval=1"]
    assert train(config(*words, "trainer.max_steps=2"), run) == 0
    folder = run if option == "hydra.run.dir" else checkpoints
    with held(folder):
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=rf"^{option}={folder} is in use: process \d+ on .* is training there"):
            train(config(*words, "trainer.max_steps=4"), run)
        assert contents(tmp_path) == before
    assert train(config(*words, "trainer.max_steps=4"), run) == 0
    assert list(metrics(run, "train/loss")) == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"checkpoint.dir=.*file/x cannot be written .* choose another folder"):
        train(config(*SMOKE, "logger.wandb.mode=disabled", f"checkpoint.dir={tmp_path}/file/x"), tmp_path / "run")


def test_a_file_system_without_locks_is_reported_and_used(tmp_path, monkeypatch):
    def refuses(*arguments: object) -> None:
        raise OSError(lock.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuses)
    with pytest.warns(UserWarning, match="supports no locks"), locked(tmp_path, "x"):
        pass
