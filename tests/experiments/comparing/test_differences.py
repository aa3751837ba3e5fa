"""The bootstrap of a difference: how often it errs, on data whose law is known."""

import numpy as np
import pytest

from experiments.comparing.differences import difference


@pytest.mark.parametrize(("runs", "unequal"), [(3, 1), (3, 10), (5, 1), (5, 3), (10, 3)])
def test_noise_is_seldom_taken_for_a_difference(runs, unequal):
    """In 5 % of all cases without one; the sampling error of 400 cases is 1.1 %. One of 4 deviations is found."""
    generator = np.random.default_rng(0)
    false = true = 0
    for _ in range(400):
        a, b = generator.normal(size=runs), unequal * generator.normal(size=runs)
        false += bool(difference(a, b).beyond_noise)
        true += bool(difference(a + 4 * unequal, b).beyond_noise)
    assert false / 400 < 0.08 and (true / 400 > 0.8 or runs == 3)


def test_why_no_percentile_bootstrap():
    """With three runs each it takes noise for a difference in a fifth of the cases."""
    generator = np.random.default_rng(0)
    false = 0
    for _ in range(400):
        a, b = generator.normal(size=(2, 3))
        gaps = a[generator.integers(0, 3, (1000, 3))].mean(1) - b[generator.integers(0, 3, (1000, 3))].mean(1)
        low, high = np.percentile(gaps, (2.5, 97.5))
        false += not low <= 0 <= high
    assert 0.12 < false / 400 < 0.27


def test_the_interval_holds_the_difference_and_turns_with_it():
    generator = np.random.default_rng(1)
    a, b = generator.normal(1, 0.1, 4), generator.normal(2, 0.3, 5)
    found, turned = difference(a, b), difference(b, a)
    assert found.mean == pytest.approx(a.mean() - b.mean()) == pytest.approx(-turned.mean)
    low, high = found.interval
    assert low < found.mean < high < 0 and (low + high) / 2 == pytest.approx(found.mean)
    assert found == difference(a, b)  # the same every time


def test_two_runs_each_give_no_absurd_interval():
    found = difference([0.1, 0.2], [0.9, 1.0])
    assert found.interval is None or found.interval[1] - found.interval[0] < 20


def test_one_run_tells_nothing():
    assert difference([1.0], [2.0, 2.1]).beyond_noise is None
    assert difference([1.0], [2.0, 2.1]).mean == pytest.approx(-1.05)


def test_figures_without_noise_differ_if_they_do():
    assert difference([1.0, 1.0], [2.0, 2.0]).beyond_noise is True
    assert difference([2.0, 2.0], [2.0, 2.0]).beyond_noise is False
