"""`experiments.subcenters`: dominant rows, the records far from them, and the training that goes on."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from experiments import subcenters as command
from experiments.checkpoints.stored import Stored
from experiments.models.trained import Trained
from experiments.subcenters import cleaned, subcenters
from experiments.train import train
from tests.experiments.commands import config, stored_rows
from tests.workers import rank_and_world

C, D, K = 23, 8, 3
SHORT = ("data=sphere", f"data.num_classes={C}", "data.num_heldout=2", "backbone=mlp", "backbone.hidden=[16]")
SHORT += (f"embedding_size={D}", "batch_size=16", "logger.wandb.mode=disabled", "evaluate.interval=null")
SUB = (*SHORT, "head=subcenter", f"centers_per_class={K}", "noise.flip=0.3", "trainer.max_steps=60")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert train(config(*SUB, "+head_name=subcenter"), folder) == 0
    return folder


def cleaned_by(run: Path, folder: Path, *words: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows, the weights, and the lines of the list."""
    folder.mkdir(exist_ok=True)
    subcenters(config(f"checkpoint={run}", *words, name="subcenters"), folder)
    lines = np.loadtxt(folder / "dropped.tsv", skiprows=1, ndmin=2)
    return np.load(folder / "rows.npy"), np.load(folder / "weights.npy"), lines


def reference(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the labels, and in float64 the dominant rows and the angles to them."""
    trained = Trained(str(run))
    train = trained.data().train
    labels, records = np.asarray(train.labels[np.arange(len(train))]), np.arange(len(train))
    with torch.no_grad():
        x = normalize(trained.backbone()(trained.data().prepare(train.source.read(records))).double())
    slots = trained.stored.slots(torch.arange(C))
    rows = stored_rows(run / "checkpoints" / "latest")["head.centers.rows"].double()[slots].view(C, K, D)
    dominant, angles = np.zeros((C, D)), np.zeros(len(train))
    for c in range(C):
        own = np.flatnonzero(labels == c)
        cos = (x[own] @ normalize(rows[c], dim=1).T).numpy()
        row = np.bincount(cos.argmax(1), minlength=K).argmax() if len(own) else 0
        dominant[c], angles[own] = rows[c, row], np.degrees(np.arccos(cos[:, row]))
    return labels, dominant, angles


@pytest.mark.parametrize("max_angle", [58, 45.5])
def test_files_are_those_of_a_plain_computation(max_angle, run, tmp_path, capsys):
    rows, weights, lines = cleaned_by(run, tmp_path, f"max_angle={max_angle}")
    labels, dominant, angles = reference(run)
    assert rows.dtype == np.float32 and np.allclose(rows, dominant, atol=1e-7)
    assert np.array_equal(weights, (angles <= max_angle).astype(np.float32)) and 0 < (weights == 0).sum() < len(weights)
    dropped = np.flatnonzero(angles > max_angle)
    assert np.array_equal(lines[:, 0], dropped) and np.array_equal(lines[:, 1], labels[dropped])
    assert np.allclose(lines[:, 2], angles[dropped], atol=0.01)
    assert (tmp_path / "dropped.tsv").read_text().startswith("record\tclass\tangle\n")
    out = capsys.readouterr().out
    assert re.search(rf"dropped, further than {max_angle:g} degrees from it +│ {len(dropped):,} \(", out)
    assert re.search(rf"quantile 0.5 +│ {np.quantile(angles, 0.5):.1f} ", out)
    with pytest.raises(ValueError, match=r"has rows.npy already"):
        cleaned_by(run, tmp_path)


def test_rows_in_another_order_than_the_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "BLOCK", 50)
    monkeypatch.setattr(command, "READ", 7)
    (tmp_path / "run").mkdir()
    assert train(config(*SUB, "sample_block=4"), tmp_path / "run") == 0
    rows, weights, lines = cleaned_by(tmp_path / "run", tmp_path, "max_angle=58")
    labels, dominant, angles = reference(tmp_path / "run")
    assert np.allclose(rows, dominant, atol=1e-7)
    assert np.array_equal(weights, (angles <= 58).astype(np.float32)) and 0 < (weights == 0).sum() < len(weights)
    assert np.array_equal(lines[:, 1], labels[angles > 58])


def in_processes(run: Path, folder: Path) -> None:
    """Run the command in a worker, in a process group that exists already."""
    rank, world_size = map(str, rank_and_world())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size, LOCAL_WORLD_SIZE=world_size, GROUP_RANK="0")
    command.BLOCK, command.READ = 50, 7  # few records and classes at a time
    words = [f"checkpoint={run}", f"trainer.devices={world_size}", "max_angle=50"]
    subcenters(config(*words, name="subcenters"), folder)


def test_two_processes_write_the_same_files(run, workers, tmp_path):
    one = cleaned_by(run, tmp_path / "one", "max_angle=50")
    (tmp_path / "two").mkdir()
    workers(2).run(in_processes, run, tmp_path / "two")
    for name, expected in zip(("rows", "weights"), one, strict=False):
        assert np.array_equal(np.load(tmp_path / "two" / f"{name}.npy"), expected)
    assert (tmp_path / "two" / "dropped.tsv").read_text() == (tmp_path / "one" / "dropped.tsv").read_text()


def test_the_printed_command_trains_on_with_these_rows_and_without_these_records(run, tmp_path, capfd):
    rows, weights, _ = cleaned_by(run, tmp_path / "clean", "max_angle=55")
    printed = capfd.readouterr().out.strip().splitlines()[-1]
    words = shlex.split(printed.removeprefix("python -m experiments.run "))
    assert printed.startswith("python -m ") and {"head=full", "noise.flip=0.3", f"embedding_size={D}"} <= set(words)
    still = ["trainer.max_steps=1", "optimizer.lr=1e-12", "schedule.warmup=0", "optimizer.rows.weight_decay=0"]
    (tmp_path / "next").mkdir()
    assert train(config(*words, *still), tmp_path / "next") == 0
    begun = stored_rows(tmp_path / "next" / "checkpoints" / "latest")["head.centers.rows"]
    assert np.allclose(begun, rows, atol=1e-6)
    found = Stored(str(tmp_path / "next" / "checkpoints" / "latest")).shared()["state_dict"]
    before = Stored(str(run / "checkpoints" / "latest")).shared()["state_dict"]
    name = next(name for name in before if name.endswith("weight") and before[name].ndim == 2)
    assert torch.allclose(found[name], before[name], atol=1e-6)
    # The weights of the first training stay: dropped records of a run that has weights already have none.
    np.save(tmp_path / "weights.npy", np.arange(len(weights), dtype=np.float32))
    (tmp_path / "weighted").mkdir()
    words = [*SUB, "trainer.max_steps=2", "weights.by=file", f"weights.file={tmp_path / 'weights.npy'}"]
    assert train(config(*words), tmp_path / "weighted") == 0
    _, again, lines = cleaned_by(tmp_path / "weighted", tmp_path / "again", "max_angle=100")
    kept = np.ones(len(weights), dtype=bool)
    kept[lines[:, 0].astype(int)] = False
    scale = len(weights) / np.arange(len(weights)).sum()
    assert np.allclose(again, kept * np.arange(len(weights)) * scale, rtol=1e-5) and 0 < kept.sum() < len(kept)


def test_the_dominant_row_has_most_records_and_the_first_of_equal_ones_counts():
    cos = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.5, 0.4], [0.1, 0.6]], np.float32)
    found = cleaned(np.array([0, 0, 0, 2, 2]), cos, 3, 60)
    assert found.counts_CK.tolist() == [[1, 2], [0, 0], [1, 1]] and found.dominant_C.tolist() == [1, 0, 0]
    assert np.allclose(np.cos(np.radians(found.angle_N)), [0.1, 0.8, 0.7, 0.5, 0.1])
    assert found.is_kept_N.tolist() == [False, True, True, True, False]


def test_what_does_not_fit_is_refused(run, tmp_path):
    for words, message in (
        (["max_angle=0"], "max_angle=0 must be in (0, 180] degrees"),
        (["max_angle=true"], "max_angle=True must be in"),
        (["max_angle=0.01"], "max_angle=0.01 would drop all records; the least angle is"),
        (["checkpoint=null"], "checkpoint=null must be a path"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            cleaned_by(run, tmp_path, *words)
    for name, words, message in (
        ("full", ["head=full"], "has no sub-centers; give a checkpoint of a training with head=subcenter"),
        ("softmax", ["head=subcenter", "margin=softmax"], "was trained with a margin that compares no angles"),
    ):
        (tmp_path / name).mkdir()
        assert train(config(*SHORT, *words, "trainer.max_steps=1"), tmp_path / name) == 0
        with pytest.raises(ValueError, match=message):
            cleaned_by(tmp_path / name, tmp_path)
    assert not list(tmp_path.glob("*.npy"))
