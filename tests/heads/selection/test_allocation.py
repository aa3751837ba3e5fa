"""Schedules and targets of the hashing forest."""

import pytest

from heads.selection.allocation import HIGHEST, LOWEST, Allocation


def test_schedules_set_classes_and_interval():
    allocation = Allocation(1000, {0: 0.05, 10: 300}, {0: 50, 10: 200})
    assert [(allocation.num_active(step), allocation.interval(step)) for step in (9, 10)] == [(50, 50), (300, 200)]
    assert Allocation(1000, 1.0, 1).num_active(0) == Allocation(1000, 1000, 1).num_active(0) == 1000


def test_without_a_target_probes_change_nothing():
    allocation = Allocation(1000, 100, 50)
    allocation.observe(0.1, 0.9)
    assert (allocation.num_active(0), allocation.interval(0), allocation.search_scale) == (100, 50, 1.0)


def test_a_target_corrects_index_or_classes():
    allocation = Allocation(1000, 100, 100, target_mass=0.5)
    allocation.observe(0.3, 0.4)  # a perfect index would not have been enough
    assert allocation.num_active(0) == 125 and (allocation.search_scale, allocation.interval(0)) == (1.0, 100)
    allocation.observe(0.3, 0.6)  # a perfect index would have been enough
    assert allocation.num_active(0) == 125 and (allocation.search_scale, allocation.interval(0)) == (1.25, 80)
    allocation.observe(0.51, 0.6)  # the mass is enough
    assert allocation.num_active(0) == 125 and allocation.search_scale == 1.25
    allocation.observe(0.6, 0.605)  # mass and index are more than enough
    assert allocation.num_active(0) == 100 and (allocation.search_scale, allocation.interval(0)) == (1.0, 100)
    for _ in range(50):
        allocation.observe(0.1, 0.9)
    assert allocation.search_scale == HIGHEST and allocation.interval(0) == round(100 * LOWEST)
    for _ in range(50):
        allocation.observe(0.1, 0.1)
    assert allocation.num_active(0) == 1000


def test_state_round_trip():
    one, other = (Allocation(1000, 100, 100, target_mass=0.5) for _ in range(2))
    one.observe(0.3, 0.4)
    other.load_state_dict(one.state_dict())
    assert other.num_active(0) == one.num_active(0) == 125


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_active": 0}, "num_active=0 must be a number of classes up to 1000, or a share of them in"),
        ({"num_active": 1001}, "num_active=1001"),
        ({"num_active": {0: 10, 5: -1}}, "num_active=-1 must be at least 0"),
        ({"num_active": "{0: 10}"}, "num_active='{0: 10}' must be a number, or {step: number}"),
        ({"num_active": {5: 10}}, "num_active={5: 10} must have whole numbers as steps and begin at step 0"),
        ({"interval": 0}, "interval=0 must be at least 1"),
        ({"target_mass": 1.0}, "target_mass=1.0 must be a share in"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Allocation(1000, **{"num_active": 100, "interval": 100, **options})
