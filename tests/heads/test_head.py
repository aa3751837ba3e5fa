"""Behaviour that all heads share: the gradient rule, bad input, evaluation, top-k, modes of use."""

import pytest
import torch
from torch.nn.functional import normalize

import heads.objectives.softmax
from heads import CosFace, FullFC, PartialFC, Softmax
from tests.workers import rank_and_world

EMBEDDINGS = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 6, 3, 3, 1, 5, 2, 4, 6, 0, 2, 3])


def _step(rate: float, selected: list[int] | None) -> dict[str, torch.Tensor]:
    """Take one step in a worker on this process's share of the global batch, and return the results."""
    rank, world_size = rank_and_world()
    heads.objectives.softmax.CHUNK_ROWS = 2
    head = PartialFC(7, 8, sample_rate=rate) if rate < 1 else FullFC(7, 8)
    if selected is not None:
        shard = head.centers.shard
        local = torch.tensor([c - shard.start for c in selected if shard.start <= c < shard.stop], dtype=torch.int64)
        head.select_classes = lambda embeddings, labels: heads.Selection(local)
    optimizer = head.optimizer(lr=0.1, momentum=0.9, weight_decay=5e-4)
    share = slice(rank * 12 // world_size, (rank + 1) * 12 // world_size)
    embeddings = EMBEDDINGS[share].clone().requires_grad_()
    loss = head(embeddings, LABELS[share])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    values, classes = head.topk(EMBEDDINGS[share], 5)
    return {
        "loss": loss.detach(),
        "gradient": embeddings.grad / world_size,
        "rows": head.centers.rows,
        "momentum": head.centers.state["momentum"],
        "values": values,
        "classes": classes,
    }


@pytest.mark.parametrize("rate", [0.999, 1])
@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_give_the_result_of_one(rate, world_size, workers):
    """The gradient rule: after DDP's division by the number of processes, results equal those of one process."""
    selected = [0, 1, 2, 3, 4, 5, 6] if rate < 1 else None
    (one,) = workers(1).run(_step, rate, selected)
    many = workers(world_size).run(_step, rate, selected)
    for name, whole in one.items():
        parts = [part[name] for part in many]
        together = parts[0] if name == "loss" else torch.cat(parts)
        torch.testing.assert_close(together, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_topk_is_exact(world_size, workers):
    heads_rows = FullFC(7, 8)
    (one,) = workers(1).run(_topk, 7)
    values, classes = (normalize(EMBEDDINGS) @ normalize(heads_rows.centers.rows).T).sort(dim=1, descending=True)
    for part in (one, *workers(world_size).run(_topk, 7)):
        torch.testing.assert_close(part[0], values, rtol=1e-5, atol=1e-6)
        assert torch.equal(part[1], classes)


def _topk(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    heads.objectives.softmax.CHUNK_ROWS = 2
    return FullFC(7, 8).topk(EMBEDDINGS, k)


def test_topk_refuses_more_than_all_classes():
    with pytest.raises(ValueError, match="k=8 must be between 1 and the number of classes, 7"):
        FullFC(7, 8).topk(EMBEDDINGS, 8)


def _bad(kind: str) -> str:
    """Give only the last process bad input in a worker, and return the error, which every process raises."""
    rank, world_size = rank_and_world()
    bad_here = rank == world_size - 1
    embeddings, labels, weight = torch.randn(3, 8), torch.tensor([0, 1, 2]), torch.ones(3)
    if bad_here and kind == "label":
        labels[1] = 7
    if bad_here and kind == "negative":
        labels[1] = -1
    if bad_here and kind == "nan":
        embeddings[2, 3] = torch.nan
    if bad_here and kind == "inf":
        embeddings[2, 3] = torch.inf
    if bad_here and kind == "weight":
        weight[0] = -1
    head = FullFC(7, 8)
    before = head.centers.rows.clone()
    try:
        head(embeddings.requires_grad_(), labels, weight)
    except ValueError as error:
        assert torch.equal(head.centers.rows, before)
        return str(error)
    return "no error"


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("label", "label 7 at step 0 is out of range; class ids must be in [0, num_classes=7)"),
        ("negative", "label -1 at step 0"),
        ("nan", "NaN or Inf at step 0"),
        ("inf", "NaN or Inf at step 0"),
        ("weight", "weight at step 0"),
    ],
)
def test_bad_values_raise_on_all_processes(kind, words, world_size, workers):
    for message in workers(world_size).run(_bad, kind):
        assert words in message


def _too_few(num_classes: int) -> str:
    try:
        FullFC(num_classes, 8)
    except ValueError as error:
        return str(error)
    return "no error"


def test_processes_without_a_class_are_refused(workers):
    for message in workers(3).run(_too_few, 4):
        assert "largest number of processes that works is 2" in message
    assert workers(3).run(_too_few, 5) == ["no error"] * 3


@pytest.mark.parametrize(
    ("embeddings", "labels", "weight", "words"),
    [
        (torch.randn(3, 9), torch.zeros(3, dtype=torch.int64), None, "embedding_size=8"),
        (torch.randn(3, 8), torch.zeros(4, dtype=torch.int64), None, "one integer class id.* for each of the 3"),
        (torch.randn(3, 8), torch.zeros(3), None, "integer"),
        (torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), None, "float"),
        (torch.randn(3, 8), torch.zeros(3, dtype=torch.int64), torch.ones(2), "one number for each"),
        (torch.randn(0, 8), torch.zeros(0, dtype=torch.int64), None, "empty"),
    ],
)
def test_bad_shapes_are_refused(embeddings, labels, weight, words):
    with pytest.raises(ValueError, match=words):
        FullFC(7, 8)(embeddings, labels, weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"embedding_size": 0}, "embedding_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"logits_budget_mb": -1}, "logits_budget_mb=-1"),
        ({"dtype": torch.float16}, "float16"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FullFC(**{"num_classes": 7, "embedding_size": 8, **options})


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="sample_rte"):
        PartialFC(7, 8, sample_rte=0.1)


def test_eval_is_exact_and_changes_nothing():
    head, exact = PartialFC(50, 8, sample_rate=0.1), FullFC(50, 8)
    optimizer = head.optimizer(lr=0.1)
    head.eval()
    embeddings = EMBEDDINGS.clone().requires_grad_()
    loss = head(embeddings, LABELS)
    loss.backward()
    assert torch.equal(loss, exact(EMBEDDINGS, LABELS))
    assert embeddings.grad is not None and head.micro_batch == 0
    before = head.centers.rows.clone()
    optimizer.step()
    assert torch.equal(head.centers.rows, before)


def test_a_frozen_backbone_still_trains_the_rows():
    head = FullFC(7, 8)
    optimizer = head.optimizer(lr=0.1)
    before = head.centers.rows.clone()
    head(EMBEDDINGS, LABELS).backward()
    optimizer.step()
    assert not torch.equal(head.centers.rows, before)


def test_backward_twice_through_one_graph_adds_up():
    def rows(times: int, budget: float) -> torch.Tensor:
        head = FullFC(7, 8, logits_budget_mb=budget, dtype=torch.float64)
        optimizer = head.optimizer(lr=0.1)
        loss = head(EMBEDDINGS.clone().requires_grad_(), LABELS)
        for _ in range(times):
            (loss * 2 / times).backward(retain_graph=True)
        optimizer.step()
        return head.centers.rows

    for budget in (0, 512):
        torch.testing.assert_close(rows(2, budget), rows(1, budget), rtol=1e-12, atol=1e-12)


def test_no_grad_keeps_nothing():
    head = FullFC(7, 8)
    with torch.no_grad():
        loss = head(EMBEDDINGS, LABELS)
    assert not loss.requires_grad and not head.pending.entries


@pytest.mark.parametrize("margin", [CosFace(), Softmax()])
def test_autocast_does_not_affect_the_head(margin):
    def run(enabled: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        head = FullFC(7, 8, margin=margin)
        optimizer = head.optimizer(lr=0.1)
        embeddings = EMBEDDINGS.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = head(embeddings, LABELS)
            loss.backward()
        optimizer.step()
        return loss.detach(), embeddings.grad, head.centers.rows

    for plain, inside in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, inside)


def test_low_precision_embeddings_are_cast():
    head = FullFC(7, 8)
    embeddings = EMBEDDINGS.bfloat16().requires_grad_()
    loss = head(embeddings, LABELS)
    loss.backward()
    assert loss.dtype == torch.float32 and embeddings.grad.dtype == torch.bfloat16
    assert torch.equal(loss, head(EMBEDDINGS.bfloat16().float(), LABELS))


def test_rows_follow_the_device_but_not_the_dtype():
    head = FullFC(7, 8)
    optimizer = head.optimizer(lr=0.1, momentum=0.9)
    head.half().to("meta")
    for tensor in (head.centers.rows, head.centers.state["momentum"]):
        assert tensor.device.type == "meta" and tensor.dtype == torch.float32
    assert optimizer.head is head and not list(head.parameters())


def test_logits_budget_counts_pending_gradients():
    head = FullFC(1024, 8, logits_budget_mb=1024 * 12 * 4 / 2**20)  # room for one batch of 12
    for _ in range(2):
        head(EMBEDDINGS.clone().requires_grad_(), LABELS).backward()
    kept = [gradient.kept_LN is not None for _, gradient in head.pending.entries]
    assert kept == [True, False]


def test_step_of_unequal_selections_is_the_sum(monkeypatch):
    """Two micro-batches with different rows, in chunks that cut both, equal one dense gradient."""
    monkeypatch.setattr(heads.objectives.softmax, "CHUNK_ROWS", 3)
    selections = [torch.tensor([0, 2, 3, 5, 8, 9]), torch.tensor([0, 1, 3, 9])]
    labels = [torch.tensor([2, 9]), torch.tensor([0, 1])]
    head = PartialFC(10, 8, dtype=torch.float64)
    optimizer = head.optimizer(lr=0.1, momentum=0, weight_decay=0)
    dense = head.centers.rows.clone().requires_grad_()
    for ids, own in zip(selections, labels, strict=True):
        head.select_classes = lambda embeddings, labels, ids=ids: heads.Selection(ids)
        head(EMBEDDINGS[:2], own).backward()
        cos = normalize(EMBEDDINGS[:2].double()) @ normalize(dense[ids]).T
        targets = torch.searchsorted(ids, own)
        margin = 0.4 * torch.nn.functional.one_hot(targets, len(ids))
        torch.nn.functional.cross_entropy(64 * (cos - margin), targets).backward()
    optimizer.step()
    torch.testing.assert_close(head.centers.rows, (dense - 0.1 * dense.grad).detach(), rtol=1e-12, atol=1e-12)


def test_a_selection_without_a_positive_is_a_bug():
    head = PartialFC(10, 8)
    head.select_classes = lambda embeddings, labels: heads.Selection(torch.tensor([1, 2]))
    with pytest.raises(AssertionError, match="every positive"):
        head(EMBEDDINGS[:1], torch.tensor([3]))


@pytest.mark.parametrize("budget", [0, 512])
@pytest.mark.parametrize("rate", [0.6, 1])
def test_backward_after_a_step_is_refused(rate, budget):
    """The gradient would mix rows before the step with rows after it."""
    options = {"logits_budget_mb": budget}
    head = FullFC(7, 8, **options) if rate == 1 else PartialFC(7, 8, sample_rate=rate, **options)
    optimizer = head.optimizer(lr=0.5)
    x = EMBEDDINGS.clone().requires_grad_()
    late, early = head(x, LABELS), head(x, LABELS)
    early.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="class centers have changed since this loss was computed"):
        late.backward()


@pytest.mark.parametrize("budget", [0, 512])
def test_autograd_grad_leaves_no_gradient_of_rows(budget):
    """`torch.autograd.grad` accumulates no gradient, as for parameters; `backward` does, also after it."""
    rows = []
    for with_grad in (False, True):
        head = FullFC(7, 8, logits_budget_mb=budget)
        optimizer = head.optimizer(lr=0.5)
        x = EMBEDDINGS.clone().requires_grad_()
        loss = head(x, LABELS)
        before = head.centers.rows.clone()
        if with_grad:
            torch.autograd.grad(loss, x, retain_graph=True)
            optimizer.step()
            assert torch.equal(head.centers.rows, before)
            loss = head(x, LABELS)
            torch.autograd.grad(loss, x, retain_graph=True)
        loss.backward()
        optimizer.step()
        rows.append(head.centers.rows)
    torch.testing.assert_close(*rows)


@pytest.mark.parametrize("length", [0.0, 1e-9])
def test_an_embedding_without_direction_gets_no_gradient(length):
    """The gradients of the other embeddings do not change."""
    x = EMBEDDINGS.clone()
    x[3] *= length / x[3].norm()
    x.requires_grad_()
    head = FullFC(7, 8)
    head(x, LABELS).backward()
    assert not x.grad[3].any() and x.grad.norm() < 1e3
    others = torch.arange(12) != 3
    again = EMBEDDINGS[others].clone().requires_grad_()
    head(again, LABELS[others]).backward()
    torch.testing.assert_close(x.grad[others] * 12, again.grad * 11, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e18, 1e30])
def test_embeddings_of_any_length(scale):
    (small, expected) = (FullFC(7, 8)(x, LABELS) for x in (EMBEDDINGS * scale, EMBEDDINGS))
    torch.testing.assert_close(small, expected)
