"""Fidelity of softmax and gradient, compared with a dense float64 softmax."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

import heads.objectives.softmax
from heads import FFC, CenterHead, CosFace, FullFC, HashingForest, Margin, PartialFC, Selection, Softmax, SVSoftmax
from heads.fidelity import loss_fidelity, selection_fidelity
from heads.fidelity.figures import compare_gradients
from heads.fidelity.reference import coverage
from heads.fidelity.selection import FIRST_REPEAT
from heads.indexes import IVF, Exact
from tests import reference
from tests.reference import Rule
from tests.workers import rank_and_world

C, D = 50, 12
MARGINS = {
    "cosface": (CosFace(s=16), Rule(reference.cosface, s=16)),
    "sv": (SVSoftmax(s=16), Rule(reference.sv_target, reference.sv_negative, s=16)),
    "filter": (CosFace(s=16, max_negative_cosine=0.3), Rule(reference.cosface, s=16, max_negative_cosine=0.3)),
    "softmax": (Softmax(), Rule(s=1.0, normalized=False)),
}


@pytest.fixture(autouse=True)
def default_chunks(monkeypatch):
    """Restore the chunk size that `spread` reduces."""
    monkeypatch.setattr(heads.objectives.softmax, "CHUNK_ROWS", heads.objectives.softmax.CHUNK_ROWS)


class Top(CenterHead):
    """A head that selects the exact nearest classes of each embedding in the shard."""

    num_nearest = 3

    def select_classes(self, embeddings: Tensor, labels: Tensor) -> Selection:
        rows = self.centers.read(slice(0, self.centers.shard.size))
        nearest = (embeddings @ normalize(rows).T).topk(self.num_nearest, dim=1).indices
        own = self.centers.shard.local(labels)
        return Selection(torch.unique(torch.cat([nearest.flatten(), own[own >= 0]])))


def spread(head: CenterHead) -> CenterHead:
    """Return the head with longer rows, for a softmax that is not uniform, and with small chunks."""
    heads.objectives.softmax.CHUNK_ROWS = 8
    head.centers.rows *= 100
    return head


def batch(count: int = 9) -> tuple[Tensor, Tensor]:
    """Return embeddings and labels of all processes."""
    generator = torch.Generator().manual_seed(3)
    embeddings = 2 * torch.randn(count, D, generator=generator)
    return embeddings, torch.tensor([0, 3, 7, 7, 20, 49, 48, 21, 33, 11, 12, 25])[:count]


def own_part(*tensors: Tensor) -> list[Tensor]:
    rank, world_size = rank_and_world()
    return [torch.tensor_split(each, world_size)[rank] for each in tensors]


def dense(rule: Rule, rows: Tensor, x: Tensor, labels: Tensor, selected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negatives' probabilities (Q, C), 0 for the own class, and the gradient of the mean loss over the
    selected classes."""
    cos = normalize(x) @ normalize(rows).T if rule.normalized else x @ rows[:, :-1].T + rows[:, -1]
    own = one_hot(labels, len(rows)).bool()
    logits = rule.s * rule.negative(cos, cos[own][:, None])
    if rule.max_negative_cosine is not None:
        logits = torch.where(cos > rule.max_negative_cosine, -torch.inf, logits)
    leaf = x.clone().requires_grad_()
    targets = torch.searchsorted(selected, labels)
    reference.loss(rule, rows[selected], leaf, targets, torch.ones(len(x)).double(), None).backward()
    assert leaf.grad is not None
    length = x.norm(dim=1, keepdim=True) if rule.normalized else 1  # the gradient of unit embeddings
    return torch.where(own, -torch.inf, logits).softmax(1), leaf.grad * length


def covered(margin: Margin, k: int) -> tuple[Tensor, ...]:
    """Return coverage with every third class active, and the rows for the reference, in a worker."""
    head = spread(FullFC(C, D, margin=margin))
    embeddings, labels = batch()
    ids = head.centers.shard.local(torch.arange(0, C, 3))
    mine = own_part(embeddings, labels)
    result = coverage(head, head.gather_batch(*mine), Selection(ids[ids >= 0]), k=k)
    return result.mass_Q, result.perfect_Q, result.nearest_Qk, head.centers.rows


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", MARGINS)
def test_mass_and_nearest_match_the_dense_softmax(name, world_size, workers):
    margin, rule = MARGINS[name]
    parts = workers(world_size).run(covered, margin, 4)
    rows = torch.cat([part[3] for part in parts]).double()
    x, labels = batch()
    p, _ = dense(rule, rows, x.double(), labels, torch.arange(C))
    own = one_hot(labels, C).bool()
    active = torch.zeros(C, dtype=torch.bool)
    active[::3] = True
    perfect = active.expand(len(x), -1).clone()
    start = 0
    for mass, _, nearest, shard_rows in parts:
        assert torch.allclose(mass.double(), p[:, active].sum(1), rtol=1e-5)
        of_shard = torch.where(own, -1.0, p)[:, start : start + len(shard_rows)]
        assert torch.equal(nearest.sort().values, of_shard.topk(4).indices.sort().values)
        perfect.scatter_(1, nearest + start, True)
        start += len(shard_rows)
    assert torch.allclose(parts[0][1].double(), (p * perfect).sum(1), rtol=1e-5)
    assert all(torch.equal(part[0], parts[0][0]) and torch.equal(part[1], parts[0][1]) for part in parts)


def measured(
    kind: type[CenterHead], options: dict[str, Any], how: dict[str, int]
) -> tuple[dict[str, float], Tensor, list[Tensor]]:
    """Return the figures, the rows of this shard, and the classes that each repeat selected, in a worker."""
    head = spread(kind(C, D, **options))
    embeddings, labels = own_part(*batch())
    figures = selection_fidelity(head, embeddings, labels, **how)
    x = head.to_rows_space(batch()[0])
    selections = []
    for repeat in range(how["repeats"]):
        head.micro_batch = FIRST_REPEAT + repeat
        ids = head.select_classes(x, batch()[1]).ids
        assert ids is not None
        selections.append(ids + head.centers.shard.start)
    return figures, head.centers.rows, selections


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", MARGINS)
def test_all_figures_match_the_dense_reference(name, world_size, workers):
    """A head that samples, with fewer probes than samples in the batch."""
    margin, rule = MARGINS[name]
    probes, repeats, hardest = 5, 3, 6
    how = {"probes": probes, "repeats": repeats, "hardest": hardest}
    parts = workers(world_size).run(measured, PartialFC, {"margin": margin, "sample_rate": 0.5}, how)
    rows = torch.cat([part[1] for part in parts]).double()
    x, labels = (each[[0, 1, 3, 5, 7]] for each in batch())  # evenly spaced among nine
    x = x.double()
    p, exact = dense(rule, rows, x, labels, torch.arange(C))
    order = p.argsort(dim=1, descending=True)[:, :hardest]
    masses, recalls, gradients = [], [], []
    for repeat in range(repeats):
        selected = torch.cat([part[2][repeat] for part in parts])
        masses.append(p[:, selected].sum(1))
        hits = torch.isin(order, selected) & (p.gather(1, order) > 0)
        recalls.append(hits.sum(1) / (p.gather(1, order) > 0).sum(1))
        gradients.append(dense(rule, rows, x, labels, selected)[1])
    sampled_gradients = torch.stack(gradients)
    mean = sampled_gradients.mean(0)
    squared_error = (sampled_gradients - exact).square().sum(2).mean(0).sum() / exact.square().sum()
    variance = (sampled_gradients - mean).square().sum() / (repeats - 1) / exact.square().sum()
    bias = ((mean - exact).square().sum() / exact.square().sum() - variance / repeats).clamp(min=0).sqrt()
    expected = {
        "mass": torch.stack(masses).mean(),
        "hardest_recall": torch.stack(recalls).mean(),
        "gradient_cosine": torch.cosine_similarity(sampled_gradients.flatten(1), exact.flatten()[None]).mean(),
        "gradient_norm_ratio": (sampled_gradients.flatten(1).norm(dim=1) / exact.norm()).mean(),
        "gradient_bias": bias,
        "gradient_variance": variance,
    }
    for figures, _, _ in parts:
        assert figures == parts[0][0]
        assert figures == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)
    if bias > 0:
        assert float(squared_error) == pytest.approx(float(bias**2 + variance), rel=1e-6)


def of_full(margin: Margin, options: dict[str, Any]) -> dict[str, float]:
    head = spread(FullFC(C, D, margin=margin, **options))
    return selection_fidelity(head, *own_part(*batch()))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", MARGINS)
def test_the_full_head_keeps_exactly_everything(name, world_size, workers):
    perfect = {"mass": 1.0, "hardest_recall": 1.0, "gradient_cosine": 1.0, "gradient_norm_ratio": 1.0}
    perfect |= {"gradient_bias": 0.0, "gradient_variance": 0.0}
    for figures in workers(world_size).run(of_full, MARGINS[name][0], {}):
        assert figures == perfect


def test_rounding_of_the_full_head_lowers_the_cosine_and_filtering_does_not():
    filtered = of_full(CosFace(s=16), {"min_probability": 0.2})
    assert filtered["mass"] == 1 and filtered["gradient_cosine"] == pytest.approx(1, abs=1e-6)
    rounded = of_full(CosFace(s=16), {"compute": "bf16"})
    assert 0.9 < rounded["gradient_cosine"] < 1


def test_without_negatives_all_figures_are_one():
    head = FullFC(1, D)
    figures = selection_fidelity(head, *(each[:1] for each in batch()))
    assert figures["mass"] == figures["hardest_recall"] == figures["gradient_cosine"] == 1


def test_uniform_negatives_hold_their_expected_mass():
    """The mean over many draws: classes of the batch are always selected, others with the rate of the draw."""
    head = spread(PartialFC(400, D, sample_rate=0.25, margin=CosFace(s=8)))
    embeddings, labels = batch()
    rows = head.centers.rows.double()
    p, _ = dense(Rule(reference.cosface, s=8), rows, embeddings.double(), labels, torch.arange(400))
    present = torch.unique(labels)
    always = p[:, present].sum(1)
    drawn = (100 - len(present)) / (400 - len(present))
    expected = float((always + drawn * (1 - always)).mean())
    masses = []
    for head.step in range(60):
        masses.append(selection_fidelity(head, embeddings, labels, probes=9, repeats=4)["mass"])
    mass = torch.tensor(masses, dtype=torch.float64)
    error = float(mass.std()) / len(mass) ** 0.5
    assert abs(float(mass.mean()) - expected) < 4 * error and 0 < error < 0.02


def test_a_corrected_sample_has_less_bias():
    """The log_q correction makes the mean of the denominator that of the full softmax."""
    embeddings, labels = batch()
    bias = []
    for log_q in (False, True):
        head = spread(PartialFC(400, D, sample_rate=0.25, margin=CosFace(s=8), log_q=log_q))
        bias.append(selection_fidelity(head, embeddings, labels, repeats=200)["gradient_bias"])
    assert bias[1] < 0.5 * bias[0]


def test_the_true_nearest_hold_more_than_a_uniform_sample_of_the_same_size():
    embeddings, labels = batch()
    top = spread(Top(400, D, margin=CosFace(s=16)))
    active = len(top.select_classes(top.to_rows_space(embeddings), labels).ids)
    uniform = spread(PartialFC(400, D, margin=CosFace(s=16), sample_rate=active / 400))
    figures = {type(head).__name__: selection_fidelity(head, embeddings, labels, hardest=3) for head in (top, uniform)}
    assert figures["Top"]["mass"] > 1.5 * figures["PartialFC"]["mass"]
    assert figures["Top"]["gradient_cosine"] > figures["PartialFC"]["gradient_cosine"]
    assert figures["Top"]["hardest_recall"] == 1 and figures["Top"]["gradient_variance"] == 0


def test_bias_and_variance_of_gradients_with_known_distribution():
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(20, 30, generator=generator).double()
    away, noise = 0.3 * exact.norm() / 600**0.5, 0.5 * exact.norm() / 600**0.5
    shift = away * torch.randn(20, 30, generator=generator).sign()
    figures = compare_gradients(exact + shift + noise * torch.randn(500, 20, 30, generator=generator), exact)
    assert figures["gradient_bias"] == pytest.approx(0.3, rel=0.02)
    assert figures["gradient_variance"] == pytest.approx(0.25, rel=0.02)
    assert "gradient_bias" not in compare_gradients(exact[None], exact)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PartialFC(200, D, sample_rate=0.2),
        lambda: HashingForest(200, D, num_active=40, index=IVF(num_lists=5), interval=2, build="blocking"),
        lambda: HashingForest(200, D, num_active=40, index=Exact(), interval=3, build="blocking", probe_interval=2),
    ],
)
def test_measuring_changes_nothing(make):
    """Losses are the same bit for bit if fidelity is measured after the forward pass of every step."""
    losses = []
    for measures in (False, True):
        head = make()
        optimizer = head.optimizer(lr=1.0)
        losses.append([])
        for step in range(8):
            embeddings, labels = batch()
            embeddings = (embeddings + step).requires_grad_()
            loss = head(embeddings, labels)
            before = head.stats()
            if measures:
                selection_fidelity(head, embeddings, labels, repeats=2)
            assert head.stats()["step_ms"] == before["step_ms"] and head.micro_batch == 1
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append((float(loss.detach()), embeddings.grad.tolist()))
    assert losses[0] == losses[1]


def test_measuring_does_not_refresh_an_index_in_the_background():
    """Training alone collects a finished index and starts another build."""
    head = HashingForest(200, D, num_active=40, index=Exact(), interval=1, build="background")
    embeddings, labels = batch()
    head(embeddings.requires_grad_(), labels)
    head.index_refresh.wait()
    for head.step in (1, 2):
        refresh = head.index_refresh
        before = refresh.current, refresh.as_of, refresh.next_refresh, refresh.running
        selection_fidelity(head, embeddings, labels)
        assert (refresh.current, refresh.as_of, refresh.next_refresh, refresh.running) == before
    assert not head.probing


def of_ffc() -> tuple[dict[str, float], Tensor, Tensor]:
    """Return the figures after a step, the classes in the pool, and the gradient, in a worker."""
    rank, world_size = rank_and_world()
    head = FFC(C, D, queue_size=15, margin=CosFace(s=16))
    embeddings, labels = batch(12)
    gallery = normalize(torch.randn(12, D, generator=torch.Generator().manual_seed(5)))
    with torch.no_grad():
        head(*own_part(embeddings, labels, gallery, torch.arange(0, 24, 2)))
    means = normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(6)))
    x, own_labels, own_gallery = own_part(embeddings, labels, gallery)
    x.requires_grad_()
    loss = head(x, own_labels, own_gallery, own_labels)
    chunk = -(-C // world_size)
    figures = loss_fidelity(
        loss,
        x,
        own_labels,
        means=means[rank * chunk : (rank + 1) * chunk],
        held=head.held_classes(),
        num_classes=C,
        margin=head.margin,
        group=head.process_group,
        probes=7,
        hardest=6,
    )
    loss.backward()
    assert x.grad is not None
    return figures, head.held_classes(), x.grad / world_size


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_head_without_centers_against_class_means(world_size, workers):
    parts = workers(world_size).run(of_ffc)
    means = normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(6))).double()
    x, labels = batch(12)
    held = parts[0][1]
    assert len(held) == 15
    gradient = torch.cat([part[2] for part in parts]).double() * x.double().norm(dim=1, keepdim=True) * 12
    chosen = [0, 1, 3, 5, 6, 8, 10]  # evenly spaced among twelve
    x, labels, gradient = x[chosen].double(), labels[chosen], gradient[chosen]
    p, exact = dense(Rule(reference.cosface, s=16), means, x, labels, torch.arange(C))
    exact = 7 * exact
    hardest = p.argsort(dim=1, descending=True)[:, :6]
    expected = {
        "mass": p[:, held].sum(1).mean(),
        "hardest_recall": torch.isin(hardest, held).double().mean(),
        "class_means_cosine": torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0),
        "class_means_norm_ratio": gradient.norm() / exact.norm(),
    }
    for figures, _, _ in parts:
        assert figures == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)


@pytest.mark.parametrize("name", ["probes", "repeats", "hardest"])
def test_bad_options_are_refused(name):
    with pytest.raises(ValueError, match=f"fidelity.{name}=0 must be at least 1"):
        selection_fidelity(FullFC(C, D), *batch(), **{name: 0})


def test_whole_numbers_may_be_floats():
    options = {"probes": 2, "repeats": 2, "hardest": 3}
    as_floats = {name: float(value) for name, value in options.items()}
    head = PartialFC(C, D, sample_rate=0.4)
    assert selection_fidelity(head, *batch(), **as_floats) == selection_fidelity(head, *batch(), **options)
