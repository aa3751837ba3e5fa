"""Cost of a step of FFC."""

from ..core.cost import Case, Cost, number_bytes
from ..objectives.softmax import CHUNK_ROWS
from .class_pool import ClassPool
from .gather import HEADER
from .options import FFCOptions


def pool_cost(case: Case, options: FFCOptions) -> Cost:
    """Return the cost of a step, without the averaged copy of the backbone and its pass over all images."""
    Q, share, number = options.slots(case.num_classes), options.identity_share, number_bytes(options.dtype)
    D, M = case.embedding_size, case.batch // 2  # images of each of the two passes
    probes = M / case.world_size
    inside = share + (1 - share) * Q / case.num_classes  # share of the probes; those of pairs always are
    sample = min(Q, 10_000)
    slot = 2 * D * number + 8 + ClassPool(sample).nbytes / sample
    sent = 2 * case.sent(gathered=M * (4 * D + 8) + (8 + 8 * HEADER) * case.world_size, summed=16)
    return Cost(
        table_bytes=Q * slot,
        work_bytes=4 * (Q * probes + CHUNK_ROWS * 2 * (probes + D) + 4 * M * D),
        sent_bytes=sent,
        # Two passes with two features per class: forward, and backward where the class is in the pool.
        multiply_adds=2 * 2 * Q * probes * D * (1 + inside),
        moved_bytes=2 * 2 * 2 * Q * D * number,
    )
