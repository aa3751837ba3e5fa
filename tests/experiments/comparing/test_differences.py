"""The tests of two groups: how often they err on data of known distributions."""

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from experiments.comparing.differences import Difference, difference, holm

DRAWS = 4000


@pytest.mark.parametrize(("runs", "ratio"), [(2, 1), (3, 1), (3, 3), (3, 10), (5, 1), (5, 3), (10, 3)])
def test_noise_is_rarely_taken_for_a_difference(runs, ratio):
    """The error rate is about 5 % (sampling error 0.35 %). A difference of four deviations is usually found."""
    generator = np.random.default_rng(0)
    false = true = 0
    for _ in range(DRAWS):
        a, b = generator.normal(size=runs), ratio * generator.normal(size=runs)
        false += bool(difference(a, b).beyond_noise)
        true += bool(difference(a + 4 * ratio, b).beyond_noise)
    assert false / DRAWS < 0.065 and (true / DRAWS > 0.8 or runs == 2)


def test_a_percentile_bootstrap_errs_too_often():
    """A percentile bootstrap of three runs each takes noise for a difference in a fifth of the cases."""
    generator = np.random.default_rng(0)
    false = 0
    for _ in range(400):
        a, b = generator.normal(size=(2, 3))
        gaps = a[generator.integers(0, 3, (1000, 3))].mean(1) - b[generator.integers(0, 3, (1000, 3))].mean(1)
        low, high = np.percentile(gaps, (2.5, 97.5))
        false += not low <= 0 <= high
    assert 0.12 < false / 400 < 0.27


@pytest.mark.parametrize(("sizes", "ratio"), [((2, 2), 1), ((3, 3), 10), ((3, 5), 3)])
def test_the_interval_is_that_of_scipy(sizes, ratio):
    generator = np.random.default_rng(2)
    a, b = (scale * generator.normal(size=size) for size, scale in zip(sizes, (1, ratio), strict=True))
    test = ttest_ind(a, b, equal_var=False)
    expected = test.confidence_interval(0.95)
    found = difference(a, b)
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.p == pytest.approx(test.pvalue) and not found.paired


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_pairs_are_compared_as_by_scipy(runs):
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(2, runs)) + generator.normal(size=runs)
    test, found = ttest_rel(a, b), difference(a, b, paired=True)
    expected = test.confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.p == pytest.approx(test.pvalue) and found.paired


def test_pairs_show_what_the_noise_of_the_seeds_hides():
    """Compare groups that seeds move by more than the difference; pairs err as rarely as independent groups."""
    generator = np.random.default_rng(4)
    found = {True: 0, False: 0}
    false = 0
    for _ in range(DRAWS):
        seeds, a, b = 10 * generator.normal(size=5), generator.normal(size=5), generator.normal(size=5)
        false += bool(difference(seeds + a, seeds + b, paired=True).beyond_noise)
        for paired in found:
            found[paired] += bool(difference(seeds + a + 4, seeds + b, paired=paired).beyond_noise)
    assert false / DRAWS < 0.065 and found[True] / DRAWS > 0.8 and found[False] / DRAWS < 0.05


def test_equivalence_is_claimed_for_means_that_differ_in_one_of_forty_cases_at_most():
    generator = np.random.default_rng(5)
    same = apart = 0
    for _ in range(DRAWS):
        a, b = generator.normal(size=(2, 5))
        same += bool(difference(a, b, paired=True).within(4))
        apart += bool(difference(a + 4, b, paired=True).within(4))
    assert same / DRAWS > 0.7 and apart / DRAWS < 0.035
    assert Difference(0, (-1, 2)).within(2) and not Difference(0, (-1, 2)).within(1.9)
    assert difference([1.0], [1.0]).within(1) is None


def test_holm_corrects_for_the_number_of_claims():
    """Compare 10 pairs without a difference: any is claimed in 5 % of the cases, and in 40 % without correction."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm (1979), step by step
    assert holm([]) == [] and holm([0.7, 0.6]) == [1.0, 1.0]
    values = np.random.default_rng(6).uniform(size=(DRAWS, 10))
    assert sum(min(holm(line)) < 0.05 for line in values.tolist()) / DRAWS == pytest.approx(0.05, abs=0.011)


def test_one_group_without_noise_is_compared():
    assert difference([1.0, 1.0, 1.0], [2.0, 2.1, 2.2]).beyond_noise is True
    assert difference([2.1, 2.1, 2.1], [2.0, 2.1, 2.2]).beyond_noise is False


def test_the_interval_contains_the_difference_and_reverses_with_it():
    generator = np.random.default_rng(1)
    a, b = generator.normal(1, 0.1, 4), generator.normal(2, 0.3, 5)
    forward, reverse = difference(a, b), difference(b, a)
    assert forward.mean == pytest.approx(a.mean() - b.mean()) == pytest.approx(-reverse.mean)
    assert forward.reversed().interval == pytest.approx(reverse.interval) and forward.p == pytest.approx(reverse.p)
    low, high = forward.interval
    assert low < forward.mean < high < 0 and (low + high) / 2 == pytest.approx(forward.mean)


def test_two_runs_each_give_a_sensible_interval():
    forward = difference([0.1, 0.2], [0.9, 1.0])
    assert forward.interval[1] - forward.interval[0] < 1


def test_one_run_gives_no_interval():
    assert difference([1.0], [2.0, 2.1]).beyond_noise is None
    assert difference([1.0], [2.0, 2.1]).mean == pytest.approx(-1.05)


def test_figures_without_noise_are_compared_exactly():
    assert difference([1.0, 1.0], [2.0, 2.0]).beyond_noise is True
    assert difference([2.0, 2.0], [2.0, 2.0]).beyond_noise is False
