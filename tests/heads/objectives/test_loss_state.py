"""Numbers that a loss carries from step to step: those of the margin, and the shared bias."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from heads import (
    BCE,
    AdaFace,
    CenterHead,
    CosFace,
    CurricularFace,
    ElasticFace,
    FullFC,
    PartialFC,
    RowAdagrad,
    RowAdamW,
    RowSGD,
    UniFace,
)
from heads.fidelity import selection_fidelity
from tests import conformance
from tests.cases import build
from tests.conformance import Case, numbers
from tests.heads.test_full import ADAMW
from tests.workers import rank_and_world

CASE = Case(
    FullFC, margin=AdaFace(h=2, t=0.5), objective=UniFace(), num_classes=41, embedding_size=16, batches=((8,),) * 6
)
CASES = {
    "adaface, uniface": CASE,
    "curricularface, softmax": replace(CASE, margin=CurricularFace(weight=0.5), objective=None),
    "curricularface, bce": replace(CASE, margin=CurricularFace(weight=0.5), objective=BCE()),
    "elastic, half": replace(
        CASE, head=PartialFC, options={"sample_rate": 0.5}, margin=ElasticFace(plus=True), objective=UniFace()
    ),
}


def global_batch(case: Case, step: int) -> tuple[Tensor, Tensor]:
    embeddings, labels, _ = conformance.global_batch(case, step, 0)
    return embeddings.requires_grad_(), labels


def evaluate(head: CenterHead, optimizer: Any) -> None:
    head.eval()
    head(*global_batch(CASE, 3)).backward()
    head.train()


def forward_without_grad(head: CenterHead, optimizer: Any) -> None:
    with torch.no_grad():
        head(*global_batch(CASE, 3))


def forward_alone(head: CenterHead, optimizer: Any) -> None:
    head(*global_batch(CASE, 3))


def probe(head: CenterHead, optimizer: Any) -> None:
    embeddings, labels = global_batch(CASE, 3)
    selection_fidelity(head, embeddings.detach(), labels, probes=3, repeats=2)


def differentiate(head: CenterHead, optimizer: Any) -> None:
    embeddings, labels = global_batch(CASE, 3)
    torch.autograd.grad(head(embeddings, labels), embeddings)


def drop(head: CenterHead, optimizer: Any) -> None:
    head(*global_batch(CASE, 3)).backward()
    optimizer.zero_grad()


def drop_by_the_head(head: CenterHead, optimizer: Any) -> None:
    head(*global_batch(CASE, 3)).backward()
    head.zero_grad()


def overflow(head: CenterHead, optimizer: Any) -> None:
    """Take a step that float16 skips."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    scaler.scale(head(*global_batch(CASE, 3))).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**100
    head.advance(applied=False)
    optimizer.zero_grad()


WITHOUT_EFFECT = [evaluate, forward_without_grad, forward_alone, probe, differentiate, drop, drop_by_the_head, overflow]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("action", WITHOUT_EFFECT, ids=lambda action: action.__name__)
def test_only_a_step_changes_them(action: Callable[..., None], name: str):
    case, results = CASES[name], []
    for acts in (False, True):
        head = build(case)
        optimizer = head.optimizer(lr=0.1)
        conformance.stepped(case, head, optimizer, 0)
        before = numbers(head)
        rows = head.centers.rows.clone()
        if acts:
            action(head, optimizer)
            assert numbers(head) == before and torch.equal(head.centers.rows, rows)
            head.advance(applied=False)
            head.step, head.micro_batch = 1, 0  # the same draws as without the action
        losses = [conformance.stepped(case, head, optimizer, step) for step in (1, 2)]
        assert numbers(head).keys() == before.keys()
        assert all(value != before[number] for number, value in numbers(head).items())
        results.append((losses, numbers(head), head.centers.rows))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("action", WITHOUT_EFFECT, ids=lambda action: action.__name__)
def test_a_step_without_a_gradient_changes_nothing(action: Callable[..., None]):
    head = build(CASE)
    optimizer = head.optimizer(lr=0.1)
    conformance.stepped(CASE, head, optimizer, 0)
    before, rows = numbers(head), head.centers.rows.clone()
    action(head, optimizer)
    optimizer.step()
    assert numbers(head) == before and torch.equal(head.centers.rows, rows)


@pytest.mark.parametrize("name", ["adaface, uniface", "curricularface, softmax"])
def test_a_step_scaled_by_a_power_of_two_is_the_step(name: str):
    case, results = CASES[name], []
    for scale in (1.0, 2.0**10):
        head = build(case)
        optimizer = head.optimizer(lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(head(*global_batch(case, 0))).backward()
        scaler.step(optimizer)
        results.append((numbers(head), head.centers.rows))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0,), (1,)])
@pytest.mark.parametrize("name", ["adaface, uniface", "curricularface, softmax"])
def test_the_last_forward_that_is_differentiated_counts(name: str, order: tuple[int, ...]):
    """Backward passes may come in any order. Each forward pass starts from the numbers of the last step."""
    case = CASES[name]
    head = build(case)
    optimizer = head.optimizer(lr=0.1)
    losses = [head(*global_batch(case, micro_batch)) for micro_batch in (0, 1)]
    for micro_batch in order:
        losses[micro_batch].backward()
    optimizer.step()
    alone = build(case)
    its_optimizer = alone.optimizer(lr=0.1)
    alone(*global_batch(case, max(order))).backward()
    its_optimizer.step()
    assert head.carried == alone.carried != build(case).carried


def test_a_batch_of_one_keeps_the_statistics_of_adaface():
    head = build(CASE)
    optimizer = head.optimizer(lr=0.1)
    conformance.stepped(CASE, head, optimizer, 0)
    before = head.carried
    embeddings, labels = global_batch(CASE, 1)
    loss = head(embeddings[:1], labels[:1])
    loss.backward()
    optimizer.step()
    assert head.carried == before and torch.isfinite(loss) and torch.isfinite(embeddings.grad).all()


ROW_OPTIMIZERS = {
    "sgd": (RowSGD, conformance.SGD),
    "adamw": (RowAdamW, ADAMW),
    "adagrad": (RowAdagrad, {"lr": 0.1}),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("rule", ROW_OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_state_round_trip(name, rule, world_size, workers):
    optimizer, options = ROW_OPTIMIZERS[rule]
    case = replace(CASES[name], optimizer=optimizer, optimizer_options=options)
    workers(world_size).run(conformance.round_trip, case)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_an_abandoned_backward_changes_nothing(name, world_size, workers):
    workers(world_size).run(conformance.abandoned, CASES[name])


def trained(case: Case) -> tuple[dict[str, Any], Tensor, dict[str, Tensor]]:
    """Return the full state after two steps, and loss and numbers of the third, in a worker."""
    head = build(case)
    optimizer = head.optimizer(rule=case.optimizer, **case.optimizer_options)
    for step in range(2):
        conformance.stepped(case, head, optimizer, step)
    state = head.full_state_dict()
    return copy.deepcopy(state), conformance.stepped(case, head, optimizer, 2), numbers(head)


def continued(case: Case, state: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Return the numbers that a loaded head has, and loss and numbers of the third step, in a worker."""
    head = build(case)
    optimizer = head.optimizer(rule=case.optimizer, **case.optimizer_options)
    head.load_state_dict(state)
    again = head.full_state_dict()
    assert again.keys() == state.keys() and all(
        torch.equal(again[name], value) for name, value in state.items() if isinstance(value, Tensor)
    )
    return numbers(head), conformance.stepped(case, head, optimizer, 2), numbers(head)


@pytest.mark.parametrize("rule", ROW_OPTIMIZERS)
@pytest.mark.parametrize("name", ["adaface, uniface", "curricularface, bce"])
def test_full_state_of_three_processes_continues_on_two(name, rule, workers):
    optimizer, options = ROW_OPTIMIZERS[rule]
    case = replace(CASES[name], optimizer=optimizer, optimizer_options=options)
    state, loss, after = workers(3).run(trained, case)[0]
    extra = state["_extra_state"]
    for loaded, its_loss, its_after in workers(2).run(continued, case, state):
        saved = {**extra["carried"][type(case.margin).__name__]}
        if "shared_bias" in extra:
            saved["bias"] = float(extra["shared_bias"]["value"])
        assert {number: float(value) for number, value in loaded.items()} == saved
        torch.testing.assert_close(its_loss, loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(its_after, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["adaface, uniface", "curricularface, bce"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_a_copy_continues_by_itself(name, copied):
    case = CASES[name]
    head = build(case)
    optimizer = head.optimizer(lr=0.1)
    conformance.stepped(case, head, optimizer, 0)
    again = copied(head)
    before = numbers(head)
    its_optimizer = again.optimizer(lr=0.1)
    again.load_state_dict(head.state_dict())  # transfers the state of the row optimizer
    its_loss = conformance.stepped(case, again, its_optimizer, 1)
    assert numbers(head) == before != numbers(again)
    assert torch.equal(conformance.stepped(case, head, optimizer, 1), its_loss)
    assert numbers(head) == numbers(again)


def test_numbers_of_another_margin_are_not_read_and_not_lost():
    """A margin may be assigned in a training; the numbers of the former one wait for it."""
    head = build(CASE)
    optimizer = head.optimizer(lr=0.1)
    conformance.stepped(CASE, head, optimizer, 0)
    of_adaface, former = head.carried, head.margin
    head.margin = CurricularFace()
    assert head.carried == {"t": 0}
    conformance.stepped(CASE, head, optimizer, 1)
    assert head.carried != {"t": 0}
    head.margin = former
    assert head.carried == of_adaface


def test_state_without_numbers_starts_from_the_initial_ones():
    """State of a head with another margin, or of an earlier version."""
    head = build(CASE)
    optimizer = head.optimizer(lr=0.1)
    conformance.stepped(CASE, head, optimizer, 0)
    other = build(replace(CASE, margin=CosFace()))
    other.optimizer(lr=0.1)
    head.load_state_dict(other.state_dict())
    assert head.carried == {"mean": 20, "std": 100}


def test_numbers_follow_the_device_but_not_the_dtype():
    head = build(CASE)
    optimizer = head.optimizer(lr=0.1)
    conformance.stepped(CASE, head, optimizer, 0)
    head.half().to("meta")
    for tensor in (*numbers(head).values(), *head.shared_bias.state.values()):
        assert tensor.device.type == "meta" and tensor.dtype == torch.float32


def disagreeing() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run a step in which the processes have other random states, in a worker; return the numbers."""
    torch.manual_seed(rank_and_world()[0])
    case = CASES["elastic, half"]
    head = build(case)
    optimizer = head.optimizer(lr=0.1)
    conformance.stepped(case, head, optimizer, 0)
    return numbers(head)


def test_draws_and_numbers_are_the_same_on_all_processes(workers):
    first, *others = workers(3).run(disagreeing)
    assert first and all(other == first for other in others)
