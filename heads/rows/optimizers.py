"""Row optimizers: they update the rows that took part, and touch nothing else.

A row that took no part keeps its value, its momentum and its decay, bit for bit, until it does. Each
rule matches its torch.optim namesake on the rows that take part. Row state lives with the rows in
`ClassCenters`; `state_dict()` holds hyper-parameters only.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core import dtypes
from ..core.options import number
from ..core.row_state import RowState
from ..core.timer import Timer
from .centers import ClassCenters
from .pending import ChunkGradient, PendingGradients


class RowOwner(Protocol):
    """The part of a head that a row optimizer needs, and what it sets: `has_optimizer`."""

    centers: ClassCenters
    pending: PendingGradients
    timer: Timer
    has_optimizer: bool
    step: int

    def advance(self) -> None:
        """Called after each step."""


class RowOptimizer(torch.optim.Optimizer):
    """A torch optimizer of the rows, for learning-rate schedulers and `torch.amp.GradScaler` as any other.

    Its one parameter is a scalar that stands for the rows (`PendingGradients.proxy`); the rows themselves are no
    parameters. Subclasses name their row state and update a chunk of rows in place.
    """

    def __init__(self, head: RowOwner, defaults: dict[str, Any]):
        super().__init__([{"params": [head.pending.proxy]}], defaults)
        self.head = head
        head.has_optimizer = True
        head.centers.claim(self.row_state(head.centers.width))
        self._claim = head.centers.claims

    def row_state(self, width: int) -> dict[str, RowState]:
        """Return what is remembered of each row, by name; all start at zero. It may depend on `param_groups`."""
        raise NotImplementedError

    def update(self, rows: Tensor, gradient: ChunkGradient, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One step of some rows (k, width) and of their state, in place."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the rows of all pending gradients, and their state.

        Raises:
            RuntimeError: the rows have changed since a pending gradient was computed, as after a step without
                `zero_grad()`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        centers = self.head.centers
        if centers.claims != self._claim:
            raise RuntimeError(
                "another optimizer has been made for this head, which took over its row state; step that one"
            )
        state_now = self.row_state(centers.width)
        if not state_now.keys() <= centers.state.keys():  # schedulers and users may change a group's options
            centers.claim(state_now, keep=True)
        device = centers.like.device
        with self.head.timer("update", device), torch.autocast(device.type, enabled=False):
            for index, rows, gradient in self.head.pending.stream(centers):
                state = {name: centers.borrow(index, name, len(rows)) for name in centers.state}
                self.update(rows, gradient, state, group)
                for name, value in {"rows": rows, **state}.items():
                    centers.write(index, name, value, self.head.step)
        centers.version += 1
        self.head.advance()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.head.pending.clear()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.param_groups:
            raise ValueError(
                "a row optimizer has one group, that of its head; parameters need an optimizer of their own"
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        raise ValueError(
            "a row optimizer belongs to its head and cannot be copied or pickled; copy the head, which holds the row "
            "state, and make an optimizer for the copy"
        )

    def state_dict(self) -> dict[str, Any]:
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]
        return {"state": {}, "param_groups": [{**group, "params": []} for group in groups]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        (group,), groups = self.param_groups, state_dict.get("param_groups", [])
        if len(groups) != 1 or "lr" not in groups[0]:
            raise ValueError(f"this is no state of a {type(self).__name__}: it must have one group, with its lr")
        group.update({name: value for name, value in groups[0].items() if name != "params"})


class RowSGD(RowOptimizer):
    """torch.optim.SGD of the rows that take part: weight decay, momentum, Nesterov.

    Args:
        momentum_dtype: in which the momentum is stored, "fp32" or "bf16"; as in arithmetic unless given.
    """

    def __init__(
        self,
        head: RowOwner,
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        momentum_dtype: torch.dtype | str | None = None,
    ):
        _check(lr=lr, weight_decay=weight_decay)
        if not 0 <= number("momentum", momentum) < 1:
            raise ValueError(f"momentum={momentum}: must lie in [0, 1)")
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True: needs a momentum above 0")
        self._momentum_dtype = dtypes.named("momentum_dtype", momentum_dtype) if momentum_dtype is not None else None
        super().__init__(head, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def row_state(self, width: int) -> dict[str, RowState]:
        return {"momentum": RowState(width, self._momentum_dtype)} if self.param_groups[0]["momentum"] else {}

    def update(self, rows: Tensor, gradient: ChunkGradient, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        if not momentum:
            direction = gradient.dense(decay=decay)
        elif group["nesterov"]:
            direction = gradient.dense(decay=decay)
            direction.add_(state["momentum"].mul_(momentum).add_(direction), alpha=momentum)
        else:
            direction = gradient.add_to(state["momentum"], beta=momentum, decay=decay)
        rows.add_(direction, alpha=-lr)


class RowAdamW(RowOptimizer):
    """torch.optim.AdamW of the rows that take part.

    Args:
        bias_correction: "row" counts the steps of each row. "global" counts the optimizer's, as PLSC
            does: a row first touched at step 1000 then moves by several lr, not one.
    """

    def __init__(
        self,
        head: RowOwner,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        bias_correction: str = "row",
    ):
        _check(lr=lr, eps=eps, weight_decay=weight_decay)
        if len(betas) != 2 or not all(0 <= number("betas", beta) < 1 for beta in betas):
            raise ValueError(f"betas={tuple(betas)}: two numbers in [0, 1) are needed")
        if bias_correction not in ("row", "global"):
            raise ValueError(f"bias_correction={bias_correction!r}: must be 'row' or 'global'")
        super().__init__(
            head,
            {
                "lr": lr,
                "betas": tuple(betas),
                "eps": eps,
                "weight_decay": weight_decay,
                "bias_correction": bias_correction,
            },
        )

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
        # 1 - beta^t in double: float32 loses it at the first steps of beta2 = 0.999.
        exact = steps.double()
        correction1 = (1 - beta1**exact).to(rows.dtype)
        correction2 = (1 - beta2**exact).sqrt_().to(rows.dtype)
        denominator = square.sqrt().div_(correction2).add_(group["eps"])
        rows.sub_(mean.div(denominator).mul_(group["lr"] / correction1))


class RowAdagrad(RowOptimizer):
    """Adagrad with one number a row: the sum over its steps of the mean square of its gradient.

    With rows of one column it is torch.optim.Adagrad. Weight decay is added to the gradient.
    """

    def __init__(self, head: RowOwner, lr: float, *, eps: float = 1e-10, weight_decay: float = 0.0):
        _check(lr=lr, eps=eps, weight_decay=weight_decay)
        super().__init__(head, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def row_state(self, width: int) -> dict[str, RowState]:
        return {"sum": RowState(1)}

    def update(self, rows: Tensor, gradient: ChunkGradient, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        direction = gradient.dense(decay=group["weight_decay"])
        total = state["sum"].add_(direction.square().mean(dim=1, keepdim=True))
        rows.addcmul_(direction, group["lr"] / total.sqrt().add_(group["eps"]), value=-1)


def _check(**options: float) -> None:
    for name, value in options.items():
        number(name, value, least=0)
