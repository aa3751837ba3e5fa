"""The hashing forest against the float64 reference; its selection, index refreshes and state."""

import contextlib
import copy
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from heads import CosFace, FullFC, HashingForest, PartialFC, Softmax
from heads.indexes import IVF, Annoy, Exact, Index
from tests import conformance
from tests.conformance import Case
from tests.reference import Rule

OPTIONS = {"num_active": 40, "interval": 2, "build": "blocking", "index": Annoy(num_trees=4)}
CASES = {
    "annoy": Case(HashingForest, OPTIONS),
    "ivf": Case(HashingForest, {**OPTIONS, "index": IVF(nprobe=2)}, num_classes=1000),
    "exact": Case(HashingForest, {**OPTIONS, "index": Exact()}),
    "exact refreshed every step": Case(HashingForest, {**OPTIONS, "index": Exact(), "interval": 1}),
    "half uniform, log q": Case(HashingForest, {**OPTIONS, "neighbours_share": 0.5, "log_q": True}),
    "recomputing": Case(HashingForest, {**OPTIONS, "logits_budget_mb": 0, "log_q": True}),
    "seven": Case(HashingForest, {**OPTIONS, "num_active": 6}, num_classes=7),
    "all": Case(HashingForest, {**OPTIONS, "num_active": 1.0}),
    "softmax": Case(HashingForest, OPTIONS, margin=Softmax(), rule=Rule(s=1.0, normalized=False)),
    "probed, with a target": Case(HashingForest, {**OPTIONS, "probe_interval": 1, "target_mass": 0.5}),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", ["annoy", "ivf", "exact", "softmax"])
def test_state_round_trip(name, world_size, workers):
    case = CASES[name]
    margin = {"margin": case.margin}
    workers(world_size).run(conformance.round_trip, Case(HashingForest, {**case.options, **margin}, num_classes=100))


def test_an_abandoned_backward_changes_nothing(workers):
    workers(2).run(conformance.abandoned, Case(HashingForest, OPTIONS))


def embeddings(count: int = 4, seed: int = 0) -> Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)))


def forest(num_classes: int = 200, **options: Any) -> HashingForest:
    defaults = {"num_active": 40, "index": Exact(), "build": "blocking"}
    return HashingForest(num_classes, 8, **{**defaults, **options})


def test_with_all_classes_active_it_is_the_full_head():
    labels = torch.tensor([1, 2, 3, 1])
    results = []
    for head in (FullFC(50, 8), forest(50, num_active=50), forest(50, num_active=1.0)):
        optimizer = head.optimizer(lr=0.1)
        loss = head(embeddings(), labels)
        loss.backward()
        optimizer.step()
        results.append((loss, head.centers.rows))
    assert all(torch.equal(loss, results[0][0]) and torch.equal(rows, results[0][1]) for loss, rows in results)


def test_almost_all_classes_give_almost_the_loss_of_the_full_head():
    """An exact index leaves out the classes that weigh least."""
    labels = torch.tensor([1, 2, 3, 1])
    full, most = FullFC(200, 8), forest(num_active=190)
    full.centers.rows *= 100
    most.centers.rows *= 100
    exact, ours = (head(embeddings(), labels).item() for head in (full, most))
    assert exact * (1 - 1e-6) < ours <= exact


def test_selection_takes_positives_then_nearest_by_turns_then_uniform():
    head, x, labels = forest(neighbours_share=0.5), embeddings(), torch.tensor([7, 7, 190, 0])
    ids = head.select_classes(x, labels).ids
    assert len(ids) == 40 and torch.equal(ids, torch.unique(ids)) and {0, 7, 190} <= set(ids.tolist())
    count = round(0.5 * (40 - 3))
    ranked = (x @ normalize(head.centers.rows).T).argsort(dim=1, descending=True)
    asked = -(-count // 4) + 1
    wanted: list[int] = []
    for row in ranked[:, :asked].T.flatten().tolist():  # all nearest neighbours, then all second nearest
        if row not in (0, 7, 190) and row not in wanted:
            wanted.append(row)
    assert set(wanted[:count]) <= set(ids.tolist()) and head.nearest_negatives == len(wanted[:count])


def test_without_neighbours_it_is_partial_fc():
    labels = torch.tensor([7, 7, 190, 0])
    ids = forest(neighbours_share=0, num_active=0.2).select_classes(embeddings(), labels).ids
    assert torch.equal(ids, PartialFC(200, 8, sample_rate=0.2).select_classes(embeddings(), labels).ids)


def test_corrected_uniform_negatives_represent_all_others():
    """The mean over many draws of the corrected denominator equals the full denominator."""
    head, x, labels = forest(neighbours_share=0.5, log_q=True), embeddings(), torch.tensor([7, 7, 190, 0])
    head.centers.rows *= 100
    exp = (4 * x @ normalize(head.centers.rows).T).exp().double()
    sums = []
    for step in range(400):
        head.step, head.index_refresh.next_refresh = step, 1000
        if step == 0:
            head.index_refresh.next_refresh = 0
        selection = head.select_classes(x, labels)
        sums.append((exp[:, selection.ids] / selection.log_q.exp()).sum(1))
    estimates = torch.stack(sums)
    error = estimates.mean(0) - exp.sum(1)
    assert (error.abs() < 4 * estimates.std(0) / 20).all() and (estimates.std(0) > 0).all()


class Slow(Exact):
    """An index whose build waits for `go`."""

    go = threading.Event()
    fails = False

    def build(self, *arguments: Any, **options: Any) -> None:
        self.go.wait(timeout=30)
        if self.fails:
            raise MemoryError("no room")
        super().build(*arguments, **options)

    rebuilt = Index.rebuilt  # builds all again

    def empty_copy(self) -> "Slow":
        return type(self)()


def until_built(head: HashingForest) -> None:
    Slow.go.set()
    head.index_refresh.wait()
    Slow.go.clear()


def test_in_the_background_the_current_index_serves_until_the_next_is_ready():
    Slow.go.clear()
    head, x, labels = forest(build="background", index=Slow(), interval=2), embeddings(), torch.tensor([1, 2, 3, 4])
    head.select_classes(x, labels)
    assert head.nearest_negatives == 0 and "index_age" not in head.stats()  # uniform until the first is ready
    until_built(head)
    head.step = 1
    head.select_classes(x, labels)
    assert head.nearest_negatives > 0 and head.stats()["index_age"] == 1
    initial = head.index_refresh.current
    head.step = 2  # due
    head.select_classes(x, labels)
    assert head.index_refresh.running and head.index_refresh.current is initial
    head.step = 5
    head.select_classes(x, labels)
    assert head.index_refresh.current is initial and head.stats()["index_age"] == 5
    until_built(head)
    head.select_classes(x, labels)
    assert head.index_refresh.current is not initial and head.index_refresh.as_of == 2


def selected(head: HashingForest, step: int) -> None:
    head.step = step
    head.select_classes(embeddings(), torch.tensor([1, 2, 3, 4]))


def test_a_failed_blocking_build_is_an_error(monkeypatch):
    monkeypatch.setattr(Slow, "fails", True)
    Slow.go.set()
    with pytest.raises(RuntimeError, match="index of nearest classes could not be built: no room"):
        selected(forest(build="blocking", index=Slow()), 0)


def test_after_a_failed_background_build_the_current_index_serves_and_is_built_again(monkeypatch):
    head = forest(build="background", index=Slow(), interval=10)
    selected(head, 0)
    until_built(head)
    initial = head.index_refresh.current
    monkeypatch.setattr(Slow, "fails", True)
    Slow.go.set()
    tried = []
    for step in range(1, 45):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            selected(head, step)
            tried += [step] * head.index_refresh.running
            head.index_refresh.wait()
        assert head.nearest_negatives > 0 and head.index_refresh.current is initial and head.failure is None
        assert all(
            "no room; the previous index is used until a new build succeeds" in str(warning.message)
            for warning in caught
        )
        assert len(caught) == (step in tried)
    assert tried == [10, 11, 12, 22, 32, 42]  # three attempts at once, then at the interval
    monkeypatch.setattr(Slow, "fails", False)
    selected(head, 52)
    head.index_refresh.wait()
    assert head.index_refresh.current is not initial and head.index_refresh.failures == 0


def test_without_any_index_training_ends_after_three_attempts(monkeypatch):
    """The step of the last attempt completes, so that its checkpoint can be written."""
    monkeypatch.setattr(Slow, "fails", True)
    Slow.go.set()
    head = forest(build="background", index=Slow())
    for step in range(3):
        assert head.failure is None
        selected(head, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head.index_refresh.wait()
    assert head.failure == "the index of nearest classes could not be built: no room (3 times in a row)"
    with pytest.raises(RuntimeError, match=r"no room \(3 times in a row\)"):
        selected(head, 3)


@pytest.mark.parametrize("index", [Exact(), IVF(num_lists=5, nprobe=5)])
@pytest.mark.parametrize("saved", ["while it is built", "after it failed", "as a copy"])
def test_a_failed_refresh_forgets_no_changed_row(index, saved, monkeypatch):
    head = forest(index=index, build="background", interval=1)
    selected(head, 0)
    head.index_refresh.wait()
    changes = torch.tensor([3, 150])
    head.centers.rows[changes] = normalize(torch.ones(2, 8))
    head.index_refresh.changed[changes] = True
    go = threading.Event()

    def fails(*arguments: Any, **options: Any) -> Index:
        go.wait(timeout=30)
        raise MemoryError("no room")

    with monkeypatch.context() as failing:
        failing.setattr(type(head.index_refresh.current), "rebuilt", fails)
        selected(head, 1)
        if saved == "after it failed":
            go.set()
            with pytest.warns(RuntimeWarning, match="no room"):
                head.index_refresh.wait()
        state, copied = head.state_dict(), copy.deepcopy(head)
        go.set()
        with contextlib.suppress(RuntimeWarning):
            head.index_refresh.wait()
    restored = copied
    if saved != "as a copy":
        restored = forest(index=index, build="background", interval=1)
        restored.load_state_dict(state)
    for refreshed in (head, restored):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            selected(refreshed, 2)
            refreshed.index_refresh.wait()
        nearest = refreshed.index_refresh.current.query(normalize(torch.ones(1, 8)), 2)
        assert set(nearest[0].tolist()) == {3, 150}


@pytest.mark.parametrize("index", [Exact(), IVF(num_lists=5, nprobe=5)])
def test_a_refreshed_index_has_the_rows_that_training_changed(index):
    head = forest(index=index, interval=1)
    optimizer = head.optimizer(lr=5.0)
    for seed in range(4):
        head(embeddings(seed=seed), torch.tensor([1, 2, 3, 4]) + seed).backward()
        optimizer.step()
        optimizer.zero_grad()
    x = embeddings()
    head.select_classes(x, torch.tensor([1, 2, 3, 4]))
    assert head.index_refresh.as_of == 4
    best = (x @ normalize(head.centers.rows).T).topk(10).indices
    assert torch.equal(head.index_refresh.current.query(x, 10), best)


def test_softmax_rows_may_grow_beyond_the_radius():
    head = forest(margin=Softmax(), interval=1)
    for growth in (1, 10):
        head.centers.rows *= growth
        head.index_refresh.changed[:] = True
        x = head.to_rows_space(embeddings())
        head.select_classes(x, torch.tensor([1, 2, 3, 4]))
        head.step += 1
        best = (x @ head.centers.rows.T).topk(10).indices
        assert torch.equal(head.index_refresh.current.query(head.index_refresh.queries(x), 10), best)


def test_an_index_of_other_rows_is_not_loaded():
    head = forest()
    head.select_classes(embeddings(), torch.tensor([1, 2, 3, 4]))
    state = head.get_extra_state()
    for name, value in (("shard", [100, 300, 400, 8]), ("kind", "IVF")):
        other = forest()
        other.set_extra_state({**state, "index": {**state["index"], name: value}})
        assert other.index_refresh.current is None and other.index_refresh.next_refresh == other.step
    other = forest()
    other.load_state_dict(FullFC(200, 8).state_dict())  # state of a head without an index
    assert other.index_refresh.current is None


def test_state_of_version_0_2_is_refused_and_its_class_centers_can_be_loaded():
    head = forest()
    state = forest(seed=1).state_dict()
    allocation = {"growth": 1.0, "effort": 1.0, "patience": 1.0}
    with pytest.raises(ValueError, match=r"no 'search_scale': .* delete '_extra_state' .* strict=False"):
        head.load_state_dict({**state, "_extra_state": {"step": 3, "allocation": allocation}})
    del state["_extra_state"]
    head.load_state_dict(state, strict=False)
    assert torch.equal(head.centers.rows, state["centers.rows"]) and head.step == 0


def test_a_target_moves_the_number_of_classes():
    head = forest(num_active=20, target_mass=0.9, probe_interval=1, margin=CosFace(s=4))
    optimizer = head.optimizer(lr=0.1)
    active = []
    for _ in range(12):
        head(embeddings(), torch.tensor([1, 2, 3, 4])).backward()
        optimizer.step()
        optimizer.zero_grad()
        active.append(head.stats()["active_classes"])
    assert active[0] == 20 and active[-1] > 60 and head.stats()["mass_covered"] > 0.6


def test_probes_run_at_their_interval():
    head = forest(num_active=100, neighbours_share=0, probe_interval=2)
    optimizer = head.optimizer(lr=0.0)
    seen = []
    for _ in range(40):
        head(embeddings(8), torch.arange(8)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(head.stats()["mass_covered"])
    assert seen[0] == seen[1] != seen[2] and sum(seen) / 40 == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"neighbours_share": 1.5}, "neighbours_share=1.5"),
        ({"build": "now"}, "build='now'"),
        ({"num_active": 201}, "num_active=201"),
        ({"target_mass": 0.5}, "target_mass=0.5 needs probes; set probe_interval"),
        ({"probe_interval": 0}, "probe_interval=0"),
        ({"probes": 0}, "probes=0"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        forest(**options)
