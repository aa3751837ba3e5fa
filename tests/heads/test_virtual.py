"""Virtual FC against a float64 reference that writes the anchors one after the other, on 1, 2 and 3 processes."""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import heads.objectives.softmax
from experiments.train import train as start_training
from heads import BCE, AdaFace, ArcFace, ClassMargin, CosFace, RowAdamW, Softmax, UniFace
from heads.core.cost import Case as Size
from heads.fidelity import selection_fidelity
from heads.virtual import VirtualFC, VirtualFCOptions
from tests import reference
from tests.cases import part_of
from tests.experiments.commands import config, metrics, summary
from tests.experiments.launching.test_processes import trained
from tests.heads.margins.table import MARGINS
from tests.heads.objectives.test_uniface import start, uniface
from tests.reference import Rule
from tests.workers import rank_and_world

C, D, M = 1000, 16, 23
BATCHES = ((10,), (6, 8), (2,), (10, 4))  # samples of each micro-batch of each step
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Case:
    options: dict[str, Any] = field(default_factory=dict)
    rule: reference.MarginRule = field(default_factory=lambda: Rule(reference.arcface, s=32))
    formula: reference.Objective = reference.softmax
    bias: float | None = None
    dtype: torch.dtype = torch.float32
    weighted: bool = False
    optimizer_options: dict[str, Any] = field(default_factory=lambda: SGD)


CASES = {
    "arcface": Case(),
    "published lengths": Case({"anchor_length": None}),
    "recomputing": Case({"logits_budget_mb": 0}),
    "weights": Case(weighted=True),
    "double": Case(dtype=torch.float64),
    "cosface": Case({"margin": CosFace()}, Rule(reference.cosface)),
    "adaface": Case({"margin": AdaFace()}, MARGINS["adaface"][1]),
    "uniface": Case({"objective": UniFace(), "margin": CosFace()}, Rule(reference.cosface), uniface, start(M)),
    "host": Case({"store": "host"}),
    "no momentum": Case(optimizer_options={"lr": 0.1, "momentum": 0, "weight_decay": 0}),
}


def batch_of(case: Case, step: int, micro: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings, labels and weights of all processes. Labels 3, 3 + M and 3 + 2 M share an anchor."""
    size = BATCHES[step][micro]
    generator = torch.Generator().manual_seed(10 * step + micro)
    classes = torch.tensor([3 + 2 * M, 40, 3, 3 + M, 7, 999, 40 + M])
    # Two of each: the reference has no gradient where a sample is its own anchor.
    labels = classes[torch.randint(len(classes), (size // 2,), generator=generator)].repeat(2)
    embeddings = 3 * torch.randn(size, D, generator=generator)
    weight = torch.rand(size, generator=generator) if case.weighted else torch.ones(size)
    return embeddings.to(case.dtype), labels, weight.to(case.dtype)


def make(case: Case) -> VirtualFC:
    heads.objectives.softmax.CHUNK_ROWS = 4
    return VirtualFC(C, D, num_anchors=M, dtype=case.dtype, **copy.deepcopy(case.options))


def state_of(head: VirtualFC) -> dict[str, Tensor]:
    shard = slice(0, head.centers.shard.size)
    return {name: head.centers.read(shard, name).clone() for name in ("rows", *head.centers.state)}


def train(case: Case) -> list[dict[str, Any]]:
    """Run the steps in a worker; all forward passes of a step come before the first backward pass."""
    rank, world_size = rank_and_world()
    head = make(case)
    optimizer, results = head.optimizer(**case.optimizer_options), []
    assign = head.anchors_of
    for step, sizes in enumerate(BATCHES):
        assigned: list[dict[int, int]] = []

        def recording(classes: Tensor, of_sample: Tensor, assigned: Any = assigned) -> Any:
            anchors, lent = assign(classes, of_sample)
            assigned.append(dict(zip(classes.tolist(), anchors.tolist(), strict=True)))
            return anchors, lent

        head.anchors_of = recording  # type: ignore[method-assign]
        result: dict[str, Any] = {"before": state_of(head), "losses": [], "gradients": [], "assigned": assigned}
        graphs = []
        for micro in range(len(sizes)):
            embeddings, labels, weight = batch_of(case, step, micro)
            mine = part_of(len(labels), rank, world_size)
            x = embeddings[mine].clone().requires_grad_()
            graphs.append((x, head(x, labels[mine], weight[mine])))
        for x, loss in graphs:
            (loss / len(sizes)).backward()
            result["losses"].append(loss.detach())
            result["gradients"].append(x.grad)
        now = state_of(head)
        assert all(torch.equal(now[name], old) for name, old in result["before"].items()), "backward changed a row"
        optimizer.step()
        optimizer.zero_grad()
        result["after"] = state_of(head)
        result["bias"] = None if head.shared_bias is None else head.shared_bias.value.clone()
        results.append(result)
    return results


class Dense:
    """The reference in one dtype: anchors as a tensor, written class by class."""

    def __init__(self, case: Case, dtype: torch.dtype):
        self.case, self.dtype, self.carried = case, dtype, {}
        self.bias: Tensor | None = None if case.bias is None else torch.tensor([case.bias], dtype=dtype)
        self.momentum_of_bias: Tensor | None = None

    def step(self, step: int, before: dict[str, Tensor], assigned: list[dict[int, int]]) -> dict[str, Any]:
        """Return losses, gradients, and rows with momentum, where `assigned` has the anchors of the classes."""
        case = self.case
        stored, momentum = before["rows"].to(self.dtype), before.get("momentum")
        final, gradient, lent_in_all = stored.clone(), torch.zeros_like(stored), torch.ones(M, dtype=torch.bool)
        writer = [-1] * M
        passes: list[tuple[Tensor, Tensor]] = []
        result: dict[str, Any] = {"losses": [], "gradients": []}
        sizes = BATCHES[step]
        bias = None if self.bias is None else self.bias.clone().requires_grad_()
        for micro in range(len(sizes)):
            embeddings, labels, weight = batch_of(case, step, micro)
            x = embeddings.to(self.dtype).requires_grad_()
            rows, lent = stored.clone(), torch.zeros(M, dtype=torch.bool)
            for class_id, anchor in assigned[micro].items():
                total, length = x.detach()[labels == class_id].sum(0), case.options.get("anchor_length", 0.1)
                rows[anchor] = total if length is None else length * total / total.norm()
                if class_id % M == anchor:
                    writer[anchor], final[anchor] = micro, rows[anchor]
                else:
                    lent[anchor] = True
            rows.requires_grad_()
            targets = torch.tensor([assigned[micro][label] for label in labels.tolist()])
            loss, carried = reference.loss_and_state(
                case.rule, case.formula, rows, x, targets, weight.to(self.dtype), bias=bias, state=self.carried
            )
            (loss / len(sizes)).backward()
            result["losses"].append(loss.detach())
            result["gradients"].append(x.grad)
            passes.append((rows.grad, lent))
            lent_in_all &= lent
        self.carried = carried
        for anchor in range(M):
            for micro, (grad, lent) in enumerate(passes):
                if not lent[anchor] and writer[anchor] in (-1, micro):
                    gradient[anchor] += grad[anchor]
        took_part = torch.zeros(M, dtype=torch.bool)
        for anchor in range(M):
            took_part[anchor] = any(
                not lent[anchor] and writer[anchor] in (-1, micro) for micro, (_, lent) in enumerate(passes)
            )
        options = case.optimizer_options
        change = gradient + options["weight_decay"] * final
        if momentum is not None:
            change = change + options["momentum"] * momentum.to(self.dtype)
        moved = final - options["lr"] * change
        result["after"] = {"rows": torch.where(took_part[:, None], moved, stored)}
        if momentum is not None:
            result["after"]["momentum"] = torch.where(took_part[:, None], change, momentum.to(self.dtype))
        if bias is not None:
            change = bias.grad + options["weight_decay"] * self.bias
            if self.momentum_of_bias is not None:
                change = change + options["momentum"] * self.momentum_of_bias
            self.momentum_of_bias, self.bias = change, self.bias - options["lr"] * change
            result["bias"] = self.bias
        result["idle"] = ~took_part
        return result


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_steps_match_the_reference(name, world_size, workers):
    case = CASES[name]
    results = workers(world_size).run(train, replace(case, rule=Rule(), formula=reference.softmax))
    dense = [Dense(case, dtype) for dtype in (torch.float64, case.dtype)]
    compared: dict[str, list[tuple[Tensor, ...]]] = {}
    borrowed = 0
    for step in range(len(BATCHES)):
        parts = [result[step] for result in results]
        assert all(part["assigned"] == parts[0]["assigned"] for part in parts), "the processes disagree on anchors"
        before, after = (
            {key: torch.cat([part[when][key] for part in parts]) for key in parts[0][when]}
            for when in ("before", "after")
        )
        exact, naive = (each.step(step, before, parts[0]["assigned"]) for each in dense)
        for micro in range(len(BATCHES[step])):
            losses = [part["losses"][micro] for part in parts]
            assert all(torch.equal(loss, losses[0]) for loss in losses), "the processes disagree on the loss"
            gradients = torch.cat([part["gradients"][micro] for part in parts]) / world_size
            compared.setdefault("loss", []).append((losses[0], *(each["losses"][micro] for each in (exact, naive))))
            compared.setdefault("gradient", []).append((gradients, *(e["gradients"][micro] for e in (exact, naive))))
        for key, value in after.items():
            compared.setdefault(key, []).append((value, exact["after"][key], naive["after"][key]))
            assert torch.equal(value[exact["idle"]], before[key][exact["idle"]]), f"the {key} of a lent anchor changed"
        if case.bias is not None:
            compared.setdefault("bias", []).append((parts[0]["bias"], exact["bias"], naive["bias"]))
        borrowed += int(exact["idle"].sum())
    for what, each in compared.items():
        reference.close(*(torch.cat([part[which].flatten() for part in each]) for which in range(3)), what)
    assert borrowed >= 2


def some_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, D, generator=generator), torch.tensor([3, 3 + M, 40, 7]).repeat(2)


def stepped(head: VirtualFC, optimizer: Any, seed: int) -> Tensor:
    x, labels = some_batch(seed)
    mine = part_of(len(labels), *rank_and_world())
    loss = head(x[mine].requires_grad_(), labels[mine])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def test_only_a_step_writes_anchors():
    head = make(Case())
    optimizer = head.optimizer(**SGD)
    stepped(head, optimizer, 0)
    before = state_of(head)
    x, labels = some_batch(1)
    losses = [head(x.requires_grad_(), labels)]
    losses[0].backward()
    with torch.no_grad():
        head.micro_batch = 0
        losses.append(head(x, labels))
    optimizer.zero_grad()
    head.eval()
    losses.append(head(x, labels))
    head.train()
    head(x, labels).backward()
    head.advance(applied=False)  # a step that fp16 skipped
    optimizer.zero_grad()
    assert losses[0] == losses[1] == losses[2]
    after = state_of(head)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    stepped(head, optimizer, 2)
    changed = (state_of(head)["rows"] != before["rows"]).any(1)
    assert int((~changed).sum()) == 1  # the anchor that lent its place to class 3 + M
    assert not {3, 40 % M, 7} & set((~changed).nonzero()[:, 0].tolist())


def test_the_first_class_of_a_batch_takes_the_anchor_and_free_ones_are_drawn():
    head = make(Case())
    for labels in ([3 + M, 3, 9], [3, 3 + M, 9]):
        classes, of_sample = torch.unique(torch.tensor(labels), return_inverse=True)
        anchors, lent = head.anchors_of(classes, of_sample)
        assert classes[lent].tolist() == [labels[1]] and anchors[~lent].tolist() == (classes[~lent] % M).tolist()
        assert len(set(anchors.tolist())) == 3
    seen = set()
    for head.step in range(200):
        anchors, lent = head.anchors_of(torch.tensor([3, 3 + M, 9]), torch.tensor([0, 1, 2]))
        seen.add(int(anchors[1]))
    assert seen == set(range(M)) - {3, 9}
    classes = torch.arange(M) * M  # all belong to anchor 0
    anchors, lent = head.anchors_of(classes, torch.arange(M))
    assert sorted(anchors.tolist()) == list(range(M)) and lent.sum() == M - 1


def test_lone_images_and_sums_of_no_length_give_finite_numbers():
    head = make(Case())
    optimizer = head.optimizer(lr=1e-6, momentum=0, weight_decay=0)
    before = state_of(head)["rows"]
    x = torch.randn(5, D)
    x[1] = -x[0]  # class 5 has no direction
    x[4] = 0
    x.requires_grad_()
    loss = head(x, torch.tensor([5, 5, 6, 7, 8]))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all() and torch.isfinite(head.centers.rows).all()
    moved = (head.centers.rows - before).norm(dim=1)
    assert moved[[6, 7]].min() > 0.05 and moved[[5, 8]].max() < 0.01, "a sum without a length was written"


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"store": "disk"}])
def test_other_stores_write_what_the_device_writes(options, tmp_path):
    if "store" in options:
        options = {**options, "store_dir": tmp_path}
    first = make(Case({"anchor_length": None}))
    other = VirtualFC(C, D, num_anchors=M, anchor_length=None, rounding="nearest", **options)
    optimizers = [head.optimizer(**SGD) for head in (first, other)]
    for seed in range(3):
        losses = [stepped(head, optimizer, seed) for head, optimizer in zip((first, other), optimizers, strict=True)]
        rows = [state_of(head)["rows"] for head in (first, other)]
        if "store" in options:
            assert losses[0] == losses[1] and torch.equal(*rows)
        else:
            torch.testing.assert_close(*rows, rtol=0, atol=0.1)


def round_trip(rule: Any) -> tuple[Tensor, dict[str, Any]]:
    """Assert that saved state continues bit for bit in a worker; return a loss and the state of all processes."""
    head = make(Case())
    optimizer = head.optimizer(lr=0.1, rule=rule)
    for seed in range(2):
        stepped(head, optimizer, seed)
    saved, full = copy.deepcopy(head.state_dict()), head.full_state_dict()
    again = make(Case())
    its_optimizer = again.optimizer(lr=0.1, rule=rule)
    again.load_state_dict(saved)
    losses = [stepped(each, by, 2) for each, by in ((head, optimizer), (again, its_optimizer))]
    assert torch.equal(*losses)
    assert all(torch.equal(tensor, state_of(again)[name]) for name, tensor in state_of(head).items())
    return losses[0], full


def loaded(full: dict[str, Any], rule: Any) -> Tensor:
    head = make(Case())
    optimizer = head.optimizer(lr=0.1, rule=rule)
    head.load_state_dict(full)
    return stepped(head, optimizer, 2)


def test_state_continues_bit_for_bit_and_on_another_number_of_processes(workers):
    results = workers(3).run(round_trip, RowAdamW)
    loss, full = results[0]
    assert full["centers.rows"].shape == (M, D)
    for world_size in (1, 2):
        for other in workers(world_size).run(loaded, full, RowAdamW):
            torch.testing.assert_close(other, loss)


def test_memory_depends_on_the_anchors_alone():
    few, many = (VirtualFC(c, D, num_anchors=M) for c in (C, 10**8))
    assert few.stats()["memory_bytes"] == many.stats()["memory_bytes"] == 4 * M * D
    x, _ = some_batch()
    loss = many(x, torch.tensor([10**8 - 1, 5, 10**8 - 1, 5, 77_777_777, 77_777_777, 5, 5]))
    assert torch.isfinite(loss)
    costs = [VirtualFC.cost(Size(c, D, 64), VirtualFCOptions(num_anchors=M), row_state={}) for c in (C, 10**8)]
    assert costs[0] == costs[1] and costs[0].table_bytes == 4 * M * D
    assert VirtualFC(C, D).centers.shard.num_classes == 100 and VirtualFC(C, D).margin == ArcFace(s=32)


def test_ignored_samples_are_as_if_they_were_not_there():
    x, labels = some_batch()
    labels[2] = -100
    kept = labels != -100
    assert torch.equal(make(Case({"ignore_label": -100}))(x, labels), make(Case())(x[kept], labels[kept]))
    assert make(Case({"ignore_label": -100}))(x[2:3], labels[2:3]) == 0


@pytest.mark.parametrize(("share", "classes", "anchors"), [(1e-4, 1000, 64), (0.1, 50, 50), (0.1, 1000, 100)])
def test_a_share_of_few_classes_holds_the_classes_of_a_batch(share, classes, anchors):
    assert VirtualFC(classes, 8, num_anchors=share).centers.shard.num_classes == anchors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_anchors": 0}, "num_anchors=0 of num_classes=1000 must be a whole number of anchors from 1 to 1000, or"),
        ({"num_anchors": 1001}, "num_anchors=1001"),
        ({"num_anchors": 2.5}, r"num_anchors=2\.5"),
        ({"anchor_length": 0}, "anchor_length=0 must be at least 0.001"),
        ({"images_per_class": 1}, "images_per_class=1 must be at least 2"),
        ({"margin": Softmax()}, "margin=Softmax.* has a bias for each class, and an anchor of VirtualFC stands for"),
        ({"margin": ClassMargin(), "class_counts": torch.arange(C)}, "margin=ClassMargin.* depends on class counts"),
        ({"margin": CosFace(), "objective": BCE()}, "objective=BCE.* has a bias for each class"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        VirtualFC(C, D, **options)


def refusals() -> list[str]:
    """Give process 0 bad batches in a worker, and return the errors, which every process raises."""
    rank, _ = rank_and_world()
    messages = []
    for kind in ("label", "several", "room"):
        x, labels = some_batch()
        head = VirtualFC(C, D, num_anchors=3 if kind == "room" else M)
        if rank == 0 and kind == "label":
            labels[0] = C
        if kind == "several":
            labels = torch.stack([labels, labels + 1], dim=1)
        try:
            head(x, labels)
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_bad_batches_raise_on_all_processes(workers):
    expected = ("class ids must be in", "pass labels of shape (n,)", "the batch has 4 classes and num_anchors=3")
    for messages in workers(2).run(refusals):
        for message, words in zip(messages, expected, strict=True):
            assert words in message


def test_what_needs_class_centers_is_refused():
    head = make(Case())
    with pytest.raises(ValueError, match="has anchors for many classes each and no topk; use a head with class"):
        head.topk(torch.randn(2, D), 3)
    with pytest.raises(ValueError, match=r"its fidelity .* is not defined; set fidelity.interval=null"):
        selection_fidelity(head, *some_batch())
    assert head.class_centers is None


SHORT = ("head=virtual", "experiment=smoke", "data=sphere", "data.num_classes=100", "data.num_heldout=9")
SHORT += ("data.size=16", "backbone=mlp", "embedding_size=16", "images_per_class=3", "batch_size=30")
SHORT += ("num_anchors=25", "trainer.log_interval=1", "trainer.max_steps=6", "checkpoint.interval=3")
SHORT += ("checkpoint.keep=9", "logger.wandb.mode=disabled", "trainer.accelerator=cpu")


def test_a_training_resumes_bit_for_bit_and_evaluates_on_two_processes(workers, tmp_path):
    assert workers(2).run(trained, [*SHORT], tmp_path / "a") == [0, 0]
    middle = f"resume={tmp_path / 'a' / 'checkpoints/step-00000003'}"
    assert workers(2).run(trained, [*SHORT, middle], tmp_path / "b") == [0, 0]
    whole, again = (metrics(tmp_path / name, "train/loss") for name in "ab")
    assert again == {step: loss for step, loss in whole.items() if step > 3} and len(again) == 3
    assert workers(1).run(trained, [*SHORT, middle], tmp_path / "c") == [0]
    for step, loss in metrics(tmp_path / "c", "train/loss").items():
        assert loss == pytest.approx(whole[step], rel=1e-4)
    found = summary(tmp_path / "b")
    assert 0 < found["val/rank1"] <= 1 and found["head/active_classes"] == 13  # 25 anchors on 2 processes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fidelity.interval=2"], "its fidelity .* is not defined; set fidelity.interval=null"),
        (["num_anchors=9"], "the batch has 10 classes and num_anchors=9 is smaller"),
        (["evaluate.train_records=9"], "evaluate.train_records=9 "),
        (["margin=softmax"], "margin=Softmax.* has a bias for each class"),
    ],
)
def test_a_training_that_cannot_be_is_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        start_training(config(*SHORT, *words), tmp_path)
