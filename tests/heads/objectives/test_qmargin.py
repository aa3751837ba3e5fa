"""Q-Margin against the definition of its loss in float64; its support, in the full head and in the forest."""

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from heads import (
    ArcFace,
    CosFace,
    CrossEntropy,
    FullFC,
    HashingForest,
    MagFace,
    Margin,
    PartialFC,
    QMargin,
    RowAdagrad,
    RowAdamW,
    Staged,
    SubCenterFC,
)
from heads.core.cost import Case as Size
from heads.fidelity import selection_fidelity
from heads.indexes import Exact
from heads.objectives import qmargin as implementation
from tests import conformance, several
from tests.cases import build, global_batch
from tests.conformance import SGD, Case, with_margins
from tests.heads.margins.table import MARGINS
from tests.heads.objectives import checks
from tests.heads.test_full import ADAMW
from tests.reference import Batch, Rule
from tests.workers import WorkerGroup, rank_and_world


def sparse(z: Tensor, q: Tensor, alpha: float) -> Tensor:
    """Return p = q [1 + (alpha - 1)(z - tau)]_+^(1 / (alpha - 1)); bisection finds tau, for a sum of 1 in each row."""

    def p(tau: Tensor) -> Tensor:
        return q * (1 + (alpha - 1) * (z - tau)).clamp(min=0) ** (1 / (alpha - 1))

    low, high = z.amax(1, keepdim=True) - 1000, z.amax(1, keepdim=True) + 1000
    for _ in range(60):
        middle = (low + high) / 2
        large = p(middle).sum(1, keepdim=True) > 1
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    return p((low + high) / 2)


def fenchel_young(z: Tensor, own: Tensor, q: Tensor, alpha: float) -> Tensor:
    """Return max_p (<p, z> - Omega(p)) + Omega(e_y) - z_y for each row, with Omega(p) = sum of q phi(p / q).

    The maximum is differentiated at its p, by the envelope theorem.
    """
    with torch.no_grad():
        p = sparse(z, q, alpha)

    def omega(p: Tensor) -> Tensor:
        u = p / q
        return (q * (u**alpha - alpha * u + alpha - 1) / (alpha * (alpha - 1))).sum(1)

    return torch.where(p > 0, p * z, 0).sum(1) - omega(p) + omega(own.to(z)) - z[own]


def prior(d: Tensor, alpha: float) -> Tensor:
    """Return q_y = e^-m', which has the sign of d, what the margin subtracts from the logit."""
    return torch.exp(-d.sign() * torch.log(1 + (alpha - 1) * d.abs()) / (alpha - 1))


def qmargin(batch: Batch, rule: Rule, alpha: float = 1.5) -> Tensor:
    negative = rule.negative(batch.cos, batch.target_cos.detach()[:, None])
    z = rule.s * torch.where(batch.own, batch.cos, negative) - batch.bias
    if rule.max_negative_cosine is not None:
        z = torch.where(~batch.own & (batch.cos > rule.max_negative_cosine), -torch.inf, z)
    d = rule.s * (batch.target_cos - rule.target(batch.target_cos))
    q = torch.where(batch.own, prior(d, alpha)[:, None], 1)
    return fenchel_young(z, batch.own, q, alpha)


class Eased(Margin):
    """A margin that adds to the logits of samples with a cosine below 0.5, and subtracts from the others."""

    def target(self, cos: Tensor) -> Tensor:
        return eased(cos)


def eased(cos: Tensor) -> Tensor:
    return cos - 0.3 * (cos - 0.5)


def of_alpha(alpha: float) -> dict[str, Any]:
    return {"objective": QMargin(alpha), "formula": lambda batch, rule: qmargin(batch, rule, alpha)}


SAMPLED = {"cosface, filter", "adaface, clipped", "magface", "curricularface, fast", "elastic arc +", "softmax"}
REFUSED = {"adacos, fixed": "FixedAdaCos derives its scale for"}
FULL = Case(FullFC, objective=QMargin(), formula=qmargin)
HALF = replace(FULL, head=PartialFC, options={"sample_rate": 0.5})
FOREST: Mapping[str, Any] = {"num_active": 20, "interval": 1, "build": "blocking", "index": Exact()}
WITH_MARGINS = with_margins(FULL, refused=REFUSED)
PLAIN, ADAFACE, ARCFACE = (WITH_MARGINS[name] for name in ("cosface", "adaface, clipped", "arcface"))
EASED = replace(PLAIN, margin=Eased(), rule=Rule(eased))
CASES = {
    **WITH_MARGINS,
    **with_margins(replace(HALF, weighted=True), refused=MARGINS.keys() - SAMPLED, recomputing=True),
    "recomputing": replace(ADAFACE, options={"logits_budget_mb": 0}),
    "double": replace(ADAFACE, dtype=torch.float64),
    "double, 1.2": replace(ARCFACE, dtype=torch.float64, **of_alpha(1.2)),
    "double, 2": replace(ARCFACE, dtype=torch.float64, **of_alpha(2)),
    "double, 1.02": replace(PLAIN, dtype=torch.float64, **of_alpha(1.02)),
    "1.2": replace(PLAIN, **of_alpha(1.2)),
    "sparsemax": replace(WITH_MARGINS["none"], **of_alpha(2.0)),
    "a margin that raises the prior": EASED,
    "a margin that raises the prior, double": replace(EASED, dtype=torch.float64, **of_alpha(1.7)),
    "forest": replace(ADAFACE, head=HashingForest, options=FOREST),
    "sub-centers": replace(ARCFACE, head=SubCenterFC, options={"centers_per_class": 3}, rows_per_class=3),
    "adamw": replace(PLAIN, optimizer=RowAdamW, optimizer_options=ADAMW),
    "adagrad": replace(PLAIN, optimizer=RowAdagrad, optimizer_options={"lr": 0.1}),
    "nesterov": replace(PLAIN, optimizer_options={**SGD, "nesterov": True}),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("name", ["cosface", "adaface, clipped", "magface"])
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_behaviour_of_any_objective(check, name):
    check(CASES[name])


def limited(most: int, function: Any, *arguments: Any) -> Any:
    """Call a function in a worker with fewer candidates allowed."""
    before, implementation.MOST_CANDIDATES = implementation.MOST_CANDIDATES, most
    try:
        return function(*arguments)
    finally:
        implementation.MOST_CANDIDATES = before


class Limited:
    """A worker group whose functions run with fewer candidates allowed."""

    def __init__(self, group: WorkerGroup, most: int):
        self.group, self.most = group, most

    def run(self, function: Any, *arguments: Any) -> Any:
        return self.group.run(limited, self.most, function, *arguments)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("name", ["double", "double, 1.02", "softmax", "PartialFC, adaface, clipped"])
@pytest.mark.parametrize("most", [0, 1, 4])
def test_with_too_many_candidates_the_rows_are_read_again(most, name, world_size, workers):
    conformance.check(Limited(workers(world_size), most), CASES[name])


def steps_of_forest_and_full(steps: int) -> list[dict[str, Any]]:
    """Train a forest in a worker, and at each step compare it with the full head at the same rows.

    Returns:
        For each step: whether loss, gradient and new rows are those of the full head; the number of samples, and of
        those whose support over all classes is not wholly active; the mean support over all and over the active
        classes; and the forest's stats.
    """
    (rank, world_size), (s, m, C, D, N) = rank_and_world(), (24.0, 0.1, 201, 16, 6)
    options = {"margin": CosFace(s=s, m=m), "objective": QMargin(), "dtype": "fp64"}
    forest = HashingForest(C, D, **options, **{**FOREST, "num_active": 40, "interval": 8}, probe_interval=1, probes=99)
    forest.centers.rows.normal_(generator=torch.Generator().manual_seed(rank))
    plain = {"lr": 1.0, "momentum": 0, "weight_decay": 0}
    trained, selections = forest.optimizer(**plain), conformance._record_selections(forest)
    results = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, labels = torch.randn(N, D, generator=generator).double(), torch.randint(C, (N,), generator=generator)
        mine, rows = conformance.part_of(N, rank, world_size), forest.full_state_dict()["centers.rows"].clone()
        full = FullFC(C, D, **options)
        full.centers.rows.copy_(forest.centers.rows)
        pairs = []
        for head, optimizer in ((forest, trained), (full, full.optimizer(**plain))):
            x_n = x[mine].clone().requires_grad_()
            loss = head(x_n, labels[mine])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            pairs.append((loss.detach(), x_n.grad, head.centers.rows))
        z, own = s * normalize(x) @ normalize(rows).T, torch.nn.functional.one_hot(labels, C).bool()
        q = torch.where(own, prior(x.new_tensor(s * m), 1.5), 1)
        active = torch.zeros(C, dtype=torch.int32)
        active[selections[-1].ids + forest.centers.shard.start] = 1
        differ = torch.tensor(not all(torch.allclose(*each, rtol=1e-9, atol=1e-9) for each in zip(*pairs, strict=True)))
        if world_size > 1:
            dist.all_reduce(active)
            dist.all_reduce(differ := differ.int())
        chosen, support = active.bool(), sparse(z, q, 1.5) > 0
        results.append({
            "same": not differ,
            "samples": N,
            "missed": int((support & ~chosen).any(1).sum()),
            "exact": float(support.sum(1).double().mean()),
            "active": float((sparse(z[:, chosen], q[:, chosen], 1.5) > 0).sum(1).double().mean()),
            "stats": forest.stats(),
        })  # fmt: skip
    return results


@pytest.mark.parametrize("world_size", [1, 2])
def test_forest_equals_full_in_every_step_in_which_the_active_classes_hold_the_support(world_size, workers):
    """The index is refreshed every 8 steps while the rows move, so that it misses part of the support in some steps."""
    steps = workers(world_size).run(steps_of_forest_and_full, 40)[0]
    holds = [not step["missed"] for step in steps]
    assert [step["same"] for step in steps] == holds
    assert sum(holds) >= 20 and len(holds) - sum(holds) >= 5
    for number, step in enumerate(steps):
        stats = step["stats"]
        assert stats["index_recall"] == 1 or number % 8  # of the nearest classes, also of those without a pull
        assert stats["support_missed"] == pytest.approx(step["missed"] / step["samples"])
        assert stats["support_exact"] == pytest.approx(step["exact"])
        assert stats["support"] == pytest.approx(step["active"])
        assert (stats["mass_covered"] < 1 - 1e-12) == (stats["support_missed"] > 0)
        assert stats["mass_covered"] <= stats["mass_reachable"] < 1 + 1e-12


def test_without_a_negative_the_loss_is_0():
    margin = CosFace(s=16, max_negative_cosine=-0.999)
    head = HashingForest(50, 8, margin=margin, objective=QMargin(), probe_interval=1, **FOREST)
    optimizer, rows = head.optimizer(lr=0.1, weight_decay=0), head.centers.rows.clone()
    x = torch.randn(4, 8, requires_grad=True)
    loss = head(x, torch.arange(4))
    loss.backward()
    optimizer.step()
    assert abs(float(loss.detach())) < 1e-6 and not x.grad.any() and torch.equal(head.centers.rows, rows)
    stats = head.stats()
    assert stats["support"] == stats["support_exact"] == stats["mass_covered"] == stats["mass_reachable"] == 1
    figures = selection_fidelity(head, x.detach(), torch.arange(4), repeats=1)
    assert set(figures.values()) == {1.0}


def several_loss(case: several.Case, rows: Tensor, x: Tensor, labels: Tensor, weight: Tensor, **known: Any) -> Tensor:
    """Return the weighted mean over samples of the mean over their targets, each with the sample's negatives."""
    s, length, cos = case.margin.s, x.norm(dim=1), normalize(x) @ normalize(rows).T
    losses = []
    for i, classes in enumerate(several.own_classes(labels)):
        negatives, parts = [j for j in known["active"] if j not in classes], []
        for y in known["targets"][i]:
            d = s * (cos[i, y] - case.target(cos[i, y], several.Batch(y, i, length, known["state"])))
            z = s * torch.cat([cos[i, [y]], cos[i, negatives]])
            own = torch.arange(len(z)) == 0
            parts.append(fenchel_young(z[None], own[None], torch.where(own, prior(d, 1.5), 1)[None], 1.5))
        losses.append(torch.cat(parts).mean())
    return (weight * (torch.stack(losses) + case.penalty(length))).sum() / weight.sum()


SEVERAL = several.Case(objective=QMargin())
SEVERAL_CASES = {
    "full": SEVERAL,
    "recomputed": replace(SEVERAL, options={"logits_budget_mb": 0}),
    "magface": replace(SEVERAL, margin=MagFace(s=16), target=several.magface, penalty=several.magface_penalty),
    "pfc": replace(SEVERAL, head=PartialFC, options={"sample_rate": 0.5}),
    "draw": replace(SEVERAL, options={"positives": "draw:2"}, widths=(4, 1, 3, 2)),
    "forest": replace(SEVERAL, head=HashingForest, options=FOREST, num_classes=101),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", SEVERAL_CASES)
def test_several_labels(name, world_size, workers):
    several.check(workers(world_size), SEVERAL_CASES[name], several_loss)


@pytest.mark.parametrize("most", [0, 1])
def test_several_labels_with_too_many_candidates(most, workers):
    several.check(Limited(workers(2), most), SEVERAL, several_loss)


@pytest.mark.parametrize("margin", [CosFace(s=16, max_negative_cosine=0.2), ArcFace(s=16), MagFace(s=16)])
def test_the_limit_of_alpha_is_the_softmax_with_the_margin(margin):
    results = []
    for objective in (CrossEntropy(), QMargin(alpha=1 + 1e-9)):
        case = replace(PLAIN, margin=margin, objective=objective, dtype=torch.float64)
        head = build(case)
        optimizer = head.optimizer(lr=1.0)
        embeddings, labels, _ = global_batch(case, 0, 0)
        loss = head(embeddings.requires_grad_(), labels)
        loss.backward()
        optimizer.step()
        results.append((loss.detach(), embeddings.grad, head.centers.rows))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
def test_the_loss_is_0_where_the_class_exceeds_all_others_by_the_margin(alpha):
    """The prior demands as much as CosFace subtracts: s m in addition to 1 / (alpha - 1)."""
    head = FullFC(3, 3, margin=CosFace(s=16, m=0.1), objective=QMargin(alpha), dtype="fp64")
    head.centers.rows.copy_(torch.eye(3))
    least = (16 * 0.1 + 1 / (alpha - 1)) / 16
    for cos, zero in ((least + 0.01, True), (least - 0.01, False)):
        x = torch.tensor([[cos, 0, -math.sqrt(1 - cos**2)]], dtype=torch.float64, requires_grad=True)
        loss = head(x, torch.tensor([0]))
        loss.backward()
        assert (abs(float(loss.detach())) < 1e-14) == zero and (not x.grad.any()) == zero
        assert head.stats()["support"] == (1 if zero else 2)


def test_support_is_among_the_stats_of_stages():
    stages = {0: functools.partial(HashingForest, probe_interval=1, **FOREST)}
    head = Staged(50, 8, stages=stages, objective=QMargin())
    head(torch.randn(4, 8), torch.arange(4))
    assert {"support", "support_exact", "support_missed"} <= head.stats().keys()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_gives_no_finite_loss(value, world_size, workers):
    for loss, gradient in workers(world_size).run(with_a_bad_row, value):
        assert math.isnan(loss) and gradient.isnan().all()


def with_a_bad_row(value: float) -> tuple[float, Tensor]:
    """Return loss and gradient of a head in a worker, one of whose processes has a bad row."""
    rank, world_size = rank_and_world()
    head = FullFC(50, 8, objective=QMargin())
    if rank == world_size - 1:
        head.centers.rows[3] = value
    x = torch.ones(2, 8, requires_grad=True)
    loss = head(x, torch.tensor([0, 1]))
    loss.backward()
    return float(loss.detach()), x.grad


def test_support_is_counted_over_processes_in_training_steps_only(workers):
    case = replace(PLAIN, rule=Rule(), formula=None)  # lambdas cannot be sent
    (alone,), three = workers(1).run(supports, case), workers(3).run(supports, case)
    assert alone[0] == alone[1] > 1 and three == [alone] * 3


def supports(case: Case) -> list[float]:
    """Return the support after a step, and that after forwards of another batch that are no training, in a worker."""
    head = build(replace(case, dtype=torch.float64))
    assert "support" not in head.stats()
    conformance.stepped(case, head, head.optimizer(lr=0.1), 0)
    found = [head.stats()["support"]]
    embeddings, labels, _ = global_batch(case, 1, 0)
    with torch.no_grad():
        head(embeddings, labels)
    head.eval()(embeddings.requires_grad_(), labels)
    return [*found, head.stats()["support"]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_state_round_trip(world_size, workers):
    case = replace(ADAFACE, head=HashingForest, options=FOREST, rule=Rule(), formula=None)
    workers(world_size).run(conformance.round_trip, case)


def test_margins_that_make_no_sense_are_refused():
    for name, words in REFUSED.items():
        with pytest.raises(ValueError, match=words):
            FullFC(7, 8, margin=MARGINS[name][0], objective=QMargin())
    head = FullFC(7, 8, objective=QMargin())
    head.margin = MARGINS["adacos, fixed"][0]
    with pytest.raises(ValueError, match=r"margin=FixedAdaCos .* cannot be used with objective=QMargin"):
        head(torch.randn(2, 8), torch.tensor([0, 3]))


def test_options_of_a_softmax_and_orders_out_of_range_are_refused():
    with pytest.raises(ValueError, match="log_q=True corrects the sum of a sampled softmax"):
        PartialFC(7, 8, objective=QMargin(), log_q=True)
    with pytest.raises(ValueError, match=r"min_probability=0\.1 compares the probabilities of a softmax"):
        FullFC(7, 8, objective=QMargin(), min_probability=0.1)
    for alpha in (1, 2.1, 0.5, math.nan):
        with pytest.raises(ValueError, match=f"alpha={alpha} must be in "):
            QMargin(alpha=alpha)
    with pytest.raises(ValueError, match=r"alpha='1\.5' must be a number"):
        QMargin(alpha="1.5")


def numbers_summed(case: Case) -> list[int]:
    """Return the numbers of 4 bytes that each all-reduce of a step sends, in a worker."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def counting(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.nbytes // 4)
        return all_reduce(tensor, *arguments, **options)

    head = build(case)
    with mock.patch.object(dist, "all_reduce", counting):
        conformance.stepped(case, head, head.optimizer(lr=0.1), 0)
    return sizes


def test_a_plan_counts_what_a_step_sends(workers):
    """N = 8 samples and D = 16 columns: target cosines, bounds, four sums in each step of Newton's method, gradient."""
    for sizes in workers(2).run(numbers_summed, replace(PLAIN, rule=Rule(), formula=None)):
        assert sizes == [8, 2 * 2 * 8, *[2 * 4 * 8] * (len(sizes) - 3), 8 * 16] and 2 <= len(sizes) - 3 <= 8
    size = Size(num_classes=10**6, embedding_size=16, batch=8, world_size=2)
    plain, ours = (FullFC.cost(size, FullFC.Options(objective=each), row_state={}) for each in (None, QMargin()))
    assert ours.sent_bytes - plain.sent_bytes == 4 * 8 * (QMargin.sums[0] - 3) and ours.work_bytes > plain.work_bytes
    assert (ours.multiply_adds, ours.moved_bytes) == (plain.multiply_adds, plain.moved_bytes)
