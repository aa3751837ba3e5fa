"""Learning-rate schedules: linear warm-up, then decay. A schedule maps the step, from 0, to a factor on the rate."""

import math
from collections.abc import Callable, Sequence

Factor = Callable[[int], float]


def polynomial(num_steps: int, warmup: float = 0.05, power: float = 2.0) -> Factor:
    """Return a schedule with polynomial decay to zero.

    Args:
        num_steps: steps of the whole training.
        warmup: fraction of the steps, in [0, 1), in which the factor rises to 1.
        power: exponent of the decay; 1 is linear, 2 is common for ArcFace.
    """
    if power < 0:
        raise ValueError(f"schedule.power={power} must be at least 0; 1 decays linearly")
    num_warmup = _warmup_steps(num_steps, warmup)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        return max(0.0, 1 - (step - num_warmup) / (num_steps - num_warmup)) ** power

    return factor


def cosine(num_steps: int, warmup: float = 0.05, final: float = 0.0) -> Factor:
    """Return a schedule that decays along half a cosine wave.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, without restarts.

    Args:
        num_steps: steps of the whole training.
        warmup: fraction of the steps, in [0, 1), in which the factor rises to 1.
        final: factor at the end of the training, in [0, 1].
    """
    if not 0 <= final <= 1:
        raise ValueError(f"schedule.final={final} must be in [0, 1]; 0.01 ends at a hundredth of the rate")
    num_warmup = _warmup_steps(num_steps, warmup)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        progress = min(1.0, (step - num_warmup) / (num_steps - num_warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def multistep(num_steps: int, milestones: Sequence[float], warmup: float = 0.0, factor: float = 0.1) -> Factor:
    """Return a schedule that multiplies the rate by `factor` at each milestone.

    Args:
        num_steps: steps of the whole training.
        milestones: increasing fractions of the steps, in (0, 1).
        warmup: fraction of the steps, in [0, 1), in which the rate rises linearly.
        factor: in (0, 1].
    """
    if list(milestones) != sorted(milestones) or not all(0 < share < 1 for share in milestones):
        raise ValueError(f"schedule.milestones={list(milestones)} must be increasing fractions of the steps in (0, 1)")
    if not 0 < factor <= 1:
        raise ValueError(f"schedule.factor={factor} must be in (0, 1]; 0.1 divides the rate by ten")
    num_warmup = _warmup_steps(num_steps, warmup)
    drops = [max(1, round(share * num_steps)) for share in milestones]  # step 0 has the full rate

    def factor_of(step: int) -> float:
        warm = (step + 1) / num_warmup if step < num_warmup else 1.0
        return warm * factor ** sum(step >= drop for drop in drops)

    return factor_of


def _warmup_steps(num_steps: int, warmup: float) -> int:
    if not 0 <= warmup < 1:
        raise ValueError(f"schedule.warmup={warmup} must be a fraction of the steps in [0, 1); 0.1 is a tenth")
    return min(round(warmup * num_steps), num_steps - 1)
