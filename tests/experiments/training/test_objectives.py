"""Trainings whose margin carries state and whose objective learns a bias; and combinations that are refused."""

import math

import numpy as np
import pytest
import torch

from experiments.checkpoints.stored import Stored
from experiments.command_line import arguments
from experiments.launching.processes import Processes
from experiments.models.trained import StoredCenters, Trained
from experiments.train import train
from experiments.training.assembly import assemble
from tests.experiments.commands import config, metrics, stored_rows
from tests.experiments.launching.test_processes import trained

SHORT = ("data=sphere", "data.num_classes=301", "data.num_heldout=20", "data.size=16", "data.tail=1", "backbone=mlp")
SHORT += ("embedding_size=16", "batch_size=30", "trainer.log_interval=1", "evaluate.interval=null", "sample_rate=0.3")
SHORT += ("trainer.max_steps=6", "checkpoint.interval=3", "checkpoint.keep=9", "logger.wandb.mode=disabled")
SHORT += ("trainer.accelerator=cpu", "optimizer.lr=0.02")
MIDDLE, END = "checkpoints/step-00000003", "checkpoints/step-00000006"


def loss_state(checkpoint):
    """Return the numbers of the margin and the bias of all classes with its momentum."""
    state = Stored(str(checkpoint)).shared()["state_dict"]["head._extra_state"]
    bias = {name: value.item() for name, value in state.get("shared_bias", {}).items()}
    return state.get("carried", {}), bias


@pytest.mark.parametrize("world_size", [1, 2])
def test_state_of_margin_and_objective_resumes_bit_for_bit(world_size, workers, tmp_path):
    words = [*SHORT, "margin=adaface", "objective=uniface"]
    assert workers(world_size).run(trained, words, tmp_path / "a") == [0] * world_size
    middle = f"resume={tmp_path / 'a' / MIDDLE}"
    assert workers(world_size).run(trained, [*words, middle], tmp_path / "b") == [0] * world_size
    whole, again = (metrics(tmp_path / name, "train/loss") for name in "ab")
    assert again == {step: loss for step, loss in whole.items() if step > 3} and len(again) == 3
    first, last = (loss_state(tmp_path / "a" / when) for when in (MIDDLE, END))
    assert last == loss_state(tmp_path / "b" / END) and first != last
    assert last[0]["AdaFace"]["std"] < first[0]["AdaFace"]["std"] < 100 and set(last[1]) == {"value", "momentum"}
    both = [stored_rows(tmp_path / name / END) for name in "ab"]
    assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())
    if world_size == 2:  # and on one process
        assert workers(1).run(trained, [*words, middle], tmp_path / "c") == [0]
        carried, bias = loss_state(tmp_path / "c" / END)
        assert carried["AdaFace"] == pytest.approx(last[0]["AdaFace"], rel=1e-3)
        assert bias["value"] == pytest.approx(last[1]["value"], rel=1e-2)


def test_a_bias_of_each_class_is_a_column_of_the_rows(tmp_path):
    """Its start is the same in memory and in files where most rows were never written, and scores do without it."""
    words = [*SHORT, "objective=bce", "data.num_classes=1001", "sample_rate=0.05", "trainer.max_steps=3"]
    for name, more in (("a", []), ("b", ["store=disk", f"store_dir={tmp_path / 'rows'}"])):
        (tmp_path / name).mkdir()
        assert train(config(*words, *more), tmp_path / name) == 0
    memory, files = (stored_rows(tmp_path / name / MIDDLE)["head.centers.rows"] for name in "ab")
    assert torch.equal(memory, files) and memory.shape == (1001, 17)
    untouched = memory[:, -1] == torch.tensor(-math.log(10 * 0.05 * 1001))
    assert 0.5 < untouched.float().mean() < 1
    model = Trained(str(tmp_path / "a"))
    assert model.normalize and model.stored.tensors[model.ROWS].size[1] == 17
    (start, rows), *_ = StoredCenters(model, Processes(0, 1, torch.device("cpu"))).blocks()
    assert start == 0 and torch.equal(rows, memory[:, :16])


def test_class_counts_reach_the_head(tmp_path):
    found = config(*SHORT, "margin=class_margin")
    module, callbacks, _ = assemble(found, tmp_path)
    callbacks.stop.restore_handlers()
    counts = module.head.options.class_counts
    assert np.array_equal(counts, module.data.train.class_counts()) and counts.sum() == len(module.data.train)


BEGIN = (*SHORT, "trainer.max_steps=1", "warm_start.classes=id", "optimizer.lr=0", "schedule.warmup=0")


@pytest.mark.parametrize("head", ["pfc", "forest"])
def test_a_warm_start_takes_the_bias_of_the_same_objective_along(head, tmp_path, capfd):
    """`forest` stores its state once for each process."""
    short = [word for word in SHORT if not word.startswith("sample_rate")]
    words = [f"head={head}", *(["index=ivf", "build=blocking"] if head == "forest" else []), "trainer.max_steps=3"]
    for name in "abc":
        (tmp_path / name).mkdir()
    assert train(config(*short, *words, "objective=uniface"), tmp_path / "a") == 0
    learned = Trained(str(tmp_path / "a")).shared_bias()
    assert learned != torch.tensor(math.log(10 * 0.1 * 301)).item()
    for name, objective, sentence in (
        ("b", "uniface", "; the bias of all classes was loaded"),
        ("c", "sphereface2", "; the bias of all classes starts at its initial value"),
    ):
        begin = [*BEGIN, f"objective={objective}", f"warm_start.checkpoint={tmp_path / 'a'}"]
        assert train(config(*begin), tmp_path / name) == 0
        found = loss_state(tmp_path / name / "checkpoints/step-00000001")[1]["value"]
        assert (found == learned) == (objective == "uniface") and sentence in capfd.readouterr().out


def test_a_warm_start_with_biases_of_another_objective_is_refused(tmp_path):
    assert train(config(*SHORT, "trainer.max_steps=3", "objective=bce"), tmp_path) == 0
    (tmp_path / "b").mkdir()
    for words, columns in ((["margin=softmax"], 17), (["objective=uniface"], 16)):
        with pytest.raises(ValueError, match=f"has rows of 17 columns for objective=BCE, .* have {columns}; use"):
            train(config(*BEGIN, *words, f"warm_start.checkpoint={tmp_path}"), tmp_path / "b")
    more = ["objective=bce", "data.num_classes=401", f"warm_start.checkpoint={tmp_path}"]
    assert train(config(*BEGIN, *more), tmp_path / "b") == 0
    rows = stored_rows(tmp_path / "b" / "checkpoints/step-00000001")["head.centers.rows"]
    assert torch.equal(rows[:301], stored_rows(tmp_path / MIDDLE)["head.centers.rows"])
    assert rows[301:, -1] == pytest.approx(-math.log(10 * 0.3 * 401))  # of new classes


REFUSED = [
    (
        "head=ffc objective=uniface",
        r"objective=UniFace.* cannot be used with head=.*; use objective=softmax without options, ",
    ),
    ("head=ffc margin=adaface", "FFC compares the images of each process .* or a head with class centers"),
    (
        "head=none objective=uniface",
        r"objective=UniFace.* cannot be used with head=.*, whose loss has no objective; use",
    ),
    (
        "head=none margin=arcface",
        r"margin=ArcFace.* cannot be used with head=.*, whose loss has no margin; leave it at ",
    ),
    ("margin=adacos_fixed objective=bce", "FixedAdaCos derives its scale for the softmax"),
    ("margin=arcface objective=sphereface2", "ArcFace cannot be used with objective=SphereFace2"),
    ("margin=softmax objective=uniface", "does not normalize and has a bias for each class"),
    ("objective=uniface head.log_q=true", "log_q=True corrects the sum of a sampled softmax"),
    ("head=full objective=uniface min_probability=0.1", "min_probability=0.1 compares the probabilities of a softmax"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED)
def test_combinations_are_refused_before_anything_starts(line, words, tmp_path):
    """The command refuses them, and a training does before it reads its data."""
    given = line.split()
    with pytest.raises(ValueError, match=words):
        arguments.check(given)
    with pytest.raises(ValueError, match=words):
        assemble(config(*given, "data=folder", "data.source=nowhere"), tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["head=ffc", "objective.label_smoothing=0.1"],
            r"objective=CrossEntropy\(label_smoothing=0.1\) cannot be used",
        ),
        (["head=none", "margin.s=32"], r"margin=CosFace\(s=32.* whose loss has no margin; leave it at the default"),
    ],
)
def test_options_that_a_head_would_ignore_are_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        assemble(config(*words, "data=folder", "data.source=nowhere"), tmp_path)


def test_a_sweep_with_a_refused_combination_does_not_start():
    """Each choice is possible alone; one run of the four is not."""
    with pytest.raises(ValueError, match=r"objective=UniFace.* cannot be used with head=ffc, whose"):
        arguments.check(["-m", "head=full,ffc", "objective=softmax,uniface"])
    arguments.check(["-m", "head=full,forest,pfc", "objective=softmax,uniface", "margin=cosface,adaface"])
