"""FullFC against the float64 reference, on 1, 2 and 3 processes."""

import pytest
import torch

from heads import ArcFace, CombinedMargin, CosFace, FullFC, RowAdagrad, RowAdamW, Softmax, SVSoftmax
from tests import conformance, reference
from tests.conformance import Case
from tests.reference import Rule

# With a small eps, rounding decides the sign of a tiny gradient, and moves a row by lr.
ADAMW = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1.0, "weight_decay": 0.1}

CASES = {
    "keeping": Case(FullFC),
    "recomputing": Case(FullFC, {"logits_budget_mb": 0}),
    "seven": Case(FullFC, num_classes=7),
    "thousand": Case(FullFC, num_classes=1000, chunk_rows=4096),
    "weights": Case(FullFC, weighted=True),
    "double": Case(FullFC, dtype=torch.float64),
    "arcface": Case(FullFC, margin=ArcFace(m=0.5), rule=Rule(reference.arcface)),
    "combined": Case(FullFC, margin=CombinedMargin(m1=1.2, m2=0.3, m3=0.2), rule=Rule(reference.combined)),
    "sv": Case(
        FullFC, margin=SVSoftmax(s=16), rule=Rule(reference.sv_target, reference.sv_negative, s=16), num_classes=1000
    ),
    "filter": Case(
        FullFC, margin=CosFace(max_negative_cosine=0.2), rule=Rule(reference.cosface, max_negative_cosine=0.2)
    ),
    "softmax": Case(FullFC, margin=Softmax(), rule=Rule(s=1.0, normalized=False)),
    "softmax recomputing": Case(
        FullFC, {"logits_budget_mb": 0}, margin=Softmax(), rule=Rule(s=1.0, normalized=False), weighted=True
    ),
    "adamw": Case(FullFC, optimizer=RowAdamW, optimizer_options=ADAMW),
    "nesterov": Case(FullFC, optimizer_options={"lr": 0.1, "momentum": 0.9, "weight_decay": 0, "nesterov": True}),
    "adagrad": Case(FullFC, optimizer=RowAdagrad, optimizer_options={"lr": 0.1}),
    "min probability": Case(
        FullFC, {"min_probability": 0.01}, rule=Rule(reference.cosface, min_probability=0.01), num_classes=1000
    ),
    "min probability recomputing": Case(
        FullFC,
        {"min_probability": 0.005, "logits_budget_mb": 0},
        margin=ArcFace(s=16),
        rule=Rule(reference.arcface, s=16, min_probability=0.005),
        num_classes=1000,
        weighted=True,
    ),
    "plain sgd": Case(FullFC, optimizer_options={"lr": 0.1, "momentum": 0, "weight_decay": 0}),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_state_round_trip(world_size, workers):
    workers(world_size).run(conformance.round_trip, Case(FullFC))
    workers(world_size).run(conformance.round_trip, Case(FullFC, optimizer=RowAdamW, optimizer_options=ADAMW))


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_abandoned_backward_changes_nothing(world_size, workers):
    workers(world_size).run(conformance.abandoned, Case(FullFC))


@pytest.mark.parametrize("budget", [512, 0])
def test_min_probability_leaves_out_most_rows_and_keeps_the_loss(budget):
    torch.manual_seed(0)
    embeddings, labels = torch.randn(8, 32), torch.arange(8)
    options = {"margin": CosFace(s=16)}  # with s = 64 some gradients are too small for float32
    plain = FullFC(5000, 32, **options)
    filtered = FullFC(5000, 32, min_probability=5e-3, logits_budget_mb=budget, **options)
    losses, moved = [], []
    for head in (plain, filtered):
        optimizer = head.optimizer(lr=0.1)
        before = head.centers.rows.clone()
        loss = head(embeddings, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        moved.append(int((head.centers.rows != before).any(dim=1).sum()))
    assert losses[0] == losses[1]
    assert moved[0] == 5000 and 8 < moved[1] < 2500


def test_a_second_backward_through_a_filtered_loss_gives_the_same_gradient():
    head = FullFC(300, 8, min_probability=0.01)
    embeddings = torch.randn(4, 8, requires_grad=True)
    loss = head(embeddings, torch.arange(4))
    (once,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
    (again,) = torch.autograd.grad(loss, embeddings)
    torch.testing.assert_close(once, again)


def test_bad_min_probability_is_refused():
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="min_probability="):
            FullFC(10, 4, min_probability=value)


def test_bf16_products_stay_close():
    """Inputs rounded to 8 bits move a cosine by about 2^-9 of itself, and a logit by s times that."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(16, 64), torch.arange(16)
    results = []
    for compute in ("fp32", "bf16"):
        head = FullFC(2000, 64, compute=compute)
        optimizer = head.optimizer(lr=0.1)
        x = embeddings.clone().requires_grad_()
        loss = head(x, labels)
        loss.backward()
        optimizer.step()
        results.append((loss.detach(), x.grad, head.centers.rows))
    (loss, gradient, rows), (its_loss, its_gradient, its_rows) = results
    assert loss != its_loss and abs(loss - its_loss) < 2e-3 * loss
    assert torch.nn.functional.cosine_similarity(gradient, its_gradient).min() > 0.999
    assert (rows - its_rows).norm() < 0.02 * rows.norm()
