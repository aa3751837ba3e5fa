"""Exact margin softmax, streamed over class rows and sharded over processes.

No tensor of size N x K is necessary: two passes read the rows chunk by chunk. Pass one (`loss`) computes the log of
the softmax's denominator, with one max and one sum over processes. Pass two (`backward`) turns the probabilities of
each chunk into gradients. The margin acts inside the log-sum-exp.

This file depends on neither stores nor optimizers: it reads `Rows` and returns their gradient as a `RowGradient`,
which can add any range of itself to a tensor.

Legend: N global batch, D row width, K active rows of this process, k rows of a chunk. A suffix such as `x_ND` names the
dimensions. `x_ND` has unit rows if the margin normalizes.
"""

import copy
from bisect import bisect_left
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..core.matmul import MatMul
from ..core.workspace import Workspace
from ..group.collectives import max_over_processes, sum_over_processes
from ..margins.margin import Margin
from .row_gradient import RowGradient
from .rows import MIN_NORM, Rows

# Chunks that fit the caches are faster than larger ones: new temporaries of many MB cost page faults.
CHUNK_ROWS = 2048


def chunks(num_rows: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the bounds of consecutive chunks of `size` rows, CHUNK_ROWS by default."""
    size = size or CHUNK_ROWS
    for a in range(0, num_rows, size):
        yield a, min(a + size, num_rows)


class MarginSoftmax:
    """The margin softmax of one global batch over this process's active rows.

    Args:
        x_ND: gathered embeddings, the same on all processes.
        weight_N: weight of each sample in the mean.
        position_N: int64, the position of each sample's class among the active rows; -1 if another process owns it.
            The host needs these positions, so a tensor on the host avoids waiting for the device.
        rows: the K active rows.
        margin: changes the cosines.
        log_q_K: log of the probability that a row was drawn, subtracted from its logits; None for zeros.
        group: the processes that share the classes; None for one process.
        min_probability: pass two leaves out rows whose largest probability over the batch is below it, unless they
            are a sample's own class.
        matmul: multiplies matrices; float32 by default.
        workspace: provides buffers; new ones by default.
    """

    def __init__(
        self,
        x_ND: Tensor,
        weight_N: Tensor,
        position_N: Tensor,
        rows: Rows,
        margin: Margin,
        log_q_K: Tensor | None = None,
        group: ProcessGroup | None = None,
        min_probability: float = 0.0,
        matmul: MatMul | None = None,
        workspace: Workspace | None = None,
    ):
        self.x_ND, self.rows, self.num_rows = x_ND, rows, len(rows)
        self.margin, self.log_q_K, self.group, self.min_probability = margin, log_q_K, group, min_probability
        self.matmul = matmul or MatMul()
        self.workspace = workspace or Workspace()
        self.weight_N = weight_N / weight_N.sum()
        self._place_targets(position_N)
        self.norm_K = x_ND.new_ones(len(rows))
        self.kept_KN: Tensor | None = None

    def loss(self, *, keep: bool) -> Tensor:
        """Run pass one and return the weighted mean over the global batch, the same scalar on all processes.

        Args:
            keep: whether to keep the cosines (K x N numbers), which saves pass two one matrix product.
        """
        self.target_cos_N = self.target_cosines()
        self.target_logit_N = self.margin.target_logits(self.target_cos_N)
        num_samples = len(self.x_ND)
        # The target's row is active on one of the processes, so no maximum is lower than its logit.
        max_N, sum_N = self.target_logit_N, torch.zeros_like(self.target_logit_N)
        kept_KN = self.workspace.acquire("cosines", (self.num_rows, num_samples), self.x_ND) if keep else None
        # exp(logit - maximum so far) is an upper bound of the probability.
        self.bound_K = self.x_ND.new_empty(self.num_rows) if self.min_probability else None
        for a, b in chunks(self.num_rows):
            rows_kD = self.rows.slice(a, b)
            if self.margin.normalize:
                self.norm_K[a:b] = torch.linalg.vector_norm(rows_kD, dim=1).clamp_(min=MIN_NORM)
            cos_kN = self._cosines(a, b, rows_kD, out=None if kept_KN is None else kept_KN[a:b])
            logits_kN = self._logits(a, b, cos_kN)
            new_max_N = torch.maximum(max_N, logits_kN.amax(0))
            exp_kN = logits_kN.sub_(new_max_N).exp_()
            sum_N = sum_N * (max_N - new_max_N).exp_() + exp_kN.sum(0)
            max_N = new_max_N
            if self.bound_K is not None:
                self.bound_K[a:b] = exp_kN.amax(1)
        global_max_N = max_over_processes(max_N.clone(), self.group)
        sum_N = sum_over_processes(sum_N * (max_N - global_max_N).exp_(), self.group)
        # Not combined: log(sum) is small, and its low bits would be lost in a sum with a maximum of up to s.
        self.max_N, self.sum_N = global_max_N, sum_N
        self.kept_KN = kept_KN
        return torch.dot(self.weight_N, sum_N.log() - (self.target_logit_N - global_max_N))

    def backward(self, scale: Tensor) -> tuple[Tensor, RowGradient]:
        """Run pass two and return the gradients.

        Args:
            scale: scalar factor of the gradients.

        Returns:
            scale x d loss / d x_ND (N, D), summed over processes, and the gradient of the rows.

        Raises:
            RuntimeError: the rows have changed since pass one.
        """
        if self.rows.changed:
            raise RuntimeError(
                "the class centers have changed since this loss was computed; call backward before the optimizer steps "
                "and before rows are loaded or written"
            )
        softmax = self._filtered() if self.min_probability else self
        gradient = RowGradient(softmax, scale)
        x_gradient_ND = torch.zeros_like(self.x_ND)
        for a, b in chunks(softmax.num_rows):
            rows_kD = softmax.rows.slice(a, b)
            self.matmul.addmm_(x_gradient_ND, gradient.of_inner_products(a, b, rows_kD).T, rows_kD)
        gradient.seal()
        return sum_over_processes(x_gradient_ND, self.group), gradient

    def _filtered(self) -> "MarginSoftmax":
        """Return this softmax without rows below `min_probability`: first by bounds, then by exact probabilities."""
        assert self.bound_K is not None
        softmax = self._narrowed(self.bound_K >= self.min_probability)
        large_K = torch.zeros(softmax.num_rows, dtype=torch.bool, device=self.x_ND.device)
        for a, b in chunks(softmax.num_rows):
            if softmax.kept_KN is None:
                cos_kN = softmax._cosines(a, b, softmax.rows.slice(a, b))
            else:
                cos_kN = softmax.kept_KN[a:b]
            p_kN = (softmax._logits(a, b, cos_kN) - softmax.max_N).exp_().div_(softmax.sum_N)
            large_K[a:b] = p_kN.amax(1) >= self.min_probability
        return softmax._narrowed(large_K)

    def _narrowed(self, mask_K: Tensor) -> "MarginSoftmax":
        """Return this softmax with the same denominators for the gradient of the rows in `mask_K`.

        The samples' own classes always stay. The kept cosines move to the new object.
        """
        own_N = self.position_N >= 0
        mask_K[self.position_N[own_N]] = True
        positions = mask_K.nonzero()[:, 0]
        narrow = copy.copy(self)
        narrow.rows, narrow.num_rows = self.rows.subset(positions), len(positions)
        narrow.norm_K = self.norm_K[positions]
        narrow.log_q_K = None if self.log_q_K is None else self.log_q_K[positions]
        position_N = self.position_N.clone()
        position_N[own_N] = (mask_K.cumsum(0) - 1)[self.position_N[own_N]]
        narrow._place_targets(position_N)
        if self.kept_KN is not None:
            # In the same buffer: a row only moves to a position that has been read already.
            for a, b in chunks(len(positions)):
                self.kept_KN[a:b] = self.kept_KN[positions[a:b]]
            narrow.kept_KN, self.kept_KN = self.kept_KN[: len(positions)], None
        self.rows.release()
        return narrow

    def _place_targets(self, position_N: Tensor) -> None:
        # Samples sorted by the position of their target, on the host, where a chunk finds its samples by bisection.
        host_N = position_N.cpu()
        order_N = torch.argsort(host_N, stable=True)
        self.sorted_positions: list[int] = host_N[order_N].tolist()
        self.position_N, self.order_N = position_N.to(self.x_ND.device), order_N.to(self.x_ND.device)

    def targets(self, a: int, b: int) -> tuple[Tensor, Tensor]:
        """Return (position in the chunk, sample) of each target among active rows a to b."""
        begin, end = bisect_left(self.sorted_positions, a), bisect_left(self.sorted_positions, b)
        samples = self.order_N[begin:end]
        return self.position_N[samples] - a, samples

    def target_cosines(self) -> Tensor:
        """Return each sample's cosine with its own class (N,), from the process that owns the class."""
        samples = self.order_N[bisect_left(self.sorted_positions, 0) :]
        cos_N = self.x_ND.new_zeros(len(self.x_ND))
        if len(samples):
            rows = self.rows.gather(self.position_N[samples])
            if self.margin.normalize:
                rows = torch.nn.functional.normalize(rows, eps=MIN_NORM)
            cos_N[samples] = (self.x_ND[samples] * rows).sum(1)
        return sum_over_processes(cos_N, self.group)

    def _cosines(self, a: int, b: int, rows_kD: Tensor, out: Tensor | None = None) -> Tensor:
        # Rows are scaled before the product. Scaling the product would round cosines, and s multiplies that error.
        if self.margin.normalize:
            unit_kD = self.workspace.borrow("unit", tuple(rows_kD.shape), self.x_ND)
            rows_kD = torch.div(rows_kD, self.norm_K[a:b, None], out=unit_kD)
        return self.matmul.mm(rows_kD, self.x_ND.T, out=out)

    def _logits(self, a: int, b: int, cos_kN: Tensor) -> Tensor:
        logits_kN = self.margin.negative_logits(cos_kN, self.target_cos_N)
        if self.log_q_K is not None:
            logits_kN -= self.log_q_K[a:b, None]
        targets = self.targets(a, b)
        logits_kN[targets] = self.target_logit_N[targets[1]]
        return logits_kN
