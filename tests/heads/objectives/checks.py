"""Checks of any objective, which the test files of the objectives share. Each takes a `Case` of a head."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from heads import CenterHead, FullFC, PartialFC
from heads.fidelity import selection_fidelity
from heads.fidelity.selection import FIRST_REPEAT
from tests.cases import build, global_batch, standard_normal
from tests.conformance import Case, numbers
from tests.reference import Batch, Rule


def embeddings_and_labels(case: Case) -> tuple[Tensor, Tensor]:
    embeddings, labels, _ = global_batch(case, 0, 0)
    return embeddings.requires_grad_(), labels


def no_grad_gives_the_same_loss(case: Case) -> None:
    for mode in (True, False):
        head = build(case).train(mode)
        embeddings, labels = embeddings_and_labels(case)
        loss = head(embeddings, labels)
        again = build(case).train(mode)
        with torch.no_grad():
            torch.testing.assert_close(again(embeddings, labels), loss.detach(), rtol=1e-6, atol=0)
        with torch.inference_mode():
            torch.testing.assert_close(again(embeddings, labels), loss.detach(), rtol=1e-6, atol=0)


def evaluation_gives_the_gradient_of_training(case: Case) -> None:
    results = []
    for mode in (True, False):
        head = build(replace(case, head=FullFC)).train(mode)
        embeddings, labels = embeddings_and_labels(case)
        loss = head(embeddings, labels)
        loss.backward()
        results.append((loss.detach(), embeddings.grad))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def trained(case: Case, backward: Callable[[Tensor, Tensor], None]) -> tuple[Tensor, Any, Any]:
    """Return the gradient of a first micro-batch, and rows and numbers after a step with a second one."""
    head = build(case)
    optimizer = head.optimizer(lr=0.01)
    first = embeddings_and_labels(case)
    backward(head(*first), first[0])
    embeddings, labels, _ = global_batch(case, 1, 0)
    head(embeddings.requires_grad_(), labels).backward()
    optimizer.step()
    assert first[0].grad is not None
    return first[0].grad, head.centers.rows, numbers(head)


def backward_may_be_repeated(case: Case) -> None:
    """The first backward pass takes the kept products, and others compute them again. Memory is returned once."""

    def twice(loss: Tensor, embeddings: Tensor) -> None:
        loss.backward(retain_graph=True)
        loss.backward()

    def after_grad(loss: Tensor, embeddings: Tensor) -> None:
        torch.autograd.grad(loss, embeddings, retain_graph=True)
        (2 * loss).backward()

    for budget in (512, 0):
        kept = replace(case, dtype=torch.float64, options={**case.options, "logits_budget_mb": budget})
        once = trained(kept, lambda loss, embeddings: (2 * loss).backward())
        for backward in (twice, after_grad):
            torch.testing.assert_close(trained(kept, backward), once, rtol=1e-9, atol=1e-9)


def backward_is_refused_after_a_step_and_for_second_derivatives(case: Case) -> None:
    for budget in (512, 0):
        head = build(replace(case, options={**case.options, "logits_budget_mb": budget}))
        optimizer = head.optimizer(lr=0.1)
        embeddings, labels = embeddings_and_labels(case)
        late, early = head(embeddings, labels), head(embeddings, labels)
        early.backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="class centers have changed since this loss was computed"):
            late.backward()
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.autograd.grad(head(embeddings, labels), embeddings, create_graph=True)


def sampling_all_classes_is_the_full_head(case: Case) -> None:
    results: list[Any] = []
    for head in (build(replace(case, head=FullFC)), build(replace(case, head=PartialFC, options={"sample_rate": 1}))):
        optimizer = head.optimizer(lr=0.1)
        embeddings, labels = embeddings_and_labels(case)
        loss = head(embeddings, labels)
        loss.backward()
        optimizer.step()
        results.append((loss.detach(), embeddings.grad, head.centers.rows, numbers(head)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def topk_returns_cosines_without_a_bias(case: Case) -> None:
    head: CenterHead = build(case)
    optimizer = head.optimizer(lr=0.5)
    embeddings, labels = embeddings_and_labels(case)
    head(embeddings, labels).backward()
    optimizer.step()
    values, classes = head.topk(embeddings.detach(), 5)
    rows = head.centers.rows[:, : case.embedding_size]
    cos = normalize(embeddings.detach()) @ normalize(rows).T
    best = cos.topk(5)
    torch.testing.assert_close(values, best.values)
    assert torch.equal(classes, best.indices)


def selections_are_compared_with_all_classes(case: Case) -> None:
    """Fidelity is that of the case's objective: one for the full head, and that of the formula for a selection."""
    embeddings, labels = embeddings_and_labels(case)
    perfect = selection_fidelity(build(replace(case, head=FullFC)), embeddings.detach(), labels)
    for name, value in perfect.items():
        assert value == (0 if name in ("gradient_bias", "gradient_variance") else 1), name
    head = build(replace(case, head=PartialFC, options={**case.options, "sample_rate": 0.5}))
    figures = selection_fidelity(head, embeddings.detach(), labels, repeats=1)
    head.micro_batch = FIRST_REPEAT
    selected = head.select_classes(head.to_rows_space(embeddings.detach()), labels).ids
    assert selected is not None
    _, gradient = pulls_and_gradient(case, head, selected)
    pulls, exact = pulls_and_gradient(case, head, torch.arange(case.num_classes))
    cosine = torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0)
    assert figures["gradient_cosine"] == pytest.approx(float(cosine), rel=1e-5)
    assert figures["gradient_norm_ratio"] == pytest.approx(float(gradient.norm() / exact.norm()), rel=1e-5)
    if isinstance(case.rule, Rule):  # by the cosines and by the logits the pulls of negatives are in proportion
        share = pulls[:, selected].sum(1) / pulls.sum(1)
        mass = torch.where(pulls.any(1), share, 1).mean()  # where no negative has a pull, none is missing
        assert figures["mass"] == pytest.approx(float(mass), rel=1e-5)


def pulls_and_gradient(case: Case, head: CenterHead, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients by the cosines with other classes (N, K), and by unit embeddings along the sphere (N, D)."""
    embeddings, labels, _ = (tensor.double() for tensor in global_batch(case, 0, 0))
    rows = head.centers.rows[ids].double()
    bias = -rows[:, case.embedding_size :].sum(1) if head.shared_bias is None else head.shared_bias.value[0].double()
    unit = normalize(embeddings).requires_grad_()
    cos = unit @ normalize(rows[:, : case.embedding_size]).T
    cos.retain_grad()
    own = labels[:, None] == ids
    normal = standard_normal(case, 0, 0).double()
    batch = Batch(cos, own, embeddings.norm(dim=1), bias, normal=normal)
    rule = case.rule if isinstance(case.rule, Rule) else case.rule(batch)
    case.formula(batch, rule).sum().backward()
    assert unit.grad is not None and cos.grad is not None
    along = (unit.grad * unit).sum(1, keepdim=True) * unit
    return cos.grad.masked_fill(own, 0), (unit.grad - along).detach()


CHECKS = [
    no_grad_gives_the_same_loss,
    evaluation_gives_the_gradient_of_training,
    backward_may_be_repeated,
    backward_is_refused_after_a_step_and_for_second_derivatives,
    sampling_all_classes_is_the_full_head,
    topk_returns_cosines_without_a_bias,
    selections_are_compared_with_all_classes,
]
