"""Heads that share class centers: each stage against its own head and the float64 reference, state, and refusals."""

import copy
import pickle
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.head_parts import head_options
from heads import (
    FFC,
    IVF,
    MACH,
    AdaFace,
    CenterHead,
    CosFace,
    CrossEntropy,
    CurricularFace,
    Exact,
    FullFC,
    HashingForest,
    KNNSoftmax,
    PartialFC,
    RowAdamW,
    Softmax,
    Staged,
    SubCenterFC,
    UniFace,
)
from heads.core.cost import Case as Size
from heads.core.cost import largest
from heads.fidelity import selection_fidelity
from tests import conformance, several
from tests.conformance import Case
from tests.experiments.commands import config
from tests.heads.test_full import ADAMW
from tests.reference import Rule
from tests.workers import rank_and_world

PFC = partial(PartialFC, sample_rate=0.3)
FOREST = partial(HashingForest, num_active=40, interval=2, build="blocking", index=Exact())
KNN = partial(KNNSoftmax, num_active=40, neighbours=10, interval=2, build="blocking")
STAGES = {0: PFC, 2: KNN, 5: partial(FullFC, min_probability=1e-3), 7: partial(FOREST, probe_interval=1)}
CASES = {
    "pfc, full": Case(Staged, {"stages": {0: PFC, 2: FullFC}}),
    "pfc, knn, forest": Case(Staged, {"stages": {0: PFC, 1: KNN, 2: FOREST}}),
    "names": Case(
        Staged, {"stages": {0: "few", 1: "full"}, "heads": {"few": partial(PFC, log_q=True), "full": FullFC}}
    ),
    "adamw": Case(Staged, {"stages": {0: PFC, 2: FullFC}}, optimizer=RowAdamW, optimizer_options=ADAMW),
    "softmax": Case(Staged, {"stages": {0: KNN, 1: FOREST}}, margin=Softmax(), rule=Rule(s=1.0, normalized=False)),
}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_step_matches_the_reference(name, world_size, workers):
    conformance.check(workers(world_size), CASES[name])


@pytest.mark.parametrize("world_size", [1, 3])
def test_several_labels_match_the_reference(world_size, workers):
    options = {"stages": {0: PFC, 1: FullFC}, "positives": "draw:2"}
    several.check(workers(world_size), several.Case(Staged, options, num_classes=101))


def test_an_abandoned_backward_changes_nothing(workers):
    workers(2).run(conformance.abandoned, Case(Staged, {"stages": {0: KNN}}))


def stepped(head: CenterHead, optimizer: Any, step: int) -> tuple[float, Tensor]:
    """Run a step of two micro-batches in a worker; return the sum of losses, and the gradient of the second one."""
    rank, world_size = rank_and_world()
    total = 0.0
    for micro in range(2):
        generator = torch.Generator().manual_seed(10 * step + micro)
        x, labels = torch.randn(6, 8, generator=generator), torch.randint(101, (6,), generator=generator)
        part = conformance.part_of(6, rank, world_size)
        x = x[part].requires_grad_()
        loss = head(x, labels[part])
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    assert x.grad is not None
    return total, x.grad


OPTIONS: dict[str, Mapping[str, Any]] = {
    "cosface": {},
    "curricularface, bf16": {"margin": CurricularFace(s=16), "dtype": "bf16"},  # probes read what it carries
    "uniface": {"objective": UniFace(), "margin": CosFace(s={0: 16, 4: 32}), "store": "host", "seed": 3},
}


TIMES = ("_ms", "_seconds")


def beside_single_heads(options: Mapping[str, Any], stages: Mapping[int, Any], steps: int) -> list[float]:
    """Train in a worker, each stage beside its head alone from the same state, and return the losses."""
    head = Staged(101, 8, stages=stages, **options)
    optimizer, losses = head.optimizer(lr=0.3), []
    for step in range(steps):
        if step in stages:
            single = stages[step](101, 8, **options)
            single.load_state_dict(copy.deepcopy(head.state_dict()))
            its_optimizer = single.optimizer(lr=0.3)
        ours, theirs = stepped(head, optimizer, step), stepped(single, its_optimizer, step)
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1]), step
        assert torch.equal(head.centers.rows, single.centers.rows)
        assert conformance.numbers(head) == conformance.numbers(single)
        numbers, its = ({n: v for n, v in each.stats().items() if not n.endswith(TIMES)} for each in (head, single))
        assert numbers == {**its, "stage": sum(start <= step for start in stages) - 1}
        losses.append(ours[0])
    return losses


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_stage_is_its_head(name, world_size, workers):
    stages = STAGES if name != "uniface" else {0: PFC, 3: KNN, 6: FOREST}  # min_probability is for the softmax
    losses = workers(world_size).run(beside_single_heads, OPTIONS[name], stages, 10)
    assert all(part == losses[0] for part in losses)


def resumed(stages: Mapping[int, Any], steps: int) -> None:
    """Save in a worker after each step, and assert that a new head that loads it continues bit for bit."""
    head = Staged(101, 8, stages=stages, margin=AdaFace(s=16))
    optimizer = head.optimizer(lr=0.3)
    states, losses = [], []
    for step in range(steps):
        states.append(copy.deepcopy((head.state_dict(), optimizer.state_dict())))
        losses.append(stepped(head, optimizer, step)[0])
    for begin in range(steps):
        again = Staged(101, 8, stages=stages, margin=AdaFace(s=16))
        its_optimizer = again.optimizer(lr=0.3)
        again.load_state_dict(states[begin][0])
        its_optimizer.load_state_dict(states[begin][1])
        assert [stepped(again, its_optimizer, step)[0] for step in range(begin, steps)] == losses[begin:], begin
        assert torch.equal(again.centers.rows, head.centers.rows)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_training_resumes_in_any_step(world_size, workers):
    stages = {0: PFC, 2: partial(KNN, interval=3), 6: partial(FOREST, interval=3, index=IVF(num_lists=3)), 10: FullFC}
    workers(world_size).run(resumed, stages, 11)


def whole_state(state: dict[str, Any] | None, steps: int) -> dict[str, Any]:
    """Return the whole state of a worker's head after some steps from a state, or from the beginning."""
    head = Staged(101, 8, stages=STAGES)
    optimizer = head.optimizer(lr=0.3)
    if state is not None:
        head.load_state_dict(copy.deepcopy(state))
        assert torch.equal(head.full_state_dict()["centers.rows"], state["centers.rows"])
    for step in range(head.step, head.step + steps):
        stepped(head, optimizer, step)
    return head.full_state_dict()


@pytest.mark.parametrize(("saved_on", "loaded_on", "steps"), [(2, 3, 3), (3, 2, 8), (2, 1, 2)])
def test_another_number_of_processes_loads_the_state(saved_on, loaded_on, steps, workers):
    """The state lacks index and graph, which each process makes of its own classes; in step 2 a stage begins."""
    state = workers(saved_on).run(whole_state, None, steps)[0]
    stage = state["_extra_state"]["stage"]
    assert stage["state"] is None if steps == 2 else not {"index", "graph"} & stage["state"].keys()
    assert steps != 8 or (stage["kind"] == "HashingForest" and "allocation" in stage["state"])
    assert workers(loaded_on).run(whole_state, state, 1)[0]["_extra_state"]["step"] == steps + 1


def train(head: Staged, steps: int) -> list[float]:
    optimizer = head.optimizer(lr=0.3, momentum=0)
    return [stepped(head, optimizer, step)[0] for step in range(head.step, head.step + steps)]


def test_an_index_is_built_in_its_stage_and_dropped_after_it():
    head = Staged(101, 8, stages=STAGES)
    built = []
    for _ in range(9):
        train(head, 1)
        now = head.stage
        built.append("graph" if getattr(now, "graph", None) else "index" if hasattr(now, "index_refresh") else "")
        assert list(head.state_dict()) == ["_extra_state", "centers.rows"]
        if built[-1] == "graph":
            assert now.graph.current is not None and now.graph.as_of >= 2
    assert built == ["", "", "graph", "graph", "graph", "", "", "index", "index"]


def test_a_build_in_the_background_ends_with_its_stage():
    head = Staged(101, 8, stages={0: partial(KNN, build="background"), 1: FullFC})
    train(head, 1)
    graph = head.stage.graph
    work = graph._build.work
    train(head, 1)
    assert work.cancelled and not graph.running and isinstance(head.stage, FullFC)
    work.wait()


def test_probes_start_no_build_in_the_background():
    head = Staged(101, 8, stages={0: partial(KNN, build="background")})
    selection_fidelity(head, torch.randn(4, 8), torch.arange(4))
    with torch.no_grad():
        head(torch.randn(4, 8), torch.arange(4))
    assert not head.stage.graph.running and head.stage.graph.next_refresh == 0
    train(head, 1)
    assert head.stage.graph.running
    head.stage.graph.wait()


def test_copies_continue_in_the_middle_of_a_stage():
    for steps in (3, 8):
        head = Staged(101, 8, stages=STAGES)
        train(head, steps)
        copies = copy.deepcopy(head), pickle.loads(pickle.dumps(head))
        assert all(other.stage.centers is other.centers for other in copies)
        losses = train(head, 3)
        assert all(train(other, 3) == losses for other in copies)


def test_measuring_changes_nothing():
    x, labels = torch.randn(5, 8), torch.arange(5)
    losses = []
    for measures in (False, True):
        head, of_head = Staged(101, 8, stages=STAGES, margin=CosFace(s=16)), []
        for _ in range(9):
            if measures:
                figures = selection_fidelity(head, x, labels, repeats=2)
                with torch.no_grad():
                    head(x, labels)
                head.eval()(x, labels)
                head.train()
                assert (figures["mass"] > 1 - 1e-5) == isinstance(head.stage, FullFC)
            of_head += train(head, 1)
        losses.append(of_head)
    assert losses[0] == losses[1]


def test_a_state_of_another_head_or_of_other_stages_is_loaded():
    single, head = PartialFC(101, 8, seed=5), Staged(101, 8, stages=STAGES)
    head.load_state_dict(single.state_dict())
    assert torch.equal(head.centers.rows, single.centers.rows)
    train(head, 3)
    other = Staged(101, 8, stages={0: FOREST, 50: FullFC})
    other.load_state_dict(head.state_dict())
    assert isinstance(other.stage, HashingForest) and other.step == 3
    single.load_state_dict(head.state_dict())
    assert single.step == 3


def test_schedules_and_failures_are_those_of_the_stage(monkeypatch):
    stages = {0: partial(PartialFC, sample_rate={0: 0.1, 1: 0.2}), 2: partial(KNN, interval={0: 3, 9: 4})}
    head = Staged(101, 8, stages=stages, margin=CosFace(m={0: 0.1, 5: 0.2}))
    assert head.scheduled(1) == {"sample_rate": 0.2, "margin_m": 0.1}
    assert head.scheduled(9) == {"interval": 4, "margin_m": 0.2}
    train(head, 3)
    assert head.failure is None and head.stats()["stage"] == 1
    monkeypatch.setattr(head.stage.graph, "error", "no room")
    assert head.failure == "no room"


def test_the_cost_is_the_largest_of_the_stages():
    size = Size(100_000, 64, 32, world_size=2)
    options = Staged.Options(stages=STAGES)
    parts = [stage.kind.cost(size, stage.options, row_state={}) for stage in options.resolved.values()]
    pfc, full = PartialFC.Options(sample_rate=0.3), FullFC.Options(min_probability=1e-3)
    assert parts[0] == PartialFC.cost(size, pfc, row_state={}) and parts[2] == FullFC.cost(size, full, row_state={})
    assert Staged.cost(size, options, row_state={}) == largest(parts)
    assert Staged.active_shares(100, Staged.Options(stages=STAGES)) == [0.3, 0.4, 1.0, 0.4]
    assert Staged.active_shares(100, Staged.Options()) == [0.1, 1.0]


def test_a_stage_gets_the_index_of_the_head_unless_it_has_one():
    index = IVF(num_lists=3)
    head = Staged(101, 8, stages={0: partial(KNN, index=Exact()), 1: partial(HashingForest, num_active=9)}, index=index)
    kinds = [type(stage.options.index) for stage in head.options.resolved.values()]
    assert kinds == [Exact, IVF]
    assert Staged.Options(stages={0: KNNSoftmax}).resolved[0].options.index is None


class OtherRows(PartialFC):
    """A head with rows of its own kind."""

    def make_centers(self, *arguments: Any) -> Any:
        return super().make_centers(*arguments)


SMOOTH = CrossEntropy(label_smoothing=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stages": {5: FullFC}}, r"stages=.* must have whole numbers as steps and begin at step 0"),
        ({"stages": {}}, "begin at step 0"),
        ({"stages": {0: PFC, 1.5: FullFC}}, "whole numbers as steps"),
        ({"stages": FullFC}, r"stages=.*FullFC.* must be {step: head}, such as {0: 'pfc', 1000: 'full'}"),
        ({"stages": {0: "pcf"}}, "stages={0: 'pcf'} must name one of full, pfc, forest, knn"),
        ({"stages": {0: "pfc"}, "heads": {"all": FullFC}}, "stages={0: 'pfc'} must name one of all"),
        ({"stages": {0: partial(FullFC, margin=CosFace())}}, "must not set margin of FullFC, which all stages share"),
        ({"stages": {0: PFC, 9: partial(FullFC, dtype="bf16")}}, "stages={9: ...} must not set dtype of FullFC"),
        ({"stages": {0: partial(FullFC, 101, 8)}}, "must give the options of FullFC by name"),
        ({"stages": {0: FFC}}, "must be a head with class centers, such as full, pfc, forest, knn, and FFC is none"),
        ({"stages": {0: None}}, "and None is none"),
        ({"stages": {0: CenterHead}}, "and CenterHead is none"),
        ({"stages": {0: SubCenterFC}}, "by its selection of classes alone, .* and SubCenterFC differs by more"),
        ({"stages": {0: MACH}}, "and MACH differs by more"),
        ({"stages": {0: OtherRows}}, "and OtherRows differs by more"),
        ({"stages": {0: Staged}}, "and Staged differs by more"),
        ({"stages": {0: partial(PartialFC, sample_rate=2)}}, "sample_rate=2 must be in"),
        ({"stages": {0: FullFC, 9: partial(KNNSoftmax, num_active=102)}}, "num_active=102"),
        ({"index": "exact"}, "index='exact' must be an index object"),
        ({"objective": SMOOTH}, "label_smoothing"),
        ({"stages": {0: FullFC, 9: PFC}, "objective": SMOOTH}, "label_smoothing"),
        ({"stages": {0: PFC, 9: partial(FullFC, min_probability=0.1)}, "objective": UniFace()}, "min_probability"),
        ({"stages": {0: FullFC, 9: partial(PFC, log_q=True)}, "objective": UniFace()}, "log_q"),
    ],
)
def test_wrong_stages_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Staged(101, 8, **options)


def test_options_that_a_head_does_not_have_are_refused():
    with pytest.raises(TypeError, match=r"PartialFC\(\) .*'sample_rte'; did you mean 'sample_rate'"):
        Staged(101, 8, stages={0: partial(PartialFC, sample_rte=0.1)})
    assert Staged(101, 8, stages={0: FullFC}, objective=SMOOTH).objective is SMOOTH


def test_rows_of_other_classes_are_refused():
    with pytest.raises(
        ValueError, match=r"centers=\(.*must hold rows of num_classes=7 and embedding_size=8, 1 for each"
    ):
        FullFC(7, 8, centers=FullFC(8, 8).centers)
    shared = FullFC(7, 8).centers
    assert FullFC(7, 8, centers=shared).centers is shared


def test_the_command_line_gives_each_head_its_options():
    words = ["head=staged", "stages={0:pfc,5:knn,9:full}", "sample_rate={0:0.2,3:0.3}", "num_active=7", "index=ivf"]
    options = head_options(config(*words, "min_probability=0.01", "dtype=bf16"))
    pfc, knn, full = options.resolved.values()
    assert (pfc.kind, pfc.options.sample_rate, pfc.options.dtype) == (PartialFC, {0: 0.2, 3: 0.3}, "bf16")
    assert (knn.kind, knn.options.num_active, type(knn.options.index)) == (KNNSoftmax, 7, IVF)
    assert (full.kind, full.options.min_probability, options.dtype) == (FullFC, 0.01, "bf16")
    assert list(head_options(config("head=staged")).resolved) == [0, 1000]
