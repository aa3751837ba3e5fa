"""Class centers from a file: `warm_start.rows=centers.npy`."""

import re

import numpy as np
import pytest
import torch

from experiments.command_line import options
from experiments.train import train
from heads import FullFC
from heads.objectives import BCE
from tests.experiments.commands import config, stored_rows
from tests.experiments.launching.test_processes import trained

C, D = 43, 8
STILL = ("trainer.max_steps=1", "optimizer.lr=1e-12", "schedule.warmup=0", "optimizer.rows.weight_decay=0")
STILL += ("logger.wandb.mode=disabled", "evaluate.interval=null", "trainer.log_interval=1", "checkpoint.interval=1")
SPHERE = ("data=sphere", f"data.num_classes={C}", "data.num_heldout=2", "backbone=mlp", f"embedding_size={D}")
HEAD = ("head=full", "batch_size=8")
WORDS = [*STILL, *SPHERE, *HEAD]


@pytest.fixture
def centers(tmp_path) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((C, D)).astype(np.float32)
    np.save(tmp_path / "centers.npy", rows)
    return rows


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("more", [["margin=softmax", "objective=bce"], ["store=disk"]])
def test_rows_are_those_of_the_file(more, world_size, centers, workers, tmp_path):
    words = [*WORDS, *more, f"warm_start.rows={tmp_path / 'centers.npy'}"]
    words += [f"store_dir={tmp_path / 'rows'}"] if "store=disk" in more else []
    (tmp_path / "run").mkdir()
    if world_size == 1:
        assert train(config(*words), tmp_path / "run") == 0
    else:
        assert workers(world_size).run(trained, words, tmp_path / "run") == [0] * world_size
    rows = stored_rows(tmp_path / "run" / "checkpoints" / "latest")["head.centers.rows"]
    assert np.allclose(rows[:, :D], centers, atol=1e-6)
    if "objective=bce" in more:
        assert torch.allclose(rows[:, D], FullFC(C, D, objective=BCE()).centers.rows[:, D], atol=1e-6)


def test_files_that_do_not_fit_are_refused(centers, tmp_path, workers):
    np.save(tmp_path / "few.npy", centers[:-1])
    np.save(tmp_path / "wide.npy", centers[:, :-1])
    for place, value in ((40, 0), (3, np.nan)):
        wrong = centers.copy()
        wrong[place] = value
        np.save(tmp_path / f"wrong-{value}.npy", wrong)
    (tmp_path / "text.npy").write_text("no array")
    for name, message in (
        ("few.npy", "has 42 rows of 8 columns, and the head has 43 classes with embedding_size=8"),
        ("wide.npy", "has 43 rows of 7 columns"),
        ("text.npy", "cannot be read as a .npy file"),
        ("wrong-0.npy", "row 40 has zeros only"),
        ("wrong-nan.npy", "record 3, counted from 0, has NaN"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            train(config(*WORDS, f"warm_start.rows={tmp_path / name}"), tmp_path)
    with pytest.raises(AssertionError, match=r"rank 0(.|\n)*row 40 has zeros only(.|\n)*rank 1"):  # on both processes
        workers(2).run(trained, [*WORDS, f"warm_start.rows={tmp_path / 'wrong-0.npy'}"], tmp_path / "two")
    for value, message in (
        ("median", "warm_start.rows=median must be mean, random, or the path of a .npy file"),
        ("/nowhere/c.npy", "warm_start.rows=/nowhere/c.npy does not exist; give a .npy file of rows"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            options.check(config(f"warm_start.rows={value}"))
    with pytest.raises(ValueError, match=r"needs a head that stores one row a class, and FFC stores none"):
        still = [word for word in WORDS if not word.startswith("optimizer.rows.")]
        train(config(*still, "head=ffc", "queue_size=20", f"warm_start.rows={tmp_path / 'centers.npy'}"), tmp_path)


def test_a_resumed_training_keeps_its_rows(centers, tmp_path, capfd):
    words = [*WORDS, f"warm_start.rows={tmp_path / 'centers.npy'}", "trainer.max_steps=2"]
    words[1] = "optimizer.lr=0.1"
    (tmp_path / "run").mkdir()
    assert train(config(*words, "checkpoint.keep=2"), tmp_path / "run") == 0
    lengths = [np.linalg.norm(rows, axis=1).mean() for rows in (centers, FullFC(C, D).centers.rows.numpy())]
    message = (
        "the rows of 43 classes were loaded from centers.npy; their mean length is {:.3g}, and that of initial rows"
    )
    assert f"{message} {{:.3g}}\n".format(*lengths) in capfd.readouterr().out
    (tmp_path / "again").mkdir()
    np.save(tmp_path / "centers.npy", centers[::-1])
    assert (
        train(config(*words, f"resume={tmp_path / 'run' / 'checkpoints' / 'step-00000001'}"), tmp_path / "again") == 0
    )
    one, two = (stored_rows(tmp_path / name / "checkpoints" / "latest") for name in ("run", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
