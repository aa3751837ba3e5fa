"""Samples with the label `ignore_label`, and samples of weight 0."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from heads import BCE, CosFace, CurricularFace, ElasticFace, FullFC, HashingForest, PartialFC, Softmax, UniFace
from heads.indexes import Exact
from tests.workers import rank_and_world

C, D, IGNORED = 41, 8, -100
LABELS = torch.tensor([3, IGNORED, 5, IGNORED, IGNORED, 7, 3, IGNORED])
PARTS = {1: [slice(0, 8)], 2: [slice(0, 3), slice(3, 8)], 3: [slice(0, 3), slice(3, 5), slice(5, 8)]}
KINDS = {
    "full": (FullFC, {}),
    "full, few rows": (FullFC, {"min_probability": 1e-3}),
    "pfc": (PartialFC, {"sample_rate": 0.3, "margin": CurricularFace()}),
    "pfc, bce": (PartialFC, {"sample_rate": 0.3, "objective": BCE()}),
    "forest": (HashingForest, {"num_active": 20, "index": Exact(), "build": "blocking", "objective": UniFace()}),
    "elastic": (FullFC, {"margin": ElasticFace(plus=True)}),
}


def batch(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(labels), D, generator=generator)
    embeddings[labels == IGNORED] = torch.nan  # they take no part, whatever they are
    return embeddings, labels, torch.rand(len(labels), generator=generator)


def compare(name: str) -> None:
    """Assert in a worker that a step is bit for bit that of the batch without the ignored samples."""
    rank, world_size = rank_and_world()
    (kind, options), mine = KINDS[name], PARTS[world_size][rank]
    embeddings, labels, weight = (part[mine] for part in batch(LABELS))
    kept, results = labels != IGNORED, []
    for ignore_label, chosen in ((IGNORED, slice(None)), (None, kept)):
        head = kind(C, D, ignore_label=ignore_label, **options)
        optimizer = head.optimizer(lr=0.1)
        x = embeddings[chosen].clone().requires_grad_()
        loss = head(x, labels[chosen], weight[chosen])
        loss.backward()
        optimizer.step()
        assert x.grad is not None
        results.append((loss.detach(), x.grad, head.centers.rows, head.carried))
    (ours, gradient, rows, carried), (others, gradient_of_kept, rows_of_kept, carried_of_kept) = results
    assert torch.equal(ours, others) and torch.equal(rows, rows_of_kept) and carried == carried_of_kept
    assert torch.equal(gradient[kept], gradient_of_kept) and not gradient[~kept].any()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ignored_samples_take_no_part(world_size, workers):
    """One of three processes has no other sample."""
    for name in KINDS:
        workers(world_size).run(compare, name)


def all_ignored(name: str) -> None:
    """Assert in a worker that a batch of ignored samples alone changes nothing, and that training goes on."""
    rank, world_size = rank_and_world()
    (kind, options), mine = KINDS[name], PARTS[world_size][rank]
    head = kind(C, D, ignore_label=IGNORED, **options)
    optimizer = head.optimizer(lr=0.1)
    embeddings, labels, _ = (part[mine] for part in batch(LABELS))
    head(embeddings.clone().requires_grad_(), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = [head.centers.rows.clone(), head.centers.state["momentum"].clone(), head.carried]
    x = torch.randn(len(labels), D, requires_grad=True)
    loss = head(x, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss == 0 and x.grad is not None and not x.grad.any()
    optimizer.step()
    optimizer.zero_grad()
    assert torch.equal(head.centers.rows, before[0]) and torch.equal(head.centers.state["momentum"], before[1])
    assert head.carried == before[2] and head.step == 2
    assert head.eval()(x, torch.full_like(labels, IGNORED)) == 0
    with torch.no_grad():
        assert head.train()(x, torch.full_like(labels, IGNORED)) == 0


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_of_ignored_samples_has_no_gradient(world_size, workers):
    for name in KINDS:
        workers(world_size).run(all_ignored, name)


@pytest.mark.parametrize(
    ("ignored", "labels", "kept", "of_kept"),
    [
        (IGNORED, [[3, IGNORED], [IGNORED, -1], [5, 7], [IGNORED, IGNORED]], [0, 2], [[3, -1], [5, 7]]),
        (-1, [[3, -1], [-1, -1], [5, 7]], [0, 2], [[3, -1], [5, 7]]),
        (-1, [[3, -1], [-1, -1], [5, -1]], [0, 2], [3, 5]),
    ],
)
def test_one_of_several_labels_may_be_ignored(ignored, labels, kept, of_kept):
    """A sample without another label takes no part."""
    x = torch.randn(len(labels), D)
    ours = FullFC(C, D, ignore_label=ignored)(x, torch.tensor(labels))
    assert torch.equal(ours, FullFC(C, D)(x[kept], torch.tensor(of_kept)))


def test_it_is_the_ignore_index_of_torch():
    head = FullFC(C, D, ignore_label=5, margin=Softmax(), dtype="fp64")  # a class id may be ignored too
    embeddings, labels = torch.randn(8, D, dtype=torch.float64), torch.tensor([5, 3, 5, 1, 2, 40, 5, 0])
    logits = embeddings @ head.centers.rows[:, :D].T + head.centers.rows[:, D]
    expected = cross_entropy(logits, labels, ignore_index=5)
    torch.testing.assert_close(head(embeddings.requires_grad_(), labels).detach(), expected.detach())


def test_micro_batches_and_a_scaler_get_along_with_ignored_samples():
    """An ignored micro-batch adds nothing to the others, before or after them."""
    embeddings, labels, _ = batch(torch.tensor([1, 2, 3, 4]))
    after = []
    for order in ("b", "ab", "ba", "aba"):
        head = PartialFC(C, D, sample_rate=0.3, ignore_label=IGNORED)
        optimizer, scaler = head.optimizer(lr=0.1), torch.amp.GradScaler("cpu")
        for part in order:
            given = labels if part == "b" else torch.full_like(labels, IGNORED)
            scaler.scale(head(embeddings.clone().requires_grad_(), given)).backward()
        scaler.step(optimizer)
        scaler.update()
        after.append(head.centers.rows.clone())
        optimizer.zero_grad()
        head(embeddings.clone().requires_grad_(), torch.full_like(labels, IGNORED)).backward()
        scaler.step(optimizer)  # it finds a gradient
        assert torch.equal(head.centers.rows, after[-1])
    assert all(torch.equal(rows, after[0]) for rows in after)


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_of_weight_0_has_loss_0(name):
    kind, options = KINDS[name]
    head = kind(C, D, **options)
    x = torch.randn(4, D, requires_grad=True)
    loss = head(x, torch.arange(4), torch.zeros(4))
    loss.backward()
    assert loss == 0 and x.grad is not None and not x.grad.any()


def test_wrong_uses_are_refused():
    for label in (1.5, True, "none"):
        with pytest.raises(ValueError, match=f"ignore_label={label!r} must be a whole number, such as -100"):
            FullFC(C, D, ignore_label=label)
    x = torch.randn(2, D)
    with pytest.raises(ValueError, match="label -100 at step 0 is out of range"):
        FullFC(C, D, ignore_label=-1)(x, torch.tensor([-1, -100]))
    with pytest.raises(ValueError, match=r"labels of .* must be one integer class id"):
        FullFC(C, D, ignore_label=-1)(x, torch.tensor([-1.0, 2.0]))


@pytest.mark.parametrize("objective", [None, UniFace()])
def test_an_ignored_class_is_no_negative_of_its_image(objective):
    """The row of class 7 may be anywhere: the image of classes 3 and 7 does not see it."""
    x, losses = torch.randn(1, 8), []
    for factor in (1.0, -1.0):
        head = FullFC(20, 8, margin=CosFace(s=4), ignore_label=7, objective=objective)
        head.centers.rows[7] *= factor
        losses.append(head(x, torch.tensor([[3, 7]])).item())
        assert head(x, torch.tensor([[3, -1]])).item() != losses[-1]  # without its label, class 7 is a negative
    assert losses[0] == losses[1]
