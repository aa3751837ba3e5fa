"""The benchmark command on small cases: figures, files, table; and that baselines do the same step as the head."""

import json
import os
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize, one_hot

from experiments import benchmark
from experiments.benches import baselines, cold_files, measure, startup
from experiments.benches import head_step as bench
from experiments.benches.catalog import catalog
from experiments.benches.loader import DECODERS, loader, make, with_workers
from experiments.benches.measure import PARTS, median_and_spread, ratio
from experiments.benches.min_probability import min_probability
from experiments.benches.objectives import objectives
from experiments.benches.pool import LinkedLRU, OrderedLRU, pool
from experiments.benches.sampling import sampling
from experiments.benches.search import search
from experiments.benches.selection import selection
from experiments.benches.stall import stall
from experiments.benches.topk import topk
from experiments.instantiate import instantiate
from heads import CosFace, FullFC, PartialFC
from heads.pool.class_pool import ClassPool
from tests.experiments import commands
from tests.experiments.commands import call

SMALL = ("bench.num_classes=[300]", "bench.embedding_size=[8]", "bench.batch=[4]", "bench.repeats=2", "bench.warmup=1")


def test_head_step_as_a_command(tmp_path):
    words = ["bench=head_step", "bench.heads=[pfc]", "bench.sample_rate=[0.1]", *SMALL, f"hydra.run.dir={tmp_path}"]
    printed = call("experiments.benchmark", *words)
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert [(line["head"], line["active"]) for line in written["lines"]] == [("pfc", 30), ("indexed", 30)]
    for line in written["lines"]:
        parts = [line[f"{part}_ms"] for part in PARTS]
        assert all(part > 0 for part in parts) and line["over_first"] > 0 and line["peak_over_first"] > 0
        assert line["peak_bytes"] > 0
    ours, indexed = written["lines"]
    assert ours["over_floor"] > ours["over_limit"] > 0 and ours["over_first"] == 1 and "over_floor" not in indexed
    assert "over_first" in printed and "300" in printed
    assert all(rate > 0 for rates in written["machine"]["rates"] for rate in rates.values())
    assert "GFLOP/s" in printed and "GB/s in gathers" in printed
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


@pytest.fixture
def head_step(monkeypatch, tmp_path):
    """`bench=head_step` in this process, with the defaults of its config."""
    monkeypatch.setattr(measure, "Subject", Inline)
    monkeypatch.setattr(bench, "Subject", Inline)

    def run(*words):
        config = commands.config(*SMALL, f"bench.store_dir={tmp_path / 'rows'}", *words, name="benchmark")
        return instantiate(config.bench, _convert_="all")

    return run


def test_head_step_measures_every_option_of_a_head(head_step, tmp_path):
    lines = head_step(
        "bench.dtype=[bf16]", "bench.store=[device,disk]", "bench.compute=[bf16]", "bench.optimizer=[adagrad]",
        "bench.sample_rate=[20]", "bench.baselines=[]", "+bench.log_q=[false,true]", "bench.min_probability=[0,1e-6]",
    )  # fmt: skip
    own = {"full": "min_probability", "pfc": "log_q"}
    assert [(line["head"], line["store"], line[own[line["head"]]]) for line in lines] == [
        *(("full", *values) for values in product(["device", "disk"], [0, 1e-6])),
        *(("pfc", *values) for values in product(["device", "disk"], [False, True])),
    ]
    assert {line["active"] for line in lines} == {300, 20} and not (tmp_path / "rows").exists()
    assert set(benchmark.series(lines)) >= {"full, store device, min_probability 0", "pfc, store disk, log_q True"}


def test_rows_of_a_cold_file_are_read_again(head_step, monkeypatch):
    """Each cycle touches the rows of the first one, in files of which no page is in memory when they are opened."""
    steps, dropped = [], []

    def recorded(forward, update, *sizes):
        def step():
            labels = torch.randint(300, (4,))
            blank = (forward.centers.rows[labels] == 0).all().item()
            forward(torch.randn(4, 8, requires_grad=True), labels).backward()
            update()
            steps.append((blank, forward.step, labels.tolist()))
            return dict.fromkeys(PARTS, 1.0)

        return step

    drop = cold_files.drop_pages
    monkeypatch.setattr(bench, "three_parts", recorded)
    monkeypatch.setattr(cold_files, "drop_pages", lambda folder: (drop(folder), dropped.append(len(steps))))
    (line,) = head_step(
        "bench.heads=[pfc]", "bench.store=[disk-cold]", "bench.cycle=3", "bench.baselines=[]", "bench.sample_rate=[0.1]"
    )
    assert line["store"] == "disk-cold" and line["read_bytes"] >= 0
    first, second = steps[:4], steps[4:8]
    assert dropped[:2] == [4, 8]
    assert [rest for _, *rest in first] == [rest for _, *rest in second]
    assert all(blank for blank, *_ in first[:1]) and not any(blank for blank, *_ in second)


def test_pages_are_dropped_from_memory(tmp_path):
    if in_memory(tmp_path):
        pytest.skip("these files are in memory")
    path = tmp_path / "rows.bin"
    path.write_bytes(bytes(2**20))
    cold_files.drop_pages(tmp_path)
    before = cold_files.read_bytes()
    path.read_bytes()
    assert cold_files.read_bytes() - before >= 2**20


def in_memory(folder):
    """Return whether the files of a folder are in a tmpfs."""
    device = folder.stat().st_dev
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(f" {os.major(device)}:{os.minor(device)} " in line and " - tmpfs " in line for line in mounts)


@pytest.mark.parametrize("name", [name for losses in baselines.BASELINES.values() for name in losses])
def test_baselines_compute_the_loss_they_claim(name):
    """Loss and gradients are those of a float64 softmax, with the margin or, as claimed, without it."""
    if baselines.missing(name):
        pytest.skip("this version of torch has no such function")
    torch.manual_seed(0)
    rows, embeddings, labels = torch.randn(50, 8), 3 * torch.randn(5, 8), torch.tensor([1, 7, 7, 49, 3])
    embeddings[4] = normalize(rows[3], dim=0) + 0.95 * normalize(rows[5], dim=0)  # a sample of a high probability
    given = [tensor.clone().requires_grad_() for tensor in (rows, embeddings)]
    (forward,) = (losses[name](given[0], 50) for losses in baselines.BASELINES.values() if name in losses)
    loss = forward(given[1], labels)
    loss.backward()
    exact = [tensor.double().requires_grad_() for tensor in (rows, embeddings)]
    cos = normalize(exact[1]) @ normalize(exact[0]).T
    own = one_hot(labels, 50).bool()
    z = 64 * torch.where(own, cos - (0.0 if name.endswith(("chunked", "auto")) else 0.4), cos)
    expected = (z.logsumexp(1) - z[own]).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(given, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["dense", "indexed", "linear_cross_entropy"])
def test_baselines_take_the_step_of_the_head(name, monkeypatch):
    """The same rows and batch give the same loss and, after SGD, the same rows."""
    if baselines.missing(name):
        pytest.skip("this version of torch has no such function")
    rows, randn = FullFC(50, 8).centers.rows, torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device: rows.clone() * 100)
    monkeypatch.setitem(baselines.SGD, "lr", 1e-6)  # a larger one would end at probabilities of 1
    monkeypatch.setattr(baselines, "three_parts", lambda forward, update, *rest: (forward, update))
    plain = baselines.baseline(name, 50, 50, 4, 8, "cpu")
    monkeypatch.setattr(torch, "randn", randn)
    embeddings, labels = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 7, 7, 49])
    losses = []
    head = FullFC(50, 8, margin=CosFace())
    optimizer = head.optimizer(**baselines.SGD)
    for forward, update in (plain, (head, lambda: (optimizer.step(), optimizer.zero_grad()))):
        for _ in range(3):
            loss = forward(embeddings.clone().requires_grad_(), labels)
            loss.backward()
            update()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_baseline_that_torch_lacks_is_left_out(head_step, monkeypatch, capsys):
    monkeypatch.setattr(baselines, "LINEAR_CROSS_ENTROPY", None)
    lines = head_step("bench.heads=[full]", "bench.baselines=[dense,linear_cross_entropy]")
    assert [line["head"] for line in lines] == ["full", "dense"]
    assert "has no linear_cross_entropy: linear_cross_entropy is left out" in capsys.readouterr().out


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


def test_unknown_names_are_refused(head_step):
    for word, message in {
        "bench.heads=[pcf]": r"bench.heads=\['pcf'\] must be among full, pfc",
        "bench.optimizer=[adam]": r"bench.optimizer=\['adam'\]",
        "bench.baselines=[insightface]": r"bench.baselines=\['insightface'\] must be among dense",
        "bench.baselines=false": r"bench.baselines=False must be a list",
        "bench.store=disk": r"bench.store=disk must be a list, such as bench.store=\[disk\]",
        "+bench.sample_bloc=[1]": r"bench.sample_bloc is an option of no head; options are",
    }.items():
        with pytest.raises(ValueError, match=message):
            head_step(word)


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
        return 1.0


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
    lines = min_probability(
        ["initial", "trained", "means"],
        300,
        16,
        8,
        [16, 8],
        0.5,
        [1e-4, 0.3],
        0.005,
        steps=3,
        lr=0.01,
        warmup=0,
        repeats=2,
        device="cpu",
    )
    kinds = [(line["centers"], line.get("dimensions")) for line in lines]
    assert kinds == 3 * [("initial", None)] + 3 * [("trained", None)] + 3 * [("means", 16)] + 3 * [("means", 8)]
    assert len({line["loss"] for line in lines}) == 4
    for number in range(0, len(lines), 3):
        group = lines[number : number + 3]
        thresholds = [line["min_probability"] for line in group]
        (found,) = set(thresholds) - {1e-4, 0.3}
        assert thresholds == sorted(thresholds)
        assert [line["row_error"] <= 0.005 for line in group] == [value <= found for value in thresholds]
        for line in group:
            assert 0 < line["kept_share"] <= 1 and line["step_ms"] > 0
            assert line["embedding_error"] < 1e-5
        for figure, order in (("kept_share", -1), ("row_error", 1)):
            values = [order * line[figure] for line in group]
            assert values == sorted(values) and values[0] < values[-1]
    assert lines[-1]["row_error"] > 0.005


def test_startup(monkeypatch, tmp_path):
    """Commands take 10 ms in one checkout and 20 in another; first steps come after 30 ms, and after 40 in a sweep."""
    spent = {"a": 0.01, "b": 0.02}

    def elapsed(folder: Path, arguments: list[str]) -> float:
        outputs = [word.partition("=")[2] for word in arguments if word.startswith("hydra.")]
        runs = [Path(outputs[0], str(job)) for job in (0, 1)] if "-m" in arguments[2:] else list(map(Path, outputs))
        for number, run in enumerate(runs if "experiments.run" in arguments else []):
            run.mkdir(exist_ok=True)
            (run / "summary.json").write_text("{}")
            os.utime(run / "summary.json", (100, 100))
            first = 100.04 if number else time.time() + 0.03
            (run / "metrics.csv").write_text(
                f"step,time,name,value\n1,{first},train/loss,1\n2,{first + 9},train/loss,1\n"
            )
        return spent[folder.name]

    monkeypatch.setattr(startup, "elapsed", elapsed)
    for name in spent:
        (tmp_path / name / "experiments").mkdir(parents=True)
        (tmp_path / name / "experiments" / "run.py").touch()
    lines = startup.startup([str(tmp_path / name) for name in spent], ["head=pfc"], 2)
    found = {(line["case"], Path(line["checkout"]).name): line for line in lines}
    assert len(found) == 12
    assert found["plan", "b"]["over_first"] == 2 and found["plan", "b"]["over_torch"] == 1
    assert found["first step of a command", "a"]["over_torch"] == pytest.approx(3, rel=0.5)
    assert found["first step of the next run of a sweep", "b"]["over_torch"] == pytest.approx(2)
    with pytest.raises(ValueError, match="must be folders of this repository"):
        startup.startup([str(tmp_path)], [], 1)


def test_startup_measures_commands(monkeypatch):
    words = [*commands.SMOKE, "logger.wandb.mode=disabled", "evaluate.interval=null"]
    with monkeypatch.context() as context:
        context.setattr(startup, "elapsed", lambda folder, arguments: len(call(*arguments[1:])))
        assert 0 < startup.run(commands.ROOT, words)["first step of a command"] < 300
    assert startup.elapsed(commands.ROOT, ["-c", "import time; time.sleep(0.1)"]) > 0.1
    with pytest.raises(ValueError, match="failed in"):
        startup.elapsed(commands.ROOT, ["-c", "raise SystemExit(3)"])
