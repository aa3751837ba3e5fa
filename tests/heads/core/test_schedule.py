"""Options that change at given steps."""

import re

import pytest

from heads.core.schedule import Schedule, check_schedule, declares_number, plain, value_at, values_of


def test_a_value_holds_from_its_step_on():
    assert [value_at({0: 10, 5: 20}, step) for step in (0, 4, 5, 99)] == [10, 10, 20, 20]
    assert value_at(3.5, 7) == 3.5


def test_all_values_are_returned():
    assert check_schedule("interval", {0: 10, 5: 20}, 1) == [10, 20]
    assert check_schedule("interval", 10, 1) == [10]


def test_steps_are_put_in_order():
    assert plain("m", {1e3: 0.3, 0: None}) == {0: None, 1000: 0.3} and plain("m", 0.5) == 0.5
    assert values_of({1000: 0.3, 0: 0.1}) == [0.1, 0.3] and values_of(0.5) == [0.5]


def test_options_that_may_have_a_schedule():
    assert all(map(declares_number, (float, int, float | None, "float", "int | None", Schedule)))
    assert not any(map(declares_number, (str, bool, dict[int, float], "str | None", "bool")))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({5: 10}, "interval={5: 10} must have whole numbers as steps and begin at step 0"),
        ({0: 10, 5.5: 20}, "must have whole numbers as steps"),
        ({0: 10, -5: 20}, "must have whole numbers as steps"),
        ({0: 10, "5": 20}, "must have whole numbers as steps"),
        ({0: 10, 5: True}, "interval=True must be a number, or {step: number}"),
        ("{0: 10}", "interval='{0: 10}' must be a number, or {step: number}"),
        ({0: 10, 5: 0}, "interval=0 must be at least 1"),
        (float("nan"), "interval=nan must be at least 1"),
    ],
)
def test_bad_schedules_are_refused(schedule, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_schedule("interval", schedule, 1)
