"""Trainings that lose a process or cannot continue: data workers are replaced, other failures end with a checkpoint."""

import os
import signal
from pathlib import Path

import pytest
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data.streams import InstanceStream
from experiments.checkpoints.storage import Folder
from experiments.train import train
from heads.indexes import annoy_build
from tests.experiments.commands import SMOKE, config, metrics, summary
from tests.experiments.launching.test_processes import trained
from tests.workers import rank_and_world

SHORT = [*SMOKE, "evaluate.interval=null", "logger.wandb.mode=disabled", "trainer.log_interval=1", "backbone=mlp"]
batch = InstanceStream.batch


def test_a_killed_data_worker_changes_nothing(tmp_path, monkeypatch):
    here = os.getpid()

    def dies(stream: InstanceStream, number: int):
        if number == 7 and os.getpid() != here and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(stream, number)

    assert train(config(*SHORT), tmp_path / "a") == 0
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))  # seconds between checks
    monkeypatch.setattr(InstanceStream, "batch", dies)
    with pytest.warns(
        RuntimeWarning, match="num_workers=1: a process that prepares batches died; new workers continue at"
    ):
        assert train(config(*SHORT, "num_workers=1"), tmp_path / "b") == 0
    assert (tmp_path / "died").exists()
    assert metrics(tmp_path / "a", "train/loss") == metrics(tmp_path / "b", "train/loss")


def damaged(stream: InstanceStream, number: int):
    """Raise for batch 7 of the last process."""
    rank, world_size = rank_and_world()
    if number == 7 and rank == world_size - 1:
        raise ValueError("record 9: is damaged")
    return batch(stream, number)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 7), (2, 3)])
def test_data_that_cannot_be_read_ends_a_training_with_a_checkpoint(accumulate, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(InstanceStream, "batch", damaged)
    saved = tmp_path / "checkpoints" / f"step-{steps:08d}"
    words = [*SHORT, f"trainer.accumulate_grad_batches={accumulate}"]
    with pytest.raises(ValueError, match=rf"^record 9: is damaged; resume={saved} is complete$"):
        train(config(*words), tmp_path)
    assert summary(tmp_path)["status"] == "failed" and max(metrics(tmp_path, "train/loss")) == steps
    monkeypatch.undo()
    assert train(config(*words, "resume=auto"), tmp_path) == 0
    assert list(metrics(tmp_path, "train/loss")) == list(range(1, 21))


def fails(folder: Path) -> str:
    """Train in a worker; return the error."""
    InstanceStream.batch = damaged
    try:
        trained(SHORT, folder)
    except ValueError as error:
        return str(error)
    finally:
        InstanceStream.batch = batch
    return "trained"


def test_all_processes_end_if_one_cannot_continue(workers, tmp_path):
    saved = tmp_path / "checkpoints" / "step-00000007"
    assert workers(2).run(fails, tmp_path) == [f"record 9: is damaged; resume={saved} is complete"] * 2


def test_a_first_index_that_cannot_be_built_ends_a_training_with_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(annoy_build, "__file__", "/nowhere/annoy_build.py")
    words = [*SHORT, "head=forest", "trainer.max_steps=1000000", "trainer.log_interval=1000"]
    with (
        pytest.warns(RuntimeWarning, match="all negatives are uniform until a new build succeeds"),
        pytest.raises(ValueError, match=r"(?s)Annoy forest ended with status 2.*3 times in a row\); resume=.* is comp"),
    ):
        train(config(*words), tmp_path)
    steps = summary(tmp_path)["steps"]
    assert Folder(tmp_path / "checkpoints").complete()[-1] == f"step-{steps:08d}"
