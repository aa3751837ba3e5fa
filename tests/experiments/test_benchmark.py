"""The benchmark command on small cases: figures, files, table; and that baselines do the same step as the head."""

import json

import numpy as np
import pytest
import torch

from experiments import benchmark
from experiments.benches import head_step as bench
from experiments.benches.catalog import catalog
from experiments.benches.loader import DECODERS, loader, make, with_workers
from experiments.benches.measure import median_and_spread, ratio
from experiments.benches.min_probability import min_probability
from experiments.benches.objectives import objectives
from experiments.benches.pool import LinkedLRU, OrderedLRU, pool
from experiments.benches.sampling import sampling
from experiments.benches.search import search
from experiments.benches.selection import selection
from experiments.benches.stall import stall
from experiments.benches.topk import topk
from heads import CosFace, FullFC, PartialFC
from heads.pool.class_pool import ClassPool
from tests.experiments.commands import call


def test_head_step_as_a_command(tmp_path):
    words = [
        "bench=head_step",
        "bench.heads=[pfc]",
        "bench.num_classes=[300]",
        "bench.embedding_size=[8]",
        "bench.batch=[4]",
    ]
    words += ["bench.sample_rate=[0.1]", "bench.repeats=2", "bench.warmup=1", f"hydra.run.dir={tmp_path}"]
    printed = call("experiments.benchmark", *words)
    lines = json.loads((tmp_path / "benchmark.json").read_text())["lines"]
    assert [(line["head"], line["active"], line["baseline"]) for line in lines] == [("pfc", 30, "indexed")]
    for line in lines:
        parts = [line[f"{part}_ms"] for part in ("forward", "backward", "update")]
        assert all(part > 0 for part in parts) and line["speedup"] > 0
        assert line["over_floor"] > line["over_limit"] > 0
        assert line["peak_bytes"] > 0 and line["baseline_peak_bytes"] > 0
    assert "speedup" in printed and "300" in printed
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


def test_head_step_over_every_option(tmp_path):
    lines = bench.head_step(
        ["pfc"],
        [200],
        [20],
        [4],
        [8],
        False,
        "cpu",
        1,
        1,
        str(tmp_path / "rows"),
        dtype=["bf16"],
        store=["device", "disk"],
        compute=["bf16"],
        optimizer=["adagrad"],
        logits_budget_mb=[1],
        min_probability=[0],
    )
    assert [(line["store"], line["active"]) for line in lines] == [("device", 20), ("disk", 20)]
    assert "speedup" not in lines[0] and not (tmp_path / "rows").exists()


@pytest.mark.parametrize(("name", "rate"), [("dense", 1.0), ("indexed", 1.0)])
def test_baselines_do_the_same_step(name, rate, monkeypatch):
    """The same rows and batch give the same loss and, after SGD, the same rows."""
    seen = {}

    def capture(forward, update, *rest):
        seen.update(forward=forward, update=update)
        return lambda: {}

    monkeypatch.setattr(bench, "three_parts", capture)
    rows = FullFC(50, 8).centers.rows
    monkeypatch.setattr(torch, "randn", lambda *shape, device: rows.clone() * 100)
    getattr(bench, name)(50, rate, 4, 8, "cpu")
    monkeypatch.undo()
    embeddings, labels = torch.randn(4, 8), torch.tensor([1, 7, 7, 49])
    losses = []
    head = FullFC(50, 8, margin=CosFace())
    optimizer = head.optimizer(**bench.SGD)
    for forward, update in (
        (seen["forward"], seen["update"]),
        (head, lambda: (optimizer.step(), optimizer.zero_grad())),
    ):
        for _ in range(3):
            loss = forward(embeddings.clone().requires_grad_(), labels)
            loss.backward()
            update()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_other_benches_give_figures():
    for lines in (
        sampling([500], [0.1, 0.5], batch=4, warmup=1, repeats=2),
        topk([300], [8], batch=4, k=3, warmup=1, repeats=2),
    ):
        assert all(line["step_ms"] > 0 for line in lines)
    assert PartialFC(500, 1).stats()["memory_bytes"] == 2000


def test_tables_fit_and_put_what_is_common_into_the_title():
    lines = [{"head": "pfc", "num_classes": c, "step_ms": 1.5, "speedup": 2.0 * c} for c in (10, 20)]
    (table,) = benchmark.tables(lines, 80)
    assert table.title == "head pfc"
    assert [column.header for column in table.columns] == ["num_classes", "step_ms", "speedup"]


def test_statistics():
    assert median_and_spread([3.0]) == (3.0, 0.0)
    assert median_and_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 1.0)
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == 2.0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"bench.heads=\['pcf'\]"):
        bench.head_step(["pcf"], [10], [0.1], [2], [4], False, "cpu", 1, 1, "rows", optimizer=["sgd"])
    with pytest.raises(ValueError, match=r"bench.optimizer=\['adam'\]"):
        bench.head_step(["pfc"], [10], [0.1], [2], [4], False, "cpu", 1, 1, "rows", optimizer=["adam"])


def test_margins_and_objectives_are_compared_with_the_first(monkeypatch):
    monkeypatch.setitem(objectives.__globals__, "Subject", Inline)
    sizes = {"num_classes": 60, "embedding_size": 8, "batch": 4, "device": "cpu", "warmup": 1, "repeats": 2}
    common = {"head": "pfc", "sample_rate": 0.5, "logits_budget_mb": [512, 0], **sizes}
    lines = objectives(margin=["class_margin"], objective=["softmax", "uniface"], **common)
    assert [(line["objective"], line["logits_budget_mb"]) for line in lines] == [
        ("softmax", 512),
        ("softmax", 0),
        ("uniface", 512),
        ("uniface", 0),
    ]
    assert lines[0]["over_first"] == 1 and all(line["over_first"] > 0 for line in lines)
    assert lines[0]["peak_bytes"] - lines[0]["above_rows_bytes"] == 60 * 8 * 4 * 2  # rows and their momentum
    (alone,) = objectives(margin=["cosface"], objective=["bce"], **{**common, "head": "full", "logits_budget_mb": [1]})
    assert alone["step_ms"] > 0
    with pytest.raises(ValueError, match=r"bench.margin=\['arkface'\] must be among adacos_fixed, adaface"):
        objectives(margin=["arkface"], objective=["softmax"], **common)


def test_search_finds_mates_among_strangers(monkeypatch, tmp_path):
    monkeypatch.setitem(search.__globals__, "Subject", Inline)
    lines = search(5, [1, 3], 200, 16, similarity=0.9, warmup=1, repeats=2, folder=str(tmp_path))
    assert [line["mates"] for line in lines] == [1, 3] and all(line["over_floor"] > 0 for line in lines)
    assert all(line["rank1"] > 0.9 for line in lines) and not list(tmp_path.iterdir())


class Inline:
    """A subject in this process: others take seconds to start."""

    def __init__(self, build, **options):
        self.step, self.parts = build(**options), {}

    def turn(self, seconds=0.0):
        return dict(self.step())

    def close(self):
        return 0.0


def test_loaders_and_catalogs(tmp_path, monkeypatch):
    monkeypatch.setitem(loader.__globals__, "Subject", Inline)
    threads = torch.get_num_threads()
    lines = loader(None, 24, 32, 8, [], epochs=2, warmup=0, repeats=2)
    assert [line["what"] for line in lines] == [*DECODERS, "loader", "finished", "opencv", "pillow"]
    source = str(make(tmp_path / "set.lmdb", 24, 32))
    for plain in (False, True):
        lines.append(with_workers(plain, 1, 2, source=source, size=32, batch=8, cache=str(tmp_path / "cache")))
    assert all(line["images_per_second"] > 0 for line in lines) and lines[0]["over_floor"] == 1
    torch.set_num_threads(threads)
    folder = tmp_path / "many"
    folder.mkdir()
    lines = catalog(1_000_000, 100_000, [0, 5], 8, str(folder))  # few would not show in the memory of a process
    assert [line["what"] for line in lines] == ["make", "open, 0 held out", "open, 5 held out"]
    assert all(line["took_seconds"] > 0 and line["peak_bytes"] > 0 for line in lines) and not list(folder.iterdir())


def test_selection_by_each_index(tmp_path):
    lines = selection(
        [300], [8], [2], [None, 300], [300], 5, 16, 20, s=16, steps=3, lr=0.1, warmup=0, repeats=2,
        picture=str(tmp_path / "recall.png"),
    )  # fmt: skip
    by_name = {(line["index"], line.get("search_k")): line for line in lines}
    assert [line["index"] for line in lines] == ["exact", "annoy", "annoy", "ivf", "uniform"]
    assert by_name["exact", None]["recall_share"] == by_name["ivf", None]["recall_share"] == 1  # all lists
    assert by_name["annoy", 300]["recall_share"] > by_name["annoy", None]["recall_share"] > 0
    assert by_name["uniform", None]["recall_share"] == pytest.approx(5 * 16 / 300, abs=0.2)
    assert all(0 < line["mass_share"] <= 1 and line["query_ms"] > 0 for line in lines)
    assert (tmp_path / "recall.png").stat().st_size > 10_000


def test_stalls_of_both_ways_to_build():
    lines = stall(400, 8, 40, 8, ["annoy", "ivf"], interval=3, steps=8, warmup=1)
    assert [(line["index"], line["build"]) for line in lines] == [
        (name, build) for name in ("annoy", "ivf") for build in ("blocking", "background")
    ]
    assert all(line["slowest_ms"] >= line["p99_ms"] >= line["step_ms"] > 0 for line in lines)
    assert lines[0]["of_blocking_share"] == 1
    with pytest.raises(ValueError, match=r"bench.index=\['hnsw'\]"):
        stall(400, 8, 40, 8, ["hnsw"], 3, 8, 1)


def test_pool_beside_plain_lrus():
    lines = pool([20], [100, 100_000], [16], embedding_size=8, warmup=1, repeats=2)
    assert all(line["step_ms"] > 0 and line["speedup"] > 0 and line["over_linked_list"] > 0 for line in lines)
    assert lines[0]["head_bytes"] == lines[1]["head_bytes"]  # does not grow with classes


def test_plain_lrus_do_what_the_pool_does():
    random = np.random.default_rng(0)
    ours, others = ClassPool(30), [OrderedLRU(30), LinkedLRU(30)]
    for _ in range(50):
        keys = random.integers(0, 80, 20)
        plan = ours.plan(keys)
        ours.commit(plan)
        assert all(other.touch(keys) == plan.slots.tolist() for other in others)


def test_min_probability_before_and_after_training():
    lines = min_probability(200, 16, 8, [1e-3, 0.01], steps=3, lr=0.1, warmup=0, repeats=2, device="cpu")
    assert [(line["after_steps"], line["min_probability"]) for line in lines] == [
        (0, 1e-3),
        (0, 0.01),
        (3, 1e-3),
        (3, 0.01),
    ]
    for line in lines:
        assert 0 < line["kept_share"] <= 1 and 0 <= line["row_error"] < 1 and line["step_ms"] > 0
    assert lines[1]["kept_share"] < lines[0]["kept_share"] and lines[1]["row_error"] > lines[0]["row_error"]
