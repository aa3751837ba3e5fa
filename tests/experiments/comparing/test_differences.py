"""Welch's t-test: how often it errs on data of known distributions."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from experiments.comparing.differences import difference

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
    expected = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert difference(a, b).interval == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_one_group_without_noise_is_compared():
    assert difference([1.0, 1.0, 1.0], [2.0, 2.1, 2.2]).beyond_noise is True
    assert difference([2.1, 2.1, 2.1], [2.0, 2.1, 2.2]).beyond_noise is False


def test_the_interval_contains_the_difference_and_reverses_with_it():
    generator = np.random.default_rng(1)
    a, b = generator.normal(1, 0.1, 4), generator.normal(2, 0.3, 5)
    forward, reverse = difference(a, b), difference(b, a)
    assert forward.mean == pytest.approx(a.mean() - b.mean()) == pytest.approx(-reverse.mean)
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
