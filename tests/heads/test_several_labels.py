"""Several labels a sample: labels (N, L) padded with -1, in all heads with class centers."""

from itertools import combinations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from heads import (
    BCE,
    FFC,
    AdaFace,
    ClassMargin,
    CosFace,
    CrossEntropy,
    CurricularFace,
    Exact,
    FullFC,
    HashingForest,
    MagFace,
    PartialFC,
    SVSoftmax,
    UniFace,
)
from heads.fidelity import selection_fidelity
from heads.group.positives import draw, positives_of
from tests import several
from tests.workers import rank_and_world


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


COUNTS = torch.arange(1, 42)
FOREST = {"num_active": 0.4, "index": Exact(), "build": "blocking", "interval": 1}

OBJECTIVES = [None, UniFace(), BCE()]
HEADS = [(FullFC, {}), (PartialFC, {"sample_rate": 0.5, "log_q": True}), (HashingForest, FOREST)]
LABELS = torch.tensor([5, 0, 5, 40, 17, 3, 22])


def written(labels: torch.Tensor, form: str) -> torch.Tensor:
    """Return one label a sample, written as labels (N,) or (N, L)."""
    one, none = labels[:, None], -torch.ones(len(labels), 1, dtype=torch.int64)
    columns = {"(N, 1)": [one], "padded": [one, none, none], "padded first": [none, one], "repeated": [one, none, one]}
    return (
        labels if form == "(N,)" else torch.cat(columns[form], 1).to(torch.int32 if form == "padded" else torch.int64)
    )


def trained(head: type, options: dict, form: str) -> list[torch.Tensor]:
    """Train a head for two steps in float32 and return losses, gradients, rows and momentum."""
    built = head(41, 8, class_counts=COUNTS, **options)
    optimizer = built.optimizer(lr=0.1)
    results = []
    for step in range(2):
        x = torch.randn(len(LABELS), 8, generator=torch.Generator().manual_seed(step), requires_grad=True)
        loss = built(20 * x, written(LABELS, form))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        results += [loss.detach(), x.grad]
    return [*results, built.centers.rows, *built.centers.state.values()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
@pytest.mark.parametrize("margin", [CosFace(), AdaFace(), MagFace(), ClassMargin()], ids=lambda m: type(m).__name__)
def test_one_label_is_bit_for_bit(objective, margin):
    for head, options in HEADS:
        options = {**options, "objective": objective, "margin": margin, "positives": "draw:2"}
        if objective is not None:
            options.pop("log_q", None)
        one = trained(head, options, "(N,)")
        for form in ("(N, 1)", "padded", "padded first", "repeated"):
            same = trained(head, options, form)
            assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True)), f"{head.__name__}, {form}"


def with_widths(labels: torch.Tensor, widths: list[int]) -> list[torch.Tensor]:
    """Train a step in a worker that pads its labels to a width of its own, with 0 samples in the last process."""
    rank, world_size = rank_and_world()
    parts = [labels[:3], labels[3:], labels[:0]] if world_size == 3 else [labels]
    mine = parts[rank]
    padded = torch.nn.functional.pad(mine, (0, widths[rank] - mine.shape[1]), value=-1)
    if rank == 1:
        padded = padded.to(torch.uint8)  # has no -1
    x = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0))
    x = (x if world_size == 1 else [x[:3], x[3:], x[:0]][rank]).requires_grad_()
    head = FullFC(41, 8)
    optimizer = head.optimizer(lr=0.1)
    loss = head(x, padded)
    loss.backward()
    optimizer.step()
    return [loss.detach(), x.grad, head.centers.rows]


def test_widths_of_processes(workers):
    """Processes may pad their labels to different widths; one of them has no samples."""
    labels = torch.stack([LABELS, LABELS.roll(1)], 1)
    [one] = workers(1).run(with_widths, labels, [2])
    first = workers(3).run(with_widths, labels, [2, 2, 2])
    second = workers(3).run(with_widths, labels, [4, 2, 3])
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    torch.testing.assert_close(first[0][0], one[0])
    torch.testing.assert_close(torch.cat([part[2] for part in first]), one[2])


def test_all_classes_are_own():
    """A sample that owns all classes has no negatives: its softmax loss is 0, and the sigmoid losses are not."""
    x, labels = torch.randn(2, 8, requires_grad=True), torch.tensor([[2, 0, 1], [1, -1, -1]])
    weight = torch.tensor([1.0, 0.0])
    loss = FullFC(3, 8)(x, labels, weight)
    loss.backward()
    assert loss == 0
    assert torch.equal(x.grad, torch.zeros(2, 8))
    assert FullFC(3, 8, objective=UniFace())(x, labels, weight) > 0


def test_published_fault():
    """MLCD samples the classes of each label column on its own, so that other labels of an image are its negatives.

    So does the published code, OneVision-Encoder's training/fused_partial_fc_v2_multi_res.py. Images that lie on the
    centers of all their labels then have a large loss.
    """
    torch.manual_seed(0)
    C, N, L, D = 60, 4, 3, 64
    x, rows, labels = torch.eye(N, D), normalize(torch.randn(C, D)), torch.randperm(C)[: N * L].view(N, L)
    rows[labels] = x[:, None]
    other_labels, losses = 0, []
    for column in labels.T:
        chance = torch.rand(C).index_fill(0, column, 2)
        sampled = chance.topk(C // 2).indices  # the labels in this column and random classes
        own = sampled == column[:, None]
        logits = 64 * (x @ rows[sampled].T - 0.3 * own)
        losses.append(cross_entropy(logits, own.int().argmax(1)))
        other_labels += sum(int(torch.isin(labels[i], sampled[~own[i]]).sum()) for i in range(N))
    assert other_labels > 0
    assert sum(losses) / L > 10

    head = PartialFC(C, D, sample_rate=0.5, margin=CosFace(s=64, m=0.3))
    head.centers.write(slice(0, C), "rows", rows)
    assert head(x, labels) < 1e-4


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_own_classes_are_never_negatives(objective):
    """No row of an image's classes moves because of it, unless it is a target; the only image with a weight shows it.

    All images have classes in common, so those rows are active.
    """
    head = PartialFC(41, 8, sample_rate=0.7, margin=CosFace(s=4), objective=objective, positives="draw:1")
    optimizer = head.optimizer(lr=0.1, momentum=0, weight_decay=0)
    seen = several.recorded(head)
    labels = torch.tensor([[1, 2, 3], [3, 2, 4], [4, 1, -1], [2, 5, 3], [1, 5, 4]])
    left_out_rows, targets = 0, set()
    for _ in range(8):
        before = head.centers.rows.clone()
        head(torch.randn(5, 8, requires_grad=True), labels, torch.eye(5)[0]).backward()
        optimizer.step()
        optimizer.zero_grad()
        [target] = seen[-1]["targets"][0]
        targets.add(target)
        left_out = [label for label in (1, 2, 3) if label != target]
        assert torch.equal(head.centers.rows[left_out], before[left_out])
        assert not torch.equal(head.centers.rows[target], before[target])
        left_out_rows += len({*left_out} & {*seen[-1]["active"]})
    assert left_out_rows > 8
    assert targets == {1, 2, 3}


def test_drawn_targets():
    labels = torch.stack([torch.randperm(50)[:4] for _ in range(500)])
    labels[:100, 1:] = -1
    positives = positives_of(labels)
    first, again, other = (draw(positives, 2, 500, key) for key in ((1, 2, 3), (1, 2, 3), (1, 2, 4)))
    assert torch.equal(first.labels_P, again.labels_P)
    assert not torch.equal(first.labels_P, other.labels_P)
    assert torch.equal(first.labels_M, positives.labels_P)
    assert torch.equal(torch.bincount(first.sample_P), torch.tensor([1] * 100 + [2] * 400))
    pairs = {*zip(first.sample_P.tolist(), first.labels_P.tolist(), strict=True)}
    assert len(pairs) == 900
    assert all(label in labels[sample] for sample, label in pairs)
    # Each of the four labels, by size, is drawn in half of the 400 cases; 3 deviations of a binomial are 30.
    places = [sorted(labels[sample].tolist()).index(label) for sample, label in pairs if sample >= 100]
    assert all(170 <= places.count(place) <= 230 for place in range(4))


def test_targets_are_drawn_anew():
    """Each forward pass draws other targets, also within a step; the same seed draws the same ones again."""
    x, labels = torch.randn(20, 8), torch.arange(80).view(20, 4)
    drawn = []
    for seed in (0, 0, 1):
        head = FullFC(100, 8, positives="draw:2", seed=seed)
        optimizer, seen = head.optimizer(lr=0.1), several.recorded(head)
        for _ in range(2):
            for _ in range(2):
                head(x.requires_grad_(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        drawn.append([each["targets"] for each in seen])
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in combinations(drawn[0] + drawn[2], 2))


def test_evaluation_uses_all_labels():
    labels, x = torch.tensor([[1, 2, 3], [4, 5, -1]]), torch.randn(2, 8)
    drawing, all_labels = FullFC(41, 8, positives="draw:1"), FullFC(41, 8)
    assert drawing(x, labels) != all_labels(x, labels)
    assert drawing.eval()(x, labels) == all_labels(x, labels)


def test_fidelity():
    """The mass of a selection is the mean over samples of the softmax of its negatives, without own classes."""
    head = PartialFC(41, 8, sample_rate=0.5, margin=CosFace(s=16, m=0.3))
    x, labels = torch.randn(4, 8), torch.tensor([[1, 2, 3], [4, 5, -1], [6, -1, -1], [1, 4, 7]])
    full = selection_fidelity(FullFC(41, 8), x, labels)
    assert full["mass"] == full["hardest_recall"] == 1
    seen = []
    select = head.select_classes
    head.select_classes = lambda *given: seen.append(select(*given)) or seen[-1]
    mass = selection_fidelity(head, x, labels, probes=4, repeats=1)["mass"]
    p = (16 * normalize(x) @ normalize(head.centers.rows).T).exp()
    for i, own in enumerate(several.own_classes(labels)):
        p[i, own] = 0
    assert mass == pytest.approx(float((p[:, seen[-1].ids].sum(1) / p.sum(1)).mean()), rel=1e-5)


SEVERAL = torch.tensor([[1, 2], [3, -1]])


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (
            lambda: FullFC(9, 4, margin=SVSoftmax()),
            SEVERAL,
            "margin=SVSoftmax .* several labels a sample; use a margin",
        ),
        (lambda: FullFC(9, 4, margin=CurricularFace()), SEVERAL, "margin=CurricularFace .* several labels a sample"),
        (lambda: FullFC(9, 4, min_probability=0.1), SEVERAL, "min_probability=0.1 .* several labels a sample; set it"),
        (lambda: FullFC(9, 4, objective=CrossEntropy(0.1)), SEVERAL, "label_smoothing=0.1 .* several labels a sample"),
        (lambda: FullFC(9, 4), torch.full((2, 2), -1), "2 of 2 samples of the global batch at step 0 have no label"),
        (lambda: FullFC(9, 4), torch.tensor([[1, -1], [-1, -1]]), "1 of 2 samples .* each needs one"),
        (lambda: FullFC(9, 4), torch.tensor([[1, 9], [2, -1]]), "label 9 at step 0 is out of range"),
        (lambda: FullFC(9, 4), torch.tensor([[1, -2], [2, 3]]), "label -2 at step 0 is out of range"),
        (lambda: FullFC(9, 4), SEVERAL[:, :0], "must be one integer class id, or a row of them padded with -1"),
        (lambda: FullFC(9, 4), SEVERAL.double(), "must be one integer class id"),
        (lambda: FullFC(9, 4), SEVERAL[None], "must be one integer class id"),
        (lambda: FullFC(9, 4, positives="draw:0"), SEVERAL, "positives='draw:0' must be 'all', or 'draw:3'"),
        (lambda: FullFC(9, 4, positives="some"), SEVERAL, "positives='some' must be 'all'"),
    ],
)
def test_refused(head, labels, message):
    with pytest.raises(ValueError, match=message):
        head()(torch.randn(2, 4), labels)


@pytest.mark.parametrize("margin", [SVSoftmax(), CurricularFace()])
def test_one_label_in_columns_is_not_refused(margin):
    x = torch.randn(2, 4)
    assert FullFC(9, 4, margin=margin)(x, SEVERAL[:, :1]) == FullFC(9, 4, margin=margin)(x, SEVERAL[:, 0])


def test_ffc_refuses_several_labels():
    x, one = torch.randn(2, 4), torch.tensor([1, 3])
    for labels, gallery_labels in ((SEVERAL, one), (one, SEVERAL)):
        with pytest.raises(
            ValueError, match=r"labels of \[2, 2\] torch.int64 must be one integer class id for each of"
        ):
            FFC(9, 4)(x, labels, x, gallery_labels)
