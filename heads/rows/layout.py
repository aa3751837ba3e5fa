"""The order in which class rows are stored, where heads draw blocks of adjacent rows."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..core import counter_rng

ROUNDS = 6


class Layout:
    """A keyed bijection between class ids and slots, the numbers of their lines in the tables of rows.

    Rows in adjacent slots are drawn together. Adjacent class ids often belong together (characters by radical, people
    by album), so slots are in a pseudo-random order of the ids. The order is computed and takes no memory.

    Method: a Feistel network with additions modulo a and b on pairs of numbers below a and b, where a b is at least the
    number of classes, and cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).

    Args:
        num_classes: C, over all processes.
        seed: key of the order.
    """

    def __init__(self, num_classes: int, seed: int):
        self.num_classes, self.seed = num_classes, seed
        self._a = math.isqrt(num_classes - 1) + 1
        self._b = -(-num_classes // self._a)
        self._words = counter_rng.words(ROUNDS, "layout", seed)

    def slots(self, classes: Tensor) -> Tensor:
        """Return the slots of class ids, int64 of any shape. Numbers that are no class, such as -1, stay."""
        return self._walk(classes, self._forward)

    def classes(self, slots: Tensor) -> Tensor:
        """Return the class ids of slots, int64 of any shape."""
        return self._walk(slots, self._backward)

    def state_dict(self) -> dict[str, int]:
        return {"num_classes": self.num_classes, "seed": self.seed}

    def _walk(self, numbers: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a bijection of the numbers below a b until all results are below C."""
        is_class = (numbers >= 0) & (numbers < self.num_classes)
        result = torch.where(is_class, step(numbers.clamp(0, self.num_classes - 1)), numbers)
        while (outside := is_class & (result >= self.num_classes)).any():
            result = torch.where(outside, step(result), result)  # without waiting for the device to count them
        return result

    def _forward(self, numbers: Tensor) -> Tensor:
        first, second = numbers // self._b, numbers % self._b
        for i in range(0, ROUNDS, 2):
            first = (first + counter_rng.hashed(second, self._words[i])) % self._a
            second = (second + counter_rng.hashed(first, self._words[i + 1])) % self._b
        return first * self._b + second

    def _backward(self, numbers: Tensor) -> Tensor:
        first, second = numbers // self._b, numbers % self._b
        for i in range(ROUNDS - 2, -1, -2):
            second = (second - counter_rng.hashed(first, self._words[i + 1])) % self._b
            first = (first - counter_rng.hashed(second, self._words[i])) % self._a
        return first * self._b + second


def layout_fault(saved: Mapping[str, int] | None, layout: Layout | None) -> str | None:
    """Return the sentence that refuses rows whose saved order is not that of a head; None if the orders agree."""
    own = None if layout is None else layout.state_dict()
    if saved == own:
        return None
    orders = [
        "the order of the class ids (sample_block=1)"
        if state is None
        else f"blocks of classes in the order of seed={state['seed']} (sample_block above 1)"
        for state in (saved, own)
    ]
    return (
        f"the saved rows are in {orders[0]}, and those of this head in {orders[1]}; use sample_block and seed of the "
        "training that saved them, or begin a new training from them with warm_start, which matches classes"
    )
