"""Options that change at given steps."""

import re

import pytest

from heads.core.schedule import check_schedule, value_at


def test_a_value_holds_from_its_step_on():
    assert [value_at({0: 10, 5: 20}, step) for step in (0, 4, 5, 99)] == [10, 10, 20, 20]
    assert value_at(3.5, 7) == 3.5


def test_all_values_are_returned():
    assert check_schedule("interval", {0: 10, 5: 20}, 1) == [10, 20]
    assert check_schedule("interval", 10, 1) == [10]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({5: 10}, "interval={5: 10} must have whole numbers as steps and begin at step 0"),
        ({0: 10, 5.5: 20}, "must have whole numbers as steps"),
        ("{0: 10}", "interval='{0: 10}' must be a number, or {step: number}"),
        ({0: 10, 5: 0}, "interval=0 must be at least 1"),
        (float("nan"), "interval=nan must be at least 1"),
    ],
)
def test_bad_schedules_are_refused(schedule, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_schedule("interval", schedule, 1)
