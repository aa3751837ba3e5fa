"""Exact margin softmax, streamed over class rows and sharded over processes.

No tensor of size N x K is necessary: two passes read the rows chunk by chunk. Pass one (`loss`) computes the log of
the softmax's denominator, with one max and one sum over processes. Pass two (`backward`) turns the probabilities of
each chunk into gradients. The margin acts inside the log-sum-exp.

Legend: N global batch, D row width, K active classes of this process, k classes of a chunk, l their rows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..core.options import documented, number, option
from ..group.collectives import max_over_processes, sum_over_processes
from ..margins.margin import Margin
from .inputs import LossGradient, LossInputs, NegativeGradient
from .objective import Objective
from .row_filter import RowFilter
from .row_gradient import RowGradient
from .streamed import Streamed

# Chunks that fit the caches are faster than larger ones: new temporaries of many MB cost page faults.
CHUNK_ROWS = 2048

LINEAR = 40.0  # softplus(z) is z from here on, to float64 precision


def chunks(num_rows: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the bounds of consecutive chunks of `size` rows, CHUNK_ROWS by default."""
    size = size or CHUNK_ROWS
    for a in range(0, num_rows, size):
        yield a, min(a + size, num_rows)


@documented
@dataclass
class CrossEntropy(Objective):
    """Cross-entropy of the softmax over the active classes: -log(e^z_y / (e^z_y + sum over others of e^z_j)).

    With several labels a sample, it is the mean over them, and the sum leaves out the sample's other classes.

    Examples:
        >>> head = FullFC(num_classes=1000, embedding_size=16, objective=CrossEntropy(label_smoothing=0.1))
        >>> loss = head(torch.randn(8, 16, requires_grad=True), torch.arange(8))
    """

    label_smoothing: float = option(
        0.0,
        "Share of the target, in [0, 1), that is spread over all classes (Szegedy et al., CVPR 2016), as in "
        "torch.nn.CrossEntropyLoss. Only for heads that use all classes.",
    )

    def __post_init__(self) -> None:
        if not 0 <= number("label_smoothing", self.label_smoothing) < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be in [0, 1); 0 switches it off")

    def streamed(self, inputs: LossInputs) -> "MarginSoftmax":
        if self.label_smoothing:
            self.check(inputs.margin, min_probability=inputs.min_probability)
            if inputs.positives.sample_P is not None:
                raise ValueError(
                    f"label_smoothing={self.label_smoothing} cannot be used with several labels a sample; set it to 0"
                )
        return MarginSoftmax(inputs, self.label_smoothing)

    def check(self, margin: Margin, *, samples: bool = False, log_q: bool = False, min_probability: float = 0) -> None:
        if not self.label_smoothing:
            return
        reasons = {
            "a head that samples classes": samples,
            f"min_probability={min_probability:g}": min_probability > 0,
            f"max_negative_cosine={margin.max_negative_cosine}": margin.max_negative_cosine is not None,
        }
        for reason, given in reasons.items():
            if given:
                raise ValueError(
                    f"label_smoothing={self.label_smoothing} needs the logits of all classes and cannot be used with "
                    f"{reason}; set label_smoothing to 0"
                )


class MarginSoftmax(Streamed):
    """The margin softmax of one global batch over this process's active rows."""

    def __init__(self, inputs: LossInputs, label_smoothing: float = 0.0):
        super().__init__(inputs)
        # Shares of the target: of the sample's class, and of each class.
        self.own_share, self.share = 1 - label_smoothing, label_smoothing / inputs.batch.num_classes
        self.log_q_K, self.min_probability = inputs.log_q_K, inputs.min_probability
        self.kept_LN: Tensor | None = None
        self.filter: RowFilter | None = None
        self.has_several = self.positives.sample_P is not None
        if self.has_several and self.min_probability:
            raise ValueError(
                f"min_probability={self.min_probability:g} cannot be used with several labels a sample; set it to 0"
            )

    def loss(self, *, keep: bool, learns: bool = True) -> Tensor:
        """Run pass one; `keep` keeps the cosines. See `Streamed`."""
        self.begin(needs_target_cos=True)
        sum_N = self.x_ND.new_zeros(self.num_samples)
        # The target's row is active on one of the processes, so no maximum is lower than its logit. With several labels
        # a sample, the maxima and sums are those of the negatives.
        max_N = sum_N + torch.finfo(sum_N.dtype).min if self.has_several else self.target_logit_P
        kept_LN = self.acquired_cosines() if keep else None
        self.filter = RowFilter(self, self.min_probability) if learns and self.min_probability else None
        total_N = torch.zeros_like(sum_N, dtype=torch.float64)  # of all logits, for smoothing
        for a, b in chunks(self.num_rows):
            kept_lN = None if kept_LN is None else kept_LN[self.block.rows(a, b)]
            compared_lD = self.compared(a, b, self.measured(a, b))
            cos_lN = self.matmul.mm(compared_lD, self.x_ND.T, out=kept_lN)
            logits_kN = self._logits(a, b, self.block.combined(cos_lN))
            if self.share:
                total_N += logits_kN.sum(0)
            new_max_N = torch.maximum(max_N, logits_kN.amax(0))
            exp_kN = logits_kN.sub_(new_max_N).exp_()
            shrink_N = (max_N - new_max_N).exp_()
            sum_N = sum_N * shrink_N + exp_kN.sum(0)
            max_N = new_max_N
            if self.filter is not None:
                self.filter.shrink(shrink_N)
                self.filter.add(self, a, b, compared_lD, cos_lN, exp_kN, max_N, sum_N)
        global_max_N = max_over_processes(max_N.clone(), self.group)
        shrink_N = (max_N - global_max_N).exp_()
        if self.filter is not None:
            self.filter.shrink(shrink_N)
        sum_N = sum_over_processes(sum_N * shrink_N, self.group)
        self.kept_LN = kept_LN
        # Not combined: log(sum) is small, and its low bits would be lost in a sum with a maximum of up to s.
        self.max_N, self.sum_N = global_max_N, sum_N
        losses_P = self._losses()
        if self.share:
            mean_N = sum_over_processes(total_N, self.group) / self.inputs.batch.num_classes
            losses_P += (1 - self.own_share) * (self.target_logit_P - mean_N).to(losses_P)
        return self.with_penalty(torch.dot(self.weight_P, losses_P))

    def backward(self, scale: Tensor) -> LossGradient:
        """Run pass two. See `Streamed`."""
        self.refuse_changed_rows()
        coefficient_P = self.weight_P * scale
        error_P, coefficient_N = self._errors(coefficient_P)
        cos_gradient_P, norm_gradient_N = self.target_gradients(error_P)
        norm_gradient_N = self.with_penalty_gradient(norm_gradient_N, coefficient_P)
        if self.filter is not None:
            x_gradient_ND = self.filter.x_gradient(self, coefficient_N, cos_gradient_P)
            softmax = self.filter.narrowed(self)
            gradient = RowGradient(softmax, coefficient_N, cos_gradient_P, softmax.kept_LN)
            return LossGradient(sum_over_processes(x_gradient_ND, self.group), norm_gradient_N, gradient)
        # The first gradient takes the kept cosines; a second backward pass through the same graph recomputes them.
        gradient = RowGradient(self, coefficient_N, cos_gradient_P, self.kept_LN)
        self.kept_LN = None
        x_gradient_ND = torch.zeros_like(self.x_ND)
        for a, b in chunks(self.num_rows):
            rows_lD = self.rows.slice(a, b)
            self.matmul.addmm_(x_gradient_ND, gradient.of_inner_products(a, b, rows_lD).T, rows_lD)
        gradient.seal()
        return LossGradient(sum_over_processes(x_gradient_ND, self.group), norm_gradient_N, gradient)

    def negative_gradient(self, a: int, b: int, cos_kN: Tensor, coefficient_N: Tensor) -> NegativeGradient:
        if self.margin.slope is None:
            return super().negative_gradient(a, b, cos_kN, coefficient_N)
        # The same numbers without autograd, which takes more passes over k x N numbers.
        gradient_kN = self.logit_gradient(a, b, self.negative_logits(cos_kN), coefficient_N)
        positives = self.placed_positives.within(a, b)
        if len(positives.rows):
            gradient_kN[positives.at] = 0
        return NegativeGradient(gradient_kN.mul_(self.margin.slope), None)

    def logit_gradient(self, a: int, b: int, logits_kN: Tensor, coefficient_N: Tensor) -> Tensor:
        """Return the gradient by the negative logits; the coefficients contain the denominators. See `Streamed`."""
        if self.log_q_K is not None:
            logits_kN = logits_kN - self.log_q_K[a:b, None]
        gradient_kN = (logits_kN - self.max_N).exp_()
        if self.share:
            gradient_kN -= self.share * self.sum_N
        return gradient_kN.mul_(coefficient_N)

    def reaches(self, positions: Tensor, probability: float) -> Tensor:
        """Return which of the classes at sorted positions have this probability for one of the samples, (positions,).

        It is that of a negative; the loss must be computed.
        """
        reaches = torch.empty(len(positions), dtype=torch.bool, device=positions.device)
        least_N = self.max_N + self.sum_N.log() + math.log(probability)
        for a, b in chunks(len(positions)):
            some = positions[a:b]
            if self.kept_LN is None:
                cos_kN = self.matmul.mm(self.at_unit_length(self.rows.gather(some)), self.x_ND.T)
            else:
                cos_kN = self.kept_LN[some]
            reaches[a:b] = (self.negative_logits(cos_kN) >= least_N).any(1)
        return reaches

    def log_pull(self, a: int, b: int, cos_kN: Tensor) -> Tensor:
        return self.negative_logits(cos_kN)

    def _losses(self) -> Tensor:
        """Return the loss of each target, (P,)."""
        if self.has_several:
            return softplus(self._excess(), threshold=LINEAR)
        return self.sum_N.log() - (self.target_logit_P - self.max_N)

    def _errors(self, coefficient_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient by the target logits (P,), and the coefficients of `logit_gradient` (N,)."""
        if not self.has_several:
            target_p_N = (self.target_logit_P - self.max_N).exp() / self.sum_N
            error_N = (target_p_N - 1) * coefficient_P
            if self.share:
                error_N += (1 - self.own_share - self.share) * coefficient_P
            return error_N, coefficient_P / self.sum_N
        error_P = -self._excess().sigmoid() * coefficient_P
        total_N = self.positives.summed(-error_P, self.num_samples)
        return error_P, torch.where(self.sum_N > 0, total_N / self.sum_N, 0)

    def _excess(self) -> Tensor:
        """Return the log of the sum over a sample's negatives minus the target logit, (P,)."""
        log_sum_N = self.sum_N.log() + self.max_N
        return self.positives.of_samples(log_sum_N) - self.target_logit_P

    def _logits(self, a: int, b: int, cos_kN: Tensor) -> Tensor:
        logits_kN = self.negative_logits(cos_kN)
        if self.log_q_K is not None:
            logits_kN -= self.log_q_K[a:b, None]
        positives = self.placed_positives.within(a, b)
        if len(positives.rows):
            logits_kN[positives.at] = -torch.inf if self.has_several else self.target_logit_P[positives.pairs]
        return logits_kN
