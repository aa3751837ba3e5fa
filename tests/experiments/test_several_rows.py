"""Commands on a training with several rows a class, and on one whose classes share rows."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from experiments.evaluate import evaluate
from experiments.export import export, rows_of
from experiments.export_formats import Exported
from experiments.launching.processes import Processes
from experiments.models.trained import StoredCenters, Trained
from experiments.train import train
from tests.experiments.commands import config, stored_rows, summary
from tests.experiments.launching.test_processes import trained

C, D, K = 43, 16, 3
WORDS = ("data=sphere", f"data.num_classes={C}", "data.num_heldout=4", "backbone=mlp", f"embedding_size={D}")
WORDS += ("batch_size=12", "evaluate.interval=null", "logger.wandb.mode=disabled", "trainer.log_interval=1")
WORDS += ("trainer.max_steps=6", "checkpoint.interval=3", "checkpoint.keep=9")
HEAD = ("head=subcenter", f"centers_per_class={K}", "sample_rate=0.5")
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    words = [*WORDS, *HEAD, "protocol=closed_set", "evaluate.train_records=20", "fidelity.interval=3"]
    assert train(config(*words), folder) == 0
    return folder


def rows(folder):
    return stored_rows(folder / "checkpoints" / "latest")["head.centers.rows"]


def test_the_training_is_measured_like_others(learned):
    results = summary(learned)
    assert results["memory/head_bytes"] == 2 * C * K * D * 4  # with momentum
    assert {"val/closed_set/top1", "train/exact_loss", "fidelity/mass"} <= results.keys()
    assert rows(learned).shape == (C, K * D)


@pytest.mark.parametrize("world_size", [1, 2])
def test_resumes_bit_for_bit(world_size, workers, tmp_path):
    def run(*more):
        words = [*WORDS, *HEAD, *more]
        assert workers(world_size).run(trained, words, tmp_path / "run") == [0] * world_size
        return stored_rows(tmp_path / "run" / "checkpoints" / "latest")

    uninterrupted = run()
    (tmp_path / "run").rename(tmp_path / "first")
    resumed = run(f"resume={tmp_path / 'first' / 'checkpoints' / 'step-00000003'}")
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[name], table) for name, table in uninterrupted.items())


def test_a_checkpoint_gives_all_rows_of_a_class(learned, tmp_path):
    checkpoint, stored = Trained(str(learned)), rows(learned).view(C, K, D)
    assert (checkpoint.num_classes, checkpoint.rows_per_class, checkpoint.width) == (C, K, D)
    assert f"{C} class centers of {K} rows" in str(checkpoint)
    assert torch.equal(torch.cat([block for _, block in StoredCenters(checkpoint, ALONE).blocks()]), stored)
    target = tmp_path / "centers.safetensors"
    export(config(f"checkpoint={learned}", f"target={target}", "format=safetensors", name="export"), tmp_path)
    with safe_open(target, "pt") as file:
        assert torch.equal(file.get_tensor("centers"), stored)


def test_exported_scores_are_those_of_the_nearest_row(learned):
    exported = Exported(torch.nn.Identity(), rows_of(Trained(str(learned))), True)
    embeddings = torch.nn.functional.normalize(torch.randn(5, D))
    units = torch.nn.functional.normalize(rows(learned).view(C, K, D), dim=2)
    expected = torch.einsum("nd,ckd->nck", embeddings, units).amax(2)
    torch.testing.assert_close(exported(embeddings)[1], expected)


def test_closed_set_counts_the_nearest_row(learned):
    """The evaluation at the end of the training compares with `topk` of the head."""
    results = summary(learned)
    again = config(f"checkpoint={learned}", "protocol=closed_set", name="evaluate")
    folder = learned / "again"
    folder.mkdir()
    evaluate(again, folder)
    assert f'"top1": {results["val/closed_set/top1"]}' in (folder / "evaluation.json").read_text()


def test_warm_start_copies_all_rows_and_refuses_another_number(learned, tmp_path):
    still = ["trainer.max_steps=1", "optimizer.lr=1e-12", "schedule.warmup=0", "optimizer.rows.weight_decay=0"]
    start = [f"warm_start.checkpoint={learned}", "warm_start.classes=id"]
    (tmp_path / "same").mkdir()
    assert train(config(*WORDS, *HEAD, *still, *start), tmp_path / "same") == 0
    assert torch.allclose(rows(tmp_path / "same"), rows(learned), atol=1e-9)
    with pytest.raises(ValueError, match="has 3 rows a class, and this head 1; use as many, or the rows that"):
        train(config(*WORDS, *still, *start, "head=full"), tmp_path / "full")
    np.save(tmp_path / "rows.npy", np.ones((C, D), np.float32))
    with pytest.raises(ValueError, match="needs a head that stores one row a class, and SubCenterFC stores 3 rows"):
        train(config(*WORDS, *HEAD, f"warm_start.rows={tmp_path / 'rows.npy'}"), tmp_path / "file")


def test_rows_that_classes_share_are_no_class_centers(learned, tmp_path):
    words = [*WORDS, "head=mach", "num_buckets=7", "evaluate.train_records=20", "fidelity.interval=3"]
    assert train(config(*words, f"warm_start.checkpoint={learned}"), tmp_path) == 0
    results = summary(tmp_path)
    assert results["memory/head_bytes"] == 2 * 7 * 4 * D * 4
    assert 0 <= results["train/top1"] <= 1 and results["fidelity/mass"] == 1
    assert Trained(str(tmp_path)).num_classes == 0
    (tmp_path / "closed").mkdir()
    with pytest.raises(ValueError, match="protocol=closed_set needs class centers"):
        train(config(*WORDS, "head=mach", "num_buckets=7", "protocol=closed_set"), tmp_path / "closed")
