"""How much a hashing forest may spend: active classes, trees and interval, by schedule or by target.

The paper (Zhang et al., AAAI 2018) changes the three as training goes on; how was never released.
"""

from typing import Any

from ..core.schedule import Schedule, check_schedule, value_at

STEP = 1.25  # factor of one correction
SLACK = 0.02  # of the target: no correction within it
LOWEST, HIGHEST = 0.1, 8.0  # bounds of the factors on interval and search


class Allocation:
    """Active classes, search scale of the index and interval of its refreshes.

    Args:
        num_classes: C.
        num_active: of all processes; up to 1 a share of C.
        interval: steps.
        target_mass: of the negative softmax mass, how much the active classes shall hold; None for no target.

    With a target, what a probe finds corrects the three by a quarter each time. Where a perfect answer of the
    index would have been enough, the index is at fault: more trees (or lists), renewed more often. Else more classes.
    """

    def __init__(self, num_classes: int, num_active: Schedule, interval: Schedule, target_mass: float | None = None):
        check_schedule("interval", interval, 1)
        for value in check_schedule("num_active", num_active, 0):
            if not 0 < value <= num_classes:
                raise ValueError(
                    f"num_active={value}: up to {num_classes} classes, or a share of them in (0, 1], are needed"
                )
        if target_mass is not None and not 0 < target_mass < 1:
            raise ValueError(f"target_mass={target_mass}: a share in (0, 1) is needed; null for no target")
        self.num_classes, self.target_mass = num_classes, target_mass
        self._num_active, self._interval = num_active, interval
        self.growth = self.search_scale = self.patience = 1.0  # factors on classes, index and interval

    def num_active(self, step: int) -> int:
        value = value_at(self._num_active, step)
        return min(self.num_classes, max(1, round(self.growth * (value * self.num_classes if value <= 1 else value))))

    def interval(self, step: int) -> int:
        return max(1, round(self.patience * value_at(self._interval, step)))

    def observe(self, mass: float, perfect_mass: float) -> None:
        """What the active classes hold, and what they would if the index had answered perfectly."""
        if self.target_mass is None:
            return
        if mass > self.target_mass + SLACK:
            self.growth /= STEP
        elif mass < self.target_mass and perfect_mass < self.target_mass:
            self.growth *= STEP
        if mass < self.target_mass <= perfect_mass:
            self.search_scale, self.patience = min(HIGHEST, self.search_scale * STEP), max(LOWEST, self.patience / STEP)
        elif perfect_mass - mass < SLACK / 2:
            self.search_scale, self.patience = max(LOWEST, self.search_scale / STEP), min(HIGHEST, self.patience * STEP)

    def state_dict(self) -> dict[str, Any]:
        return {"growth": self.growth, "search_scale": self.search_scale, "patience": self.patience}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.growth, self.search_scale, self.patience = state["growth"], state["search_scale"], state["patience"]
