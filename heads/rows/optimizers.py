"""SGD, AdamW and Adagrad for class rows. Each matches its torch.optim namesake on the rows that take part."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import dtypes
from ..core.options import documented, make_options, number, option
from ..core.row_state import RowState
from .chunk_gradient import ChunkGradient, SummedGradient
from .rest import rest, rest_step
from .row_optimizer import RowOptimizer, RowOwner

ARGUMENTS = {"head": "The head that owns the rows.", "lr": "Learning rate, at least 0."}


class RowRule(RowOptimizer):
    """A row optimizer whose options are the dataclass `Options`."""

    Options: type

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        documented(cls, ARGUMENTS)

    def __init__(self, head: RowOwner, lr: float, **options: Any):
        defaults = {"lr": number("lr", lr, least=0), **vars(make_options(type(self), options))}
        super().__init__(head, defaults)


@dataclass(frozen=True, kw_only=True)
class RowSGDOptions:
    """Options of `RowSGD`."""

    momentum: float = option(0.9, "Momentum factor, in [0, 1). 0 keeps no momentum and needs no memory for it.")
    weight_decay: float = option(5e-4, "Weight decay (L2 penalty), added to the gradient.")
    nesterov: bool = option(False, "Use Nesterov momentum, which needs a momentum above 0.")
    momentum_dtype: torch.dtype | str | None = option(
        None, 'Storage of the momentum: "fp32" or "bf16", which takes half the memory. None: the dtype of arithmetic.'
    )
    catch_up: bool = option(
        False,
        "Make up for the momentum and weight decay of the steps in which a row took no part, when it takes part "
        "again. One more number per row.",
    )

    def __post_init__(self) -> None:
        number("weight_decay", self.weight_decay, least=0)
        if not 0 <= number("momentum", self.momentum) < 1:
            raise ValueError(f"momentum={self.momentum} must be in [0, 1); 0 switches it off")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0; set momentum, such as 0.9")
        if self.momentum_dtype is not None:
            dtypes.named("momentum_dtype", self.momentum_dtype)


class RowSGD(RowRule):
    """SGD as in torch.optim.SGD, for the rows that take part in a step.

    Momentum and weight decay default to the values of `optimizer=sgd`, not to 0 as in torch.

    With `catch_up`, a row that takes part is moved first to where the steps without it would have led at the present
    learning rate. With a constant rate, rows and momentum are then those of torch.optim.SGD over all rows. The forward
    pass still sees the row where it was left.

    Raises:
        TypeError: an unknown option.
        ValueError: an option out of range.

    Examples:
        >>> head = PartialFC(num_classes=1000, embedding_size=16, sample_rate=0.1)
        >>> optimizer = head.optimizer(lr=0.1, rule=functools.partial(RowSGD, momentum=0.9, weight_decay=5e-4))
        >>> head(torch.randn(8, 16, requires_grad=True), torch.arange(8)).backward()
        >>> optimizer.step()
    """

    Options = RowSGDOptions

    def row_state(self, width: int) -> dict[str, RowState]:
        (group,) = self.param_groups
        state = {}
        if group["momentum"]:
            dtype = group["momentum_dtype"]
            state["momentum"] = RowState(width, None if dtype is None else dtypes.named("momentum_dtype", dtype))
        if group["catch_up"]:
            state["steps"] = RowState(1)
        return state

    def update(self, rows: Tensor, gradient: ChunkGradient, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        if group["catch_up"]:
            gradient = SummedGradient(gradient.dense(), rows, gradient.workspace)  # of the row as it was left
            step = rest_step(lr, momentum, decay, nesterov=group["nesterov"])
            rest(rows, state.get("momentum"), self.head.step - state["steps"], self.head.step, step)
            state["steps"].fill_(self.head.step + 1)
        if not momentum:
            direction = gradient.dense(decay=decay)
        elif group["nesterov"]:
            direction = gradient.dense(decay=decay)
            direction.add_(state["momentum"].mul_(momentum).add_(direction), alpha=momentum)
        else:
            direction = gradient.add_to(state["momentum"], beta=momentum, decay=decay)
        rows.add_(direction, alpha=-lr)


@dataclass(frozen=True, kw_only=True)
class RowAdamWOptions:
    """Options of `RowAdamW`."""

    betas: tuple[float, float] = option(
        (0.9, 0.999), "Decay rates of the running means of the gradient and of its square, in [0, 1)."
    )
    eps: float = option(1e-8, "Added to the denominator.")
    weight_decay: float = option(1e-2, "Decoupled weight decay.")
    bias_correction: str = option(
        "row",
        '"row" counts the steps of each row. "global" counts those of the optimizer, as PLSC does; a row first touched '
        "at step 1000 then moves by several lr instead of one.",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        number("eps", self.eps, least=0)
        number("weight_decay", self.weight_decay, least=0)
        if len(self.betas) != 2 or not all(0 <= number("betas", beta) < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must be two numbers in [0, 1), such as (0.9, 0.999)")
        if self.bias_correction not in ("row", "global"):
            raise ValueError(f"bias_correction={self.bias_correction!r} must be 'row' or 'global'")


class RowAdamW(RowRule):
    """AdamW as in torch.optim.AdamW (Loshchilov and Hutter, ICLR 2019), for the rows that take part in a step.

    Raises:
        TypeError: an unknown option.
        ValueError: an option out of range.

    Examples:
        >>> head = PartialFC(num_classes=1000, embedding_size=16, sample_rate=0.1)
        >>> optimizer = head.optimizer(lr=0.1, rule=RowAdamW)
        >>> head(torch.randn(8, 16, requires_grad=True), torch.arange(8)).backward()
        >>> optimizer.step()
    """

    Options = RowAdamWOptions

    def row_state(self, width: int) -> dict[str, RowState]:
        return {"exp_avg": RowState(width), "exp_avg_sq": RowState(width), "steps": RowState(1)}

    def update(self, rows: Tensor, gradient: ChunkGradient, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        steps = state["steps"].add_(1)
        if group["bias_correction"] == "global":
            steps = torch.full_like(steps, self.head.step + 1)
        direction = gradient.dense()
        rows.mul_(1 - group["lr"] * group["weight_decay"])
        mean = state["exp_avg"].lerp_(direction, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(direction, direction, value=1 - beta2)
        # 1 - beta^t in float64: float32 loses it in the first steps of beta2 = 0.999.
        exact = steps.double()
        correction1 = (1 - beta1**exact).to(rows.dtype)
        correction2 = (1 - beta2**exact).sqrt_().to(rows.dtype)
        denominator = square.sqrt().div_(correction2).add_(group["eps"])
        rows.sub_(mean.div(denominator).mul_(group["lr"] / correction1))


@dataclass(frozen=True, kw_only=True)
class RowAdagradOptions:
    """Options of `RowAdagrad`."""

    eps: float = option(1e-10, "Added to the denominator.")
    weight_decay: float = option(0.0, "Weight decay (L2 penalty), added to the gradient.")

    def __post_init__(self) -> None:
        number("eps", self.eps, least=0)
        number("weight_decay", self.weight_decay, least=0)


class RowAdagrad(RowRule):
    """Adagrad (Duchi et al., JMLR 2011) with one number of state per row instead of one per column.

    The number is the sum over steps of the mean square of the row's gradient. For rows of one column this is
    torch.optim.Adagrad.

    Raises:
        TypeError: an unknown option.
        ValueError: an option out of range.

    Examples:
        >>> head = PartialFC(num_classes=1000, embedding_size=16, sample_rate=0.1)
        >>> optimizer = head.optimizer(lr=0.1, rule=RowAdagrad)
        >>> head(torch.randn(8, 16, requires_grad=True), torch.arange(8)).backward()
        >>> optimizer.step()
    """

    Options = RowAdagradOptions

    def row_state(self, width: int) -> dict[str, RowState]:
        return {"sum": RowState(1)}

    def update(self, rows: Tensor, gradient: ChunkGradient, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        direction = gradient.dense(decay=group["weight_decay"])
        total = state["sum"].add_(direction.square().mean(dim=1, keepdim=True))
        rows.addcmul_(direction, group["lr"] / total.sqrt().add_(group["eps"]), value=-1)
