"""Trainings of a head that keeps a number for each training record."""

import math

import pytest
import torch

from experiments.checkpoints.stored import Stored
from experiments.train import train
from experiments.training.assembly import assemble
from tests.experiments.commands import config, metrics, stored_rows
from tests.experiments.launching.test_processes import trained
from tests.experiments.training.test_objectives import END, MIDDLE, SHORT

WORDS = [*SHORT, "head=scent", "data.num_classes=120", "data.images_per_class=3", "weights.by=inverse"]
NAME = "head.records.values"


def numbers(checkpoint) -> torch.Tensor:
    """Return the numbers of all records in a checkpoint."""
    stored = Stored(str(checkpoint))
    return stored.read_rows(NAME, 0, stored.tensors[NAME].size[0])


def run(world_size, workers, words, folder) -> None:
    """Train; with one process, another one reads the records."""
    if world_size == 1:
        folder.mkdir()
        assert train(config(*words, "num_workers=1"), folder) == 0
    else:
        assert workers(world_size).run(trained, words, folder) == [0] * world_size


@pytest.mark.parametrize(("world_size", "then"), [(1, 1), (2, 2), (3, 2)])
def test_records_resume_bit_for_bit_and_on_other_numbers_of_processes(world_size, then, workers, tmp_path):
    words = [*WORDS, "fidelity.interval=2", "fidelity.repeats=2"]
    run(world_size, workers, words, tmp_path / "a")
    run(then, workers, [*words, f"resume={tmp_path / 'a' / MIDDLE}"], tmp_path / "b")
    whole, again = (metrics(tmp_path / name, "train/loss") for name in "ab")
    first, last, other = (numbers(tmp_path / name / when) for name, when in (("a", MIDDLE), ("a", END), ("b", END)))
    visited = [int((each > -torch.inf).sum()) for each in (first, last, other)]
    assert visited[0] < visited[1] == visited[2] <= len(last) and visited[0] > 30
    if world_size == then:
        assert again == {step: loss for step, loss in whole.items() if step > 3} and len(again) == 3
        both = [stored_rows(tmp_path / name / END) for name in "ab"]
        assert torch.equal(last, other) and all(torch.equal(rows, both[1][name]) for name, rows in both[0].items())
    else:  # the loader gives the same records, whose classes are sampled by other shards
        untouched = last == first
        assert torch.equal(untouched, other == first) and not untouched.all()
    assert set(metrics(tmp_path / "a", "fidelity/mass")) == {2, 4, 6}
    estimates = metrics(tmp_path / "a", "head/log_mean_exp")
    assert len(estimates) == 6 and all(math.isfinite(estimate) for estimate in estimates.values())


def test_other_records_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert train(config(*WORDS), tmp_path / "a") == 0
    words = [*WORDS, f"resume={tmp_path / 'a' / MIDDLE}", "noise.tail=0.5"]
    with pytest.raises(ValueError, match=r"noise.tail=0.0, and this run has noise.tail=0.5"):
        train(config(*words), tmp_path / "b")
    stored = Stored(str(tmp_path / "a" / MIDDLE))
    module, callbacks, _ = assemble(config(*WORDS), tmp_path / "b")
    callbacks.stop.restore_handlers()
    module.configure_optimizers()
    rows = {f"head.{name}": tensor for name, tensor in module.head.sharded_state().items()}
    with pytest.raises(ValueError, match=rf"has {NAME} of shape \[360\], and .* \[359\]; resume with"):
        stored.fill({**rows, NAME: rows[NAME][1:]}, module.processes)


def test_a_training_gives_each_batch_its_record_numbers(tmp_path):
    module, callbacks, _ = assemble(config(*WORDS), tmp_path)
    callbacks.stop.restore_handlers()
    images, labels, weights, records = module.on_after_batch_transfer(next(iter(module.loader)), 0)["instance"]
    assert module.head.num_records == len(module.data.train) == 360
    assert torch.equal(labels, torch.from_numpy(module.data.train.labels[records.numpy()]))
    module.head.training_loss(module.backbone, {"instance": (images, labels, weights, records)}).backward()
    assert module.head.micro_batch == 1
