"""FullFC against the float64 reference, on 1, 2 and 3 processes."""

import pytest
import torch
from torch import Tensor

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
    "min probability, inner products": Case(
        FullFC,
        {"min_probability": 0.01, "logits_budget_mb": 0},
        margin=Softmax(),
        rule=Rule(s=1.0, normalized=False, min_probability=0.01),
        num_classes=1000,
    ),
    "min probability, bent negatives": Case(
        FullFC,
        {"min_probability": 0.01},
        margin=SVSoftmax(s=16, max_negative_cosine=0.4),
        rule=Rule(reference.sv_target, reference.sv_negative, s=16, max_negative_cosine=0.4, min_probability=0.01),
        num_classes=1000,
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


BATCH = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8)


def stepped(head: FullFC) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the gradient of the embeddings and the change of the rows in a step."""
    optimizer, x = head.optimizer(lr=0.1), BATCH[0].clone().requires_grad_()
    before = head.centers.rows.clone()
    loss = head(x, BATCH[1])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    assert x.grad is not None
    return loss.detach(), x.grad, head.centers.rows - before


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("budget", [512, 0])
def test_min_probability_leaves_out_most_rows_and_keeps_loss_and_embedding_gradient(budget, compute):
    options = {"margin": CosFace(s=16), "compute": compute}  # with s = 64 some gradients are too small for float32
    loss, gradient, change = stepped(FullFC(5000, 32, **options))
    its_loss, its_gradient, its_change = stepped(
        FullFC(5000, 32, min_probability=5e-3, logits_budget_mb=budget, **options)
    )
    assert torch.equal(loss, its_loss)
    assert (gradient - its_gradient).norm() < (1e-6 if compute == "fp32" else 0.01) * gradient.norm()
    moved = its_change.any(1)
    assert change.any(1).all() and 8 < moved.sum() < 2500 and moved[:8].all()
    torch.testing.assert_close(its_change[moved], change[moved])


@pytest.mark.parametrize("budget", [512, 0])
def test_all_rows_take_part_if_more_than_half_reach_min_probability(budget):
    exact = stepped(FullFC(5000, 32, margin=CosFace(s=4)))
    for threshold, number in ((1e-7, 5000), (3.5e-4, 5000), (2e-2, 8)):  # two thirds reach 3.5e-4
        head = FullFC(5000, 32, margin=CosFace(s=4), min_probability=threshold, logits_budget_mb=budget)
        loss, gradient, change = stepped(head)
        assert change.any(1).sum() == number
        torch.testing.assert_close((loss, gradient), exact[:2])
        if number == 5000:
            torch.testing.assert_close(change, exact[2])


def test_min_probability_may_change_and_reuses_the_memory_for_cosines():
    head = FullFC(5000, 32, margin=CosFace(s=16))
    optimizer, buffers = head.optimizer(lr=0.1), []
    for head.min_probability, number in ((0.0, 5000), (5e-3, None), (1e-12, 5000), (5e-3, None)):
        head(*BATCH).backward()
        ((rows, _),) = head.pending.entries
        assert len(rows) == number if number else len(rows) < 2500
        optimizer.step()
        optimizer.zero_grad()
        buffers.append(head.centers.workspace.borrow("cosines", (5000, 8), head.centers.like))
    assert len({buffer.data_ptr() for buffer in buffers}) == 1


def test_a_second_backward_through_a_filtered_loss_gives_the_same_gradient():
    head = FullFC(300, 8, min_probability=0.01)
    optimizer = head.optimizer(lr=0.1)
    embeddings, labels = torch.randn(4, 8, requires_grad=True), torch.arange(4)
    loss = head(embeddings, labels)
    changes = []
    for _ in range(2):  # the first gradient has the kept cosines, and the second recomputes them
        loss.backward(retain_graph=True)
        ((rows, gradient),) = head.pending.entries
        assert len(rows) < 150
        values = rows.slice(0, len(rows))
        for _ in range(2):  # an optimizer may ask twice
            changes.append(gradient.add_to(torch.zeros_like(values), 0, len(rows), values))
        optimizer.zero_grad()
        head(torch.randn(4, 8), labels)  # in the same buffers
    for change in changes[1:]:
        torch.testing.assert_close(change, changes[0])
    once = embeddings.grad / 2
    (again,) = torch.autograd.grad(loss, embeddings)
    assert torch.equal(once, again)


def test_an_embedding_gradient_of_no_negatives_is_that_of_the_target():
    """The loss is 0 if no negative takes part, whatever the threshold."""
    loss, gradient, _ = stepped(FullFC(5000, 32, margin=CosFace(max_negative_cosine=-0.999), min_probability=0.5))
    assert loss == 0 and not gradient.any()


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
