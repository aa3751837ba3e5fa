"""One tester for every head with class centers: the step compared with the float64 reference.

`check(workers, Case(...))` runs a few training steps on 1, 2 or 3 processes. It compares each step's loss, embedding
gradients, updated rows, shared bias and carried numbers with the dense reference, which gets the rows before the step
and the selected classes. `with_margins(Case(...))` makes a case for each margin of `tests/heads/margins/table.py`.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from heads import CenterHead
from tests import reference
from tests.cases import SGD, Case, build, global_batch, part_of, standard_normal, with_margins
from tests.reference import Rule
from tests.workers import WorkerGroup, rank_and_world

__all__ = [
    "SGD",
    "Case",
    "abandoned",
    "check",
    "global_batch",
    "numbers",
    "part_of",
    "round_trip",
    "stepped",
    "with_margins",
]

TORCH_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "RowSGD": torch.optim.SGD,
    "RowAdamW": torch.optim.AdamW,
    "RowAdagrad": torch.optim.Adagrad,  # of one column
}


def check(group: WorkerGroup, case: Case) -> None:
    """Compare all steps of the case with the reference, and the processes with each other."""
    results = group.run(
        train, replace(case, rule=Rule(), later_rules={}, formula=reference.softmax)
    )  # lambdas cannot be sent
    orders = column_orders(case.embedding_size, results[0][0]["before"].shape[1] // case.rows_per_class)
    exact = Dense(case, torch.float64, orders[0])
    naive = [Dense(case, case.dtype, order) for order in orders]
    compared: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def compare(what: str, ours: Tensor, exact: Tensor, naive: list[Tensor]) -> None:
        compared.setdefault(what, []).append((ours, exact, torch.stack(naive).reshape(len(naive), -1)))

    for step, micro_batches in enumerate(case.batches):
        of_ranks = [result[step] for result in results]
        slots = of_ranks[0]["slots"]  # tables are compared in the order of the class ids
        before = torch.cat([part["before"] for part in of_ranks])[slots]
        if case.fixed_rows is not None:
            reference.close(before, case.fixed_rows, case.fixed_rows.to(case.dtype), "fixed rows")
            assert all(torch.equal(part["before"], part["after"]) for part in of_ranks), "a fixed row changed"
            before = case.fixed_rows
        state = {name: torch.cat([part["state"][name] for part in of_ranks])[slots] for name in of_ranks[0]["state"]}
        right = exact.step(step, of_ranks, before, state)
        plain = [dense.step(step, of_ranks, before, state) for dense in naive]
        world_size = len(of_ranks)
        for micro in range(len(micro_batches)):
            for part in of_ranks:
                compare("loss", part["losses"][micro], right["losses"][micro], [p["losses"][micro] for p in plain])
                assert torch.equal(part["losses"][micro], of_ranks[0]["losses"][micro]), "ranks disagree on the loss"
            ours = torch.cat([part["gradients"][micro] for part in of_ranks])
            gradients = [world_size * each["gradients"][micro] for each in (right, *plain)]
            compare("gradient", ours, gradients[0], gradients[1:])
        ours = torch.cat([part["after"] for part in of_ranks])[slots]
        compare("rows", ours, right["after"], [p["after"] for p in plain])
        assert of_ranks[0]["numbers"].keys() == right["numbers"].keys(), "other numbers are carried"
        for name, value in of_ranks[0]["numbers"].items():
            compare(name, value, right["numbers"][name], [p["numbers"][name] for p in plain])
            assert all(torch.equal(part["numbers"][name], value) for part in of_ranks), f"ranks disagree on {name}"
        idle = torch.ones(case.num_classes, dtype=torch.bool)
        idle[right["touched"]] = False
        if case.fixed_rows is None:
            assert torch.equal(ours[idle], before[idle]), "a row that was not selected changed"
        for name, old in state.items():
            new = torch.cat([part["state_after"][name] for part in of_ranks])[slots]
            assert torch.equal(new[idle], old[idle]), f"the {name} of a row that took no part changed"
    # The naive error is the largest of the case, because that of one step may be small by chance.
    for what, parts in compared.items():
        ours, true = (torch.cat([part[which].flatten() for part in parts]) for which in (0, 1))
        reference.close(ours, true, torch.cat([part[2] for part in parts], dim=1), what)


def column_orders(embedding_size: int, width: int) -> list[Tensor]:
    """Return orders of the columns, the unchanged order first. Each sums in another order, and so rounds differently.

    The rounding of a product depends on the processor. The largest error over several orders hardly depends on it.
    """
    generator = torch.Generator().manual_seed(0)
    shuffled = [torch.randperm(embedding_size, generator=generator) for _ in range(4)]
    bias = torch.arange(embedding_size, width)
    return [torch.arange(width), *(torch.cat([order, bias]) for order in shuffled)]


class Dense:
    """The dense reference of a case in one dtype, computed with the columns of the rows in this order.

    Rows and row state come from the head before each step. The numbers that the margin carries and the bias that all
    classes share are computed from step to step.
    """

    def __init__(self, case: Case, dtype: torch.dtype, order: Tensor):
        self.case, self.dtype, self.order = case, dtype, order
        self.carried: Mapping[str, Tensor] = {}
        self.bias: Tensor | None = None
        if case.shared_bias is not None:
            self.bias = torch.tensor([case.shared_bias], dtype=dtype, requires_grad=True)
            self.optimizer = TORCH_OPTIMIZERS[case.optimizer.__name__]([self.bias], **case.optimizer_options)

    def step(self, step: int, of_ranks: list[Any], before: Tensor, state: dict[str, Tensor]) -> dict[str, Any]:
        """Return losses, gradients, rows and numbers of one step."""
        case, order = self.case, self.order
        back, count = order.argsort(), len(before) * case.rows_per_class
        state = {name: table.view(count, -1).to(self.dtype) for name, table in state.items()}
        state = {name: table[:, order] if table.shape[1] == len(order) else table for name, table in state.items()}
        rows = before.view(count, -1)[:, order].to(self.dtype).requires_grad_()
        result: dict[str, Any] = {"losses": [], "gradients": []}
        num_micro, rule = len(case.batches[step]), case.rule_at(step)
        touched, carried = [], self.carried
        for micro in range(num_micro):
            embeddings, labels, weight = global_batch(case, step, micro)
            x = embeddings[:, order[: case.embedding_size]].to(self.dtype).requires_grad_()
            selected, by_class = torch.cat([part["selected"][micro] for part in of_ranks]).sort()
            logs = [part["log_q"][micro] for part in of_ranks]
            counts = case.options.get("class_counts")
            loss, carried = reference.loss_and_state(
                rule,
                case.formula,
                rows[lines(case, selected)],
                x,
                torch.searchsorted(selected, labels),
                weight.to(self.dtype),
                bias=self.bias,
                rows_per_class=case.rows_per_class,
                log_q=None if logs[0] is None else torch.cat(logs)[by_class].to(self.dtype),
                count=None if counts is None else counts[labels].to(self.dtype),
                normal=standard_normal(case, step, micro).to(self.dtype),
                state=self.carried,
            )
            (loss / num_micro).backward()
            result["losses"].append(loss.detach())
            assert x.grad is not None and rows.grad is not None
            result["gradients"].append(x.grad[:, back[: case.embedding_size]])
            if isinstance(rule, Rule) and rule.min_probability:
                selected = selected[(rows.grad[selected] != 0).any(1)]
            touched.append(selected)
        result["touched"] = torch.unique(torch.cat(touched))
        after = updated(case, rows, lines(case, result["touched"]), state)[:, back]
        result["after"] = after.reshape(len(before), -1)
        self.carried = carried  # of the last forward
        result["numbers"] = dict(carried)
        if self.bias is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
            result["numbers"]["bias"] = self.bias.detach().clone()[0]
        return result


def lines(case: Case, classes: Tensor) -> Tensor:
    """Return the rows of classes."""
    return (classes[:, None] * case.rows_per_class + torch.arange(case.rows_per_class)).flatten()


def updated(case: Case, rows: Tensor, touched: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return the rows after the torch.optim optimizer of the same name, or its formula, on the touched rows alone."""
    assert rows.grad is not None
    if case.fixed_rows is not None:
        return rows.detach()
    after, rule = rows.detach().clone(), TORCH_OPTIMIZERS[case.optimizer.__name__]
    if rule is torch.optim.Adagrad:
        total = state["sum"][touched] + rows.grad[touched].square().mean(1, keepdim=True)
        after[touched] -= case.optimizer_options["lr"] * rows.grad[touched] / (total.sqrt() + 1e-10)
        return after
    parts = [touched]
    if rule is torch.optim.AdamW:  # rows that took part in as many steps
        steps = state["steps"][touched, 0]
        parts = [touched[steps == number] for number in steps.unique()]
    for part in parts:
        parameter = rows.detach()[part].requires_grad_()
        parameter.grad = rows.grad[part]
        optimizer = rule([parameter], **case.optimizer_options)
        if rule is torch.optim.SGD and "momentum" in state:
            optimizer.state[parameter]["momentum_buffer"] = state["momentum"][part]
        if rule is torch.optim.AdamW:
            optimizer.state[parameter] = {
                "step": state["steps"][part[0], 0].float(),
                "exp_avg": state["exp_avg"][part],
                "exp_avg_sq": state["exp_avg_sq"][part],
            }
        optimizer.step()
        after[part] = parameter.detach()
    return after


def numbers(head: CenterHead) -> dict[str, Tensor]:
    """Return copies of what the margin carries, and of the bias that all classes share."""
    bias = getattr(head, "shared_bias", None)
    shared = {} if bias is None else {"bias": bias.value.clone()[0, 0]}
    return {name: value.clone() for name, value in {**head.carried, **shared}.items()}


def train(case: Case) -> list[dict[str, Any]]:
    """Run the steps of the case in a worker; return everything that the reference needs."""
    rank, world_size = rank_and_world()
    head = build(case)
    optimizer = head.optimizer(rule=case.optimizer, **case.optimizer_options)
    record = _record_selections(head)
    results = []
    for step, micro_batches in enumerate(case.batches):
        record.clear()
        result: dict[str, Any] = {"losses": [], "gradients": [], "before": rows_of(head)}
        result["state"] = {name: tensor.clone() for name, tensor in head.centers.state.items()}
        earlier = numbers(head)
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
        assert torch.equal(rows_of(head), result["before"]), "backward changed a row"
        assert numbers(head) == earlier, "backward changed the bias or a carried number"
        optimizer.step()
        optimizer.zero_grad()
        every = torch.arange(head.centers.shard.size)
        result["selected"] = [head.centers.classes(every if s.ids is None else s.ids) for s in record]
        result["slots"] = head.centers.slots(torch.arange(head.centers.shard.num_classes))
        result["log_q"] = [s.log_q for s in record]
        result["after"] = rows_of(head)
        result["state_after"] = {name: tensor.clone() for name, tensor in head.centers.state.items()}
        result["numbers"] = numbers(head)
        results.append(result)
    return results


def rows_of(head: CenterHead) -> Tensor:
    """Return a copy of all rows of this process, one line a class."""
    size = head.centers.shard.size
    return head.centers.read(slice(0, size)).clone().view(size, -1)


def _record_selections(head: CenterHead) -> list[Any]:
    record: list[Any] = []
    select = head.select_classes

    def recording(embeddings: Tensor, labels: Tensor) -> Any:
        record.append(select(embeddings, labels))
        return record[-1]

    head.select_classes = recording  # type: ignore[method-assign]
    return record


def stepped(case: Case, head: CenterHead, optimizer: Any, step: int) -> Tensor:
    """Run one step of the case with its first micro-batch in a worker, and return the loss."""
    rank, world_size = rank_and_world()
    embeddings, labels, _ = global_batch(case, step, 0)
    mine = part_of(len(labels), rank, world_size)
    loss = head(embeddings[mine].clone().requires_grad_(), labels[mine])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def round_trip(case: Case) -> None:
    """Assert in a worker that state saved after two steps and loaded into a new head continues bit for bit."""
    head = build(case)
    optimizer = head.optimizer(rule=case.optimizer, **case.optimizer_options)
    stepped(case, head, optimizer, 0)
    stepped(case, head, optimizer, 1)
    saved, hyper = copy.deepcopy(head.state_dict()), copy.deepcopy(optimizer.state_dict())
    loss = stepped(case, head, optimizer, 2)
    for state_first in (False, True):
        again = build(case)
        if state_first:
            again.load_state_dict(saved)
        optimizer_again = again.optimizer(rule=case.optimizer, **case.optimizer_options)
        if not state_first:
            again.load_state_dict(saved)
        optimizer_again.load_state_dict(hyper)
        assert torch.equal(stepped(case, again, optimizer_again, 2), loss)
        assert torch.equal(rows_of(again), rows_of(head))
        assert numbers(again) == numbers(head)


def abandoned(case: Case) -> None:
    """Assert in a worker that a backward pass without a step leaves no trace in later steps."""
    after = []
    for extra in (False, True):
        head = build(case)
        optimizer = head.optimizer(**SGD)
        if extra:
            head(torch.randn(2, case.embedding_size, requires_grad=True), torch.tensor([0, 1])).backward()
            optimizer.zero_grad()
            head.micro_batch = 0  # the same selection as without the extra pass
        stepped(case, head, optimizer, 0)
        after.append((rows_of(head), numbers(head)))
    assert torch.equal(after[0][0], after[1][0]) and after[0][1] == after[1][1]
