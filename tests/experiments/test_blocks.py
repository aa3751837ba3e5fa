"""Trainings whose class rows are in a pseudo-random order: their checkpoints speak of class ids."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments.export import export
from experiments.export import rows_of as exported_rows
from experiments.launching.processes import Processes
from experiments.models.trained import StoredCenters, Trained
from experiments.train import train
from heads import PartialFC
from heads.rows.layout import Layout
from tests.experiments.commands import config, stored_rows, summary
from tests.experiments.launching.test_processes import trained

C, D = 203, 16
WORDS = ("head=pfc", "data=sphere", f"data.num_classes={C}", "data.num_heldout=4", "backbone=mlp")
WORDS += (f"embedding_size={D}", "batch_size=24", "evaluate.interval=null", "logger.wandb.mode=disabled")
WORDS += ("trainer.log_interval=1", "trainer.max_steps=4", "checkpoint.interval=2", "checkpoint.keep=9")
WORDS += ("sample_rate=0.3",)
BLOCKS = "sample_block=8"
STILL = ("trainer.max_steps=1", "optimizer.lr=1e-12", "schedule.warmup=0", "optimizer.rows.weight_decay=0")
ALONE = Processes(0, 1, torch.device("cpu"))


def by_class(folder) -> torch.Tensor:
    """Return the stored rows of a training with blocks in the order of the class ids."""
    stored = stored_rows((folder / "checkpoints" / "latest").resolve())["head.centers.rows"]
    return stored[Layout(C, 0).slots(torch.arange(C))]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    assert train(config(*WORDS, BLOCKS, "protocol=closed_set", "evaluate.train_records=50"), folder) == 0
    return folder


def test_rows_are_read_and_exported_by_class(learned, tmp_path):
    checkpoint, expected = Trained(str(learned)), by_class(learned)
    rows = torch.empty(C, D)
    for classes, block in checkpoint.rows():
        rows[classes] = block
    assert torch.equal(rows, expected)
    centers = StoredCenters(checkpoint, ALONE)
    blocks = torch.cat([block for _, block in centers.blocks()])
    assert torch.equal(blocks[centers.slots(torch.arange(C))], expected)
    assert torch.equal(exported_rows(checkpoint), expected)
    target = tmp_path / "centers.safetensors"
    export(config(f"checkpoint={learned}", f"target={target}", "format=safetensors", name="export"), tmp_path)
    assert torch.equal(load_file(target)["centers"], expected)


def test_classes_are_found_in_any_order(tmp_path):
    """The protocol counts rows by slot, and the head's topk returns class ids."""
    long = [*WORDS, "sample_rate=1", "trainer.max_steps=300", "checkpoint.interval=null", "protocol=closed_set"]
    long += ["embedding_size=64", "batch_size=64", "data.noise=0.3", "optimizer.lr=0.02"]
    results = {}
    for name, words in (("plain", ["sample_block=1"]), ("blocks", [BLOCKS])):
        (tmp_path / name).mkdir(exist_ok=True)
        assert train(config(*long, *words, "evaluate.train_records=100"), tmp_path / name) == 0
        results[name] = summary(tmp_path / name)
    for metric in ("val/closed_set/top1", "train/top1"):
        assert results["blocks"][metric] == pytest.approx(results["plain"][metric], abs=0.03)
        assert results["blocks"][metric] > 0.9


@pytest.mark.parametrize("words", [["sample_block=1"], [BLOCKS, "seed=1"]])
def test_another_order_is_no_continuation(words, learned, tmp_path):
    checkpoint = f"resume={learned / 'checkpoints' / 'step-00000002'}"
    rows = tmp_path / "rows"
    with pytest.raises(ValueError, match=r"resume=.*(sample_block|seed)"):
        train(config(*WORDS, *words, checkpoint, "store=disk", f"store_dir={rows}"), tmp_path)
    if words == ["sample_block=1"]:
        file = next(rows.rglob("rows.bin"))
        assert not np.fromfile(file, np.uint8).any(), "rows were overwritten"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_resumes_on_any_number_of_processes(world_size, workers, learned, tmp_path):
    words = [*WORDS, BLOCKS, f"resume={learned / 'checkpoints' / 'step-00000002'}"]
    assert workers(world_size).run(trained, words, tmp_path / "on") == [0] * world_size
    rows = by_class(tmp_path / "on")
    if world_size == 1:
        assert torch.equal(rows, by_class(learned))
    initial = PartialFC(C, D).rows(torch.arange(C))
    touched = (rows != initial).any(1)
    assert 0.3 * C < touched.sum() < C  # rows without a step are still those of their class


def test_warm_start_matches_classes_in_both_directions(learned, tmp_path, capfd):
    expected = by_class(learned)
    start = [f"warm_start.checkpoint={learned}", "warm_start.classes=id"]
    for name, words in (("plain", ["sample_block=1"]), ("blocks", [BLOCKS, "seed=5"])):
        (tmp_path / name).mkdir()
        assert train(config(*WORDS, *STILL, *start, *words), tmp_path / name) == 0
        assert f"the rows of {C} classes were loaded" in " ".join(capfd.readouterr().out.split())
    plain = stored_rows((tmp_path / "plain" / "checkpoints" / "latest").resolve())["head.centers.rows"]
    assert torch.allclose(plain, expected, atol=1e-9)
    again = torch.empty(C, D)
    for classes, block in Trained(str(tmp_path / "blocks")).rows():
        again[classes] = block
    assert torch.allclose(again, expected, atol=1e-9)
    file = tmp_path / "rows.npy"
    np.save(file, expected.numpy()[::-1])
    (tmp_path / "file").mkdir()
    assert train(config(*WORDS, *STILL, BLOCKS, f"warm_start.rows={file}"), tmp_path / "file") == 0
    assert torch.allclose(by_class(tmp_path / "file"), expected.flip(0), atol=1e-9)


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_never_written_are_those_of_their_class(world_size, workers, tmp_path):
    """A store on disk saves them as zeros, and every reader draws them."""
    words = [*WORDS, BLOCKS, "store=disk", f"store_dir={tmp_path / 'rows'}", *STILL]
    assert workers(world_size).run(trained, words, tmp_path / "run") == [0] * world_size
    rows = torch.empty(C, D)
    for classes, block in Trained(str(tmp_path / "run")).rows():
        rows[classes] = block
    assert torch.allclose(rows, PartialFC(C, D).rows(torch.arange(C)), atol=1e-9)


def test_new_classes_get_their_mean_image(learned, tmp_path):
    """The same classes get them in both orders: those whose rows the checkpoint lacks."""
    words = [*WORDS, "data.num_classes=240", *STILL, f"warm_start.checkpoint={learned}", "warm_start.classes=id"]
    rows = []
    for name, block in (("plain", "sample_block=1"), ("blocks", BLOCKS)):
        (tmp_path / name).mkdir()
        assert train(config(*words, "warm_start.rows=mean", block), tmp_path / name) == 0
        found = torch.empty(240, D)
        for classes, part in Trained(str(tmp_path / name)).rows():
            found[classes] = part
        rows.append(found)
    assert torch.allclose(rows[0], rows[1], atol=1e-6)
    assert torch.allclose(rows[0][:C], by_class(learned), atol=1e-9)
