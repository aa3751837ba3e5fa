"""FFC against a float64 reference that processes one gallery image after the other."""

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from heads import FFC, ArcFace, ClassMargin, CosFace, MagFace, Margin, Softmax, SVSoftmax
from tests import reference
from tests.conformance import part_of
from tests.heads.margins.table import class_arc, magface
from tests.reference import MarginRule, Rule
from tests.workers import rank_and_world


@dataclass(frozen=True)
class Case:
    margin: Margin = field(default_factory=lambda: CosFace(s=32))
    rule: MarginRule = field(default_factory=lambda: Rule(reference.cosface, s=32))
    options: dict[str, Any] = field(default_factory=dict)
    num_classes: int = 40
    queue_size: int = 13
    steps: int = 50


CASES = {
    "cosface": Case(),
    "arcface": Case(ArcFace(s=32), Rule(reference.arcface, s=32)),
    "sv": Case(SVSoftmax(s=32), Rule(reference.sv_target, reference.sv_negative, s=32)),
    "magface": Case(MagFace(shortest=6), partial(magface, shortest=6.0)),
    "class margin": Case(ClassMargin(), class_arc, {"class_counts": torch.arange(40)}),
    "outlier weight": Case(options={"outlier_weight": 0.3}),
    "small pool": Case(queue_size=10),
    "all in the pool": Case(queue_size=40),
    "unfilled slots as negatives": Case(queue_size=40, options={"mask_unfilled": False}),
}
D = 32


class Sequential:
    """Reference of the pool and both losses, one image at a time; `queue` is [row][slot]."""

    def __init__(self, case: Case, queue: Tensor, dtype: torch.dtype):
        self.case, self.dtype = case, dtype
        self.slot_of: OrderedDict[int, int] = OrderedDict()  # least recently used first
        self.queue = [list(row) for row in queue.to(dtype)]
        self.next_row = [0] * case.queue_size

    def insert(self, feature: Tensor, label: int, hit: set[int]) -> None:
        if label in self.slot_of:
            slot = self.slot_of[label]
            self.slot_of.move_to_end(label)
            row = self.next_row[slot]
            hit.add(slot)
        else:
            if len(self.slot_of) < self.case.queue_size:
                slot = len(self.slot_of)
            else:
                _, slot = self.slot_of.popitem(last=False)
            self.slot_of[label] = slot
            row = 0
        self.queue[row][slot] = feature
        self.next_row[slot] = 1 - row

    def loss(self, probe: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, keep: bool) -> Tensor:
        before = copy.deepcopy((self.slot_of, [list(row) for row in self.queue], self.next_row))
        hit: set[int] = set()
        for feature, label in zip(normalize(gallery.to(self.dtype)), gallery_labels.tolist(), strict=True):
            self.insert(feature, label, hit)
        masked = self.case.options.get("mask_unfilled", True)
        slots = range(len(self.slot_of) if masked else self.case.queue_size)
        first = torch.stack([self.queue[0][slot] for slot in slots])
        second = torch.stack([self.queue[1 if slot in hit else 0][slot] for slot in slots])
        own = torch.tensor([self.slot_of.get(label, -1) for label in labels.tolist()])
        inside, outside = own >= 0, own < 0
        total = (probe * 0).sum()
        for rows in (first, second):
            if inside.any():
                ones = torch.ones(int(inside.sum()), dtype=self.dtype)
                counts = self.case.options.get("class_counts")
                count = None if counts is None else counts[labels[inside]].to(self.dtype)
                total = (
                    total
                    + reference.loss_and_state(
                        self.case.rule, reference.softmax, rows, probe[inside], own[inside], ones, count=count
                    )[0]
                )
            if outside.any():
                nearest = (normalize(probe[outside]) @ normalize(rows).T).topk(min(3, len(rows)), dim=1).values
                total = total + self.case.options.get("outlier_weight", 1.0) * nearest.clamp(min=0).mean()
        if not keep:
            self.slot_of, self.queue, self.next_row = before
        return total


def batch(case: Case, step: int, which: int) -> tuple[Tensor, Tensor]:
    """Return embeddings or features of all processes, and labels with repeats."""
    generator = torch.Generator().manual_seed(10 * step + which)
    labels = torch.randint(case.num_classes, (9,), generator=generator)
    if step % 3 == 0:
        labels[3] = labels[5] = labels[0]
    directions = torch.randn(case.num_classes, D, generator=torch.Generator().manual_seed(99))
    return directions[labels] + torch.randn(9, D, generator=generator), labels


def steps(case: Case) -> list[dict[str, Any]]:
    """Run both passes of each step in a worker, and return the results."""
    rank, world_size = rank_and_world()
    mine = part_of(9, rank, world_size)
    head = FFC(case.num_classes, D, queue_size=case.queue_size, margin=case.margin, **case.options)
    optimizer = head.optimizer(lr=0.1)
    results = [{"queue": head.queue.clone()}]
    for step in range(case.steps):
        (x, x_labels), (y, y_labels) = batch(case, step, 0), batch(case, step, 1)
        probes = [tensor[mine].clone().requires_grad_() for tensor in (x, y)]
        unkept = head(probes[0], x_labels[mine], y[mine], y_labels[mine], keep=False)
        kept = head(probes[1], y_labels[mine], x[mine], x_labels[mine])
        (unkept + kept).backward()
        optimizer.step()
        state = head.pool.state_dict()
        results.append(
            {
                "loss": torch.stack([unkept.detach(), kept.detach()]),
                "gradients": [probe.grad for probe in probes],
                "pool": dict(zip(state["classes"].tolist(), state["slots"].tolist(), strict=True)),
                "queue": head.queue.clone(),
                "next_row": head.features.next_row[: head.pool.used].tolist(),
                "stats": head.stats(),
            }
        )
    return results


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_match_the_reference(name, world_size, workers):
    case = CASES[name]
    of_ranks = workers(world_size).run(steps, case)
    plain = {d: Sequential(case, of_ranks[0][0]["queue"], d) for d in (torch.float64, torch.float32)}
    compared: dict[str, list[Any]] = {"loss": [], "gradient": []}
    evicted = 0
    for step in range(case.steps):
        parts = [results[step + 1] for results in of_ranks]
        (x, x_labels), (y, y_labels) = batch(case, step, 0), batch(case, step, 1)
        losses, gradients = {}, {}
        for dtype, sequential in plain.items():
            probes = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, y)]
            unkept = sequential.loss(probes[0], x_labels, y, y_labels, keep=False)
            kept = sequential.loss(probes[1], y_labels, x, x_labels, keep=True)
            (unkept + kept).backward()
            losses[dtype] = torch.stack([unkept.detach(), kept.detach()])
            gradients[dtype] = torch.cat([probe.grad for probe in probes]) * world_size
        ours = torch.cat([torch.cat([part["gradients"][which] for part in parts]) for which in (0, 1)])
        compared["loss"].append((parts[0]["loss"], *losses.values()))
        compared["gradient"].append((ours, *gradients.values()))
        exact = plain[torch.float64]
        for part in parts:
            assert torch.equal(part["loss"], parts[0]["loss"]) and torch.equal(part["queue"], parts[0]["queue"])
            assert list(part["pool"].items()) == list(exact.slot_of.items()), "classes, slots or their order"
            assert part["next_row"] == exact.next_row[: len(exact.slot_of)]
            queue = torch.stack([torch.stack(row) for row in exact.queue])
            torch.testing.assert_close(part["queue"].double(), queue, rtol=0, atol=1e-6)
            evicted += part["stats"]["evicted_classes"]
    for what, columns in compared.items():
        ours, exact, naive = (torch.cat([part.flatten() for part in column]) for column in zip(*columns, strict=True))
        reference.close(ours, exact, naive, what)
    assert evicted > 50 or case.queue_size == case.num_classes


def small(**options: Any) -> tuple[FFC, nn.Module]:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    head = FFC(20, 8, queue_size=12, margin=CosFace(s=16), **options)
    head.prepare(backbone)
    return head, backbone


def some_batch(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(20, (4,), generator=generator)
    images = torch.randn(16, 6, generator=generator)
    return {
        "identity": (images[:8], torch.cat([labels, labels])),
        "instance": (images[8:], torch.randint(20, (8,), generator=generator)),
    }


def test_the_momentum_copy_is_updated_and_gets_no_gradient():
    head, backbone = small(gallery_momentum=0.9)
    optimizers = [torch.optim.SGD(backbone.parameters(), lr=0.1), head.optimizer(lr=0.1)]
    for step in range(3):
        before = [p.clone() for p in head.gallery.parameters()]
        theirs = [p.detach().clone() for p in backbone.parameters()]
        head.training_loss(backbone, some_batch(step)).backward()
        for ours, old, new in zip(head.gallery.parameters(), before, theirs, strict=True):
            torch.testing.assert_close(ours, 0.9 * old + 0.1 * new)
            assert ours.grad is None and not ours.requires_grad
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert head.step == 3
    running = head.gallery[1].running_mean.clone()
    head.eval()
    assert torch.equal(head.gallery[1].running_mean, backbone[1].running_mean)
    assert not torch.equal(running, backbone[1].running_mean)


@pytest.mark.parametrize(
    ("given", "step", "momentum"),
    [
        (None, 0, 0.1),
        (None, 8, 0.5),
        (None, 390, 0.9775),
        (None, 890, 0.99),
        (None, 10**6, 0.99),
        (0.99, 0, 0.99),
        (0, 9, 0),
    ],
)
def test_the_momentum_grows_with_the_step_unless_given(given, step, momentum):
    """A constant momentum would fill the pool of a short training with features of an untrained backbone."""
    head, backbone = small(gallery_momentum=given)
    head.step = step
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1)
    before = [p.clone() for p in head.gallery.parameters()]
    head.training_loss(backbone, some_batch())
    for ours, old, new in zip(head.gallery.parameters(), before, backbone.parameters(), strict=True):
        torch.testing.assert_close(ours, momentum * old + (1 - momentum) * new.detach())


def test_accumulation_updates_the_momentum_copy_once():
    head, backbone = small(gallery_momentum=0.5)
    optimizer = head.optimizer(lr=0.1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1)
    head.training_loss(backbone, some_batch(0)).backward()
    moved = [p.clone() for p in head.gallery.parameters()]
    head.training_loss(backbone, some_batch(1)).backward()
    assert all(torch.equal(a, b) for a, b in zip(moved, head.gallery.parameters(), strict=True))
    optimizer.step()
    head.training_loss(backbone, some_batch(2)).backward()
    assert not any(torch.equal(a, b) for a, b in zip(moved, head.gallery.parameters(), strict=True))


def test_training_loss_is_the_sum_of_both_passes():
    head, backbone = small()
    again = copy.deepcopy(head)
    again._encoder = head._encoder
    loss = head.training_loss(backbone, some_batch())
    images = some_batch()
    (pairs, pair_labels), (others, labels) = images["identity"], images["instance"]
    x, y = torch.cat([pairs[:4], others[:4]]), torch.cat([pairs[4:], others[4:]])
    x_labels, y_labels = torch.cat([pair_labels[:4], labels[:4]]), torch.cat([pair_labels[4:], labels[4:]])
    probes, features = backbone(torch.cat([x, y])), again.gallery(torch.cat([x, y]))
    expected = again(probes[:8], x_labels, features[8:], y_labels, keep=False)
    expected = expected + again(probes[8:], y_labels, features[:8], x_labels)
    assert torch.equal(loss, expected) and torch.equal(head.queue, again.queue)


def test_no_probe_in_the_pool_or_none_outside_gives_zero_not_nan():
    head = FFC(20, 8, queue_size=12)
    gallery, labels = torch.randn(4, 8), torch.arange(4)
    probe = torch.randn(3, 8, requires_grad=True)
    outside = head(probe, torch.tensor([10, 11, 12]), gallery, labels)
    assert 0 <= outside < 2
    inside = head(gallery.clone(), labels, gallery, labels)
    assert torch.isfinite(inside)
    outside.backward()
    assert torch.isfinite(probe.grad).all()
    unweighted = FFC(20, 8, queue_size=12, outlier_weight=0)
    assert unweighted(probe, torch.tensor([10, 11, 12]), gallery, labels) == 0
    empty = head(torch.empty(0, 8, requires_grad=True), labels[:0], gallery, labels)
    assert empty == 0


def test_eval_and_keep_false_change_nothing():
    head = FFC(20, 8, queue_size=12)
    head(torch.randn(4, 8), torch.arange(4), torch.randn(4, 8), torch.arange(4))
    before = copy.deepcopy(head.get_extra_state())
    probe, labels, gallery = torch.randn(4, 8), torch.arange(2, 6), torch.randn(4, 8)
    losses = [head(probe, labels, gallery, labels, keep=False)]
    head.eval()
    losses.append(head(probe, labels, gallery, labels))
    after = head.get_extra_state()
    assert losses[0] == losses[1] and torch.equal(before["queue"], after["queue"])
    assert before["pool"]["classes"].tolist() == after["pool"]["classes"].tolist()
    assert before["checksum"] == after["checksum"]


def test_state_round_trip_continues_bit_for_bit():
    def train(head: FFC, backbone: nn.Module, first: int, count: int) -> list[float]:
        optimizers = [torch.optim.SGD(backbone.parameters(), lr=0.1), head.optimizer(lr=0.1)]
        losses = []
        for step in range(first, first + count):
            loss = head.training_loss(backbone, some_batch(step))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    head, backbone = small()
    train(head, backbone, 0, 5)
    saved = copy.deepcopy((head.state_dict(), backbone.state_dict()))
    expected = train(head, backbone, 5, 5)
    again, its_backbone = small()
    again.load_state_dict(saved[0])
    its_backbone.load_state_dict(saved[1])
    assert train(again, its_backbone, 5, 5) == expected
    assert torch.equal(again.queue, head.queue) and again.step == 10
    with pytest.raises(ValueError, match="queue_size=11"):
        other = FFC(20, 8, queue_size=11)
        other.prepare(backbone)
        other.load_state_dict(saved[0])


def test_bf16_features_stay_close():
    losses = []
    for dtype in ("fp32", "bf16"):
        head = FFC(20, 8, queue_size=12, dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            tensors = torch.randn(2, 6, 8, generator=generator)
            labels = torch.randint(20, (6,), generator=generator)
            loss = head(tensors[0].to(torch.bfloat16 if dtype == "bf16" else torch.float32), labels, tensors[1], labels)
        losses.append(float(loss))
        assert head.queue.element_size() == (4 if dtype == "fp32" else 2)
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.02 * losses[0]


def test_a_share_below_one_class_is_reported():
    with pytest.raises(ValueError, match=r"queue_size=0.1 of num_classes=4 is less than one class; give .* 4"):
        FFC(4, 8, queue_size=0.1)
    assert FFC(6, 8, queue_size=0.1).pool.capacity == 1


def test_memory_does_not_grow_with_classes():
    sizes = {FFC(c, 16, queue_size=1000).stats()["memory_bytes"] for c in (10_000, 10_000_000)}
    assert len(sizes) == 1


def _bad_batches() -> list[str]:
    """Give process 0 bad batches in a worker, and return the errors, which every process raises."""
    rank, _ = rank_and_world()
    messages = []
    for kind in ("label", "nan", "gallery label", "room"):
        head = FFC(20, 8, queue_size=4 if kind == "room" else 12)
        probe, labels = torch.randn(4, 8), torch.arange(4)
        gallery, gallery_labels = probe.clone(), labels.clone()
        if rank == 0 and kind == "label":
            labels[0] = 20
        if rank == 0 and kind == "gallery label":
            gallery_labels[0] = -1
        if rank == 0 and kind == "nan":
            gallery[0, 0] = torch.nan
        try:
            head(probe, labels, gallery, gallery_labels)
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_bad_values_raise_on_all_processes(workers):
    for messages in workers(2).run(_bad_batches):
        for message, words in zip(messages, ("class ids", "NaN or Inf", "class ids", "8 is the smallest"), strict=True):
            assert words in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue_size": 0}, "queue_size=0"),
        ({"queue_size": 1.5}, r"queue_size=1\.5"),
        ({"queue_size": 21}, "up to num_classes=20"),
        ({"margin": Softmax()}, "a margin that normalizes"),
        ({"gallery_momentum": 1.1}, "gallery_momentum"),
        ({"outlier_weight": -1}, "outlier_weight"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FFC(20, 8, **options)


def test_queue_size_as_a_share_and_its_smallest_value():
    assert FFC(1000, 8, queue_size=0.1).pool.capacity == 100
    head = FFC(1000, 8, queue_size=20)
    assert head.stream_sizes(40) == {"instance": 20, "identity": 20}
    with pytest.raises(ValueError, match=r"queue_size=20 is smaller than the 32 .* 32 is the smallest"):
        head.stream_sizes(64)
    assert FFC(1000, 8, queue_size=100, identity_share=2 / 3).stream_sizes(48) == {"instance": 16, "identity": 32}
    for size in (31, 2):
        with pytest.raises(
            ValueError, match=rf"batch_size={size} with identity_share=0\.5 gives .* both numbers must be even"
        ):
            head.stream_sizes(size)
    with pytest.raises(ValueError, match="identity_share=1 must be between 0 and 1"):
        FFC(1000, 8, identity_share=1)


def test_topk_is_refused():
    with pytest.raises(ValueError, match="no class centers"):
        FFC(20, 8, queue_size=12).topk(torch.randn(2, 8), 3)
