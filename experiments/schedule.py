"""The learning-rate schedule: linear warm-up, then polynomial decay to zero."""

from collections.abc import Callable


def polynomial(num_steps: int, warmup: float, power: float) -> Callable[[int], float]:
    """step, counted from 0 -> factor on the learning rate.

    Args:
        num_steps: steps of the whole training.
        warmup: share of them, in [0, 1), over which the factor rises to 1.
        power: of the decay; 1 is linear, 2 the custom of ArcFace.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"optimizer.warmup={warmup}: a share of the steps in [0, 1) is needed")
    if power < 0:
        raise ValueError(f"optimizer.power={power}: must not be negative")
    num_warmup = round(warmup * num_steps)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        return max(0.0, 1 - (step - num_warmup) / (num_steps - num_warmup)) ** power

    return factor
