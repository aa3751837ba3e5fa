"""Exact margin softmax, streamed over class rows and sharded over processes.

No tensor of size N x K is necessary: two passes read the rows chunk by chunk. Pass one (`loss`) computes the log of
the softmax's denominator, with one max and one sum over processes. Pass two (`backward`) turns the probabilities of
each chunk into gradients. The margin acts inside the log-sum-exp.

Legend: N global batch, D row width, K active classes of this process, k classes of a chunk, l their rows.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..core.options import documented, number, option
from ..group.collectives import max_over_processes, sum_over_processes
from ..margins.margin import Margin
from .inputs import LossGradient, LossInputs
from .objective import Objective
from .placed import PlacedPairs
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
        # exp(logit - maximum so far) is an upper bound of the probability.
        self.bound_K = self.x_ND.new_empty(self.num_rows) if self.min_probability else None
        total_N = torch.zeros_like(sum_N, dtype=torch.float64)  # of all logits, for smoothing
        for a, b in chunks(self.num_rows):
            kept_lN = None if kept_LN is None else kept_LN[self.block.rows(a, b)]
            cos_lN = self.cosines(a, b, self.measured(a, b), out=kept_lN)
            logits_kN = self._logits(a, b, self.block.combined(cos_lN))
            if self.share:
                total_N += logits_kN.sum(0)
            new_max_N = torch.maximum(max_N, logits_kN.amax(0))
            exp_kN = logits_kN.sub_(new_max_N).exp_()
            sum_N = sum_N * (max_N - new_max_N).exp_() + exp_kN.sum(0)
            max_N = new_max_N
            if self.bound_K is not None:
                self.bound_K[a:b] = exp_kN.amax(1)
        global_max_N = max_over_processes(max_N.clone(), self.group)
        sum_N = sum_over_processes(sum_N * (max_N - global_max_N).exp_(), self.group)
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
        softmax = self._filtered() if self.min_probability else self
        coefficient_P = softmax.weight_P * scale
        error_P, coefficient_N = softmax._errors(coefficient_P)
        cos_gradient_P, norm_gradient_N = softmax.target_gradients(error_P)
        # The first gradient takes the kept cosines; a second backward pass through the same graph recomputes them.
        gradient = RowGradient(softmax, coefficient_N, cos_gradient_P, softmax.kept_LN)
        softmax.kept_LN = None
        x_gradient_ND = torch.zeros_like(self.x_ND)
        for a, b in chunks(softmax.num_rows):
            rows_lD = softmax.rows.slice(a, b)
            self.matmul.addmm_(x_gradient_ND, gradient.of_inner_products(a, b, rows_lD).T, rows_lD)
        gradient.seal()
        norm_gradient_N = self.with_penalty_gradient(norm_gradient_N, coefficient_P)
        return LossGradient(sum_over_processes(x_gradient_ND, self.group), norm_gradient_N, gradient)

    def logit_gradient(self, a: int, b: int, logits_kN: Tensor, coefficient_N: Tensor) -> Tensor:
        """Return the gradient by the negative logits; the coefficients contain the denominators. See `Streamed`."""
        if self.log_q_K is not None:
            logits_kN = logits_kN - self.log_q_K[a:b, None]
        gradient_kN = (logits_kN - self.max_N).exp_()
        if self.share:
            gradient_kN -= self.share * self.sum_N
        return gradient_kN.mul_(coefficient_N)

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

    def _filtered(self) -> "MarginSoftmax":
        """Return this softmax without rows below `min_probability`: first by bounds, then by exact probabilities."""
        assert self.bound_K is not None and self.block.size == 1
        softmax = self._narrowed(self.bound_K >= self.min_probability)
        large_K = torch.zeros(softmax.num_rows, dtype=torch.bool, device=self.x_ND.device)
        for a, b in chunks(softmax.num_rows):
            if softmax.kept_LN is None:
                cos_kN = softmax.cosines(a, b, softmax.rows.slice(a, b))
            else:
                cos_kN = softmax.kept_LN[a:b]
            p_kN = (softmax._logits(a, b, cos_kN) - softmax.max_N).exp_().div_(softmax.sum_N)
            large_K[a:b] = p_kN.amax(1) >= self.min_probability
        return softmax._narrowed(large_K)

    def _narrowed(self, mask_K: Tensor) -> "MarginSoftmax":
        """Return this softmax with the same denominators for the gradient of the rows in `mask_K`.

        The samples' own classes always stay. The kept cosines move to the new object.
        """
        position_N = self.placed.position_P.clone()
        own_N = position_N >= 0
        mask_K[position_N[own_N]] = True
        positions = mask_K.nonzero()[:, 0]
        narrow = copy.copy(self)
        narrow.rows, narrow.num_rows = self.rows.subset(positions), len(positions)
        narrow.norm_L = self.norm_L[positions]
        narrow.log_q_K = None if self.log_q_K is None else self.log_q_K[positions]
        position_N[own_N] = (mask_K.cumsum(0) - 1)[position_N[own_N]]
        narrow.placed = narrow.placed_positives = PlacedPairs(position_N, None, self.x_ND.device)
        if self.kept_LN is not None:
            # In the same buffer: a row only moves to a position that has been read already.
            for a, b in chunks(len(positions)):
                self.kept_LN[a:b] = self.kept_LN[positions[a:b]]
            narrow.kept_LN, self.kept_LN = self.kept_LN[: len(positions)], None
        self.rows.release()
        return narrow

    def _logits(self, a: int, b: int, cos_kN: Tensor) -> Tensor:
        logits_kN = self.negative_logits(cos_kN)
        if self.log_q_K is not None:
            logits_kN -= self.log_q_K[a:b, None]
        positives = self.placed_positives.within(a, b)
        if len(positives.rows):
            logits_kN[positives.at] = -torch.inf if self.has_several else self.target_logit_P[positives.pairs]
        return logits_kN
