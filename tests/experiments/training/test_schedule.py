import math

import pytest

from experiments.training.schedule import cosine, multistep, polynomial


def test_warm_up_then_polynomial_decay():
    factor = polynomial(100, warmup=0.1, power=2)
    assert [factor(0), factor(4), factor(9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [factor(10), factor(55), factor(100)] == pytest.approx([1.0, 0.25, 0.0])
    rising = [factor(step) for step in range(10)]
    falling = [factor(step) for step in range(10, 101)]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)


def test_without_warm_up():
    assert polynomial(10, warmup=0, power=1)(5) == 0.5


def test_warm_up_then_cosine():
    factor = cosine(100, warmup=0.1, final=0.1)
    assert [factor(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
    assert [factor(40), factor(55), factor(99)] == pytest.approx(
        [0.775, 0.55, 0.1 + 0.9 * (1 - math.cos(math.pi / 90)) / 2]
    )
    assert factor(100) == factor(999) == pytest.approx(0.1)
    assert cosine(10, warmup=0)(5) == pytest.approx(0.5) and cosine(1)(0) == 1
    for final in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"schedule\.final={final} must be in \[0, 1\]"):
            cosine(100, final=final)


def test_warm_up_then_milestones():
    factor = multistep(100, [0.5, 0.75], warmup=0.1, factor=0.1)
    assert [factor(step) for step in (0, 9, 10, 49)] == [0.1, 1, 1, 1]
    assert [factor(step) for step in (50, 74)] == [0.1, 0.1] and factor(75) == factor(99) == pytest.approx(0.01)
    for milestones in ([0.5, 0.2], [0.0], [1.0]):
        with pytest.raises(ValueError, match=r"schedule\.milestones=.* must be increasing fractions"):
            multistep(100, milestones)


@pytest.mark.parametrize("num_steps", [1, 2, 20])
def test_no_milestone_rounds_to_the_first_step(num_steps):
    """The first step has the full rate, even in a short training."""
    factor = multistep(num_steps, [0.001, 0.01])
    assert factor(0) == 1 and factor(1) == pytest.approx(0.01)
