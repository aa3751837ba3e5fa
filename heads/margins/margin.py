"""Margin: what a head does to the cosines before its objective.

A margin is a dataclass with two elementwise functions: `target` for the cosine of a sample with its own class, and
`negative` for its cosines with the others. Autograd differentiates both on the chunk, so that a new margin needs no
closed-form gradient. A margin that depends on more than cosines overrides `begin`.

Legend: s scale of the logits, m margin, cos cosine, theta angle, N batch of all processes.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self

from torch import Tensor

from ..core.options import Configured, documented, number, option
from ..core.schedule import declares_number, plain, value_at
from .batch import MarginBatch


def begun() -> Any:
    """Return the dataclass field of a value that `begin` sets for one forward pass; it is no option."""
    return field(default=None, init=False, repr=False, compare=False)


def for_all_stages(check: Callable[["Margin"], None]) -> Callable[["Margin"], None]:
    """Decorate `__post_init__` so that it checks the values of schedules at each of their steps."""

    @functools.wraps(check)
    def __post_init__(self: "Margin") -> None:  # noqa: N807
        schedules = {name: plain(f"margin {name}", schedule) for name, schedule in self.schedules.items()}
        vars(self).update(schedules)
        for step in sorted({step for schedule in schedules.values() for step in schedule}):
            self.at(step)
        if not schedules:
            check(self)

    return __post_init__


@documented
@dataclass
class Margin(Configured):
    """Plain scaled softmax over cosines, and the base class of all margins.

    Any option that is a number may also be a schedule {step: number}, which holds from each step on: CosFace(m={0: 0.1,
    1000: 0.4}). Heads use the margin `at` their step.

    Raises:
        TypeError: an option that the margin does not have.
        ValueError: an option is out of range.

    Examples:
        >>> class Subtracted(Margin):
        ...     def target(self, cos_N):
        ...         return cos_N - 0.2
        >>> head = FullFC(num_classes=1000, embedding_size=16, margin=Subtracted())
    """

    s: float = option(64.0, "Scale of the logits.")
    _: KW_ONLY
    max_negative_cosine: float | None = option(
        None,
        "Inter-class filter of PartialFC (An et al., CVPR 2022): negatives with a higher cosine leave the softmax, as "
        "conflicting classes. None keeps all.",
    )

    norm_N: Tensor | None = begun()  # lengths of embeddings that `target` or `penalty` depends on, and differentiates
    state: Mapping[str, Tensor] = begun()  # carried numbers after this batch; they count once the optimizer has stepped

    normalize: ClassVar[bool] = True  # rows and embeddings to unit length; False: inner products and a bias
    initial_state: ClassVar[Mapping[str, float]] = MappingProxyType({})  # numbers carried from step to step
    uses_target_cos: ClassVar[bool] = False  # whether `begin` or `negative` reads them; assumed if overridden
    uses_class_counts: ClassVar[bool] = False  # whether `begin` reads `class_counts_N`
    needs_whole_batch: ClassVar[bool] = False  # whether a sample's margin depends on the other samples
    needs_softmax: ClassVar[bool] = False  # whether the margin is derived for the softmax, and for no other objective

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Assume that a subclass reads the target cosines if it may do so and does not declare it."""
        super().__init_subclass__(**keywords)
        if "uses_target_cos" not in vars(cls) and ("begin" in vars(cls) or "negative" in vars(cls)):
            cls.uses_target_cos = True
        if "__post_init__" in vars(cls):
            cls.__post_init__ = for_all_stages(cls.__post_init__)  # type: ignore[method-assign]

    @for_all_stages
    def __post_init__(self) -> None:
        self.s = finite("s", self.s)
        if not self.s > 0:
            raise ValueError(f"margin s={self.s:g} must be positive; it is the scale of the logits")
        if self.max_negative_cosine is not None and not -1 < self.max_negative_cosine <= 1:
            raise ValueError(
                f"margin max_negative_cosine={self.max_negative_cosine} must be in (-1, 1]; null for no filter"
            )

    @property
    def bends_negatives(self) -> bool:
        """True if `negative` reads the target cosines."""
        return self.uses_target_cos and type(self).negative is not Margin.negative

    @property
    def slope(self) -> float | None:
        """The scale if negative logits are no more than scale x cosine, but where they are -inf; else None."""
        functions = ("negative", "negative_logits", "filtered")
        return self.s if all(getattr(type(self), name) is getattr(Margin, name) for name in functions) else None

    @property
    def schedules(self) -> dict[str, Mapping[int, float]]:
        """The options that are schedules, by name."""
        numbers = [each.name for each in fields(self) if each.init and declares_number(each.type)]
        return {name: value for name in numbers if isinstance(value := getattr(self, name), Mapping)}

    def at(self, step: int) -> Self:
        """Return a copy with the values that its schedules have at an optimizer step; the same object without any."""
        if not (schedules := self.schedules):
            return self
        margin = self.fixed(**{name: value_at(schedule, step) for name, schedule in schedules.items()})
        margin.__post_init__()
        return margin

    def scale(self, num_classes: int) -> float:
        """Return the scale of the logits in a loss over this many classes."""
        return self.s

    def begin(self, batch: MarginBatch, target_cos_N: Tensor) -> "Margin":
        """Return the margin of one forward pass, for example with a margin of its own for each sample.

        The result must not change: the backward pass and the optimizer's step evaluate it again. Make it with `fixed`.

        Args:
            batch: the batch of all processes.
            target_cos_N: (N,) cosines of the samples with their classes, detached.
        """
        return self

    def fixed(self, **values: Any) -> Self:
        """Return a copy with these attributes, for `begin`."""
        margin = copy.copy(self)
        vars(margin).update(values)
        return margin

    def target(self, cos: Tensor) -> Tensor:
        """Return the cosines of samples with their classes that enter the loss, before the scale.

        Args:
            cos: (N,) in the order of the batch; any shape if the margin has no `begin`.
        """
        return cos

    def negative(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        """Return the cosines with other classes that enter the loss, before the scale.

        Args:
            cos: (rows, N).
            target_cos: (N,) cosines of the samples with their classes, detached.
        """
        return cos

    def penalty(self) -> Tensor | None:
        """Return a term (N,) that is added to the loss of each sample; None for no term."""
        return None

    def target_logits(self, cos: Tensor) -> Tensor:
        """Return the logits of the samples' own classes."""
        return self.s * self.target(cos)

    def negative_logits(self, cos: Tensor, target_cos: Tensor) -> Tensor:
        """Return the logits (rows, N) of other classes; -inf where the filter leaves a class out."""
        return self.filtered(self.s * self.negative(cos, target_cos), cos)

    def filtered(self, logits: Tensor, cos: Tensor) -> Tensor:
        """Return the logits of other classes with -inf where `max_negative_cosine` leaves a class out."""
        if self.max_negative_cosine is not None:
            logits = logits.masked_fill(cos > self.max_negative_cosine, -math.inf)
        return logits


def checked_margin(margin: object) -> Margin:
    """Return the margin, or raise a ValueError if it is not a `Margin`."""
    if not isinstance(margin, Margin):
        raise ValueError(f"margin={margin!r} must be a margin object, such as margin=CosFace(s=64, m=0.4)")
    return margin


def finite(name: str, value: float) -> float:
    """Return an option as a float, or raise a ValueError if it is not a finite number."""
    if not math.isfinite(number(f"margin {name}", value)):
        raise ValueError(f"margin {name}={value} must be a finite number")
    return float(value)


def positive(name: str, value: float) -> float:
    """Return an option as a float, or raise a ValueError if it is not a finite number above 0."""
    if not finite(name, value) > 0:
        raise ValueError(f"margin {name}={value} must be a number above 0")
    return float(value)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return an option, or raise a ValueError if it is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"margin {name}={value!r} must be {' or '.join(map(repr, choices))}")
    return value
