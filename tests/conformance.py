"""One tester for every head with class centers: the step compared with the float64 reference.

`check(workers, Case(...))` runs a few training steps on 1, 2 or 3 processes. It compares each step's loss, embedding
gradients and updated rows with the dense reference, which gets the rows before the step and the selected classes.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import heads.objectives.softmax
from heads import CenterHead, CosFace, Margin, RowAdagrad, RowSGD
from tests import reference
from tests.reference import Rule
from tests.workers import WorkerGroup, rank_and_world

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Case:
    """A head with its options and its input.

    `batches` contains the size of the global batch for each micro-batch of each step. The processes get unequal parts
    of it.
    """

    head: type[CenterHead]
    options: Mapping[str, Any] = field(default_factory=dict)
    margin: Margin = field(default_factory=CosFace)
    rule: Rule = field(default_factory=lambda: Rule(reference.cosface))
    num_classes: int = 101
    embedding_size: int = 32
    batches: tuple[tuple[int, ...], ...] = ((8,), (5,), (6, 3))
    weighted: bool = False
    dtype: torch.dtype = torch.float32
    chunk_rows: int = 8  # small, so that small cases have many chunks
    optimizer: Callable[..., Any] = RowSGD
    optimizer_options: Mapping[str, Any] = field(default_factory=lambda: SGD)


def check(group: WorkerGroup, case: Case) -> None:
    """Compare all steps of the case with the reference, and the processes with each other."""
    results = group.run(train, case)
    compared: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"loss": [], "gradient": [], "rows": []}
    for step, micro_batches in enumerate(case.batches):
        of_ranks = [result[step] for result in results]
        before = torch.cat([part["before"] for part in of_ranks])
        state = {name: torch.cat([part["state"][name] for part in of_ranks]) for name in of_ranks[0]["state"]}
        orders = column_orders(case.embedding_size, before.shape[1])
        exact = expected(case, step, of_ranks, before.double(), {k: v.double() for k, v in state.items()}, orders[0])
        naive = [expected(case, step, of_ranks, before, state, order) for order in orders]
        for micro in range(len(micro_batches)):
            losses = [result["losses"][micro] for result in naive]
            for part in of_ranks:
                compared["loss"].append((part["losses"][micro], exact["losses"][micro], torch.stack(losses)))
                assert torch.equal(part["losses"][micro], of_ranks[0]["losses"][micro]), "ranks disagree on the loss"
            ours = torch.cat([part["gradients"][micro] for part in of_ranks])
            world_size = len(of_ranks)
            gradients = torch.stack([result["gradients"][micro] for result in naive])
            compared["gradient"].append((ours, world_size * exact["gradients"][micro], world_size * gradients))
        ours = torch.cat([part["after"] for part in of_ranks])
        compared["rows"].append((ours, exact["after"], torch.stack([result["after"] for result in naive])))
        idle = torch.ones(case.num_classes, dtype=torch.bool)
        idle[exact["touched"]] = False
        assert torch.equal(ours[idle], before[idle]), "a row that was not selected changed"
        for name, old in state.items():
            new = torch.cat([part["state_after"][name] for part in of_ranks])
            assert torch.equal(new[idle], old[idle]), f"the {name} of a row that took no part changed"
    # The naive error is the largest of the case, because that of one step may be small by chance.
    for what, parts in compared.items():
        ours, exact = (torch.cat([part[which].flatten() for part in parts]) for which in (0, 1))
        naive = torch.cat([part[2].flatten(1) if part[2].ndim > 1 else part[2][:, None] for part in parts], dim=1)
        reference.close(ours, exact, naive, what)


def column_orders(embedding_size: int, width: int) -> list[Tensor]:
    """Return orders of the columns, the unchanged order first. Each sums in another order, and so rounds differently.

    The rounding of a product depends on the processor. The largest error over several orders hardly depends on it.
    """
    generator = torch.Generator().manual_seed(0)
    shuffled = [torch.randperm(embedding_size, generator=generator) for _ in range(4)]
    bias = torch.arange(embedding_size, width)
    return [torch.arange(width), *(torch.cat([order, bias]) for order in shuffled)]


def expected(
    case: Case, step: int, of_ranks: list[Any], before: Tensor, state: dict[str, Tensor], order: Tensor
) -> dict[str, Any]:
    """Return the dense reference of one step, in the dtype of `before`, computed with the columns in this order."""
    back = order.argsort()
    state = {name: table[:, order] if table.shape[1] == len(order) else table for name, table in state.items()}
    rows = before[:, order].clone().requires_grad_()
    result: dict[str, Any] = {"losses": [], "gradients": []}
    num_micro = len(case.batches[step])
    touched = []
    for micro in range(num_micro):
        embeddings, labels, weight = global_batch(case, step, micro)
        x = embeddings[:, order[: case.embedding_size]].to(before.dtype).requires_grad_()
        selected = torch.cat([part["selected"][micro] for part in of_ranks])
        logs = [part["log_q"][micro] for part in of_ranks]
        log_q = None if logs[0] is None else torch.cat(logs).to(before.dtype)
        targets = torch.searchsorted(selected, labels)
        loss = reference.loss(case.rule, rows[selected], x, targets, weight.to(before.dtype), log_q)
        (loss / num_micro).backward()
        result["losses"].append(loss.detach())
        assert x.grad is not None
        result["gradients"].append(x.grad[:, back[: case.embedding_size]])
        if case.rule.min_probability:
            assert rows.grad is not None
            selected = selected[(rows.grad[selected] != 0).any(1)]
        touched.append(selected)
    result["touched"] = torch.unique(torch.cat(touched))
    result["after"] = updated(case, rows, result["touched"], state)[:, back]
    return result


def updated(case: Case, rows: Tensor, touched: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return the rows after the torch.optim optimizer of the same name, or its formula, on the touched rows alone."""
    assert rows.grad is not None
    after = rows.detach().clone()
    if case.optimizer is RowAdagrad:
        total = state["sum"][touched] + rows.grad[touched].square().mean(1, keepdim=True)
        after[touched] -= case.optimizer_options["lr"] * rows.grad[touched] / (total.sqrt() + 1e-10)
        return after
    rule = {"RowSGD": torch.optim.SGD, "RowAdamW": torch.optim.AdamW}[case.optimizer.__name__]
    for row in touched.tolist():
        parameter = rows.detach()[row].clone().requires_grad_()
        parameter.grad = rows.grad[row]
        optimizer = rule([parameter], **case.optimizer_options)
        if rule is torch.optim.SGD and "momentum" in state:
            optimizer.state[parameter]["momentum_buffer"] = state["momentum"][row].clone()
        if rule is torch.optim.AdamW:
            optimizer.state[parameter] = {
                "step": state["steps"][row, 0].float(),
                "exp_avg": state["exp_avg"][row].clone(),
                "exp_avg_sq": state["exp_avg_sq"][row].clone(),
            }
        optimizer.step()
        after[row] = parameter.detach()
    return after


def global_batch(case: Case, step: int, micro: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings, labels and weights of all processes, the same on every process."""
    size = case.batches[step][micro]
    generator = torch.Generator().manual_seed(1000 * step + micro)
    embeddings = 3 * torch.randn(size, case.embedding_size, generator=generator, dtype=case.dtype)
    labels = torch.randint(case.num_classes, (size,), generator=generator)
    labels[-1] = labels[0]  # two samples of a class
    weight = torch.rand(size, generator=generator, dtype=case.dtype) if case.weighted else torch.ones(size)
    return embeddings, labels, weight.to(case.dtype)


def part_of(size: int, rank: int, world_size: int) -> slice:
    """Return the part of a process. The parts are unequal, and that of the last process may be empty."""
    bounds = [0, *sorted(min(size, 3 * (r + 1) + r) for r in range(world_size - 1)), size]
    return slice(bounds[rank], bounds[rank + 1])


def train(case: Case) -> list[dict[str, Any]]:
    """Run the steps of the case in a worker; return everything that the reference needs."""
    rank, world_size = rank_and_world()
    heads.objectives.softmax.CHUNK_ROWS = case.chunk_rows
    head = case.head(
        case.num_classes, case.embedding_size, margin=copy.deepcopy(case.margin), dtype=case.dtype, **case.options
    )
    optimizer = head.optimizer(rule=case.optimizer, **case.optimizer_options)
    record = _record_selections(head)
    results = []
    for step, micro_batches in enumerate(case.batches):
        record.clear()
        result: dict[str, Any] = {"losses": [], "gradients": [], "before": head.centers.rows.clone()}
        result["state"] = {name: tensor.clone() for name, tensor in head.centers.state.items()}
        graphs = []
        for micro in range(len(micro_batches)):  # all forwards before the first backward
            embeddings, labels, weight = global_batch(case, step, micro)
            mine = part_of(len(labels), rank, world_size)
            inputs = [embeddings[mine].clone().requires_grad_(), labels[mine].clone(), weight[mine].clone()]
            copies = [tensor.detach().clone() for tensor in inputs]
            loss = head(*inputs) if case.weighted else head(*inputs[:2])
            graphs.append((loss, inputs, copies))
        for loss, inputs, copies in graphs:
            (loss / len(micro_batches)).backward()
            assert all(torch.equal(now, old) for now, old in zip(inputs, copies, strict=True)), "an input was changed"
            result["losses"].append(loss.detach())
            result["gradients"].append(inputs[0].grad)
        assert torch.equal(head.centers.rows, result["before"]), "backward changed a row"
        optimizer.step()
        optimizer.zero_grad()
        start = head.centers.shard.start
        every = torch.arange(head.centers.shard.size)
        result["selected"] = [start + (every if s.ids is None else s.ids) for s in record]
        result["log_q"] = [s.log_q for s in record]
        result["after"] = head.centers.rows.clone()
        result["state_after"] = {name: tensor.clone() for name, tensor in head.centers.state.items()}
        results.append(result)
    return results


def _record_selections(head: CenterHead) -> list[Any]:
    record: list[Any] = []
    select = head.select_classes

    def recording(embeddings: Tensor, labels: Tensor) -> Any:
        record.append(select(embeddings, labels))
        return record[-1]

    head.select_classes = recording  # type: ignore[method-assign]
    return record


def round_trip(case: Case) -> None:
    """Assert in a worker that state saved after two steps and loaded into a new head continues bit for bit."""
    rank, world_size = rank_and_world()
    heads.objectives.softmax.CHUNK_ROWS = case.chunk_rows

    def build() -> tuple[CenterHead, Any]:
        head = case.head(case.num_classes, case.embedding_size, **case.options)
        return head, head.optimizer(rule=case.optimizer, **case.optimizer_options)

    def step(head: CenterHead, optimizer: Any, number: int) -> Tensor:
        embeddings, labels, _ = global_batch(case, number, 0)
        mine = part_of(len(labels), rank, world_size)
        loss = head(embeddings[mine].requires_grad_(), labels[mine])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    head, optimizer = build()
    step(head, optimizer, 0)
    step(head, optimizer, 1)
    saved, hyper = copy.deepcopy(head.state_dict()), copy.deepcopy(optimizer.state_dict())
    loss = step(head, optimizer, 2)
    for state_first in (False, True):
        again = case.head(case.num_classes, case.embedding_size, **case.options)
        if state_first:
            again.load_state_dict(saved)
        optimizer_again = again.optimizer(rule=case.optimizer, **case.optimizer_options)
        if not state_first:
            again.load_state_dict(saved)
        optimizer_again.load_state_dict(hyper)
        assert torch.equal(step(again, optimizer_again, 2), loss)
        assert torch.equal(again.centers.rows, head.centers.rows)


def abandoned(case: Case) -> None:
    """Assert in a worker that a backward pass without a step leaves no trace in later steps."""
    rank, world_size = rank_and_world()
    embeddings, labels, _ = global_batch(case, 0, 0)
    mine = part_of(len(labels), rank, world_size)
    after = []
    for extra in (False, True):
        head = case.head(case.num_classes, case.embedding_size, **case.options)
        optimizer = head.optimizer(**SGD)
        if extra:
            head(torch.randn(2, case.embedding_size, requires_grad=True), torch.tensor([0, 1])).backward()
            optimizer.zero_grad()
            head.micro_batch = 0  # the same selection as without the extra pass
        head(embeddings[mine].clone().requires_grad_(), labels[mine]).backward()
        optimizer.step()
        after.append(head.centers.rows.clone())
    assert torch.equal(*after)
