"""PartialFC against the float64 reference, and its sampling."""

import pytest
import torch

from heads import CosFace, FullFC, PartialFC, RowAdamW
from heads.core.counter_rng import generator
from heads.selection.sampling import filled, filled_by_blocks, sample_without_replacement
from tests import conformance
from tests.conformance import Case
from tests.heads.test_full import ADAMW

CASES = {
    "tenth": Case(PartialFC, {"sample_rate": 0.1}, num_classes=1000),
    "recomputing": Case(PartialFC, {"sample_rate": 0.3, "logits_budget_mb": 0}),
    "half": Case(PartialFC, {"sample_rate": 0.5}),
    "all": Case(PartialFC, {"sample_rate": 1}),
    "almost all": Case(PartialFC, {"sample_rate": 0.999}),
    "seven": Case(PartialFC, {"sample_rate": 0.9}, num_classes=7),
    "log q": Case(PartialFC, {"sample_rate": 0.3, "log_q": True}),
    "log q recomputing": Case(PartialFC, {"sample_rate": 0.3, "log_q": True, "logits_budget_mb": 0}),
    "adamw": Case(PartialFC, {"sample_rate": 0.3}, optimizer=RowAdamW, optimizer_options=ADAMW),
    "blocks": Case(PartialFC, {"sample_rate": 0.4, "sample_block": 4}),
    "blocks in place": Case(PartialFC, {"sample_rate": 0.4, "sample_block": 16, "log_q": True}, num_classes=307),
    "blocks recomputing": Case(
        PartialFC, {"sample_rate": 0.4, "sample_block": 16, "logits_budget_mb": 0}, num_classes=307
    ),
    "blocks, adamw": Case(
        PartialFC, {"sample_rate": 0.3, "sample_block": 8}, optimizer=RowAdamW, optimizer_options=ADAMW
    ),
    "sampled, then all": Case(
        PartialFC, {"sample_rate": {0: 0.1, 1: 0.3, 2: 1}}, optimizer=RowAdamW, optimizer_options=ADAMW
    ),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{"sample_rate": 0.3}, {"sample_rate": {0: 0.3, 2: 1}}, {"sample_rate": 0.3, "sample_block": 4}], ids=str
)
def test_state_round_trip(options, world_size, workers):
    """The second rate becomes exact in the step after the save."""
    workers(world_size).run(conformance.round_trip, Case(PartialFC, options))


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_abandoned_backward_changes_nothing(world_size, workers):
    workers(world_size).run(conformance.abandoned, Case(PartialFC, {"sample_rate": 0.3}))


def test_rate_one_is_the_full_head():
    labels = torch.tensor([1, 2, 3, 1])
    embeddings = torch.randn(4, 8)
    rows = []
    for head in (FullFC(50, 8), PartialFC(50, 8, sample_rate=1)):
        optimizer = head.optimizer(lr=0.1)
        assert head.select_classes(embeddings, labels).ids is None or isinstance(head, FullFC)
        head(embeddings.clone().requires_grad_(), labels).backward()
        optimizer.step()
        rows.append(head.centers.rows)
    assert torch.equal(*rows)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.6])
def test_selection_holds_positives_and_its_quota(rate):
    head = PartialFC(200, 8, sample_rate=rate)
    labels = torch.tensor([7, 7, 190, 0])
    ids = head.select_classes(torch.zeros(4, 8), labels).ids
    assert len(ids) == max(round(rate * 200), 3)
    assert torch.equal(ids, torch.unique(ids))
    assert set(labels.tolist()) <= set(ids.tolist())


def test_positives_beyond_the_quota_are_all_kept_with_a_warning():
    head = PartialFC(200, 8, sample_rate=0.01)
    labels = torch.arange(50)
    with pytest.warns(UserWarning, match="the loss has no other negatives"):
        head(torch.randn(50, 8, requires_grad=True), labels)
    assert head.stats()["active_classes"] == 50
    assert head.stats()["sampled_negatives"] == 0


def test_selection_is_keyed_by_seed_step_and_micro_batch():
    def ids(seed: int = 0, step: int = 0, micro_batch: int = 0) -> list[int]:
        head = PartialFC(1000, 8, sample_rate=0.1, seed=seed)
        head.step, head.micro_batch = step, micro_batch
        return head.select_classes(torch.zeros(1, 8), torch.tensor([3])).ids.tolist()

    assert ids() == ids()
    different = [ids(), ids(seed=1), ids(step=1), ids(micro_batch=1)]
    assert len({tuple(selected) for selected in different}) == 4


@pytest.mark.parametrize(("population", "count"), [(30, 2), (30, 9), (30, 12), (30, 29), (30, 30), (5, 0)])
def test_sampling_without_replacement_is_uniform(population, count):
    assert chi_square(sample_without_replacement, population, count) < 1.6


def test_the_uniformity_test_fails_for_a_biased_sampler():
    def truncated(population: int, count: int, source: torch.Generator) -> torch.Tensor:
        draws = torch.randint(population, (2 * count,), generator=source)
        return torch.unique(draws)[:count]  # keeps the small numbers of a sorted draw

    assert chi_square(truncated, 30, 9) > 10


def chi_square(sampler, population: int, count: int, rounds: int = 4000) -> float:
    """Return the chi-square of the counts of draws per degree of freedom, scaled for draws without replacement."""
    counts = torch.zeros(population)
    for round_number in range(rounds):
        drawn = sampler(population, count, generator("test", round_number))
        assert len(drawn) <= count
        counts[drawn] += 1
    share = count / population
    variance = rounds * share * (1 - share)  # variance of one number's count
    if variance == 0:
        assert torch.equal(counts, torch.full_like(counts, rounds * share))
        return 0.0
    # Each count has this variance, so the mean over numbers is 1 for a uniform sampler.
    return float(((counts - rounds * share) ** 2).sum() / variance / population)


@pytest.mark.parametrize("block", [1, 7])
def test_log_q_makes_the_denominator_unbiased(block):
    """The mean over many selections of the corrected sampled sum of exp equals the full sum."""
    options = {"sample_rate": 0.2, "log_q": True, "sample_block": block}
    head = PartialFC(300, 8, margin=CosFace(s=4, m=0), dtype=torch.float64, **options)
    embeddings, labels = torch.randn(2, 8, dtype=torch.float64), head.centers.slots(torch.tensor([5, 250]))
    x = torch.nn.functional.normalize(embeddings)
    every = (4 * x @ torch.nn.functional.normalize(head.centers.rows).T).exp().sum(1)
    total = torch.zeros(2, dtype=torch.float64)
    for step in range(2000):
        head.step = step
        selection = head.select_classes(x, labels)
        rows = torch.nn.functional.normalize(head.centers.rows[selection.ids])
        total += (4 * x @ rows.T - selection.log_q).exp().sum(1) / 2000
    torch.testing.assert_close(total, every, rtol=0.02, atol=0)


@pytest.mark.parametrize("rate", [0, 1.5, -0.1, float("nan"), {0: 0.1, 5: 1.5}, {0: True}])
def test_bad_sample_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"sample_rate=.*(\(0, 1\]|must be a number)"):
        PartialFC(10, 4, sample_rate=rate)


def test_blocks_hold_positives_and_their_quota():
    head = PartialFC(1003, 8, sample_rate=0.2, sample_block=16)
    labels = torch.tensor([7, 7, 190, 0, 1002])
    slots = head.centers.slots(labels)
    counts = []
    for head.step in range(200):
        selection = head.select_classes(torch.zeros(5, 8), slots)
        ids, n = selection.ids, selection.num_in_blocks
        assert len(torch.unique(ids)) == len(ids) and ids.max() < 1003
        assert torch.equal(selection.find(torch.arange(1003))[ids], torch.arange(len(ids)))
        first = ids[:n].view(-1, 16)
        assert torch.equal(first, first[:, :1] + torch.arange(16)) and not (first[:, 0] % 16).any()
        assert set(slots.tolist()) <= set(ids.tolist())
        assert set(ids[n:].tolist()) <= set(slots.tolist()) | set(range(992, 1003))  # and the smaller last block
        counts.append(len(ids))
    assert abs(sum(counts) / 200 - 201) < 3


@pytest.mark.parametrize(("num_classes", "quota"), [(64, 10), (64, 40), (61, 21), (61, 61)])
def test_each_class_is_drawn_as_often_in_blocks_as_alone(num_classes, quota):
    """Pairs of classes of different blocks are drawn equally often, and those of a block together."""
    chosen, rounds = torch.tensor([3, 8]), 6000
    pairs = torch.zeros(num_classes, num_classes)
    for number in range(rounds):
        drawn = filled_by_blocks(chosen, num_classes, quota, 4, generator("test", number), log_q=torch.ones(()))
        member = torch.zeros(num_classes)
        member[drawn.ids] = 1
        pairs += torch.outer(member, member)
        logs = drawn.log_q[drawn.find(drawn.ids)]
    share = (quota - 2) / (num_classes - 2)
    alone = filled(chosen, num_classes, quota, generator("test"), log_q=torch.ones(()))
    assert torch.isclose(logs.min(), alone.log_q.min()) and (logs == 0).sum() >= 2
    others = [c for c in range(num_classes) if c not in (3, 8)]
    counts = pairs.diagonal()[others]
    blocks = torch.tensor(others) // 4
    assert (pairs[3, 3], pairs[8, 8]) == (rounds, rounds)
    same = blocks[:, None] == blocks
    own = pairs[others][:, others]
    assert torch.equal(own[same], counts[:, None].expand_as(own)[same])
    if share == 1:
        assert torch.equal(counts, torch.full_like(counts, rounds))
        return
    first = [
        others.index(4 * int(block)) if 4 * int(block) in others else others.index(4 * int(block) + 1)
        for block in blocks.unique()
    ]  # one class of each block
    per_block, number = counts[first], -(-num_classes // 4)
    variance = rounds * share * (1 - share)
    assert ((per_block - rounds * share) ** 2).mean() / variance < 2.2
    mean = share * number  # of the number of blocks, which is one of the two whole numbers around it
    whole = int(mean)
    product = whole * (whole - 1) * (1 - mean + whole) + (whole + 1) * whole * (mean - whole)
    both = product / (number * (number - 1))
    different = own[first][:, first][~torch.eye(len(first), dtype=torch.bool)]
    assert ((different - rounds * both) ** 2).mean() / (rounds * both * (1 - both)) < 2.2


@pytest.mark.parametrize("block", [0, -4, 1.5, True])
def test_bad_sample_block_is_refused(block):
    with pytest.raises(ValueError, match="sample_block="):
        PartialFC(100, 4, sample_block=block)


def test_blocks_larger_than_the_sample_are_refused():
    for rate in (0.05, {0: 1, 9: 0.05}):
        with pytest.raises(ValueError, match=r"sample_block=16 must be at most .* 5 with sample_rate=0.05"):
            PartialFC(100, 4, sample_rate=rate, sample_block=16)
    PartialFC(100, 4, sample_rate=1, sample_block=256)


@pytest.mark.parametrize("chunk", [8, 16, 2048])
def test_blocks_as_large_as_chunks_are_used_in_place(chunk, monkeypatch):
    """Rows and momentum of such a block are one range, which needs no copy."""
    monkeypatch.setattr("heads.objectives.softmax.CHUNK_ROWS", chunk)
    head = PartialFC(1003, 8, sample_rate=0.3, sample_block=16)
    optimizer = head.optimizer(lr=0.1)
    indices = []
    write = head.centers.write
    head.centers.write = lambda index, *rest: (indices.append(index), write(index, *rest))
    head(torch.randn(4, 8, requires_grad=True), torch.tensor([1, 2, 3, 4])).backward()
    optimizer.step()
    ranges = [index for index in indices if isinstance(index, slice)]
    assert bool(ranges) == (chunk <= 16)
    assert len(indices) - len(ranges) in ((2, 4) if ranges else (2,))  # rows and momentum of single rows
