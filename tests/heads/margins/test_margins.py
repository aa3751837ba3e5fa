"""Margins: finite differences, the ends of the range of the cosine, the continuation beyond theta + m = pi."""

import math

import pytest
import torch

from heads import ArcFace, CombinedMargin, CosFace, FullFC, Margin, Softmax, SVSoftmax
from tests import reference

MARGINS = [
    CosFace(m=0.4),
    ArcFace(m=0.5),
    ArcFace(m=0),
    CombinedMargin(m1=1, m2=0.3, m3=0.2),
    CombinedMargin(m1=1.3, m2=0.2, m3=0.1),
    CombinedMargin(m1=4),
    Margin(),
]


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_gradient_agrees_with_finite_differences(margin):
    cos = torch.linspace(-0.999, 0.999, 401, dtype=torch.float64)
    m1, m2 = {CombinedMargin: lambda m: (m.m1, m.m2), ArcFace: lambda m: (1, m.m)}.get(type(margin), lambda m: (1, 0))(
        margin
    )
    kink = math.cos((math.pi - m2) / m1)
    cos = cos[(cos - kink).abs() > 1e-3].requires_grad_()
    (slope,) = torch.autograd.grad(margin.target(cos).sum(), cos)
    step = 1e-6
    difference = (margin.target(cos.detach() + step) - margin.target(cos.detach() - step)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_finite_at_the_ends_and_slightly_beyond(margin, dtype):
    cos = torch.tensor([1.0, -1.0, 1 + 1e-6, -1 - 1e-6, 1 - 1e-7, -1 + 1e-7], dtype=dtype, requires_grad=True)
    target = margin.target(cos)
    (slope,) = torch.autograd.grad(target.sum(), cos)
    assert torch.isfinite(target).all() and torch.isfinite(slope).all()


@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_target_never_falls_when_the_cosine_rises(margin):
    cos = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    assert (margin.target(cos).diff() >= -1e-12).all()


@pytest.mark.parametrize("m", [2.0, 2.33, 2.4, 2.8, 3.1])
def test_arcface_never_falls_for_any_margin(m):
    cos = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    assert (ArcFace(m=m).target(cos).diff() >= -1e-12).all()


def test_formulas():
    cos = torch.linspace(-0.9999, 0.9999, 1001, dtype=torch.float64)
    torch.testing.assert_close(CosFace(m=0.4).target(cos), reference.cosface(cos))
    torch.testing.assert_close(ArcFace(m=0.5).target(cos), reference.arcface(cos))
    ours = CombinedMargin(m1=1.2, m2=0.3, m3=0.2).target(cos)
    torch.testing.assert_close(ours, reference.combined(cos))


def test_arcface_beyond_pi_continues_to_fall():
    """The uncontinued formula puts cos -0.90 below cos -0.99."""
    target = ArcFace(m=0.5).target(torch.tensor([-0.99, -0.90], dtype=torch.float64))
    assert target[0] < target[1]
    torch.testing.assert_close(target[0], torch.tensor(-0.99 - 0.5 * math.sin(0.5), dtype=torch.float64))


def test_combined_contains_the_others():
    cos = torch.linspace(-1, 1, 1001)
    assert torch.equal(CombinedMargin(m2=0.5).target(cos), ArcFace(m=0.5).target(cos))
    torch.testing.assert_close(CombinedMargin(m3=0.4).target(cos), CosFace(m=0.4).target(cos))


def test_combined_applies_m1_and_m2_also_with_m3():
    cos = torch.tensor([0.3])
    both, subtracted = CombinedMargin(m1=1.1, m2=0.2, m3=0.1), CombinedMargin(m3=0.1)
    assert both.target(cos) < subtracted.target(cos) - 0.05


def test_max_negative_cosine_masks_instead_of_setting_to_zero():
    cos = torch.tensor([[0.5], [0.3]])
    logits = CosFace(s=2, max_negative_cosine=0.4).negative_logits(cos, torch.tensor([0.9]))
    assert logits.flatten().tolist() == pytest.approx([-math.inf, 0.6])


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_with_all_negatives_filtered_gives_zero_not_nan(world_size, workers):
    """The same holds if all rows of one process are filtered."""
    for loss, gradient in workers(world_size).run(_all_filtered):
        assert loss == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def _all_filtered() -> tuple[torch.Tensor, torch.Tensor]:
    head = FullFC(6, 4, margin=CosFace(max_negative_cosine=-0.9999999))
    head.centers.rows[:] = torch.tensor([1.0, 0, 0, 0])
    embeddings = torch.tensor([[1.0, 0.2, 0, 0]], requires_grad=True)
    loss = head(embeddings, torch.tensor([0]))
    loss.backward()
    return loss.detach(), embeddings.grad


def test_margin_inside_the_log_sum_exp():
    """A correction of the log-sum-exp afterwards is wrong here in float32: s = 64, m = 0.4, cos = 0.5."""
    head = FullFC(1000, 2, margin=CosFace(s=64, m=0.4))
    head.centers.rows[:] = torch.tensor([-1.0, 0])
    head.centers.rows[0] = torch.tensor([0.5, math.sqrt(0.75)])
    head.centers.rows[1] = torch.tensor([0.24, math.sqrt(1 - 0.24**2)])
    loss = head(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    exact = math.log1p(math.exp(64 * (0.24 - 0.1)) + 998 * math.exp(64 * (-1 - 0.1)))
    assert float(loss.detach()) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CosFace(s=0), "s=0"),
        (lambda: CosFace(m=math.nan), "m=nan"),
        (lambda: ArcFace(m=4), "margin m=4"),
        (lambda: CombinedMargin(m1=0), "m1=0"),
        (lambda: CosFace(max_negative_cosine=2), "max_negative_cosine=2"),
    ],
)
def test_bad_options_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_softmax_has_a_bias():
    head = FullFC(5, 3, margin=Softmax())
    assert head.centers.rows.shape == (5, 4)
    assert torch.equal(head.centers.rows[:, 3], torch.zeros(5))


def test_sv_softmax_raises_hard_negatives_only():
    margin = SVSoftmax(m=0.3, t=1.5)
    cos = torch.tensor([[-0.5], [0.29], [0.31], [0.9]])
    expected = torch.tensor([[-0.5], [0.29], [0.965], [1.85]])
    torch.testing.assert_close(margin.negative(cos, torch.tensor([0.6])), expected)
    torch.testing.assert_close(margin.target(torch.tensor([0.2, 0.5])), torch.tensor([0.2, 0.2]))
    with pytest.raises(ValueError, match=r"t=0\.9"):
        SVSoftmax(t=0.9)
