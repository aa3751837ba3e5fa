"""The head without class centers against float64 losses that a loop computes sample by sample."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import heads.none
from experiments.train import train
from heads.core.cost import Case as Size
from heads.none import NoCenters, NoCentersOptions
from tests import reference
from tests.conformance import part_of
from tests.experiments.commands import config, metrics, summary
from tests.experiments.launching.test_processes import trained
from tests.workers import rank_and_world

D, C = 8, 7


@dataclass(frozen=True)
class Case:
    options: dict[str, Any] = field(default_factory=dict)
    weighted: bool = False
    labels: tuple[int, ...] = (0, 1, 2, 0, 1, 3, 0, 2, 1, 4, 0)  # 3 and 4 have one sample


CASES = {
    "contrastive": Case(),
    "temperature": Case({"temperature": 0.5}),
    "weights": Case(weighted=True),
    "ignored": Case({"ignore_label": 1}),
    "hard": Case({"loss": "triplet"}),
    "semihard": Case({"loss": "triplet", "mining": "semihard", "triplet_margin": 0.5}),
    "all": Case({"loss": "triplet", "mining": "all"}, weighted=True),
    "a small batch": Case(labels=(5, 6, 5)),
}


def losses_by_sample(x: Tensor, labels: list[int], options: dict[str, Any]) -> list[Tensor | None]:
    """Return the loss of each sample, in the dtype of the embeddings; None for those left out."""
    z, count = normalize(x), len(labels)
    losses: list[Tensor | None] = []
    for i in range(count):
        positives = [j for j in range(count) if j != i and labels[j] == labels[i]]
        negatives = [j for j in range(count) if labels[j] != labels[i]]
        if options.get("loss") != "triplet":
            t = options.get("temperature", 0.1)
            others = torch.stack([z[i] @ z[j] / t for j in range(count) if j != i])
            own = [-(z[i] @ z[p] / t - others.logsumexp(0)) for p in positives]
            losses.append(torch.stack(own).mean() if own else None)
            continue
        if not positives or not negatives:
            losses.append(None)
            continue
        margin, mining = options.get("triplet_margin", 0.2), options.get("mining", "hard")
        distance = [(z[i] - z[j]).square().sum() for j in range(count)]
        if mining == "hard":
            pairs = [(max(positives, key=lambda j: distance[j]), min(negatives, key=lambda j: distance[j]))]
        elif mining == "semihard":
            pairs = []
            for p in positives:
                farther = [n for n in negatives if distance[n] > distance[p]]
                chosen = (
                    min(farther, key=lambda j: distance[j]) if farther else max(negatives, key=lambda j: distance[j])
                )
                pairs.append((p, chosen))
        else:
            pairs = [(p, n) for p in positives for n in negatives if distance[p] - distance[n] + margin > 0]
        terms = [(distance[p] - distance[n] + margin).clamp(min=0) for p, n in pairs]
        losses.append(torch.stack(terms).mean() if terms else (z[i] * 0).sum())
    return losses


def mean_loss(x: Tensor, labels: list[int], weight: Tensor, options: dict[str, Any]) -> Tensor:
    """Return the weighted mean of the losses of the samples that have one."""
    kept = [i for i, label in enumerate(labels) if label != options.get("ignore_label")]
    losses = losses_by_sample(x[kept], [labels[i] for i in kept], options)
    pairs = [(weight[i], loss) for i, loss in zip(kept, losses, strict=True) if loss is not None]
    return sum(w * loss for w, loss in pairs) / sum(w for w, _ in pairs)


def batch(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor(case.labels)
    directions = torch.randn(C, D, generator=generator)
    x = 3 * (directions[labels] + torch.randn(len(labels), D, generator=generator))
    weight = torch.rand(len(labels), generator=generator) if case.weighted else torch.ones(len(labels))
    return x, labels, weight


def compute(case: Case, block: int) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradient of this process's part in a worker."""
    heads.none.BLOCK = block
    x, labels, weight = batch(case)
    mine = part_of(len(labels), *rank_and_world())
    head = NoCenters(C, D, **case.options)
    own = x[mine].clone().requires_grad_()
    loss = head(own, labels[mine], *([weight[mine]] if case.weighted else []))
    (3 * loss).backward()
    with torch.no_grad():
        assert torch.equal(head(own, labels[mine], weight[mine]), loss), "the loss depends on whether it has a gradient"
    return loss.detach(), own.grad


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_match_the_reference(name, world_size, workers):
    case = CASES[name]
    results = workers(world_size).run(compute, case, 3)
    x, _, weight = batch(case)
    found = {}
    for dtype in (torch.float64, torch.float32):
        leaf = x.to(dtype, copy=True).requires_grad_()
        loss = mean_loss(leaf, list(case.labels), weight.to(dtype), case.options)
        (3 * loss).backward()
        found[dtype] = loss.detach(), leaf.grad * world_size
    gradient = torch.cat([gradient for _, gradient in results])
    (exact, exact_gradient), (naive, naive_gradient) = found.values()
    assert all(torch.equal(loss, results[0][0]) for loss, _ in results), "the processes disagree"
    reference.close(results[0][0], exact, naive, "loss")
    reference.close(gradient, exact_gradient, naive_gradient, "gradient")
    assert exact_gradient.abs().max() > 0.01


@pytest.mark.parametrize("options", [case.options for case in CASES.values()])
def test_batches_without_a_loss_give_zero_not_nan(options):
    head = NoCenters(C, D, **options)
    for labels in ([], [3], [3, 4], [1, 1, 1] if options.get("loss") == "triplet" else [5, 6]):
        x = torch.randn(len(labels), D, requires_grad=True)
        if labels or "ignore_label" in options:
            loss = head(x, torch.tensor(labels, dtype=torch.int64))
            loss.backward()
            assert loss == 0 and torch.equal(x.grad, torch.zeros_like(x))


def test_identical_embeddings_have_a_finite_loss_and_gradient():
    x = torch.ones(6, D, requires_grad=True)
    for labels, log_of in (([0] * 6, 5), ([0, 0, 1, 1, 2, 2], 5)):
        loss = NoCenters(C, D)(x, torch.tensor(labels))
        assert float(loss.detach()) == pytest.approx(math.log(log_of))
    for mining in ("hard", "semihard", "all"):
        loss = NoCenters(C, D, loss="triplet", mining=mining)(x, torch.tensor([0, 0, 1, 1, 2, 2]))
        assert float(loss.detach()) == pytest.approx(0.2)
        loss.backward()
    assert torch.isfinite(x.grad).all()
    zeros = torch.zeros(4, D, requires_grad=True)
    NoCenters(C, D)(zeros, torch.tensor([0, 0, 1, 1])).backward()
    assert torch.equal(zeros.grad, torch.zeros(4, D))


def test_a_weight_of_zero_takes_an_anchor_but_no_candidate_away():
    x, labels, _ = batch(Case())
    weight = torch.ones(len(labels))
    weight[0] = 0
    losses = losses_by_sample(x.double(), labels.tolist(), {})
    expected = torch.stack([loss for loss in losses[1:] if loss is not None]).mean()
    assert float(NoCenters(C, D)(x, labels, weight)) == pytest.approx(float(expected), rel=1e-5)
    assert NoCenters(C, D)(x, labels, torch.zeros(len(labels))) == 0


def test_the_loss_changes_no_state_and_the_optimizer_counts_steps():
    head = NoCenters(C, D)
    optimizer = head.optimizer(lr=0.1, momentum=0.5)
    x, labels, _ = batch(Case())
    for _ in range(2):  # two micro-batches
        head(x.requires_grad_(), labels).backward()
    assert (head.step, head.micro_batch) == (0, 2)
    optimizer.step()
    optimizer.zero_grad()
    head.advance(applied=False)  # a step that fp16 skipped
    assert (head.step, head.micro_batch) == (2, 0)
    again = NoCenters(C, D)
    again.load_state_dict(copy.deepcopy(head.state_dict()))
    assert again.step == 2 and torch.equal(again(x, labels), head(x, labels))
    assert head.stats()["active_classes"] == 5 and head.stats()["images_with_loss"] == pytest.approx(9 / 11)
    head.eval()
    before = head.stats()
    head(x[:2], labels[:2])
    assert (head.stats()["active_classes"], head.micro_batch) == (before["active_classes"], 1)
    assert head.stats()["memory_bytes"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "softmax"}, "loss='softmax' must be one of contrastive, triplet"),
        ({"loss": "triplet", "mining": "easy"}, "mining='easy' must be one of hard, semihard, all"),
        ({"temperature": 0}, "temperature=0 must be a number above 0"),
        ({"temperature": math.inf}, "temperature=inf must be"),
        ({"loss": "triplet", "triplet_margin": -1}, "triplet_margin=-1 must be"),
        ({"loss": "triplet", "temperature": 1}, "temperature=1 belongs to loss=contrastive, not to loss=triplet"),
        ({"triplet_margin": 1}, "triplet_margin=1 belongs to loss=triplet"),
        ({"mining": "all"}, "mining=all belongs to loss=triplet"),
        ({"images_per_class": 1}, "images_per_class=1 must be at least 2"),
        ({"ignore_label": 0.5}, "ignore_label=0.5 must be a whole number"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        NoCenters(C, D, **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'margin'"):
        NoCenters(C, D, margin=None)


def refusals() -> list[str]:
    """Give process 0 bad batches in a worker, and return the errors, which every process raises."""
    rank, _ = rank_and_world()
    messages = []
    for kind in ("label", "nan", "several", "weight"):
        x, labels, weight = torch.randn(4, D), torch.tensor([0, 0, 1, 1]), torch.ones(4)
        if rank == 0 and kind == "label":
            labels[0] = C
        if rank == 0 and kind == "nan":
            x[0, 0] = torch.nan
        if rank == 0 and kind == "several":
            labels = labels[:, None].repeat(1, 2)
        if rank == 0 and kind == "weight":
            weight[0] = -1
        try:
            NoCenters(C, D)(x, labels, weight)
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_bad_batches_raise_on_all_processes(workers):
    first, second = workers(2).run(refusals)
    for message, words in zip(first, ("class ids", "NaN or Inf", "one integer class id for", "weight"), strict=True):
        assert words in message
    assert all(second)


def test_what_needs_class_centers_is_refused():
    head = NoCenters(C, D)
    with pytest.raises(ValueError, match="no class centers and no topk; use a head with class centers"):
        head.topk(torch.randn(2, D), 3)
    with pytest.raises(ValueError, match=r"holds no classes, .* set fidelity.interval=null"):
        head.check_fidelity()
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        x = torch.randn(4, D, requires_grad=True)
        torch.autograd.grad(head(x, torch.tensor([0, 0, 1, 1])), x, create_graph=True)


def test_cost_does_not_depend_on_the_number_of_classes():
    one, many = (NoCenters.cost(Size(c, 64, 256, 2), NoCentersOptions(), row_state={}) for c in (10, 10**8))
    assert one == many and one.table_bytes == 0
    assert one.multiply_adds == 3 * 128 * 256 * 64


SHORT = ("head=none", "experiment=smoke", "data=sphere", "data.num_classes=50", "data.num_heldout=9", "data.size=16")
SHORT += ("backbone=mlp", "embedding_size=16", "images_per_class=3", "batch_size=30", "trainer.log_interval=1")
SHORT += ("trainer.max_steps=6", "checkpoint.interval=3", "checkpoint.keep=9", "logger.wandb.mode=disabled")
SHORT += ("trainer.accelerator=cpu",)


def test_a_training_resumes_bit_for_bit_and_evaluates_on_two_processes(workers, tmp_path):
    assert workers(2).run(trained, [*SHORT], tmp_path / "a") == [0, 0]
    middle = f"resume={tmp_path / 'a' / 'checkpoints/step-00000003'}"
    assert workers(2).run(trained, [*SHORT, middle], tmp_path / "b") == [0, 0]
    whole, again = (metrics(tmp_path / name, "train/loss") for name in "ab")
    assert again == {step: loss for step, loss in whole.items() if step > 3} and len(again) == 3
    found = summary(tmp_path / "b")
    assert found["head"] == "NoCenters" and 0 < found["val/rank1"] <= 1 and found["head/active_classes"] == 10
    assert found["head/images_with_loss"] == 1


def test_a_triplet_training_learns(tmp_path):
    words = (*SHORT, "head.loss=triplet", "head.mining=semihard", "trainer.max_steps=60", "data.noise=0.5")
    assert train(config(*words), tmp_path) == 0
    losses = list(metrics(tmp_path, "train/loss").values())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fidelity.interval=2"], "its fidelity to a softmax over classes is not defined; set fidelity.interval=null"),
        (["batch_size=31"], "batch_size=31 .* multiple of images_per_class=3"),
        (
            ["evaluate.train_records=9"],
            "evaluate.train_records=9 compares records with all classes: NoCenters has no class centers and no topk",
        ),
    ],
)
def test_a_training_that_cannot_be_is_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(config(*SHORT, *words), tmp_path)
