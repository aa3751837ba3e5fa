"""Fidelity in a training: measured when due, for every head, without other changes."""

from pathlib import Path

import pytest
import torch

from experiments.train import train
from heads import Head
from tests.experiments.commands import config, metrics, summary
from tests.experiments.launching.test_processes import trained

SHORT = ("backbone=mlp", "data.augment=false", "data.heldout=0.05", "batch_size=60", "trainer.log_interval=1")
SHORT += ("trainer.max_steps=8", "evaluate.interval=null", "checkpoint.interval=null", "logger.wandb.mode=disabled")
ASKED = ("fidelity.interval=4", "fidelity.probes=16", "fidelity.repeats=2")
HEADS = {
    "full": ("head=full",),
    "pfc": ("head=pfc", "trainer.accumulate_grad_batches=2"),
    "forest": ("head=forest", "index=ivf", "build=blocking", "interval=2"),
    "ffc": ("head=ffc", "queue_size=100", "margin=class_margin"),
}
OF_ALL = {"mass", "hardest_recall"}
OF_SELECTIONS = OF_ALL | {"gradient_cosine", "gradient_norm_ratio", "gradient_bias", "gradient_variance"}
OF_MEANS = OF_ALL | {"class_means_cosine", "class_means_norm_ratio"}


def figures(folder: Path) -> dict[str, dict[int, float]]:
    names = {name.removeprefix("fidelity/") for name in summary(folder) if name.startswith("fidelity/")}
    return {name: metrics(folder, f"fidelity/{name}") for name in names}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_measured_and_trains_the_same(head, tmp_path):
    for name, asked in (("without", ()), ("with", ASKED)):
        (tmp_path / name).mkdir()
        assert train(config(*HEADS[head], *SHORT, *asked), tmp_path / name) == 0
    assert metrics(tmp_path / "with", "train/loss") == metrics(tmp_path / "without", "train/loss")
    assert figures(tmp_path / "without") == {}
    found = figures(tmp_path / "with")
    assert set(found) == (OF_MEANS if head == "ffc" else OF_SELECTIONS)
    assert all(list(values) == [4, 8] for values in found.values())
    cosine = "class_means_cosine" if head == "ffc" else "gradient_cosine"
    for values in zip(*(found[name].values() for name in ("mass", "hardest_recall", cosine)), strict=True):
        if head == "full":
            assert values == (1.0, 1.0, 1.0)
        else:
            assert all(-0.2 < value < 1 for value in values)


def test_on_two_processes(workers, tmp_path):
    """Each process computes a part of the class means. Values are close to those of one process, whose pairs differ."""
    words = [*HEADS["ffc"], *SHORT, *ASKED]
    for world_size in (1, 2):
        assert set(workers(world_size).run(trained, words, tmp_path / str(world_size))) == {0}
    one, two = figures(tmp_path / "1"), figures(tmp_path / "2")
    for name in ("mass", "class_means_cosine"):
        assert two[name][4] == pytest.approx(one[name][4], rel=0.35)


class Mute(Head):
    """A head without class centers, margin or held classes."""

    def __init__(self, num_classes: int, embedding_size: int, **options: object):
        super().__init__()

    def optimizer(self, lr: float, **options: object) -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.zeros(1)], lr=lr)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fidelity.interval=0"], r"fidelity\.interval=0 must be a whole number of at least 1"),
        (["fidelity.probes=0"], r"fidelity\.probes=0 must be a whole number of at least 1"),
        (["fidelity.class_images=0"], r"fidelity\.class_images=0"),
        (
            ["fidelity.interval=2", f"head._target_={__name__}.Mute"],
            r"cannot be used with Mute: a head .* must define margin and process_group and held_classes\(\); null",
        ),
    ],
)
def test_invalid_options_are_refused_before_training(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(config("head=full", *SHORT, *words), tmp_path)
