"""KNN softmax against the float64 reference; its graph, selection, builds and state."""

import copy
import pickle
import threading
import time
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import heads.indexes.class_graph
from heads import BCE, IVF, Annoy, CosFace, Exact, FullFC, Index, KNNSoftmax, PartialFC, Softmax
from heads.core.cost import Case as Size
from heads.fidelity import selection_fidelity
from heads.group.sharding import Shard
from tests import conformance, several
from tests.conformance import Case
from tests.reference import Rule
from tests.workers import rank_and_world

OPTIONS = {"num_active": 40, "neighbours": 10, "interval": 2, "build": "blocking"}
CASES = {
    "exact": Case(KNNSoftmax, OPTIONS),
    "every step": Case(KNNSoftmax, {**OPTIONS, "interval": 1, "neighbours": 200}),
    "annoy": Case(KNNSoftmax, {**OPTIONS, "index": Annoy(num_trees=4)}),
    "ivf": Case(KNNSoftmax, {**OPTIONS, "index": IVF(nprobe=2)}, num_classes=1000),
    "log q": Case(KNNSoftmax, {**OPTIONS, "neighbours": 2, "log_q": True}),
    "recomputing": Case(KNNSoftmax, {**OPTIONS, "logits_budget_mb": 0, "log_q": True}),
    "seven": Case(KNNSoftmax, {**OPTIONS, "num_active": 6}, num_classes=7),
    "later all": Case(KNNSoftmax, {**OPTIONS, "num_active": {0: 0.3, 2: 1.0}}),
    "softmax": Case(KNNSoftmax, OPTIONS, margin=Softmax(), rule=Rule(s=1.0, normalized=False)),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_several_labels_match_the_reference(world_size, workers):
    options = {**OPTIONS, "num_active": 0.4, "positives": "draw:2"}
    several.check(workers(world_size), several.Case(KNNSoftmax, options, num_classes=101))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", ["exact", "annoy", "softmax"])
def test_state_round_trip(name, world_size, workers):
    case = CASES[name]
    options = {**case.options, "margin": case.margin, "interval": 3}  # the graph is older than the saved rows
    workers(world_size).run(conformance.round_trip, replace(case, options=options))


def test_an_abandoned_backward_changes_nothing(workers):
    workers(2).run(conformance.abandoned, Case(KNNSoftmax, OPTIONS))


def embeddings(count: int = 4, seed: int = 0) -> Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)))


def knn(num_classes: int = 200, **options: Any) -> KNNSoftmax:
    return KNNSoftmax(num_classes, 8, **{"num_active": 40, "neighbours": 10, "build": "blocking", **options})


LABELS = torch.tensor([7, 7, 190, 0])


def select(head: KNNSoftmax, step: int, labels: Tensor = LABELS) -> Tensor:
    head.step = step
    ids = head.select_classes(embeddings(len(labels)), labels).ids
    assert ids is not None
    return ids


# --- the graph


def nearest_of_shard(rows: Tensor, shard: Shard, neighbours: int, normalized: bool) -> Tensor:
    """Return the graph of a shard (C, k) by sorting all pairs of classes."""
    if normalized:
        scores = normalize(rows) @ normalize(rows).T
    else:
        scores = rows[:, :-1] @ rows[:, :-1].T + rows[:, -1]
    scores.fill_diagonal_(-torch.inf)
    scores = scores[:, shard.start : shard.stop]
    count = min(-(-neighbours * shard.size // shard.num_classes), shard.size)
    ordered = scores.sort(dim=1, descending=True)
    return torch.where(torch.isfinite(ordered.values), ordered.indices, -1)[:, :count].to(torch.int32)


def built(num_classes: int, options: dict[str, Any], steps: int = 1) -> tuple[Tensor, Tensor, Shard]:
    """Return rows and graph of a worker after some training steps with a build at the last one, and its shard."""
    heads.indexes.class_graph.EXCHANGED_ROWS = 8  # so that the interval gives two exchanges
    rank, world_size = rank_and_world()
    try:
        head = KNNSoftmax(num_classes, 8, **{"num_active": 0.5, "interval": 2, "build": "blocking", **options})
        optimizer = head.optimizer(lr=1.0)
        for step in range(steps):
            rows = head.centers.rows.clone()
            labels = (torch.arange(6) * 7 + step) % num_classes
            part = conformance.part_of(6, rank, world_size)
            head(embeddings(6, step)[part].requires_grad_(), labels[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert head.graph.current is not None and head.graph.as_of == steps - 1
        return rows, head.graph.current, head.centers.shard
    finally:
        heads.indexes.class_graph.EXCHANGED_ROWS = 1024


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("num_classes", "options"),
    [
        (101, {"neighbours": 10}),
        (101, {"neighbours": 1000}),
        (7, {"neighbours": 2}),
        (5, {"neighbours": 3, "num_active": 4}),
        (101, {"neighbours": 10, "margin": Softmax()}),
        (101, {"neighbours": 10, "objective": BCE()}),
        (101, {"neighbours": 10, "store": "host", "dtype": "bf16"}),
    ],
)
def test_the_graph_is_that_of_brute_force(num_classes, options, world_size, workers):
    parts = workers(world_size).run(built, num_classes, options, 3)
    rows = torch.cat([part for part, _, _ in parts]).float()
    rows = rows[:, :8] if not isinstance(options.get("margin"), Softmax) else rows
    for _, graph, shard in parts:
        wanted = nearest_of_shard(rows, shard, options["neighbours"], normalized=rows.shape[1] == 8)
        assert graph.dtype == torch.int32 and torch.equal(graph, wanted)
    assert len(parts) == world_size


@pytest.mark.parametrize("index", [Annoy(num_trees=20), IVF(num_lists=5, nprobe=2)])
def test_an_approximate_index_finds_most_neighbours(index):
    exact, approximate = knn(), knn(index=index)
    for head in (exact, approximate):
        select(head, 0)
    truth, found = exact.graph.current, approximate.graph.current
    hits = (found[:, :, None] == truth[:, None]).any(1).float().mean()
    assert hits > 0.4 and not (found == torch.arange(200)[:, None]).any()
    assert not len(approximate.graph.template)  # the index of a build is dropped


def test_the_graph_on_disk_is_that_on_the_device(tmp_path):
    on_device, on_disk = knn(), knn(store="disk", store_dir=tmp_path)
    for head in (on_device, on_disk):
        select(head, 0)
    assert torch.equal(on_device.graph.current, on_disk.graph.current)


# --- the selection


def test_selection_is_positives_then_neighbours_then_uniform():
    head = knn(neighbours=3)
    ids = select(head, 0)
    neighbours = set(head.graph.current[[0, 7, 190]].flatten().tolist()) - {0, 7, 190}
    assert len(ids) == 40 and torch.equal(ids, torch.unique(ids))
    assert {0, 7, 190} | neighbours <= set(ids.tolist()) and head.nearest_negatives == len(neighbours) > 5
    rest = [set(select(head, step).tolist()) - neighbours - {0, 7, 190} for step in range(1, 60)]
    assert all(len(others) == 40 - 3 - len(neighbours) for others in rest)
    assert set.union(*rest) == set(range(200)) - neighbours - {0, 7, 190}  # drawn from all others


def test_nearest_come_first_if_the_quota_is_small():
    head = knn(neighbours=30, num_active=20)
    ids = set(select(head, 0).tolist())
    wanted: list[int] = []
    for neighbour in head.graph.current[LABELS].T.flatten().tolist():  # all nearest, then all second nearest
        if neighbour not in (0, 7, 190) and neighbour not in wanted:
            wanted.append(neighbour)
    assert ids == {0, 7, 190, *wanted[:17]} and head.nearest_negatives == 17


def test_a_process_takes_neighbours_of_all_positives(workers):
    for ids, graph, shard in workers(2).run(selected_in_worker):
        wanted = {int(row) for label in (0, 30, 99) for row in graph[label]}
        wanted |= {label - shard.start for label in (0, 30, 99) if shard.start <= label < shard.stop}
        assert wanted <= set(ids.tolist()) and len(ids) == 20


def selected_in_worker() -> tuple[Tensor, Tensor, Shard]:
    head = KNNSoftmax(101, 8, num_active=40, neighbours=6, build="blocking")
    ids = head.select_classes(embeddings(3), torch.tensor([0, 30, 99])).ids
    assert ids is not None and head.graph.current is not None
    return ids, head.graph.current, head.centers.shard


def test_before_the_first_graph_it_is_partial_fc():
    head = knn(build="background", index=Slow())
    Slow.go.clear()
    ids = select(head, 0)
    assert torch.equal(ids, PartialFC(200, 8, sample_rate=0.2).select_classes(embeddings(), LABELS).ids)
    assert head.nearest_negatives == 0 and "graph_age" not in head.stats()
    until_built(head)


def test_with_all_classes_active_it_is_the_full_head():
    losses = [head(embeddings(), LABELS).item() for head in (FullFC(200, 8), knn(num_active=200), knn(num_active=1.0))]
    assert len(set(losses)) == 1


def test_corrected_uniform_negatives_represent_all_others():
    head, x = knn(neighbours=3, log_q=True, interval=1000), embeddings()
    exp = (4 * x @ normalize(head.centers.rows).T).exp().double()
    sums = []
    for head.step in range(400):
        selection = head.select_classes(x, LABELS)
        sums.append((exp[:, selection.ids] / selection.log_q.exp()).sum(1))
    estimates = torch.stack(sums)
    error = estimates.mean(0) - exp.sum(1)
    assert (error.abs() < 4 * estimates.std(0) / 20).all() and (estimates.std(0) > 0).all()


# --- builds


class Slow(Exact):
    """An index whose build waits for `go`."""

    go = threading.Event()

    def build(self, *arguments: Any, **options: Any) -> None:
        self.go.wait(timeout=6)
        super().build(*arguments, **options)

    def empty_copy(self) -> "Slow":
        return type(self)()


def until_built(head: KNNSoftmax) -> None:
    Slow.go.set()
    head.graph.wait()
    Slow.go.clear()


def test_in_the_background_the_current_graph_serves_until_the_next_is_ready():
    Slow.go.clear()
    head = knn(build="background", index=Slow(), interval=2)
    select(head, 0)
    until_built(head)
    select(head, 1)
    assert head.nearest_negatives > 0 and head.stats()["graph_age"] == 1
    initial = head.graph.current
    select(head, 2)  # due
    assert head.graph.running and head.graph.current is initial
    begin = time.perf_counter()
    select(head, 5)
    assert time.perf_counter() - begin < 3, "training waits for a build in the background"
    assert head.graph.current is initial and head.stats()["graph_age"] == 5
    until_built(head)
    select(head, 5)
    assert head.graph.current is not initial and head.graph.as_of == 2


def test_probes_leave_a_build_in_the_background_alone():
    Slow.go.clear()
    head = knn(build="background", index=Slow(), interval=1)
    with head.only_looking():
        select(head, 0)
    assert not head.graph.running
    select(head, 0)
    until_built(head)
    before = head.graph.current, head.graph.next_refresh
    head.step = 3
    with torch.no_grad():
        head(embeddings(), LABELS)
    selection_fidelity(head, embeddings(), LABELS)
    assert (head.graph.current, head.graph.next_refresh) == before and not head.graph.running


def losses_in_worker(measures: bool) -> list[float]:
    """Return losses of a blocking training in a worker."""
    rank, world_size = rank_and_world()
    head = KNNSoftmax(101, 8, num_active=40, neighbours=10, interval=2, build="blocking")
    optimizer, losses = head.optimizer(lr=1.0), []
    part = conformance.part_of(4, rank, world_size)
    for step in range(5):
        x, labels = embeddings(4, step)[part], LABELS[part] % 101
        if measures:
            selection_fidelity(head, x, labels, repeats=2)
            with torch.no_grad():
                head(x, labels)
            head.eval()(x, labels)
            head.train()
        loss = head(x.requires_grad_(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("world_size", [1, 2])
def test_measuring_changes_nothing_and_runs_are_reproducible(world_size, workers):
    first, again, measured = (workers(world_size).run(losses_in_worker, measures) for measures in (False, False, True))
    assert first == again == measured


def trained_in_background(first_failing: int) -> dict[str, Any]:
    """Train in a worker with builds in the background, of which those of the last process fail at first."""
    rank, world_size = rank_and_world()
    heads.indexes.class_graph.EXCHANGED_ROWS = 8
    head = KNNSoftmax(101, 8, num_active=40, neighbours=10, interval=3, index=Sometimes(first_failing))
    optimizer, ages, part = head.optimizer(lr=0.1), [], conformance.part_of(4, rank, world_size)
    caught: list[str] = []
    try:
        for step in range(40):
            with warnings.catch_warnings(record=True) as issued:
                warnings.simplefilter("always")
                head(embeddings(4, step)[part].requires_grad_(), (LABELS[part] + step) % 101).backward()
            caught += [str(warning.message) for warning in issued]
            optimizer.step()
            optimizer.zero_grad()
            ages.append(head.stats().get("graph_age"))
            time.sleep(0.002 * rank)
            if head.failure is not None:
                break
    finally:
        heads.indexes.class_graph.EXCHANGED_ROWS = 1024
    copied = copy.deepcopy(head)  # during a build, or not
    copied.graph.wait()
    head.graph.wait()
    graph = head.graph.current
    return {"ages": ages, "warnings": caught, "failure": head.failure, "graph": graph, "running": copied.graph.running}


class Sometimes(Exact):
    """An index whose first builds fail in the process of the highest rank."""

    def __init__(self, failures: int):
        super().__init__()
        self.failures = failures

    def build(self, *arguments: Any, **options: Any) -> None:
        rank, world_size = rank_and_world()
        if rank == world_size - 1 and self.failures > 0:
            raise MemoryError("no room")
        super().build(*arguments, **options)

    def empty_copy(self) -> "Sometimes":
        self.failures -= 1
        return type(self)(self.failures + 1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_adopt_graphs_of_the_background_together(world_size, workers):
    results = workers(world_size).run(trained_in_background, 0)
    ages = results[0]["ages"]
    assert all(part["ages"] == ages and not part["warnings"] and not part["running"] for part in results)
    assert ages[0] is None and max(age for age in ages if age is not None) > 1 and ages.count(None) < 38
    assert len({tuple(part["graph"].shape) for part in results}) <= 2


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_failed_build_on_one_process_is_repeated_on_all(world_size, workers):
    results = workers(world_size).run(trained_in_background, 2)
    assert all(part["failure"] is None and part["graph"] is not None for part in results)
    own = "the graph of nearest classes could not be built: no room; all negatives are uniform until"
    other = "could not be built: process 2 could not build its part; see its message; all negatives"
    for part in results:
        assert len(part["warnings"]) == 2
        assert all((own if part is results[-1] else other) in warning for warning in part["warnings"])


@pytest.mark.parametrize("world_size", [1, 2])
def test_without_any_graph_training_ends_after_three_attempts(world_size, workers):
    results = workers(world_size).run(trained_in_background, 9)
    assert "no room (3 times in a row)" in results[-1]["failure"]
    assert all(part["failure"].endswith("(3 times in a row)") for part in results)


def blocking_failure(after: int) -> str:
    """Return the error of a build in a worker that fails on the last process in this call of its index."""
    calls = [0]
    rank, world_size = rank_and_world()

    class Failing(Exact):
        def query(self, x_nD: Tensor, k: int) -> Tensor:
            calls[0] += 1
            if rank == world_size - 1 and calls[0] > after:
                raise OSError("disk gone")
            return super().query(x_nD, k)

        def empty_copy(self) -> "Failing":
            return type(self)()

    heads.indexes.class_graph.EXCHANGED_ROWS = 8
    head = KNNSoftmax(101, 8, num_active=40, build="blocking", index=Failing())
    try:
        with pytest.raises(RuntimeError, match="could not be built") as caught:
            head.select_classes(embeddings(), LABELS % 101)
    finally:
        heads.indexes.class_graph.EXCHANGED_ROWS = 1024
    return str(caught.value)


@pytest.mark.parametrize("after", [0, 3])
def test_a_failed_blocking_build_raises_on_all_processes(after, workers):
    first, second, third = workers(3).run(blocking_failure, after)
    assert first == second and "process 2 could not build its part" in first and "disk gone" in third


def small_shards() -> list[int]:
    """Return the number of active classes in a worker whose shards are of unequal size."""
    rank, world_size = rank_and_world()
    head = KNNSoftmax(7, 8, num_active=3, neighbours=2, interval=1, build="blocking")  # shards of 3, 3 and 1
    optimizer, active = head.optimizer(lr=0.1), []
    part = conformance.part_of(8, rank, world_size)
    for step in range(3):
        head(embeddings(8, step)[part].requires_grad_(), torch.arange(8)[part] % 7).backward()
        optimizer.step()
        optimizer.zero_grad()
        active.append(int(head.stats()["active_classes"]))
    return active


def test_a_process_whose_classes_are_all_active_takes_part_in_builds(workers):
    assert workers(3).run(small_shards) == [[3, 3, 3], [3, 3, 3], [1, 1, 1]]


def test_a_search_that_runs_at_the_end_is_cancelled(monkeypatch):
    """The interpreter calls `cancel` when it exits, so that it need not wait for all classes."""
    monkeypatch.setattr(heads.indexes.class_graph, "EXCHANGED_ROWS", 20)
    head, begun = knn(build="background"), threading.Event()

    def query(index: Exact, x_nD: Tensor, k: int) -> Tensor:
        begun.set()
        time.sleep(0.05)
        return torch.zeros(len(x_nD), k, dtype=torch.int64)

    monkeypatch.setattr(Exact, "query", query)
    select(head, 0)
    head.graph._build.work.wait()
    select(head, 0)
    begun.wait()
    head.graph._build.work.cancel()
    graph = head.graph._build.graph
    assert (graph[:20] == 0).all() and (graph[-20:] == -1).all()


# --- state


def test_copies_have_the_graph():
    Slow.go.set()
    head = knn(interval=5)
    select(head, 0)
    for again in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(again.graph.current, head.graph.current)
        assert torch.equal(select(again, 3), select(head, 3)) and again.graph.as_of == 0
        assert again.graph.centers is again.centers


def test_a_copy_made_during_a_build_repeats_it():
    Slow.go.clear()
    head = knn(build="background", index=Slow())
    select(head, 0)
    again = copy.deepcopy(head)
    assert not again.graph.running
    select(again, 1)
    assert again.graph.running
    for each in (head, again):
        until_built(each)
        assert each.graph.as_of == each.step


def test_a_graph_of_other_rows_or_neighbours_is_not_loaded():
    head = knn()
    select(head, 0)
    state = head.state_dict()
    assert state["_extra_state"]["graph"]["graph"].shape == (200, 10)
    again = knn()
    again.load_state_dict(state)
    assert torch.equal(again.graph.current, head.graph.current) and again.graph.next_refresh == 100
    for other in (knn(neighbours=11), PartialFC(200, 8)):
        state = {**state, "_extra_state": {**state["_extra_state"], "step": 30}}
        other.load_state_dict(state)
        assert not isinstance(other, KNNSoftmax) or (other.graph.current, other.graph.next_refresh) == (None, 30)
    assert "graph" not in head.full_state_dict()["_extra_state"]


def test_state_loaded_during_a_build_replaces_it():
    Slow.go.clear()
    head, other = knn(), knn(build="background", index=Slow())
    select(head, 0)
    select(other, 0)
    assert other.graph.running
    threading.Timer(0.05, Slow.go.set).start()
    other.load_state_dict(head.state_dict())
    assert not other.graph.running and torch.equal(other.graph.current, head.graph.current)


def load_of_one_process() -> tuple[bool, int]:
    """Load a graph in one worker only, as torch.distributed.checkpoint does with state of the first process."""
    head = KNNSoftmax(101, 8, num_active=40, neighbours=10, interval=5, build="blocking")
    head.select_classes(embeddings(), LABELS % 101)
    extra = {**head.get_extra_state(), "step": 3}
    if rank_and_world()[0]:
        del extra["graph"]
    head.set_extra_state(extra)
    head.select_classes(embeddings(), LABELS % 101)
    return head.graph.current is not None, head.graph.as_of


def test_a_graph_that_one_process_lacks_is_built_again_on_all(workers):
    assert workers(2).run(load_of_one_process) == [(True, 3), (True, 3)]


def resharded(state: dict[str, Any] | None) -> dict[str, Any]:
    """Return the whole state of a worker's head after a step, which loads a state before it if one is given."""
    rank, world_size = rank_and_world()
    head = KNNSoftmax(101, 8, num_active=40, neighbours=10, interval=50, build="blocking")
    optimizer = head.optimizer(lr=0.1)
    if state is not None:
        head.load_state_dict(copy.deepcopy(state))
    part = conformance.part_of(4, rank, world_size)
    head(embeddings()[part].requires_grad_(), LABELS[part] % 101).backward()
    optimizer.step()
    assert head.graph.as_of == (0 if state is None else 1)
    return head.full_state_dict()


@pytest.mark.parametrize(("saved_on", "loaded_on"), [(2, 3), (3, 1), (1, 2)])
def test_another_number_of_processes_loads_the_rows_and_builds_a_graph(saved_on, loaded_on, workers):
    state = workers(saved_on).run(resharded, None)[0]
    assert {part["_extra_state"]["step"] for part in workers(loaded_on).run(resharded, state)} == {2}


# --- options and cost


def test_the_cost_counts_index_graphs_and_builds():
    size = Size(100_000, 64, 32, world_size=4)
    pfc = PartialFC.cost(size, PartialFC.Options(sample_rate=0.1), row_state={})
    cost = KNNSoftmax.cost(size, KNNSoftmax.Options(neighbours=30, interval={0: 100, 50: 10}), row_state={})
    assert cost.index_bytes == 25_000 * 4 * 64 + 2 * 4 * 100_000 * 8
    assert cost.multiply_adds - pfc.multiply_adds == pytest.approx(100_000 * 25_000 * 64 / 10)
    assert cost.sent_bytes - pfc.sent_bytes == pytest.approx(4 * 100_000 * 64 * 3 / 4 / 10)
    assert cost.work_bytes == pfc.work_bytes
    alone = KNNSoftmax.cost(replace(size, world_size=1), KNNSoftmax.Options(index=Annoy()), row_state={})
    assert alone.sent_bytes == 0 and alone.index_bytes > 100_000 * 4 * 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"neighbours": 0}, "neighbours=0 must be at least 1"),
        ({"neighbours": 2.5}, r"neighbours=2\.5 must be a whole number"),
        ({"build": "now"}, "build='now'"),
        ({"num_active": 201}, "num_active=201"),
        ({"interval": 0}, "interval=0"),
        ({"index": "exact"}, "index='exact' must be an index object"),
        ({"margin": CosFace(), "num_active": {5: 10}}, "num_active={5: 10} must have whole numbers as steps"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        knn(**options)


def test_an_index_is_a_part_of_the_interface():
    assert issubclass(Slow, Index) and "neighbours=10, index=Exact()" in repr(knn())
