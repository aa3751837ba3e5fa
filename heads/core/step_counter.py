"""StepCounter: the optimizer of a head without rows."""

from typing import Any, Protocol

import torch

from .options import number
from .timer import Timer


class Counted(Protocol):
    """The part of a head that a `StepCounter` needs."""

    timer: Timer
    has_optimizer: bool

    def advance(self, applied: bool = True) -> None:
        """Count a step of the optimizer."""


class StepCounter(torch.optim.Optimizer):
    """An optimizer that counts a head's steps, so that loops and schedulers work as with other heads.

    Its one parameter always has a gradient of 1, so that `torch.amp.GradScaler` finds no overflow.

    Args:
        head: the head.
        lr: learning rate; without effect.
        device: the head's device.
    """

    def __init__(self, head: Counted, lr: float, device: torch.device):
        self.proxy = torch.zeros((), device=device, requires_grad=True)
        super().__init__([{"params": [self.proxy]}], {"lr": number("lr", lr, least=0)})
        self.head = head
        head.has_optimizer = True
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.proxy.grad = torch.ones_like(self.proxy)

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self.head.timer("update", self.proxy.device):
            self.head.advance()
        return loss
