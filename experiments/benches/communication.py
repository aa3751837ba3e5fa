"""`bench=communication`: bytes sent, products and memory of a step of each head, measured and by `Head.cost`."""

import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from heads import FFC, CenterHead, FullFC, HashingForest, Head, PartialFC, Prototypes
from heads.core.cost import Case
from heads.core.options import make_options
from heads.indexes import Exact
from heads.rows.optimizers import RowSGD

from ..launching.processes import Processes
from ..plan import row_state
from .group import on_processes
from .measure import PeakOwn, own_memory

HEADS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "full": (FullFC, {}),
    "pfc": (PartialFC, {"sample_rate": 0.1}),
    "forest": (HashingForest, {"num_active": 0.1, "index": Exact(), "build": "blocking", "interval": 10**6}),
    "prototypes": (Prototypes, {"sample_rate": 0.1}),
    "ffc": (FFC, {"queue_size": 0.1}),
}
_momentum = partial(RowSGD, momentum=0.9)


def communication(
    heads: list[str], num_classes: int, embedding_size: int, batch: int, processes: list[int], steps: int
) -> list[dict[str, Any]]:
    """Return a line for each head and number of gloo processes on this machine, with the figures of one process.

    `held_bytes` is the peak memory of the head during a step, tables included. `sent_bytes` is the mean number of bytes
    that a process sent over its sockets.
    """
    lines = []
    for name, world_size in product(heads, processes):
        case = Case(num_classes, embedding_size, batch, world_size)
        kind, options = HEADS[name]
        cost = kind.cost(
            case, make_options(kind, options), row_state=row_state(RowSGD, _momentum.keywords, embedding_size)
        )
        figures = on_processes(world_size, _measured, name, case, steps)[0]
        lines.append(
            {
                "head": name,
                "processes": world_size,
                "sent_bytes": figures["sent"],
                "formula_bytes": cost.sent_bytes,
                "sent_over_formula": figures["sent"] / cost.sent_bytes if cost.sent_bytes else 1.0,
                "held_bytes": figures["held"],
                "held_over_formula": figures["held"] / (cost.table_bytes + cost.work_bytes + cost.index_bytes),
                "macs_over_formula": figures["multiply_adds"] / cost.multiply_adds,
                "table_over_formula": figures["table"] / cost.table_bytes if cost.table_bytes else 1.0,
            }
        )
    return lines


def _measured(processes: Processes, name: str, case: Case, steps: int) -> dict[str, float]:
    """Return the figures of the first process, per step."""
    small = Case(case.num_classes // 10, case.embedding_size, case.batch // 8, case.world_size)
    _ready(processes, name, small)[1]()  # so that the memory of libraries does not count
    before = own_memory()
    head, step = _ready(processes, name, case)
    with PeakOwn() as memory:
        step()
    processes.any(False)
    already = sent_by_sockets()
    for _ in range(steps):
        step()
    processes.any(False)
    sent = sum(processes.gather(sent_by_sockets() - already)) / case.world_size / steps
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _in_place}) as counter:
        step()
    # Products of the encoder, and for ffc of its averaged copy; the input has no gradient.
    encoding = (3 if name == "ffc" else 2) * case.batch // case.world_size * case.embedding_size**2
    return {
        "sent": sent,
        "held": memory.peak - before,
        "multiply_adds": counter.get_total_flops() / 2 - encoding,
        "table": head.stats()["memory_bytes"],
    }


def _ready(processes: Processes, name: str, case: Case) -> tuple[Head, Callable[[], None]]:
    """Return a head whose memory is fully allocated, and its step."""
    kind, options = HEADS[name]
    head = kind(case.num_classes, case.embedding_size, **options)
    encoder = nn.Linear(case.embedding_size, case.embedding_size)
    head.prepare(encoder)
    optimizer = head.optimizer(lr=0.1)
    generator = torch.Generator().manual_seed(processes.rank)

    def step() -> None:
        parts = {}
        for stream, size in head.stream_sizes(case.batch).items():
            shape = (size // case.world_size, case.embedding_size)
            labels = torch.randint(case.num_classes, shape[:1], generator=generator)
            if stream == "identity":
                labels[len(labels) // 2 :] = labels[: len(labels) // 2]
            parts[stream] = torch.randn(shape, generator=generator), labels
        head.training_loss(encoder, parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    # The steps fill the pool, although classes are drawn twice.
    fill = -(-2 * round(0.1 * case.num_classes) // (case.batch // 2)) if name == "ffc" else 1
    for _ in range(fill):
        step()
    if isinstance(head, CenterHead):
        for state in head.centers.state.values():
            state.normal_(std=1e-9)
    return head, step


def _in_place(total: Any, left: Any, right: Any, **options: Any) -> int:
    """Return the operations of `addmm_`, which the counter does not know."""
    return 2 * left[0] * left[1] * right[1]


def sent_by_sockets() -> int:
    """Return the payload bytes that this process has sent over its open TCP sockets.

    The kernel counts them for each socket (`tcpi_bytes_acked`). Traffic of other programs therefore does not count.
    """
    total = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # not a TCP socket
            opened = socket.socket(fileno=int(path.name))
            try:
                state = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
                total += int.from_bytes(state[120:128], sys.byteorder)
            finally:
                opened.detach()  # the socket stays open for its owner
    return total
