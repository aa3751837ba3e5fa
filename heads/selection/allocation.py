"""Allocation of active classes, search scale and refresh interval of nearest classes, by schedule or by target.

The paper of the hashing forest (Zhang et al., AAAI 2018) changes the three during training; its rule was never
released.
"""

from collections.abc import Mapping
from typing import Any

from ..core.schedule import Schedule, check_schedule, value_at
from ..group.sharding import Shard

STEP = 1.25  # factor of one correction
SLACK = 0.02  # mass above the target that causes no correction
LOWEST, HIGHEST = 0.1, 8.0  # bounds of the factors on interval and search scale


class Allocation:
    """Active classes, search scale of the index and interval of its refreshes.

    Args:
        num_classes: C.
        num_active: number of active classes over all processes, or their share of C if it is at most 1.
        interval: steps between refreshes of the index.
        target_mass: share of the negative softmax mass that the active classes should hold; None for no target.

    With a target, each probe corrects the three by a factor of 1.25. If a perfect answer of the index would have
    reached the target, the search scale grows and the interval shrinks; otherwise the number of classes grows.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, num_classes: int, num_active: Schedule, interval: Schedule, target_mass: float | None = None):
        check_schedule("interval", interval, 1)
        for value in check_schedule("num_active", num_active, 0):
            if not 0 < value <= num_classes:
                raise ValueError(
                    f"num_active={value} must be a number of classes up to {num_classes}, or a share of them in (0, 1]"
                )
        if target_mass is not None and not 0 < target_mass < 1:
            raise ValueError(f"target_mass={target_mass} must be a share in (0, 1); null for no target")
        self.num_classes, self.target_mass = num_classes, target_mass
        self._num_active, self._interval = num_active, interval
        self.growth = self.search_scale = self.patience = 1.0  # factors on classes, index and interval

    def num_active(self, step: int) -> int:
        """Return the number of active classes of all processes."""
        value = value_at(self._num_active, step)
        return min(self.num_classes, max(1, round(self.growth * (value * self.num_classes if value <= 1 else value))))

    def quota(self, step: int, shard: Shard) -> int:
        """Return the number of active classes of a shard, at least 1: its part of `num_active`."""
        share = self.num_active(step) / shard.num_classes
        return min(shard.size, max(1, round(share * shard.size)))

    def shares(self) -> list[float]:
        """Return the share of the classes that are active: at step 0, and after each change of `num_active`."""
        steps = sorted(self._num_active) if isinstance(self._num_active, Mapping) else [0]
        return [self.num_active(step) / self.num_classes for step in steps]

    def interval(self, step: int) -> int:
        """Return the steps between refreshes of the index."""
        return max(1, round(self.patience * value_at(self._interval, step)))

    def observe(self, mass: float, perfect_mass: float) -> None:
        """Correct classes, search scale and interval after a probe, if there is a target.

        Args:
            mass: share of the negative softmax mass that the active classes hold.
            perfect_mass: the share that they would hold with a perfect index.
        """
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
        """Load what `state_dict` returned.

        Raises:
            ValueError: the state was saved by a version before 0.3.
        """
        if missing := sorted(self.state_dict().keys() - state.keys()):
            raise ValueError(
                f"the saved state of the forest has no {missing[0]!r}: a version before 0.3 wrote it; to load only the "
                "class centers, delete '_extra_state' from it and call load_state_dict with strict=False"
            )
        self.growth, self.search_scale, self.patience = state["growth"], state["search_scale"], state["patience"]
