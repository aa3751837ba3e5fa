"""PartialFC against the float64 reference, and its sampling."""

import pytest
import torch

from heads import CosFace, FullFC, PartialFC, RowAdamW
from heads.core.counter_rng import generator
from heads.selection.sampling import sample_without_replacement
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
    "sampled, then all": Case(
        PartialFC, {"sample_rate": {0: 0.1, 1: 0.3, 2: 1}}, optimizer=RowAdamW, optimizer_options=ADAMW
    ),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("rate", [0.3, {0: 0.3, 2: 1}], ids=str)
def test_state_round_trip(rate, world_size, workers):
    """The second rate becomes exact in the step after the save."""
    workers(world_size).run(conformance.round_trip, Case(PartialFC, {"sample_rate": rate}))


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
    with pytest.warns(UserWarning, match="no negative was sampled"):
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


def test_log_q_makes_the_denominator_unbiased():
    """The mean over many selections of the corrected sampled sum of exp equals the full sum."""
    head = PartialFC(300, 8, sample_rate=0.2, log_q=True, margin=CosFace(s=4, m=0), dtype=torch.float64)
    embeddings, labels = torch.randn(2, 8, dtype=torch.float64), torch.tensor([5, 250])
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
