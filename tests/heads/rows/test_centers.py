"""Class centers and row optimizers: initialisation, state, and which rows change."""

import copy

import pytest
import torch

from heads import FullFC, PartialFC, RowAdamW, RowSGD
from heads.group.sharding import Shard, largest_world_size
from tests.workers import rank_and_world


def _rows(num_classes: int) -> torch.Tensor:
    return FullFC(num_classes, 4, seed=3).centers.rows


@pytest.mark.parametrize("world_size", [2, 3])
def test_initial_rows_do_not_depend_on_the_number_of_processes(world_size, workers):
    (whole,) = workers(1).run(_rows, 2500)
    assert torch.equal(torch.cat(workers(world_size).run(_rows, 2500)), whole)


def test_initial_rows():
    rows = FullFC(5000, 64).centers.rows
    assert abs(float(rows.mean())) < 1e-4 and abs(float(rows.std()) - 0.01) < 1e-4
    assert not torch.equal(rows[:1024], rows[1024:2048])
    assert not torch.equal(rows, FullFC(5000, 64, seed=1).centers.rows)


@pytest.mark.parametrize("num_classes", [1, 2, 5, 7, 12, 101])
def test_shards_cover_all_classes_once(num_classes):
    for world_size in range(1, num_classes + 1):
        try:
            shards = [Shard(num_classes, rank, world_size) for rank in range(world_size)]
        except ValueError:
            assert (world_size - 1) * -(-num_classes // world_size) >= num_classes
            continue
        assert [c for shard in shards for c in range(shard.start, shard.stop)] == list(range(num_classes))
        assert all(shard.size > 0 for shard in shards)
    assert [Shard(7, rank, 3).size for rank in range(3)] == [3, 3, 1]


def test_largest_world_size():
    assert largest_world_size(4, 3) == 2 and largest_world_size(7, 7) == 7 and largest_world_size(9, 8) == 5


def _full_state(path: str, save: bool) -> None:
    head = FullFC(10, 4, seed=5 if save else 0)
    optimizer = head.optimizer(lr=0.1, momentum=0.9)
    if save:
        head(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6)).backward()
        optimizer.step()
        torch.save(head.state_dict(), path)
    else:
        saved = torch.load(path)
        head.load_state_dict(saved)
        rank, world_size = rank_and_world()
        start, stop = Shard(10, rank, world_size).start, Shard(10, rank, world_size).stop
        assert torch.equal(head.centers.rows, saved["centers.rows"][start:stop])
        assert torch.equal(head.centers.state["momentum"], saved["centers.momentum"][start:stop])
        assert head.step == 1


def test_state_of_one_process_loads_on_several(workers, tmp_path):
    path = str(tmp_path / "head.pt")
    workers(1).run(_full_state, path, True)
    for world_size in (1, 2, 3):
        workers(world_size).run(_full_state, path, False)


def test_refused_state_changes_nothing():
    head = FullFC(10, 4)
    optimizer = head.optimizer(lr=0.1, momentum=0.9)
    before = copy.deepcopy(head.state_dict())
    for other in (FullFC(11, 4), FullFC(10, 5)):
        other.optimizer(lr=0.1, momentum=0.9)
        with pytest.raises(RuntimeError, match=r"centers\.rows: got \[1"):
            head.load_state_dict(other.state_dict())
    adam = FullFC(10, 4, seed=1)
    adam.optimizer(lr=0.1, rule=RowAdamW)
    with pytest.raises(RuntimeError, match="exp_avg"):
        head.load_state_dict(adam.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*momentum"):
        head.load_state_dict(FullFC(10, 4).state_dict())
    assert all(
        torch.equal(now, old)
        for now, old in zip(head.state_dict().values(), before.values(), strict=True)
        if isinstance(old, torch.Tensor)
    )
    assert optimizer.head is head


def test_loaded_state_of_another_optimizer_is_refused():
    saved = FullFC(10, 4)
    saved.optimizer(lr=0.1, momentum=0.9)
    head = FullFC(10, 4)
    head.load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match=r"row state \['momentum'\], but this row optimizer keeps \['exp_avg'"):
        head.optimizer(lr=0.1, rule=RowAdamW)


def test_idle_rows_keep_value_and_state_bit_for_bit():
    head = PartialFC(1000, 8, sample_rate=0.05)
    optimizer = head.optimizer(lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(5):
        before = {name: tensor.clone() for name, tensor in head.sharded_state().items()}
        chosen = []
        select = PartialFC.select_classes

        def recording(embeddings, labels, chosen=chosen, select=select):
            chosen.append(select(head, embeddings, labels))
            return chosen[-1]

        head.select_classes = recording
        head(torch.randn(4, 8), torch.tensor([1, 2, 3, step])).backward()
        optimizer.step()
        optimizer.zero_grad()
        idle = torch.ones(1000, dtype=torch.bool)
        idle[chosen[0].ids] = False
        assert idle.sum() == 950
        for name, tensor in head.sharded_state().items():
            assert torch.equal(tensor[idle], before[name][idle])
            assert not torch.equal(tensor[~idle], before[name][~idle])


def test_adamw_counts_steps_per_row():
    """A row first touched at step 1000 moves by about lr; a global count would move it by several."""
    moved = {}
    for correction in ("row", "global"):
        head = PartialFC(50, 8, sample_rate=0.1)
        optimizer = head.optimizer(lr=0.01, rule=RowAdamW, weight_decay=0, bias_correction=correction)
        head.step = 1000
        before = head.centers.rows.clone()
        head(torch.randn(2, 8), torch.tensor([1, 2])).backward()
        optimizer.step()
        moved[correction] = float((head.centers.rows - before).abs().max())
    assert moved["row"] == pytest.approx(0.01, rel=0.01)
    assert moved["global"] > 2 * moved["row"]


def test_optimizer_state_dict_holds_hyper_parameters_only():
    head = FullFC(10, 4)
    optimizer = head.optimizer(lr=0.1, momentum=0.9)
    assert optimizer.state_dict()["state"] == {}
    momentum = head.centers.state["momentum"]
    optimizer.load_state_dict({"state": {}, "param_groups": [{"lr": 0.3, "momentum": 0.5, "params": []}]})
    assert optimizer.param_groups[0]["lr"] == 0.3 and optimizer.param_groups[0]["momentum"] == 0.5
    assert head.centers.state["momentum"] is momentum


def test_schedulers_change_its_learning_rate():
    optimizer = FullFC(10, 4).optimizer(lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_closure_is_called():
    head = FullFC(10, 4)
    optimizer = head.optimizer(lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = head(torch.ones(1, 4), torch.tensor([1]))
        loss.backward()
        return loss

    before = head.centers.rows.clone()
    assert optimizer.step(closure) > 0 and not torch.equal(before, head.centers.rows)


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        (RowSGD, {"lr": -1}, "lr=-1"),
        (RowSGD, {"lr": 0.1, "momentum": 1}, "momentum=1"),
        (RowSGD, {"lr": 0.1, "momentum": 0, "nesterov": True}, "nesterov"),
        (RowSGD, {"lr": 0.1, "weight_decay": -1}, "weight_decay=-1"),
        (RowAdamW, {"lr": 0.1, "betas": (0.9, 1.0)}, "betas"),
        (RowAdamW, {"lr": 0.1, "bias_correction": "none"}, "bias_correction='none'"),
    ],
)
def test_bad_options_are_refused(rule, options, words):
    with pytest.raises(ValueError, match=words):
        FullFC(10, 4).optimizer(rule=rule, **options)
