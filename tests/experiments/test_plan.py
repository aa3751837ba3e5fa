"""The formulas of `Head.cost` against what steps send, multiply and hold; and the table made of them."""

import json
import re

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments import plan
from experiments.benches.checkpoint import checkpoint
from experiments.benches.communication import HEADS, _measured, _momentum, communication
from experiments.command_line.arguments import CONF
from experiments.launching.processes import Processes
from heads import FullFC, HashingForest, PartialFC
from heads.core.cost import Case
from heads.indexes import IVF, Annoy, Exact
from heads.indexes.vectors import TensorVectors
from heads.rows.optimizers import RowAdagrad, RowAdamW, RowSGD
from tests.experiments.commands import call
from tests.workers import rank_and_world


def measured(name: str, case: Case) -> dict[str, float]:
    """Return the measured figures of a step in a worker."""
    rank, world_size = rank_and_world()
    group = torch.distributed.group.WORLD if world_size > 1 else None
    return _measured(Processes(rank, world_size, torch.device("cpu"), group), name, case, 3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", HEADS)
def test_formulas_are_what_a_step_does(name, world_size, workers):
    case = Case(20_000, 64, 768, world_size)
    kind, options = HEADS[name]
    cost = kind.cost(case, kind.Options(**options), row_state=plan.row_state(RowSGD, _momentum.keywords, 64))
    found = workers(world_size).run(measured, name, case)[0]
    assert found["table"] == pytest.approx(cost.table_bytes, rel=1e-2 if name == "ffc" else 1e-12)
    assert found["multiply_adds"] == pytest.approx(cost.multiply_adds, rel=0.05 if name == "ffc" else 1e-12)
    if world_size > 1:  # with what the protocol adds
        assert cost.sent_bytes <= found["sent"] <= 1.2 * cost.sent_bytes


def test_memory_at_the_peak_of_a_step():
    (line,) = communication(["full"], 100_000, 128, 256, [1], 1)
    assert 0.95 < line["held_over_formula"] < 1.2


def test_checkpoints_take_little_memory():
    (line,) = checkpoint(["pfc"], [600_000], 64, [2])
    assert line["saving_over_held"] < 1.3 and line["loading_over_held"] < 1.3


@pytest.mark.parametrize("index", [Exact(), Annoy(num_trees=10), Annoy(num_trees=50), IVF()])
def test_memory_of_an_index(index):
    rows = torch.randn(20_000, 64)
    index.build(TensorVectors(rows))
    held = sum(each.nbytes for each in index.state_dict().values() if isinstance(each, torch.Tensor))
    assert held == pytest.approx(len(rows) * index.bytes_per_vector(64), rel=0.25)


def test_row_state_is_what_the_optimizers_keep():
    cases = [(RowSGD, {}), (RowSGD, {"momentum": 0}), (RowSGD, {"momentum_dtype": "bf16"}), (RowAdagrad, {})]
    for rule, given in [
        *cases,
        (RowSGD, {"catch_up": True}),
        (RowAdamW, {}),
        (RowAdamW, {"bias_correction": "global"}),
    ]:
        head = PartialFC(100, 16, sample_rate=0.5)
        head.optimizer(lr=0.1, rule=rule, **given)
        options = PartialFC.Options(sample_rate=0.5)
        cost = PartialFC.cost(Case(100, 16, 8), options, row_state=plan.row_state(rule, given, 16))
        assert cost.table_bytes == head.stats()["memory_bytes"]


def composed(*words: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("plan", list(words))
        return plan.plans(config), plan.lines(config), config


def test_the_largest_number_of_classes_fits_and_no_more():
    plans, lines, config = composed("num_classes=1e8", "memory_gb=16", "reserved_gb=0")
    assert len(lines) == 3 * 3 * 2 + 2 and len(plans) == len(lines)
    for each, line in zip(plans, lines, strict=True):
        most = line["most_classes"]
        fits = [each.fits(Case(round(most * by), 512, 1024, 8), config) for by in (1, 1.001)]
        assert fits == [True, False] and line["fits"] == (most >= 1e8)
    assert {line["fits"] for line in lines} == {True, False}
    by_name = {(line["head"], line["store"], line["dtype"]): line for line in lines}
    full, sampled = by_name["full", "device", "fp32"], by_name["pfc", "device", "fp32"]
    assert full["multiply_adds"] == pytest.approx(10 * 4 / 3 * sampled["multiply_adds"], rel=0.34)
    assert by_name["pfc", "disk", "bf16"]["disk_bytes"] == 1e8 * (512 * 2 + 512 * 4)
    assert by_name["pfc", "disk", "bf16"]["bottleneck"] == "disk"


def test_options_of_heads_reach_the_formulas():
    _, lines, _ = composed("heads=[pfc,full]", "stores=[device]", "dtypes=[fp32]", "options.sample_rate=0.01")
    pfc, full = lines
    assert full["multiply_adds"] > 99 * pfc["multiply_adds"]
    _, (one, pool), _ = composed("heads=[full,ffc]", "stores=[device]", "dtypes=[fp32]", "objective=uniface")
    assert one["objective"] == "UniFace" and one["multiply_adds"] == pytest.approx(full["multiply_adds"] * 4 / 5)
    assert pool["objective"] == "CrossEntropy"  # ffc has no other
    with pytest.raises(ValueError, match=r"options\.queue_size=9 belongs to none of heads=\['full'\]; remove it"):
        composed("heads=[full]", "options.queue_size=9")
    case = Case(1000, 8, 16)
    state = plan.row_state(RowSGD, _momentum.keywords, 8)
    assert FullFC.cost(case, FullFC.Options(logits_budget_mb=0), row_state=state).multiply_adds == 5 * 1000 * 16 * 8
    ivf, exact = (
        HashingForest.cost(case, HashingForest.Options(index=index), row_state=state) for index in (IVF(), Exact())
    )
    assert ivf.multiply_adds < exact.multiply_adds


def test_the_command(tmp_path, monkeypatch):
    words = ["num_classes=1e8", "embedding_size=512", "batch=1024", "devices=8", "memory_gb=80"]
    with monkeypatch.context() as context:
        context.setenv("PYTHONPROFILEIMPORTTIME", "1")  # arithmetic needs neither of two slow imports
        printed = call("experiments.plan", *words, f"hydra.run.dir={tmp_path}")
    assert re.search(r"\| +heads\n", printed) and "torch._dynamo" not in printed and "lightning" not in printed
    assert "100,000,000 classes of 512" in printed and "classes at most" in printed
    assert len(json.loads((tmp_path / "plan.json").read_text())) == 20
    for words, sentence in (
        (["batch=0.5"], "error: batch=0.5 must be a whole number"),
        (["num_classes=5"], "num_classes=5 is too small for devices=8"),
        (["memory=3"], "memory is not an option; did you mean 'memory_gb'?"),
    ):
        assert sentence in call("experiments.plan", *words, f"hydra.run.dir={tmp_path}", status=1)
