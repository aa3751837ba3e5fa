"""Input of the losses of all objectives, and the gradients that they return.

Legend: as in `streamed.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed import ProcessGroup

from ..core.matmul import MatMul
from ..core.workspace import Workspace
from ..group.positives import Positives
from ..margins.batch import MarginBatch
from ..margins.margin import Margin
from .blocks import Block
from .rows import Rows

if TYPE_CHECKING:
    from .row_gradient import RowGradient


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """The input of an objective.

    Attributes:
        x_ND: gathered embeddings, the same on all processes.
        weight_N: weight of each sample in the mean.
        positives: the classes of the samples.
        position_P: int64, the position of each target among the active rows; -1 if another process owns it. The host
            needs these positions, so a tensor on the host avoids waiting for the device.
        position_M: the same of all pairs, -1 also for those that are not active; None if all pairs are targets.
        rows: those of the K active classes.
        margin: changes the cosines.
        batch: what the margin may read in addition.
        bias: (1, 1), the bias that all classes share; None without one.
        log_q_K: log of the probability that a row was drawn, subtracted from its logits; None for zeros.
        min_probability: rows whose largest probability over the batch is below it get no gradient, unless they are a
            sample's own class. The gradient of the embeddings is that of all rows.
        group: the processes that share the classes; None for one process.
        block: the rows of a class. There may be several samples of an embedding: `weight_N` has one number for each.
        matmul: multiplies matrices.
        workspace: provides buffers.
    """

    x_ND: Tensor
    weight_N: Tensor
    positives: Positives
    position_P: Tensor
    rows: Rows
    margin: Margin
    batch: MarginBatch
    position_M: Tensor | None = None
    bias: Tensor | None = None
    log_q_K: Tensor | None = None
    min_probability: float = 0.0
    group: ProcessGroup | None = None
    block: Block = field(default_factory=Block)
    matmul: MatMul = field(default_factory=MatMul)
    workspace: Workspace = field(default_factory=Workspace)

    def exact(self) -> LossInputs:
        """Return the input of the exact loss over these rows, with which `heads.fidelity` compares."""
        return replace(self, min_probability=0.0, matmul=MatMul())


@dataclass(frozen=True)
class LossGradient:
    """The gradient of a loss, times a factor.

    Attributes:
        x_ND: by the embeddings, summed over processes.
        norm_N: by the lengths of the embeddings, the same on all processes; None if the margin does not depend on them.
        rows: by the active rows.
    """

    x_ND: Tensor
    norm_N: Tensor | None
    rows: RowGradient


@dataclass(frozen=True)
class NegativeGradient:
    """The gradient of a loss by the negatives of a chunk, as new tensors.

    Attributes:
        by_cos_kN: by the cosines, over `slope`.
        by_bias_k: by a bias that is added to all logits of a row; None without one.
        slope: a factor that `by_cos_kN` does not contain.
    """

    by_cos_kN: Tensor
    by_bias_k: Tensor | None
    slope: float = 1.0
