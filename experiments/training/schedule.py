"""Learning-rate schedules: linear warm-up, then a decay. Each gives step, counted from 0 -> factor on the rate."""

from collections.abc import Callable, Sequence

Factor = Callable[[int], float]


def polynomial(num_steps: int, warmup: float = 0.0, power: float = 2.0) -> Factor:
    """Polynomial decay to zero.

    Args:
        num_steps: steps of the whole training.
        warmup: share of them, in [0, 1), over which the factor rises to 1.
        power: of the decay; 1 is linear, 2 the custom of ArcFace.
    """
    if power < 0:
        raise ValueError(f"schedule.power={power}: must not be negative")
    num_warmup = _warmup_steps(num_steps, warmup)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        return max(0.0, 1 - (step - num_warmup) / (num_steps - num_warmup)) ** power

    return factor


def multistep(num_steps: int, milestones: Sequence[float], warmup: float = 0.0, factor: float = 0.1) -> Factor:
    """At each milestone, a share of the steps in (0, 1), the rate is multiplied by `factor`."""
    if list(milestones) != sorted(milestones) or not all(0 < share < 1 for share in milestones):
        raise ValueError(f"schedule.milestones={list(milestones)}: rising shares of the steps in (0, 1) are needed")
    if not 0 < factor <= 1:
        raise ValueError(f"schedule.factor={factor}: must lie in (0, 1]")
    num_warmup = _warmup_steps(num_steps, warmup)
    falls = [max(1, round(share * num_steps)) for share in milestones]  # step 0 would leave no step at the full rate

    def of_step(step: int) -> float:
        risen = (step + 1) / num_warmup if step < num_warmup else 1.0
        return risen * factor ** sum(step >= fall for fall in falls)

    return of_step


def _warmup_steps(num_steps: int, warmup: float) -> int:
    if not 0 <= warmup < 1:
        raise ValueError(f"schedule.warmup={warmup}: a share of the steps in [0, 1) is needed")
    return min(round(warmup * num_steps), num_steps - 1)
