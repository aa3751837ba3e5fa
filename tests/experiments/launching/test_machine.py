"""Comparison of the needs of a run with the machine, before it starts."""

import re

import pytest
import torch

from experiments.checkpoints.storage import Folder
from experiments.launching import capacity, machine
from experiments.launching.capacity import check_capacity
from experiments.launching.machine import check_batch, check_processes
from experiments.launching.processes import Processes, device_for
from experiments.train import train
from tests.experiments.commands import config

ONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A machine of 2 cores, with 4 GB of memory, 10 GB of disk for checkpoints and 9 GB for rows free."""
    monkeypatch.setattr(machine, "cores", lambda: 2)
    for module in (machine, capacity):
        monkeypatch.setattr(module, "free_memory", lambda: 4e9)
    monkeypatch.setattr(capacity, "free_on_disk", lambda folder: 9e9 if "rows" in folder.parts else 10e9)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["trainer.devices=65"],
            "batch_size=64 cannot be divided among 65 processes (trainer.devices=65, trainer.num_nodes=1)",
        ),
        (
            ["trainer.num_nodes=9", "trainer.rendezvous=a:1", "batch_size=8"],
            "batch_size=8 cannot be divided among 9 processes (trainer.devices=1, trainer.num_nodes=9); raise",
        ),
        (["trainer.devices=17"], "trainer.devices=17 exceeds 8 processes per core, and this machine has 2 cores"),
        (
            ["trainer.devices=16"],
            "trainer.devices=16 needs 4.8 GB of memory before training begins, and only 4 GB",
        ),
        (["trainer.devices=0"], "trainer.devices=0 must be a whole number of at least 1"),
    ],
)
def test_processes_that_cannot_work_are_refused(overrides, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        check_batch(config(*overrides))
        check_processes(config(*overrides))


@pytest.mark.parametrize(("devices", "warning"), [(1, ""), (2, ""), (3, "trainer.devices=3 exceeds the 2 cores")])
def test_more_processes_than_cores_are_reported(devices, warning, capsys):
    assert check_processes(config(f"trainer.devices={devices}")) == devices
    printed = capsys.readouterr().err
    assert warning in printed and bool(printed) == bool(warning)


@pytest.mark.parametrize(
    ("overrides", "classes", "words"),
    [
        # Rows and momentum of 128 numbers take 1024 bytes a class.
        (
            ["head=pfc"],
            4_000_000,
            "4,000,000 classes of embedding_size=128 in 1 process on this machine need 4.1 GB for rows and",
        ),
        (["head=pfc"], 4_000_000, "4 GB; use store=disk or dtype=bf16 or optimizer.rows.momentum=0 or more machines"),
        (["head=full", "store=host"], 4_000_000, "but the free memory of this machine is 4 GB"),
        (["head=ffc", "queue_size=0.99"], 4_000_000, "or a smaller queue_size or more machines"),
        (["head=pfc", "store=disk", "store_dir=/rows"], 10_000_000, "takes at least 10.2 GB, but only 10 GB are free"),
    ],
)
def test_rows_and_checkpoints_that_do_not_fit_are_refused(overrides, classes, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        check_capacity(config(*overrides), classes, ONE, Folder(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "classes", "words"),
    [
        (["head=pfc"], 1_000_000, ""),
        (["head=forest"], 3_000_000, "GB for a step, which may not fit into the free memory"),
        (
            ["head=pfc", "checkpoint.keep=4"],
            2_000_000,
            "takes at least 2.05 GB, and 5 more of them (checkpoint.keep=4)",
        ),
        (
            ["head=pfc", "store=disk", "store_dir=/rows"],
            9_500_000,
            "store_dir=/rows may grow by 9.73 GB of rows and their state, but only 9 GB are",
        ),
    ],
)
def test_possible_lack_of_space_is_reported(overrides, classes, words, tmp_path, capsys):
    check_capacity(config("checkpoint.keep=1", *overrides), classes, ONE, Folder(tmp_path))
    printed = capsys.readouterr().err
    assert words in printed and bool(printed) == bool(words)


def test_a_training_that_does_not_fit_is_refused_before_it_creates_rows(tmp_path):
    words = ["data=sphere", "backbone=mlp", "data.num_classes=4000000", "trainer.accelerator=cpu"]
    with pytest.raises(
        ValueError, match=r"4,000,000 classes of embedding_size=128 in 1 process on this machine need 4\.1 GB"
    ):
        train(config(*words, "logger.wandb.mode=disabled"), tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_this_machine_is_measured(monkeypatch, tmp_path):
    monkeypatch.undo()
    assert machine.cores() >= 1 and 0 < machine.free_memory() < 1e15
    assert capacity.free_on_disk(tmp_path / "missing" / "too") > 0 and capacity.size_on_disk(tmp_path) == 0


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"trainer.devices=3 needs a GPU for each process, and torch finds 2"):
        device_for("auto", 2)
    assert device_for("cpu", 2).type == "cpu"
