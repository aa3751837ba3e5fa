"""MACH against the float64 reference, on 1, 2 and 3 processes."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import heads.objectives.softmax
from heads import BCE, MACH, ArcFace, ClassMargin, CosFace, FixedAdaCos, FullFC, MagFace, QMargin, Softmax, UniFace
from heads.core.cost import Case as Size
from heads.fidelity import selection_fidelity
from heads.mach import MACHOptions
from tests import reference
from tests.cases import part_of
from tests.heads.margins.table import magface
from tests.heads.objectives.test_qmargin import qmargin
from tests.heads.objectives.test_uniface import start, uniface
from tests.reference import Rule
from tests.workers import rank_and_world

C, D, B, R = 101, 16, 11, 3
BATCHES = ((8,), (5, 3), (1,))
SGD = {"lr": 0.1, "momentum": 0, "weight_decay": 0}


@dataclass(frozen=True)
class Case:
    options: dict[str, Any] = field(default_factory=dict)
    rule: reference.MarginRule = field(default_factory=lambda: Rule(reference.cosface))
    formula: reference.Objective = reference.softmax
    bias: float | None = None
    dtype: torch.dtype = torch.float32
    weighted: bool = False


CASES = {
    "cosface": Case(),
    "recomputing": Case({"logits_budget_mb": 0}),
    "weights": Case(weighted=True),
    "double": Case(dtype=torch.float64),
    "arcface": Case({"margin": ArcFace()}, Rule(reference.arcface)),
    "magface": Case({"margin": MagFace()}, magface),
    "adacos": Case({"margin": FixedAdaCos()}, replace(Rule(), s=2**0.5 * torch.tensor(B - 1.0).log().item())),
    "softmax": Case({"margin": Softmax()}, Rule(s=1.0, normalized=False)),
    "uniface": Case({"objective": UniFace()}, formula=uniface, bias=start(B)),
    "qmargin": Case({"margin": ArcFace(), "objective": QMargin()}, Rule(reference.arcface), formula=qmargin),
}


def batch_of(case: Case, step: int, micro: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * step + micro)
    embeddings = 20 * torch.rand(size, 1, generator=generator) * torch.randn(size, D, generator=generator)
    weight = torch.rand(size, generator=generator) if case.weighted else torch.ones(size)
    return embeddings.to(case.dtype), torch.randint(C, (size,), generator=generator), weight.to(case.dtype)


def make(case: Case) -> MACH:
    heads.objectives.softmax.CHUNK_ROWS = 4
    return MACH(C, D, num_buckets=B, num_hashes=R, dtype=case.dtype, **copy.deepcopy(case.options))


def train(case: Case) -> list[dict[str, Any]]:
    """Run three steps in a worker."""
    rank, world_size = rank_and_world()
    head = make(case)
    optimizer, results = head.optimizer(**SGD), []
    for step, sizes in enumerate(BATCHES):
        result: dict[str, Any] = {"before": head.centers.rows.clone(), "losses": [], "gradients": []}
        for micro, size in enumerate(sizes):
            embeddings, labels, weight = batch_of(case, step, micro, size)
            mine = part_of(size, rank, world_size)
            x = embeddings[mine].clone().requires_grad_()
            loss = head(x, labels[mine], weight[mine])
            (loss / len(sizes)).backward()
            result["losses"].append(loss.detach())
            result["gradients"].append(x.grad)
        optimizer.step()
        optimizer.zero_grad()
        result["after"] = head.centers.rows.clone()
        result["bias"] = None if head.shared_bias is None else head.shared_bias.value.clone()
        results.append(result)
    return results


def dense(case: Case, step: int, before: Tensor, bias: Tensor | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return losses, gradients and rows of a step: the mean of R losses, each over the rows of one hash."""
    hashed = make(Case()).buckets_of(torch.arange(C))
    rows = before.view(B, R, -1).to(dtype).requires_grad_()
    bias = None if bias is None else bias.to(dtype).flatten().requires_grad_()
    result: dict[str, Any] = {"losses": [], "gradients": []}
    sizes = BATCHES[step]
    for micro, size in enumerate(sizes):
        embeddings, labels, weight = batch_of(case, step, micro, size)
        x = embeddings.to(dtype).requires_grad_()
        losses = [
            reference.loss_and_state(
                case.rule, case.formula, rows[:, r], x, hashed[labels, r], weight.to(dtype), bias=bias
            )[0]
            for r in range(R)
        ]
        loss = torch.stack(losses).mean()
        (loss / len(sizes)).backward()
        result["losses"].append(loss.detach())
        result["gradients"].append(x.grad)
    result["after"] = (rows.detach() - SGD["lr"] * rows.grad).flatten(1)
    result["bias"] = None if bias is None else (bias - SGD["lr"] * bias.grad).detach()[:, None]
    return result


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    case = CASES[name]
    results = workers(world_size).run(train, replace(case, rule=Rule(), formula=reference.softmax))
    bias = None if case.bias is None else torch.tensor([[case.bias]], dtype=case.dtype)
    compared: dict[str, list[tuple[Tensor, ...]]] = {}
    for step in range(len(BATCHES)):
        parts = [result[step] for result in results]
        before = torch.cat([part["before"] for part in parts])
        exact, naive = (dense(case, step, before, bias, dtype) for dtype in (torch.float64, case.dtype))
        for micro in range(len(BATCHES[step])):
            losses = [part["losses"][micro] for part in parts]
            assert all(torch.equal(loss, losses[0]) for loss in losses), "ranks disagree on the loss"
            gradients = torch.cat([part["gradients"][micro] for part in parts]) / world_size
            compared.setdefault("loss", []).append((losses[0], *(each["losses"][micro] for each in (exact, naive))))
            compared.setdefault("gradient", []).append((gradients, *(e["gradients"][micro] for e in (exact, naive))))
        after = torch.cat([part["after"] for part in parts])
        compared.setdefault("rows", []).append((after, exact["after"], naive["after"]))
        bias = parts[0]["bias"]
        if bias is not None:
            compared.setdefault("bias", []).append((bias, exact["bias"], naive["bias"]))
    for what, each in compared.items():
        reference.close(*(torch.cat([part[which].flatten() for part in each]) for which in range(3)), what)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_topk_is_the_mean_probability_of_the_buckets(world_size, workers):
    parts = workers(world_size).run(_topk)
    head, embeddings = make(Case(dtype=torch.float64)), _queries()
    rows, hashed = head.centers.rows.view(B, R, D), head.buckets_of(torch.arange(C))
    probabilities = torch.stack([(64 * normalize(embeddings) @ normalize(rows[:, r]).T).softmax(1) for r in range(R)])
    score = torch.stack([probabilities[r][:, hashed[:, r]] for r in range(R)]).mean(0)
    values = score.topk(5, dim=1).values
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), values)
    found = torch.cat([part[1] for part in parts])
    torch.testing.assert_close(score.gather(1, found), values)  # classes of the same buckets are equal


def _queries() -> Tensor:
    return torch.randn(7, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _topk() -> Any:
    rank, world_size = rank_and_world()
    return make(Case(dtype=torch.float64)).topk(_queries()[part_of(7, rank, world_size)], 5)


def test_buckets_are_uniform_and_differ_by_hash_and_seed():
    head = MACH(100_000, 4, num_buckets=50, num_hashes=2)
    hashed = head.buckets_of(torch.arange(100_000))
    for r in range(2):
        counts = torch.bincount(hashed[:, r], minlength=50)
        assert len(counts) == 50
        assert counts.min() > 1800 and counts.max() < 2200  # 2,000 with a deviation of 44
    assert 0.015 < (hashed[:, 0] == hashed[:, 1]).float().mean() < 0.025
    other = MACH(100_000, 4, num_buckets=50, num_hashes=2, seed=1).buckets_of(torch.arange(100_000))
    assert 0.015 < (hashed == other).float().mean() < 0.025
    assert torch.equal(head.buckets_of(torch.tensor([99_999])), hashed[-1:])


def test_hashes_tell_classes_apart_that_share_buckets():
    head = MACH(30, 16, num_buckets=10, num_hashes=8, margin=CosFace(s=16))
    optimizer, generator = head.optimizer(lr=0.1), torch.Generator().manual_seed(0)
    centers = torch.randn(30, 16, generator=generator)
    for _ in range(60):
        labels = torch.randint(30, (32,), generator=generator)
        head(centers[labels], labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = head.topk(centers, 1)[1][:, 0]
    assert (found == torch.arange(30)).float().mean() > 0.8  # one hash tells at most a third apart


def _trained(head: MACH, steps: range) -> Tensor:
    optimizer = head.optimizer(lr=0.1) if not head.has_optimizer else head._test_optimizer
    head._test_optimizer = optimizer
    for step in steps:
        embeddings, labels, _ = batch_of(Case(), step, 0, 6)
        loss = head(embeddings, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def test_state_round_trip():
    head = make(Case())
    _trained(head, range(2))
    saved = copy.deepcopy(head.state_dict())
    loss = _trained(head, range(2, 3))
    again = make(Case())
    again.load_state_dict(saved)
    assert torch.equal(_trained(again, range(2, 3)), loss)
    assert torch.equal(again.centers.rows, head.centers.rows)


def test_memory_and_cost_are_those_of_the_buckets():
    head = MACH(100_000_000, 8, num_buckets=1000, num_hashes=4)
    head.optimizer(lr=0.1)
    assert head.stats()["memory_bytes"] == 4 * 1000 * 8 * 4 * 2  # with momentum
    loss = head(torch.randn(4, 8, requires_grad=True), torch.tensor([0, 5, 99_999_999, 5]))
    loss.backward()
    cost = MACH.cost(Size(10**8, 8, 4, 2), MACHOptions(num_buckets=1000), row_state={})
    rows = FullFC.cost(Size(4000, 8, 4, 2), FullFC.Options(), row_state={})
    assert (cost.table_bytes, cost.multiply_adds) == (rows.table_bytes, rows.multiply_adds)


def test_evaluation_and_probes_change_nothing_and_are_exact():
    head = make(Case())
    embeddings, labels, _ = batch_of(Case(), 0, 0, 8)
    figures = selection_fidelity(head, embeddings, labels, probes=4)
    assert (figures["mass"], figures["hardest_recall"]) == (1, 1)
    assert figures["gradient_cosine"] == pytest.approx(1, abs=1e-6)
    training = head(embeddings, labels).detach()
    assert torch.equal(head.eval()(embeddings, labels).detach(), training)


def test_ignored_samples_take_no_part():
    embeddings, labels, _ = batch_of(Case(), 0, 0, 8)
    part = make(Case())(embeddings[2:], labels[2:])
    labels[:2] = -100
    assert torch.equal(make(Case({"ignore_label": -100}))(embeddings, labels), part)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_buckets": 1}, "num_buckets=1 of num_classes=101 must be a whole number of buckets from 2 to 101"),
        ({"num_buckets": 102}, "num_buckets=102"),
        ({"num_buckets": 2.5}, "num_buckets=2.5"),
        ({"num_buckets": 0.001}, "num_buckets=0.001"),
        ({"num_buckets": 2**40}, "is more than 2,147,483,648, the values of a hash; use fewer buckets"),
        ({"num_hashes": 0}, "num_hashes=0"),
        (
            {"margin": ClassMargin(), "class_counts": torch.ones(C, dtype=torch.int64)},
            "margin=ClassMargin depends on the images",
        ),
        ({"objective": BCE()}, "objective=BCE has a bias for each class"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MACH(C, D, **options)


def test_wrong_inputs_are_refused():
    head = make(Case())
    with pytest.raises(ValueError, match="several classes a sample"):
        head(torch.randn(2, D), torch.tensor([[1, 2], [3, -1]]))
    with pytest.raises(ValueError, match="label 101 at step 0"):
        head(torch.randn(1, D), torch.tensor([C]))
    with pytest.raises(ValueError, match="k=102 must be between"):
        head.topk(torch.randn(1, D), C + 1)
