"""The keyed order of class rows: a bijection, uniform over keys, and its effect on what speaks of class ids."""

import functools

import pytest
import torch

from heads import ClassMargin, CosFace, FullFC, HashingForest, KNNSoftmax, PartialFC, Staged, UniFace
from heads.indexes import Exact
from heads.rows.layout import Layout
from tests.conformance import Case, stepped
from tests.workers import rank_and_world

C, D = 203, 8


@pytest.mark.parametrize("num_classes", [1, 2, 3, 16, 17, 1000, 99_991])
def test_each_class_has_a_slot_of_its_own(num_classes):
    every = torch.arange(num_classes)
    slots = Layout(num_classes, 5).slots(every)
    assert torch.equal(slots.sort().values, every)
    assert torch.equal(Layout(num_classes, 5).classes(slots), every)
    assert num_classes < 16 or not torch.equal(slots, Layout(num_classes, 6).slots(every))


def test_numbers_that_are_no_class_stay():
    numbers = torch.tensor([[-1, 10], [-1, 3]])
    assert Layout(10, 0).slots(numbers)[:, 0].tolist() == [-1, -1]
    assert Layout(10, 0).slots(numbers)[0, 1] == 10


@pytest.mark.parametrize(("num_classes", "block"), [(60, 4), (1000, 16)])
def test_slots_and_pairs_of_classes_in_a_block_are_uniform_over_keys(num_classes, block):
    """Classes 0 to 9 are neighbours by id. Each pair shares a block as often as any other pair of classes."""
    keys, pairs, slots = 3000, torch.zeros(10, 10), torch.zeros(num_classes)
    for key in range(keys):
        slot = Layout(num_classes, key).slots(torch.arange(10))
        pairs += slot[:, None] // block == slot // block
        slots[slot[0]] += 1
    share = (block - 1) / (num_classes - 1)
    if num_classes % block:  # the last block is smaller
        whole = num_classes // block * block
        share *= whole / num_classes
    counts = pairs[torch.triu_indices(10, 10, 1).unbind()]
    assert chi_square(counts, keys * share, 1 - share) < 1.7
    assert chi_square(slots, keys / num_classes, 1) < 1.7


def test_the_uniformity_test_fails_for_an_order_that_keeps_neighbours_together():
    counts = torch.zeros(45)
    for key in range(3000):
        slot = (torch.arange(10) + key * 7919) % 1000  # a rotation
        shared = slot[:, None] // 16 == slot // 16
        counts += shared[torch.triu_indices(10, 10, 1).unbind()]
    assert chi_square(counts, 3000 * 15 / 999, 1) > 10


def chi_square(counts: torch.Tensor, mean: float, spread: float) -> float:
    """Return chi-square per degree of freedom, of counts of this mean and of variance mean x spread."""
    return float(((counts - mean) ** 2 / (mean * spread)).mean())


def heads_of_the_same_rows() -> list[PartialFC]:
    return [PartialFC(C, D, sample_rate=1, sample_block=block, seed=3) for block in (1, 4)]


def test_rows_belong_to_the_same_classes_in_any_order():
    plain, scattered = heads_of_the_same_rows()
    assert torch.equal(plain.rows(torch.arange(C)), plain.centers.rows)
    assert torch.equal(scattered.rows(torch.arange(C)), plain.centers.rows)
    assert not torch.equal(scattered.centers.rows, plain.centers.rows)
    with pytest.raises(ValueError, match="class 203 is out of range"):
        plain.rows(torch.tensor([0, C]))


def test_topk_returns_class_ids():
    plain, scattered = heads_of_the_same_rows()
    x = torch.randn(5, D)
    for ours, expected in zip(scattered.topk(x, 7), plain.topk(x, 7), strict=True):
        assert torch.equal(ours, expected)
    x = plain.rows(torch.tensor([0, 9, 202]))
    assert scattered.topk(x, 1)[1].tolist() == [[0], [9], [202]]


COUNTS = torch.arange(1, C + 1)


@pytest.mark.parametrize("options", [{}, {"margin": ClassMargin(), "class_counts": COUNTS}, {"objective": UniFace()}])
@pytest.mark.parametrize("labels", [[3, 3, 0, 202], [[3, 5], [7, -1], [0, 202], [9, 9]]], ids=["one", "several"])
def test_a_step_over_all_classes_is_the_same_in_any_order(options, labels):
    """Margins of class counts, several labels and an ignored label all speak of class ids."""
    if options.get("margin") and isinstance(labels[0], list):
        options = {**options, "margin": ClassMargin(s=16)}
    x, results = torch.randn(4, D), []
    for block in (1, 4):
        head = PartialFC(C, D, sample_rate=1, sample_block=block, dtype="fp64", ignore_label=202, **options)
        optimizer = head.optimizer(lr=0.1)
        embeddings = x.double().requires_grad_()
        loss = head(embeddings, torch.tensor(labels))
        loss.backward()
        optimizer.step()
        results.append((loss.detach(), embeddings.grad, head.rows(torch.arange(C))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


class OfClass(CosFace):
    """A margin that depends on the class id."""

    def begin(self, batch, target_cos_N):
        assert batch.labels_N.tolist() == [3, 3, 0, 202]
        return super().begin(batch, target_cos_N)


def test_margins_get_class_ids():
    for head in heads_of_the_same_rows():
        head.margin = OfClass()
        head(torch.randn(4, D, requires_grad=True), torch.tensor([3, 3, 0, 202]))


@pytest.mark.parametrize("kind", [FullFC, HashingForest, KNNSoftmax])
def test_heads_that_share_scattered_rows_read_them_by_class(kind):
    """The order of the rows does not matter to the nearest classes that an index finds."""
    options = {} if kind is FullFC else {"index": Exact(), "build": "blocking", "interval": 1, "num_active": 40}
    x, labels, losses = torch.randn(3, D), torch.tensor([0, 9, 202]), []
    for owner in heads_of_the_same_rows():
        head = kind(C, D, centers=owner.centers, seed=3, **options)
        losses.append(head(x.clone().requires_grad_(), labels).detach())
        assert head.topk(owner.rows(labels), 1)[1][:, 0].tolist() == labels.tolist()
    assert torch.isclose(*losses, rtol=1e-6 if kind is FullFC else 0.05)


def test_blocks_of_rows_in_the_order_of_ids_are_refused():
    with pytest.raises(ValueError, match="sample_block above 1 needs rows in the order of a layout"):
        PartialFC(C, D, sample_block=4, centers=FullFC(C, D).centers)


def test_stages_share_the_order_of_a_stage_with_blocks():
    stages = {0: functools.partial(PartialFC, sample_rate=0.3, sample_block=4), 2: FullFC}
    head = Staged(C, D, stages=stages)
    assert head.centers.layout is not None
    optimizer = head.optimizer(lr=0.1)
    x, labels = torch.eye(D)[:6], torch.tensor([0, 1, 2, 3, 4, 202])
    for _ in range(30):
        optimizer.zero_grad()
        head(x.clone().requires_grad_(), labels).backward()
        optimizer.step()
    assert head.topk(x, 1)[1][:, 0].tolist() == labels.tolist()
    assert Staged(C, D, stages={0: PartialFC, 2: FullFC}).centers.layout is None


def test_saved_rows_of_another_order_are_refused_and_change_nothing():
    def head(**options):
        made = PartialFC(C, D, sample_rate=0.3, **{"sample_block": 4, "seed": 3, **options})
        made.optimizer(lr=0.1)
        return made

    saved = head()
    saved.step = 7
    head(sample_block=32).load_state_dict(saved.state_dict())  # another size of blocks, in the same order
    for other, state in (
        (head(sample_block=1), saved.state_dict()),
        (head(seed=4), saved.state_dict()),
        (saved, head(sample_block=1).state_dict()),
    ):
        before, step = other.centers.rows.clone(), other.step
        with pytest.raises(RuntimeError, match="use sample_block and seed of the training that saved them"):
            other.load_state_dict(state)
        assert torch.equal(other.centers.rows, before)
        assert other.step == step


def test_files_of_another_order_are_refused(tmp_path):
    options = {"store": "disk", "store_dir": tmp_path}
    first = PartialFC(C, D, sample_block=4, **options)
    assert torch.equal(first.rows(torch.tensor([9])), PartialFC(C, D).rows(torch.tensor([9])))
    del first
    with pytest.raises(ValueError, match="scattered"):
        PartialFC(C, D, **options)


def states(_: object = None) -> tuple[dict[str, object], torch.Tensor]:
    """Return in a worker the state of all processes after a step, and the rows of all classes."""
    case = Case(PartialFC, {"sample_rate": 0.3, "sample_block": 4}, num_classes=C, embedding_size=D)
    head = PartialFC(C, D, **case.options)
    stepped(case, head, head.optimizer(lr=0.1), 0)
    assert rank_and_world()[1] == head.centers.shard.world_size
    return head.full_state_dict(), head.rows(torch.arange(C))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_saved_by_any_number_of_processes_keep_their_classes(world_size, workers):
    results = workers(world_size).run(states, None)
    for state, rows in results:
        head = PartialFC(C, D, sample_rate=0.3, sample_block=4)
        head.optimizer(lr=0.1)
        head.load_state_dict(state)
        assert torch.equal(head.rows(torch.arange(C)), rows)
        assert torch.equal(rows, results[0][1])
