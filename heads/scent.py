"""SCENT and SOX: the softmax over sampled negatives, with a running denominator of each training record.

The gradient of a sampled softmax is biased, because the logarithm of a sampled sum is not the logarithm of the full sum
on average. Here each record i keeps nu_i, a running estimate of log mean_j exp(l_ij) over its negatives j, where l_ij
is the logit of class j minus that of the record's class. The gradient divides by exp(nu_i), a number that remembers the
samples of earlier visits.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .core.cost import Case, Cost
from .core.options import option, whole
from .core.row_state import RowState
from .core.schedule import Schedule, check_schedule, plain, value_at
from .group.batch import GlobalBatch
from .group.collectives import sum_over_processes
from .objectives.inputs import LossInputs
from .objectives.objective import Objective
from .objectives.softmax import CrossEntropy, MarginSoftmax
from .pfc import PartialFC, PartialFCOptions
from .rows.active import ActiveRows
from .rows.record_table import UNVISITED, RecordTable
from .selection.selection import Selection

LOG_A = 12.0


@dataclass(frozen=True, kw_only=True)
class ScentOptions(PartialFCOptions):
    """Options of `Scent`."""

    log_a: Schedule = option(
        LOG_A,
        "Logarithm of the step size of nu: a visit has the share sigmoid(log_a + nu) in it, so that records whose "
        "class is told apart from others move slowly. Or {step: value} to change it from each step on.",
    )
    gamma: Schedule | None = option(
        None,
        "Share of a visit in nu, in (0, 1], the same for all records: SOX. None for SCENT, whose share depends on "
        "log_a. Or {step: share} to change it from each step on.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "log_a", plain("log_a", self.log_a))
        check_schedule("log_a", self.log_a, -math.inf)
        if self.gamma is not None:
            object.__setattr__(self, "gamma", plain("gamma", self.gamma))
            for share in check_schedule("gamma", self.gamma, 0):
                if not 0 < share <= 1:
                    raise ValueError(f"gamma={share} must be in (0, 1]; 1 keeps nothing of earlier visits")
            if self.log_a != LOG_A:
                raise ValueError(
                    f"log_a={self.log_a} has no effect with gamma={self.gamma}; leave log_a out, or gamma for SCENT"
                )
        if self.objective != CrossEntropy():
            raise ValueError(
                f"objective={self.objective} cannot be used with SCENT, which has a loss of its own; leave objective "
                "out, or use a head such as PartialFC"
            )


class Scent(PartialFC):
    """Exponentials of uniformly sampled negatives, over a running mean of each training record.

    Of a record i, l_ij is the logit of negative j minus that of its class, and m_i the mean of exp(l_ij) over the
    sampled classes of all processes but its own. A visit moves nu_i to log((1 - g) exp(nu_i) + g m_i), with the share
    g = sigmoid(log_a + nu_i), or g = `gamma` for SOX; the first visit sets it to log m_i. The loss of the visit is
    m_i / exp(nu_i) with the moved nu_i, of which no gradient is taken. It is about 1 in any training: `stats` returns
    `log_mean_exp`, the mean of nu over the last batch, an estimate of the mean of log m_i that is minimized.

    A step of the row optimizer stores the moved nu. All visits of a record in one step start from the same stored nu,
    also those of several micro-batches, and their mean of exp(nu) is stored. A sample without negatives has a loss of
    0 and moves nothing. With `log_q`, the sum of exp(l_ij) over the probability that j was drawn, over C - 1, takes the
    place of the mean. Classes that `max_negative_cosine` leaves out count as 0 in the mean.

    In eval mode the loss is the margin softmax over all classes, as that of other heads, and needs no record numbers.

    The head maps embeddings (n, D), labels (n,) and record numbers (n,) to a loss. Each sample has one label. The rows
    learn from an optimizer of their own::

        head = Scent(num_classes=1_000_000, embedding_size=512, num_records=20_000_000, sample_rate=0.1)
        rows = head.optimizer(lr=0.1)
        head(embeddings, labels, None, records).backward()
        rows.step()

    Source: Wei et al., "A Geometry-Aware Efficient Algorithm for Compositional Entropic Risk Minimization", ICML 2026
    (arXiv 2602.02877). SOX: Wang and Yang, "Finite-Sum Coupled Compositional Stochastic Optimization", ICML 2022. The
    code of both, libauc 2.0.1, takes nu = 0 for a record without visits.

    Raises:
        TypeError: an option that the head does not have.
        ValueError: an option is out of range.

    Examples:
        >>> head = Scent(num_classes=1000, embedding_size=16, num_records=5000, sample_rate=0.1)
        >>> embeddings, labels, records = torch.randn(8, 16, requires_grad=True), torch.arange(8), torch.arange(8)
        >>> loss = head(embeddings, labels, records=records)
    """

    Options = ScentOptions
    options: ScentOptions
    needs_records = True

    def __init__(self, num_classes: int, embedding_size: int, *, num_records: int, **options: Any):
        super().__init__(num_classes, embedding_size, **options)
        self.num_records = whole("num_records", num_records, 1)
        self.records = RecordTable(self.num_records, process_group=self.process_group, like=self.centers.like)
        self._mean_nu: Tensor | None = None

    @property
    def objective(self) -> Objective:  # type: ignore[override]
        """The objective of the mode: that of training, or the softmax."""
        objective: Objective = LogMeanExp() if self.training else CrossEntropy()
        return objective

    @classmethod
    def cost(cls, case: Case, options: Any, *, row_state: Mapping[str, RowState]) -> Cost:
        """Return the cost of a step. The numbers of the records are on the device wherever the rows are."""
        if not case.num_records:
            raise ValueError("num_records is missing: SCENT keeps 4 bytes for each training record; set num_records")
        cost = super().cost(case, options, row_state=row_state)
        table = 4 * -(-case.num_records // case.world_size)
        where = "table_bytes" if options.store == "device" else "work_bytes"
        sent = cost.sent_bytes + case.sent(gathered=8 * case.batch, summed=4 * case.batch)
        return replace(cost, sent_bytes=sent, **{where: getattr(cost, where) + table})

    def loss_inputs(self, batch: GlobalBatch, selection: Selection, rows: ActiveRows) -> LossInputs:
        inputs = super().loss_inputs(batch, selection, rows)
        if not self.training:
            return inputs
        assert batch.records_N is not None
        num_active = inputs.x_ND.new_tensor(self.centers.shard.num_classes, dtype=torch.float64)
        if selection.ids is not None and not self.options.log_q:
            num_active = sum_over_processes(num_active.new_tensor(len(rows)), self.process_group)
        gamma = self.options.gamma
        return ScentInputs(
            **vars(inputs),
            records_N=batch.records_N,
            nu_N=self.records.read(batch.records_N),
            num_negatives=num_active - 1,
            log_a=value_at(self.options.log_a, self.step),
            gamma=None if gamma is None else value_at(gamma, self.step),
        )

    def advance(self, applied: bool = True) -> None:
        losses = [loss for loss in self.pending.losses() if isinstance(loss, ScentLoss)]
        if applied and losses:
            self.records.write(*mean_of_visits(losses))
            nu_N = losses[-1].nu_N
            self._mean_nu = nu_N[nu_N > UNVISITED].mean()
        super().advance(applied)

    def stats(self) -> dict[str, float]:
        """Return the numbers of `CenterHead`, and the mean of nu over the last batch of the last step."""
        stats = super().stats()
        stats["memory_bytes"] += self.records.values.nbytes
        return stats if self._mean_nu is None else {**stats, "log_mean_exp": float(self._mean_nu)}

    def sharded_state(self) -> dict[str, Tensor]:
        records = {f"records.{name}": tensor for name, tensor in self.records.state_dict().items()}
        return {**super().sharded_state(), **records}

    def extra_repr(self) -> str:
        own = f"log_a={self.options.log_a}" if self.options.gamma is None else f"gamma={self.options.gamma}"
        return f"{own}, {super().extra_repr()}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Load the step count only if rows and records fit; `records` reports those that do not."""
        if not self.records.faults(state_dict, f"{prefix}records."):
            super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True, kw_only=True)
class ScentInputs(LossInputs):
    """The input of SCENT.

    Attributes:
        records_N: record numbers.
        nu_N: their stored nu; -inf before the first visit.
        num_negatives: float64 scalar, the number of classes over which exp(l) is averaged.
        log_a, gamma: the options in force.
    """

    records_N: Tensor
    nu_N: Tensor
    num_negatives: Tensor
    log_a: float
    gamma: float | None

    def exact(self) -> "ScentInputs":
        """Return the input without stored numbers: the gradient is that of log mean_j exp(l_ij) itself."""
        inputs: ScentInputs = super().exact()  # type: ignore[assignment]
        return replace(inputs, nu_N=torch.full_like(self.nu_N, UNVISITED))

    def moved(self, log_mean_N: Tensor) -> Tensor:
        """Return nu (N,) after a visit with these logarithms of the mean, float64; unchanged where they are -inf."""
        nu_N = self.nu_N.double()
        if self.gamma is None:
            logit_N = self.log_a + nu_N
            log_share_N, log_rest_N = logsigmoid(logit_N), logsigmoid(-logit_N)
        else:
            share_N = torch.full_like(nu_N, self.gamma)
            log_share_N, log_rest_N = share_N.log(), (-share_N).log1p()
        moved_N = torch.logaddexp(nu_N + log_rest_N, log_mean_N + log_share_N)
        moved_N = torch.where(nu_N == UNVISITED, log_mean_N, moved_N)
        return torch.where(log_mean_N == -torch.inf, nu_N, moved_N)


class LogMeanExp(Objective):
    """The mean over the records of log mean_j exp(l_ij), whose gradient SCENT estimates."""

    def streamed(self, inputs: LossInputs) -> "ScentLoss":
        assert isinstance(inputs, ScentInputs)
        return ScentLoss(inputs)


class ScentLoss(MarginSoftmax):
    """The loss of one global batch.

    Attributes:
        nu_N: float64 (N,), the nu of the samples' records after this visit.
    """

    inputs: ScentInputs

    def __init__(self, inputs: ScentInputs):
        super().__init__(inputs)
        if self.has_several:
            raise ValueError(
                "labels of a sample must be one class for SCENT, which keeps one number per record; use a head such as "
                "PartialFC for several labels"
            )
        self.has_several = True  # maxima and sums are those of the negatives

    def _losses(self) -> Tensor:
        # The two large numbers are subtracted first: the low bits of the others would be lost beside one of them.
        log_mean_N = self.sum_N.double().log() + (self.max_N - self.target_logit_P).double()
        log_mean_N -= self.inputs.num_negatives.clamp(min=1).log()
        self.nu_N = self.inputs.moved(log_mean_N)
        ratio_N = torch.where(log_mean_N == -torch.inf, 0, (log_mean_N - self.nu_N).exp())
        self.ratio_N = ratio_N.to(self.sum_N)
        return self.ratio_N

    def _errors(self, coefficient_P: Tensor) -> tuple[Tensor, Tensor]:
        total_N = self.ratio_N * coefficient_P
        return -total_N, torch.where(self.sum_N > 0, total_N / self.sum_N, 0)


def mean_of_visits(losses: Iterable[ScentLoss]) -> tuple[Tensor, Tensor]:
    """Return the distinct records (V,) of some losses, and the logarithm of their mean exp(nu) over their visits."""
    records_M = torch.cat([loss.inputs.records_N for loss in losses])
    nu_M = torch.cat([loss.nu_N for loss in losses])
    records_V, place_M, visits_V = torch.unique(records_M, return_inverse=True, return_counts=True)
    highest_V = nu_M.new_full(records_V.shape, UNVISITED).scatter_reduce(0, place_M, nu_M, "amax")
    highest_V = torch.where(highest_V == UNVISITED, 0, highest_V)
    total_V = torch.zeros_like(highest_V).index_add(0, place_M, (nu_M - highest_V[place_M]).exp())
    return records_V, highest_V + (total_V / visits_V).log()
