"""Stochastic rounding to bfloat16, alone and in a head's rows."""

import pytest
import torch

from heads import PartialFC
from heads.rows import rounding


def test_exact_values_do_not_change():
    values = torch.randn(50, 9).bfloat16().float()
    values[0, :4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    for step in range(20):
        assert torch.equal(rounding.stochastic(values, torch.arange(50), step).float(), values)


def test_rounding_is_to_a_neighbour_and_keeps_the_expectation():
    values, ids = torch.randn(40, 16), torch.arange(40)
    below = (values.view(torch.int32) & -(1 << 16)).view(torch.float32)  # towards zero
    above = ((values.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    rounds = 4000
    total = torch.zeros(40, 16, dtype=torch.float64)
    for step in range(rounds):
        rounded = rounding.stochastic(values, ids, step).float()
        assert ((rounded == below) | (rounded == above)).all()
        total += rounded
    step_size = (above - below).abs()
    error = (total / rounds - values).abs() / step_size  # standard deviation at most 0.5 / sqrt(rounds) = 0.008
    assert error.max() < 0.04
    assert ((values.bfloat16().float() - values).abs() / step_size).max() > 0.4  # unlike nearest rounding


def test_draws_depend_on_row_and_step():
    values = torch.randn(8, 32)
    whole = rounding.stochastic(values, torch.arange(8), 5, 1)
    assert torch.equal(whole[3:], rounding.stochastic(values[3:], torch.arange(3, 8), 5, 1))
    assert not torch.equal(whole, rounding.stochastic(values, torch.arange(8), 5, 2))


@pytest.mark.parametrize("momentum_dtype", ["fp32", "bf16"])
def test_rows_follow_float32_within_a_rounding(momentum_dtype):
    """Equal rows in bf16 and fp32 differ after one step by one rounding only."""
    heads = [PartialFC(300, 8, sample_rate=0.2, dtype=dtype) for dtype in ("bf16", "fp32")]
    heads[1].centers.rows.copy_(heads[0].centers.rows)
    for head in heads:
        optimizer = head.optimizer(lr=0.1, momentum=0.9, momentum_dtype=momentum_dtype)
        generator = torch.Generator().manual_seed(0)
        head(torch.randn(4, 8, generator=generator), torch.arange(4)).backward()
        optimizer.step()
    stored, exact = heads[0].centers.rows, heads[1].centers.rows
    assert stored.dtype == torch.bfloat16 and heads[0].centers.state["momentum"].dtype in (
        torch.bfloat16,
        torch.float32,
    )
    assert ((stored.float() - exact).abs() <= exact.abs() * 2**-7).all()
    assert (stored.float() != exact).any()


def test_small_steps_are_applied_on_average_and_lost_by_nearest_rounding():
    """A decay of 2^-12 a step is an eighth of half a bfloat16 step: the nearest value is always the old one."""
    shrunk = {}
    for name in ("stochastic", "nearest"):
        head = PartialFC(400, 64, sample_rate=0.5, dtype="bf16", rounding=name)
        centers = head.centers
        before = centers.rows.float().norm()
        for step in range(400):
            rows = centers.read(slice(0, 400)).clone()
            centers.write(slice(0, 400), "rows", rows * (1 - 2**-12), step)
        shrunk[name] = float(centers.rows.float().norm() / before)
    assert shrunk["nearest"] == 1
    assert shrunk["stochastic"] == pytest.approx((1 - 2**-12) ** 400, rel=2e-3)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="rounding='up'"):
        PartialFC(10, 4, rounding="up")
    with pytest.raises(ValueError, match="dtype=fp8"):
        PartialFC(10, 4, dtype="fp8")
    with pytest.raises(ValueError, match=r"dtype=torch\.float16"):
        PartialFC(10, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match="momentum_dtype=half"):
        PartialFC(10, 4).optimizer(lr=0.1, momentum=0.9, momentum_dtype="half")
    with pytest.raises(ValueError, match="compute='tf32'"):
        PartialFC(10, 4, compute="tf32")
