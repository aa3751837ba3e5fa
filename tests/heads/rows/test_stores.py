"""Stores agree bit for bit; files are sparse, reopened, refused if they do not fit, and survive a crash."""

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from heads import FullFC, PartialFC, RowAdamW, Softmax
from heads.group.sharding import Shard
from heads.rows import stores
from heads.rows.initial import normal_quantiles


def train(head, optimizer, steps: int = 4, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        embeddings = torch.randn(6, head.embedding_size, generator=generator)
        labels = torch.randint(head.centers.shard.num_classes, (6,), generator=generator)
        loss = head(embeddings, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def all_rows(head) -> torch.Tensor:
    return head.centers.read(slice(0, head.centers.shard.size)).clone()


OPTIONS = {
    "full": (FullFC, {}, {"momentum": 0.9, "weight_decay": 5e-4}),
    "pfc": (PartialFC, {"sample_rate": 0.1}, {"momentum": 0.9, "weight_decay": 5e-4}),
    "recomputing": (PartialFC, {"sample_rate": 0.1, "logits_budget_mb": 0}, {"momentum": 0.9}),
    "adamw": (PartialFC, {"sample_rate": 0.1}, {"rule": RowAdamW}),
    "bias": (FullFC, {"margin": Softmax()}, {}),
    "bf16": (PartialFC, {"sample_rate": 0.1, "dtype": "bf16"}, {"momentum": 0.9, "momentum_dtype": "bf16"}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_stores_agree_bit_for_bit(name, tmp_path):
    kind, options, rule = OPTIONS[name]
    results = {}
    for store in ("device", "host", "disk"):
        files = {"store_dir": tmp_path} if store == "disk" else {}
        head = kind(500, 8, store=store, **files, **options)
        losses = train(head, head.optimizer(lr=0.1, **rule))
        nearest = head.topk(torch.ones(2, 8), 5)
        results[store] = (losses, all_rows(head), head.centers.state, nearest)
    for store in ("host", "disk"):
        losses, rows, state, (values, classes) = results[store]
        assert losses == results["device"][0] and torch.equal(rows, results["device"][1])
        assert all(torch.equal(state[key], table) for key, table in results["device"][2].items())
        assert torch.equal(values, results["device"][3][0]) and torch.equal(classes, results["device"][3][1])


def _disk_rows(folder: str) -> tuple[list[float], torch.Tensor]:
    head = PartialFC(101, 8, sample_rate=0.2, store="disk", store_dir=folder)
    return train(head, head.optimizer(lr=0.1, momentum=0.9)), all_rows(head)


def _device_rows() -> tuple[list[float], torch.Tensor]:
    head = PartialFC(101, 8, sample_rate=0.2)
    return train(head, head.optimizer(lr=0.1, momentum=0.9)), all_rows(head)


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_process_has_its_own_files(world_size, workers, tmp_path):
    on_disk = workers(world_size).run(_disk_rows, str(tmp_path))
    for (losses, rows), (expected, plain) in zip(on_disk, workers(world_size).run(_device_rows), strict=True):
        assert losses == expected and torch.equal(rows, plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{rank}-of-{world_size}" for rank in range(world_size)]


def test_files_hold_only_written_rows(tmp_path):
    head = PartialFC(200_000, 64, sample_rate=5e-5, store="disk", store_dir=tmp_path)
    train(head, head.optimizer(lr=0.1, momentum=0.9))
    head.topk(torch.ones(1, 64), 2)  # reading all rows writes none
    table = tmp_path / "0-of-1" / "rows.bin"
    assert table.stat().st_size == 51_200_000 and table.stat().st_blocks * 512 < 2_000_000
    written = (head.centers.rows != 0).any(dim=1).sum()
    assert 40 <= written <= 64  # 10 classes in each of 4 steps, and the positives


def test_reopened_files_continue(tmp_path):
    def build(folder: Path):
        head = PartialFC(200, 8, sample_rate=0.2, store="disk", store_dir=folder)
        return head, head.optimizer(lr=0.1, momentum=0.9)

    whole = build(tmp_path / "whole")
    expected = train(*whole, steps=6)
    head, optimizer = build(tmp_path / "parts")
    losses = train(head, optimizer, steps=3)
    del head, optimizer
    head, optimizer = build(tmp_path / "parts")
    head.step = 3  # the step count belongs to a checkpoint
    assert losses + train(head, optimizer, steps=3, first=3) == expected
    assert torch.equal(all_rows(head), all_rows(whole[0]))


def test_files_that_do_not_fit_are_refused_and_left_alone(tmp_path):
    head = PartialFC(100, 8, store="disk", store_dir=tmp_path)
    train(head, head.optimizer(lr=0.1, momentum=0.9))
    with pytest.raises(ValueError, match="another head has"):
        PartialFC(100, 8, store="disk", store_dir=tmp_path)
    del head
    before = {path.name: path.read_bytes() for path in (tmp_path / "0-of-1").iterdir()}
    for options, words in (
        ({"seed": 1}, "seed=0, not 1"),
        ({"dtype": "bf16"}, "dtype=float32, not bfloat16"),
        ({"margin": Softmax()}, r"shape=\[100, 8\], not \[100, 9\]"),
    ):
        with pytest.raises(ValueError, match=words):
            PartialFC(100, 8, store="disk", store_dir=tmp_path, **options)
    with pytest.raises(ValueError, match="num_classes=100, not 101"):
        PartialFC(101, 8, store="disk", store_dir=tmp_path)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "0-of-1").iterdir()}
    (tmp_path / "0-of-1" / "rows.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="5 bytes instead of 3200"):
        PartialFC(100, 8, store="disk", store_dir=tmp_path)
    (tmp_path / "other" / "0-of-1").mkdir(parents=True)
    (tmp_path / "other" / "0-of-1" / "rows.bin").write_bytes(b"unknown content")
    with pytest.raises(ValueError, match="not a table of rows"):
        PartialFC(100, 8, store="disk", store_dir=tmp_path / "other")


def test_too_little_disk_space_is_reported_before_training(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="only 1e-06 GB are free"):
        PartialFC(100, 8, store="disk", store_dir=tmp_path)


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="store='tape'"):
        PartialFC(10, 4, store="tape")
    with pytest.raises(ValueError, match="needs store_dir"):
        PartialFC(10, 4, store="disk")
    with pytest.raises(ValueError, match="belongs to store='disk'"):
        PartialFC(10, 4, store="host", store_dir=tmp_path)


def test_rows_are_initial_or_trained_after_a_kill_in_training(tmp_path):
    script = f"""
        import torch
        from heads import PartialFC
        head = PartialFC(50_000, 32, sample_rate=0.02, store="disk", store_dir={str(tmp_path)!r}, dtype="bf16")
        optimizer = head.optimizer(lr=0.1, momentum=0.9)
        while True:
            head(torch.randn(8, 32), torch.randint(50_000, (8,))).backward()
            optimizer.step()
            optimizer.zero_grad()
            print("step", flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    for _ in range(10):
        assert process.stdout.readline() == "step\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    head = PartialFC(50_000, 32, sample_rate=0.02, store="disk", store_dir=tmp_path, dtype="bf16")
    optimizer = head.optimizer(lr=0.1, momentum=0.9)
    rows, fresh = all_rows(head), PartialFC(50_000, 32, dtype="bf16").centers.rows.float()
    assert torch.isfinite(rows).all() and (rows != 0).any(dim=1).all()
    changed = (rows != fresh).any(dim=1).sum()
    assert 1000 < changed < 20_000  # 1000 classes in each of at least 10 steps
    assert all(torch.isfinite(torch.tensor(train(head, optimizer))))


@pytest.mark.parametrize(("saved_in", "loaded_in"), [("disk", "device"), ("device", "disk"), ("disk", "disk")])
def test_state_moves_between_stores(saved_in, loaded_in, tmp_path):
    def build(store: str, name: str):
        files = {"store_dir": tmp_path / name} if store == "disk" else {}
        head = PartialFC(200, 8, sample_rate=0.1, store=store, **files)
        return head, head.optimizer(lr=0.1, momentum=0.9)

    head, optimizer = build(saved_in, "saved")
    train(head, optimizer)
    again, its_optimizer = build(loaded_in, "loaded")
    again.load_state_dict(head.state_dict())
    assert torch.equal(all_rows(again), all_rows(head))
    assert train(again, its_optimizer, first=4) == train(head, optimizer, first=4)


def test_initial_rows_are_normal():
    quantiles = normal_quantiles(torch.device("cpu")).double()
    assert float(quantiles.square().mean().sqrt()) == pytest.approx(0.01, rel=1e-6)
    assert float((quantiles / 0.01).pow(4).mean()) == pytest.approx(3, rel=2e-3)
    assert torch.equal(quantiles, quantiles.sort().values)


def test_only_rows_on_disk_need_file_locks(tmp_path, monkeypatch):
    """Windows has no file locks; the module itself must be importable there."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    spec = importlib.util.spec_from_file_location("heads.rows.stores_again", stores.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    shard = Shard(10, 0, 1)
    assert again.make_store("device", None, shard, {}).lazy is False
    with pytest.raises(ValueError, match=r"store=disk needs file locks .* use store=device or host"):
        again.make_store("disk", tmp_path / "rows", shard, {})
    assert not (tmp_path / "rows").exists()
