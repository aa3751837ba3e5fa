"""Scent against its float64 reference, with the numbers of the records from step to step."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import heads.objectives.softmax
from heads import ArcFace, CosFace, CrossEntropy, Margin, PartialFC, Scent, SVSoftmax, UniFace
from heads.core.cost import Case as CostCase
from heads.fidelity import selection_fidelity
from heads.rows.record_table import UNVISITED
from tests import reference
from tests.cases import part_of
from tests.heads.margins.table import MARGINS
from tests.reference import Rule
from tests.workers import rank_and_world

D, R, LR = 16, 11, 0.05  # few records, so that batches repeat them


def cosface(cos: Tensor) -> Tensor:
    return reference.cosface(cos, 0.3)


@dataclass(frozen=True)
class Case:
    """Options and formulas of one training; `batches` has the global size of each micro-batch of each step."""

    options: Mapping[str, Any] = field(default_factory=dict)
    margin: Margin = field(default_factory=lambda: CosFace(s=16, m=0.3))
    rule: reference.MarginRule = field(default_factory=lambda: Rule(cosface, s=16))
    num_classes: int = 61
    batches: tuple[tuple[int, ...], ...] = ((8,), (5,), (6, 9), (1,))
    weighted: bool = False
    dtype: torch.dtype = torch.float32

    def batch(self, step: int, micro: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return embeddings, labels, weights and records of all processes."""
        size = self.batches[step][micro]
        generator = torch.Generator().manual_seed(1000 * step + micro)
        x = (20 if self.margin.normalize else 2) * torch.randn(size, D, generator=generator, dtype=self.dtype)
        labels = torch.randint(self.num_classes, (size,), generator=generator)
        weight = torch.rand(size, generator=generator, dtype=self.dtype) if self.weighted else torch.ones(size)
        return x, labels, weight.to(self.dtype), torch.randint(R, (size,), generator=generator)


CASES = {
    "scent": Case({"sample_rate": 0.3}),
    "slow": Case({"sample_rate": 0.3, "log_a": {0: 12, 1: -3}}),
    "sox": Case({"sample_rate": 0.3, "gamma": {0: 0.3, 2: 0.8}}),
    "all of a visit": Case({"sample_rate": 0.3, "gamma": 1}),
    "all classes": Case({"sample_rate": 1}),
    "recomputing": Case({"sample_rate": 0.3, "logits_budget_mb": 0, "log_a": -5}),
    "blocks": Case({"sample_rate": 0.6, "sample_block": 4, "log_a": -5}),
    "log q": Case({"sample_rate": 0.3, "log_q": True, "log_a": -5}),
    "weighted": Case({"sample_rate": 0.3, "log_a": -5}, weighted=True),
    "float64": Case({"sample_rate": 0.3, "log_a": -5}, dtype=torch.float64),
    "seven": Case({"sample_rate": 0.9, "gamma": 0.5}, num_classes=7),
    "arcface": Case({"sample_rate": 0.3}, ArcFace(s=16, m=0.5), Rule(reference.arcface, s=16)),
    "sv": Case({"gamma": 0.5}, SVSoftmax(s=16), Rule(reference.sv_target, reference.sv_negative, s=16)),
    "magface": Case({"sample_rate": 0.3, "gamma": 0.5}, *MARGINS["magface"]),
    "inner products": Case({"sample_rate": 0.3, "log_a": -5}, *MARGINS["softmax"]),
    "far apart": Case({"sample_rate": 0.5, "gamma": 0.5}, CosFace(), Rule(reference.cosface)),
    "max negative": Case(
        {"sample_rate": 0.5},
        CosFace(s=16, m=0.3, max_negative_cosine=0.2),
        Rule(cosface, s=16, max_negative_cosine=0.2),
    ),
}


def build(case: Case) -> Scent:
    heads.objectives.softmax.CHUNK_ROWS = 8
    options = {"margin": copy.deepcopy(case.margin), "dtype": case.dtype, **case.options}
    head = Scent(case.num_classes, D, num_records=R, **options)
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(case.num_classes, D, generator=generator, dtype=case.dtype)
    head.centers.rows[:, :D] = rows[head.centers.classes(slice(0, head.centers.shard.size))]
    return head


def optimizer_of(head: Scent) -> Any:
    return head.optimizer(lr=LR, momentum=0, weight_decay=0)


def mine(case: Case, step: int, micro: int) -> list[Tensor]:
    """Return this process's part of a batch, in a worker."""
    x, labels, weight, records = case.batch(step, micro)
    part = part_of(len(labels), *rank_and_world())
    return [x[part].clone().requires_grad_(), labels[part], weight[part], records[part]]


def train(case: Case) -> list[SimpleNamespace]:
    """Run the steps in a worker: all forwards of a step, then all backwards."""
    head = build(case)
    optimizer, record, results = optimizer_of(head), [], []
    select = head.select_classes
    head.select_classes = lambda x, y: record.append(select(x, y)) or record[-1]  # type: ignore
    for step, micro_batches in enumerate(case.batches):
        record.clear()
        before, nu = head.centers.rows.clone(), head.records.values.clone()
        inputs = [mine(case, step, micro) for micro in range(len(micro_batches))]
        losses = [head(x, y, w if case.weighted else None, r) for x, y, w, r in inputs]
        for loss in losses:
            (loss / len(losses)).backward()
        assert torch.equal(head.records.values, nu), "backward changed a record"
        optimizer.step()
        optimizer.zero_grad()
        every = torch.arange(head.centers.shard.size)
        selected = [head.centers.classes(every if s.ids is None else s.ids) for s in record]
        log_q = [torch.zeros(len(ids)) if s.log_q is None else s.log_q for s, ids in zip(record, selected, strict=True)]
        results.append(
            SimpleNamespace(
                losses=[loss.detach() for loss in losses],
                gradients=[x.grad for x, *_ in inputs],
                before=before,
                after=head.centers.rows.clone(),
                nu=head.records.values.clone(),
                selected=selected,
                slots=head.centers.slots(torch.arange(case.num_classes)),
                log_q=log_q,
            )
        )
    return results


def visit(case: Case, step: int, nu: Tensor, log_mean: Tensor) -> Tensor:
    """Return nu after a visit, as it is written down."""

    def now(name: str) -> Any:
        value = case.options.get(name, {"log_a": 12, "gamma": None}[name])
        return value[max(s for s in value if s <= step)] if isinstance(value, dict) else value

    share = torch.sigmoid(now("log_a") + nu) if now("gamma") is None else now("gamma") * torch.ones_like(nu)
    moved = torch.logaddexp(torch.log1p(-share) + nu, torch.log(share) + log_mean)
    return torch.where(nu == UNVISITED, log_mean, moved)


class Dense:
    """The dense computation in one dtype. It keeps nu of all records from step to step."""

    def __init__(self, case: Case, dtype: torch.dtype):
        self.case, self.dtype = case, dtype
        self.nu = torch.full((R,), UNVISITED, dtype=dtype)

    def step(self, step: int, of_ranks: list[SimpleNamespace]) -> SimpleNamespace:
        case, dtype = self.case, self.dtype
        rows = torch.cat([part.before for part in of_ranks])[of_ranks[0].slots].to(dtype).requires_grad_()
        losses, gradients, visits = [], [], []
        for micro in range(len(case.batches[step])):
            x, labels, weight, records = case.batch(step, micro)
            x, weight = x.to(dtype).requires_grad_(), weight.to(dtype)
            ids = torch.cat([part.selected[micro] for part in of_ranks])
            own = ids[None] == labels[:, None]
            centers, bias = rows[ids, :D], rows[ids, D:].sum(1)
            cos = normalize(x) @ normalize(centers).T if case.margin.normalize else x @ centers.T
            batch = reference.Batch(cos, own, x.norm(dim=1), -bias)
            rule = case.rule if isinstance(case.rule, Rule) else case.rule(batch)
            z = reference.logits(batch, rule) + bias
            excess = (z - z[own][:, None]).masked_fill(own, -torch.inf)
            count = len(ids) - 1
            if case.options.get("log_q"):
                excess = excess - torch.cat([part.log_q[micro] for part in of_ranks]).to(dtype)
                count = case.num_classes - 1
            log_mean = excess.detach().logsumexp(1) - math.log(count)
            nu = visit(case, step, self.nu[records], log_mean)
            losses_N = (excess - nu[:, None]).exp().sum(1) / count + rule.penalty
            loss = (weight * losses_N).sum() / weight.sum()
            (loss / len(case.batches[step])).backward()
            losses.append(loss.detach())
            gradients.append(x.grad)
            visits += zip(records.tolist(), nu, strict=True)
        for record in {record for record, _ in visits}:
            of_record = torch.stack([nu for visited, nu in visits if visited == record])
            self.nu[record] = of_record.logsumexp(0) - math.log(len(of_record))
        after = rows.detach() - LR * rows.grad
        return SimpleNamespace(losses=losses, gradients=gradients, after=after, nu=self.nu.clone())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_steps_match_the_reference(name, world_size, workers):
    """Records appear twice in a batch, in several micro-batches of a step, and in several steps."""
    case = CASES[name]
    results = workers(world_size).run(train, replace(case, rule=Rule()))  # lambdas cannot be sent
    exact, naive = Dense(case, torch.float64), Dense(case, case.dtype)
    compared: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for step in range(len(case.batches)):
        of_ranks = [result[step] for result in results]
        right, plain = exact.step(step, of_ranks), naive.step(step, of_ranks)
        for micro, loss in enumerate(right.losses):
            ours = of_ranks[0].losses[micro]
            assert all(torch.equal(part.losses[micro], ours) for part in of_ranks)
            compared.setdefault("loss", []).append((ours, loss, plain.losses[micro]))
            ours = torch.cat([part.gradients[micro] for part in of_ranks]) / world_size
            compared.setdefault("gradient", []).append((ours, right.gradients[micro], plain.gradients[micro]))
        ours = torch.cat([part.after for part in of_ranks])[of_ranks[0].slots]
        compared.setdefault("rows", []).append((ours, right.after, plain.after))
        ours = torch.cat([part.nu for part in of_ranks])
        seen = right.nu > UNVISITED
        assert torch.equal(ours > UNVISITED, seen)
        compared.setdefault("nu", []).append((ours[seen], right.nu[seen], plain.nu[seen]))
    assert int(seen.sum()) > 2
    for what, parts in compared.items():
        ours, right, plain = (torch.cat([part[which].flatten() for part in parts]) for which in range(3))
        reference.close(ours, right, plain, what)


def stepped(case: Case, head: Scent, optimizer: Any, step: int) -> Tensor:
    """Run one step in a worker, and return its loss."""
    x, labels, _, records = mine(case, step, 0)
    loss = head(x, labels, None, records)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def saved_and_loaded(case: Case) -> None:
    """Assert in a worker that state loaded into a new head continues bit for bit."""
    head = build(case)
    optimizer = optimizer_of(head)
    stepped(case, head, optimizer, 0)
    saved, twin = copy.deepcopy(head.state_dict()), copy.deepcopy(head)
    assert torch.equal(twin.records.values, head.records.values)
    loss = stepped(case, head, optimizer, 1)
    again = build(case)
    optimizer_again = optimizer_of(again)
    again.load_state_dict(saved)
    for other, its_optimizer in ((again, optimizer_again), (twin, optimizer_of(twin))):
        if other is twin:
            other.load_state_dict(saved)  # with the row state, which an optimizer of its own owns
        assert torch.equal(stepped(case, other, its_optimizer, 1), loss)
        assert torch.equal(other.records.values, head.records.values)
        assert torch.equal(other.centers.rows, head.centers.rows)
    fewer = Scent(case.num_classes, D, num_records=R - 3)
    with pytest.raises(RuntimeError, match=f"values: got .*{R}.*num_records={R - 3}; load the state into a head for"):
        fewer.load_state_dict(saved)
    assert fewer.step == 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_saved_state_continues_bit_for_bit(world_size, workers):
    workers(world_size).run(saved_and_loaded, CASES["slow"])


def full_state(case: Case) -> dict[str, Any]:
    head = build(case)
    optimizer = optimizer_of(head)
    stepped(case, head, optimizer, 0)
    return head.full_state_dict()


def values_after_loading(case: Case, state: dict[str, Any]) -> Tensor:
    head = build(case)
    optimizer_of(head)
    head.load_state_dict(state)
    return head.records.values


def test_records_are_redistributed_over_another_number_of_processes(workers):
    case = replace(CASES["slow"], rule=Rule())
    state, *_ = workers(3).run(full_state, case)
    assert state["records.values"].shape == (R,) and 2 < int((state["records.values"] > UNVISITED).sum()) < R
    for world_size, sizes in ((2, [6, 5]), (1, [11])):
        parts = workers(world_size).run(values_after_loading, case, state)
        assert [len(part) for part in parts] == sizes and torch.equal(torch.cat(parts), state["records.values"])


def traceless(case: Case) -> None:
    """Assert in a worker that only an applied step of the optimizer changes the records."""
    head = build(case)
    optimizer = optimizer_of(head)
    stepped(case, head, optimizer, 0)
    x, labels, _, records = mine(case, 1, 0)
    before, rows = head.records.values.clone(), head.centers.rows.clone()

    def loss() -> Tensor:
        return head(x, labels, None, records)

    with torch.no_grad():
        loss()
    loss()
    torch.autograd.grad(loss(), x)
    loss().backward()
    optimizer.zero_grad()
    loss().backward()
    head.zero_grad()
    selection_fidelity(head, x.detach(), labels, records=records, probes=4, repeats=2)
    loss().backward()
    head.advance(applied=False)
    optimizer.zero_grad()
    head.eval()
    head(x, labels, None, records).backward()
    head.train()
    head.step, head.micro_batch = 1, 0
    loss().backward()
    head.pending.proxy.grad = None
    optimizer.step()  # of nothing
    optimizer.zero_grad()
    assert torch.equal(head.records.values, before) and torch.equal(head.centers.rows, rows)
    head.step = 1
    after = stepped(case, head, optimizer, 1)
    plain = build(case)
    plain_optimizer = optimizer_of(plain)
    stepped(case, plain, plain_optimizer, 0)
    assert torch.equal(after, stepped(case, plain, plain_optimizer, 1))
    assert torch.equal(head.records.values, plain.records.values) and not torch.equal(head.records.values, before)


@pytest.mark.parametrize("world_size", [1, 2])
def test_nothing_but_a_step_changes_a_record(world_size, workers):
    workers(world_size).run(traceless, CASES["slow"])


def refused_batches(case: Case) -> list[str]:
    """Return in a worker the errors of batches that only the last process gets wrong."""
    head, (rank, world_size) = build(case), rank_and_world()
    x, labels, _, records = mine(case, 0, 0)
    x, labels, records = torch.randn(3, D), torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    messages = []
    for wrong in (None, records[:2], records.float(), records + R, records - 5):
        with pytest.raises(ValueError) as caught:
            head(x, labels, None, wrong if rank == world_size - 1 else records)
        messages.append(str(caught.value))
    head(x, labels, None, records.int())
    return messages


@pytest.mark.parametrize("world_size", [1, 2])
def test_wrong_record_numbers_are_refused_on_all_processes(world_size, workers):
    *others, last = workers(world_size).run(refused_batches, CASES["scent"])
    missing, short, floats, *outside = last
    assert f"records are missing, and this head keeps a number for each of the {R} training records; pass" in missing
    assert "records of [2] torch.int64 must be one int64 record number for each of the 3 embeddings" in short
    assert "records of [3] torch.float32 must be" in floats
    assert f"record {4 + R} at step 0 is out of range; record numbers must be in [0, num_records={R})" in outside[0]
    assert "record -1 at step 0" in outside[1]
    for messages in others:
        assert messages[3:] == outside and all(f"process {world_size - 1} cannot use" in one for one in messages[:3])


def test_another_head_refuses_record_numbers():
    x, labels, records = torch.randn(2, D), torch.tensor([0, 1]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="records were given, but this head keeps nothing per record; leave them out"):
        PartialFC(9, D)(x, labels, None, records)


def test_the_first_visit_of_a_record_has_the_loss_one_and_the_exact_gradient():
    """The gradient over all classes is that of the log of the mean over the negatives."""
    case = CASES["all classes"]
    head = build(case)
    x, labels, _, _ = mine(case, 0, 0)
    loss = head(x, labels, None, torch.arange(len(labels)))
    loss.backward()
    logits = 16 * normalize(x.detach().requires_grad_()) @ normalize(head.centers.rows).T
    assert float(loss.detach()) == 1
    leaf = x.detach().requires_grad_()
    logits = 16 * normalize(leaf) @ normalize(head.centers.rows).T
    own = torch.nn.functional.one_hot(labels, case.num_classes).bool()
    (logits.masked_fill(own, -torch.inf).logsumexp(1) - logits[own]).mean().backward()
    torch.testing.assert_close(x.grad, leaf.grad, rtol=1e-4, atol=1e-8)


def test_eval_mode_is_the_softmax_over_all_classes():
    head = build(CASES["scent"]).eval()
    other = PartialFC(61, D, margin=CosFace(s=16, m=0.3)).eval()
    other.centers.rows.copy_(head.centers.rows)
    x, labels, *_ = mine(CASES["scent"], 0, 0)
    assert torch.equal(head(x, labels), other(x, labels))


def test_ignored_samples_and_samples_without_negatives_visit_nothing():
    head = build(Case({"sample_rate": 0.3, "ignore_label": -100}))
    optimizer = optimizer_of(head)
    x, records = torch.randn(4, D), torch.arange(4)
    for labels in (torch.tensor([5, -100, 7, -100]), torch.full((4,), -100)):
        head(x.clone().requires_grad_(), labels, None, records).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert (head.records.values > UNVISITED).nonzero()[:, 0].tolist() == [0, 2]
    alone = build(replace(CASES["all classes"], num_classes=1))
    optimizer = optimizer_of(alone)
    x = torch.randn(2, D, requires_grad=True)
    loss = alone(x, torch.tensor([0, 0]), None, torch.tensor([3, 3]))
    loss.backward()
    optimizer.step()
    assert float(loss.detach()) == 0 and not x.grad.any() and not (alone.records.values > UNVISITED).any()
    assert math.isnan(alone.stats()["log_mean_exp"])
    optimizer.zero_grad()
    alone.records.values[3] = 2.0
    alone(x, torch.tensor([0, 0]), None, torch.tensor([3, 3])).backward()
    optimizer.step()
    assert float(alone.records.values[3]) == 2


def test_several_labels_are_refused():
    head, x = build(CASES["scent"]), torch.randn(2, D)
    records = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"labels of a sample must be one class for SCENT, .* PartialFC for several"):
        head(x, torch.tensor([[1, 2], [3, -1]]), None, records)
    one = head(x, torch.tensor([[1, -1], [3, -1]]), None, records)
    assert torch.equal(one, head(x, torch.tensor([1, 3]), None, records))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": UniFace()}, r"objective=UniFace\(.*\) cannot be used with SCENT, which has a loss of its own"),
        ({"objective": CrossEntropy(label_smoothing=0.1)}, r"objective=CrossEntropy\(label_smoothing=0.1\) cannot be"),
        ({"gamma": 0}, r"gamma=0 must be in \(0, 1\]; 1 keeps nothing"),
        ({"gamma": {0: 0.5, 9: 1.5}}, r"gamma=1.5 must be in"),
        ({"gamma": {1: 0.5}}, "gamma=.* must have whole numbers as steps and begin at step 0"),
        ({"gamma": 0.5, "log_a": 3}, "log_a=3 has no effect with gamma=0.5; leave log_a out"),
        ({"log_a": "big"}, "log_a='big' must be a number"),
        ({"log_a": math.nan}, "log_a=nan must be at least"),
        ({"sample_rate": 2}, "sample_rate=2 must be in"),
        ({"num_records": 0}, "num_records=0 must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Scent(9, D, **{"num_records": R, **options})


def too_few_records() -> str:
    with pytest.raises(ValueError) as caught:
        Scent(50, D, num_records=4)
    return str(caught.value)


def test_each_process_holds_a_record(workers):
    assert "num_records=4 on 3 processes leaves a process without a record" in workers(3).run(too_few_records)[0]
    with pytest.raises(TypeError, match="num_records"):
        Scent(9, D)


def test_logits_that_are_far_apart_do_not_overflow():
    """exp(l) is beyond float32 here, on a visit after one with small l."""
    head = build(replace(CASES["all classes"], margin=CosFace(s=200, m=0)))
    optimizer = optimizer_of(head)
    for sign in (1, -1):
        x = (sign * head.centers.rows[3:4]).clone().requires_grad_()
        loss = head(x, torch.tensor([3]), None, torch.tensor([0]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.isfinite(loss) and torch.isfinite(x.grad).all() and torch.isfinite(head.centers.rows).all()
    assert float(head.records.values[0]) > 100


def test_memory_and_cost_contain_the_records():
    head, plain = build(CASES["scent"]), PartialFC(61, D)
    assert head.stats()["memory_bytes"] == plain.stats()["memory_bytes"] + 4 * R
    assert head.half().records.values.dtype == torch.float32 and head.num_records == R
    case = CostCase(1000, 16, 64, 3)
    options = head.options
    more = {
        where: Scent.cost(replace(case, num_records=100), replace(options, store=where), row_state={})
        for where in ("device", "host")
    }
    less = {where: PartialFC.cost(case, replace(options, store=where), row_state={}) for where in more}
    assert more["device"].table_bytes - less["device"].table_bytes == 4 * 34
    assert more["host"].work_bytes - less["host"].work_bytes == 4 * 34
    assert more["host"].table_bytes == less["host"].table_bytes
    assert more["device"].sent_bytes - less["device"].sent_bytes == pytest.approx((8 * 64 + 2 * 4 * 64) * 2 / 3)
    with pytest.raises(ValueError, match="num_records is missing: SCENT keeps 4 bytes for each training record"):
        Scent.cost(case, options, row_state={})


def test_fidelity_compares_with_the_logarithm_of_the_mean_over_all_classes():
    """Records without a visit have the exact gradient if all classes take part; others have that of their nu."""
    case = Case({"sample_rate": 1, "gamma": 0.3})
    head = build(case)
    x, labels, _, _ = mine(case, 0, 0)
    records = torch.arange(len(labels))
    figures = selection_fidelity(head, x.detach(), labels, records=records)
    assert figures["gradient_cosine"] == pytest.approx(1, abs=1e-6) and figures["mass"] == pytest.approx(1)
    assert figures["gradient_norm_ratio"] == pytest.approx(1, abs=1e-5)
    head.records.values.fill_(60.0)
    figures = selection_fidelity(head, x.detach(), labels, records=records)
    assert figures["gradient_norm_ratio"] < 0.1 and figures["mass"] == pytest.approx(1)
    head.records.values[0::2] = UNVISITED  # these records belong to the probes
    figures = selection_fidelity(head, x.detach(), labels, records=records, probes=4)
    assert figures["gradient_norm_ratio"] == pytest.approx(1, abs=1e-5)
    sampled = build(replace(case, options={"sample_rate": 0.3}))
    assert selection_fidelity(sampled, x.detach(), labels, records=records)["gradient_cosine"] < 0.9
    with pytest.raises(ValueError, match="records are missing"):
        selection_fidelity(head, x.detach(), labels)


def skipped(scale: float) -> tuple[Tensor, int]:
    """Train two steps with a GradScaler; return the records and the steps. A scale beyond 2^64 is an overflow."""
    case = CASES["slow"]
    head = build(case)
    optimizer = optimizer_of(head)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    x, labels, _, records = mine(case, 0, 0)
    scaler.scale(head(x, labels, None, records)).backward()
    scaler.step(optimizer)
    return head.records.values, head.step


def test_a_step_that_a_scaler_skips_visits_nothing():
    values, steps = skipped(2.0**70)
    assert steps == 0 and not (values > UNVISITED).any()
    values, steps = skipped(2.0**10)
    assert steps == 1 and (values > UNVISITED).any()
