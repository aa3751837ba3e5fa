"""Catching up of rows at rest: rows, momentum and state compared with torch.optim.SGD over all rows."""

import pytest
import torch
from torch.nn.functional import normalize

from heads import FullFC, PartialFC, RowSGD, UniFace
from heads.rows.chunk_gradient import SummedGradient

C, D, STEPS = 7, 3, 40


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9, "weight_decay": 0.05},
        {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
        {"momentum": 0.0, "weight_decay": 0.05},
        {"momentum": 0.99, "weight_decay": 0.0},
    ],
    ids=["plain", "nesterov", "no momentum", "no decay"],
)
def test_rows_at_rest_follow_sgd_over_all_rows(options):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(C, D, dtype=torch.float64, generator=generator)
    dense = torch.nn.Parameter(rows.clone())
    reference = torch.optim.SGD([dense], lr=0.1, **options)
    head = PartialFC(C, D)
    optimizer = RowSGD(head, lr=0.1, catch_up=True, **options)
    (group,) = optimizer.param_groups
    state = {name: torch.zeros(C, width.width, dtype=torch.float64) for name, width in optimizer.row_state(D).items()}
    for step in range(STEPS):
        # Class 0 takes part in the last step only. All take part there, so that all have caught up.
        chosen = torch.arange(C) if step == STEPS - 1 else 1 + torch.randperm(C - 1, generator=generator)[:2]
        gradient = torch.randn(len(chosen), D, dtype=torch.float64, generator=generator)
        dense.grad = torch.zeros_like(dense).index_copy(0, chosen, gradient)
        reference.step()
        own, own_state = rows[chosen], {name: table[chosen] for name, table in state.items()}
        optimizer.update(own, SummedGradient(gradient, own, head.centers.workspace), own_state, group)
        rows[chosen] = own
        for name, table in state.items():
            table[chosen] = own_state[name]
        head.advance()
    torch.testing.assert_close(rows, dense.detach(), rtol=1e-12, atol=1e-13)
    if options["momentum"]:
        torch.testing.assert_close(state["momentum"], reference.state[dense]["momentum_buffer"], rtol=1e-12, atol=1e-13)


def trained(head, steps, catch_up, optimizer=None, begin=0):
    """Train on batches that the step determines, and return the losses and the optimizer."""
    optimizer = optimizer or head.optimizer(lr=0.1, momentum=0.9, weight_decay=0.01, catch_up=catch_up)
    losses = []
    for step in range(begin, begin + steps):
        generator = torch.Generator().manual_seed(step)
        embeddings = normalize(torch.randn(4, 8, generator=generator))
        losses.append(head(embeddings, torch.randint(head.num_classes, (4,), generator=generator)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return [loss.item() for loss in losses], optimizer


def test_rows_that_always_take_part_have_nothing_to_catch_up():
    """Compare losses up to rounding: the order of sums differs."""
    with_it, without = (trained(FullFC(20, 8, seed=0), 10, catch_up)[0] for catch_up in (True, False))
    assert with_it == pytest.approx(without, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"dtype": "bf16"}, {"sample_block": 4}, {"objective": None}], ids=str)
def test_a_sampled_head_catches_up_and_resumes_bit_for_bit(options):
    def made():
        given = {**options, "objective": UniFace()} if "objective" in options else options
        return PartialFC(50, 8, sample_rate=0.2, seed=0, **given)

    without, _ = trained(made(), 20, False)
    head = made()
    whole, _ = trained(head, 20, True)
    assert whole[:2] == without[:2] and whole != without
    first = made()
    losses, _ = trained(first, 10, True)
    again = made()
    optimizer = again.optimizer(lr=0.1, momentum=0.9, weight_decay=0.01, catch_up=True)
    again.load_state_dict(first.state_dict())
    assert losses + trained(again, 10, True, optimizer, begin=10)[0] == whole
    for name, table in head.state_dict().items():
        if isinstance(table, torch.Tensor):
            assert torch.equal(table, again.state_dict()[name]), name
