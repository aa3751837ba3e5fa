"""Steps of SGD with momentum and weight decay for rows without a gradient, any number of steps at once."""

import torch
from torch import Tensor


def rest_step(lr: float, momentum: float, weight_decay: float, *, nesterov: bool) -> Tensor:
    """Return the map of (row, momentum) in one step without a gradient, (2, 2), float64.

    A step of torch.optim.SGD is m <- momentum m + decay w; w <- w - lr m. With Nesterov momentum, the row moves by
    decay w + momentum m instead.
    """
    look = momentum if nesterov else 1.0  # the factor of the new momentum in the direction
    own = weight_decay if nesterov else 0.0
    return torch.tensor(
        [[1 - lr * (own + look * weight_decay), -lr * look * momentum], [weight_decay, momentum]], dtype=torch.float64
    )


def rest(rows: Tensor, momentum: Tensor | None, steps: Tensor, most: int, step: Tensor) -> None:
    """Apply the map of a step to rows and momentum, in place, as often as each row was at rest.

    Args:
        rows, momentum: (k, width).
        steps: (k, 1) steps at rest.
        most: a bound on the steps.
        step: (2, 2) the map.
    """
    factors = powers(step.to(rows.device), steps.long().view(-1), most).to(rows.dtype)
    if momentum is None:
        rows.mul_(factors[:, 0, :1])
        return
    before = rows.clone()
    rows.mul_(factors[:, 0, :1]).add_(momentum * factors[:, 0, 1:])
    momentum.mul_(factors[:, 1, 1:]).add_(before.mul_(factors[:, 1, :1]))


def powers(matrix: Tensor, exponents: Tensor, most: int) -> Tensor:
    """Return powers of a matrix by repeated squaring: (2, 2), int64 (k,) of at most `most` -> (k, 2, 2)."""
    result = torch.eye(2, dtype=matrix.dtype, device=matrix.device).expand(len(exponents), 2, 2)
    for _ in range(most.bit_length()):
        result = torch.where((exponents % 2 == 1)[:, None, None], result @ matrix, result)
        matrix, exponents = matrix @ matrix, exponents // 2
    return result
