"""Indexes of nearest rows: their answers, that a rebuild leaves the current index alone, and their saved state."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from heads.indexes import IVF, Annoy, Exact, Index, annoy_build
from heads.indexes.vectors import CenterVectors, TensorVectors
from heads.rows.centers import ClassCenters

ROWS = torch.randn(300, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 301)[:, None]
QUERIES = normalize(torch.randn(20, 12, generator=torch.Generator().manual_seed(1)))
# With these options each index is exact.
INDEXES = {
    "exact": Exact(),
    "annoy": Annoy(num_trees=10, search_k=3000),
    "ivf": IVF(num_lists=10, nprobe=10),
}


def nearest(rows: torch.Tensor, k: int) -> torch.Tensor:
    return (QUERIES @ normalize(rows).T).topk(k).indices


def built(name: str, rows: torch.Tensor = ROWS, **options: object) -> Index:
    index = INDEXES[name].empty_copy()
    index.build(TensorVectors(rows), **options)  # type: ignore[arg-type]
    return index


@pytest.mark.parametrize("name", INDEXES)
def test_query_returns_the_nearest_first(name):
    index = built(name)
    assert len(INDEXES[name]) == 0 and len(index) == 300
    assert torch.equal(index.query(QUERIES, 7), nearest(ROWS, 7))


@pytest.mark.parametrize("name", INDEXES)
def test_missing_neighbours_are_minus_one(name):
    answer = built(name, ROWS[:4]).query(QUERIES, 6)
    assert torch.equal(answer[:, :4].sort().values, torch.arange(4).expand(20, -1)) and (answer[:, 4:] == -1).all()


@pytest.mark.parametrize("name", INDEXES)
def test_a_rebuilt_index_holds_changes_and_leaves_the_original_alone(name):
    index, changed = built(name), torch.tensor([3, 50, 299])
    rows = ROWS.clone()
    rows[changed] = QUERIES[:3]
    options = {"seed": 0, "step": 0, "search_scale": 1.0, "background": True}
    rebuilt = index.rebuilt(TensorVectors(rows), changed, **options)
    assert torch.equal(rebuilt.query(QUERIES, 5), nearest(rows, 5))
    assert torch.equal(rebuilt.query(QUERIES[:3], 1)[:, 0], changed)
    assert torch.equal(index.query(QUERIES, 5), nearest(ROWS, 5))


@pytest.mark.parametrize("name", ["exact", "ivf"])
def test_refresh_replaces_changed_vectors(name):
    index, changed = built(name), torch.arange(0, 300, 7)
    rows = ROWS.clone()
    rows[changed] = -ROWS[changed]
    index.refresh(TensorVectors(rows), changed)
    assert len(index) == 300 and torch.equal(index.query(QUERIES, 5), nearest(rows, 5))


def test_annoy_cannot_be_refreshed():
    with pytest.raises(ValueError, match="Annoy cannot change its vectors"):
        built("annoy").refresh(TensorVectors(ROWS), torch.tensor([0]))


def test_ivf_computes_new_centroids_at_every_third_refresh():
    index: Index = IVF(num_lists=10, nprobe=10, retrain=3)
    index.build(TensorVectors(ROWS))
    options = {"seed": 1, "step": 0, "search_scale": 1.0, "background": False}
    refreshes = []
    for _ in range(4):
        index = index.rebuilt(TensorVectors(ROWS), torch.tensor([0]), **options)
        refreshes.append(index.refreshes)  # type: ignore[attr-defined]
    assert refreshes == [1, 2, 0, 1]


@pytest.mark.parametrize("name", INDEXES)
def test_state_round_trip(name):
    index, again = built(name), INDEXES[name].empty_copy()
    again.load_state_dict(index.state_dict())
    assert torch.equal(again.query(QUERIES, 9), index.query(QUERIES, 9)) and len(again) == 300


@pytest.mark.parametrize("name", ["annoy", "ivf"])
def test_equal_seeds_build_equal_indexes(name):
    few = {"annoy": Annoy(num_trees=2), "ivf": IVF(num_lists=30, nprobe=2)}[name]
    answers = []
    for seed, background in ((5, False), (5, True), (6, False)):
        index = few.empty_copy()
        index.build(TensorVectors(ROWS), seed=seed, background=background)
        answers.append(index.query(QUERIES, 9))
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])


def test_search_scale_and_step_set_trees_and_lists():
    annoy, ivf = Annoy(num_trees={0: 2, 10: 6}), IVF(num_lists=30, nprobe={0: 2, 10: 6})
    settings = []
    for step, search_scale in ((0, 1.0), (10, 1.0), (10, 2.0)):
        annoy.build(TensorVectors(ROWS), step=step, search_scale=search_scale)
        ivf.build(TensorVectors(ROWS), step=step, search_scale=search_scale)
        settings.append((annoy.forest.get_n_trees(), ivf.lists.nprobe))
    assert settings == [(2, 2), (6, 6), (12, 12)]


def test_a_failed_builder_is_reported(monkeypatch):
    monkeypatch.setattr(annoy_build, "__file__", "/nowhere/annoy_build.py")
    with pytest.raises(RuntimeError, match=r"building the Annoy forest ended with status 2:\n.*/nowhere"):
        built("annoy", background=True)


def test_missing_faiss_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"index=ivf needs faiss, .* extra `ivf` installs: pip install -e '.\[ivf\]'"):
        IVF()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Annoy(num_trees=0), "num_trees=0 must be at least 1"),
        (lambda: Annoy(num_trees={5: 3}), "num_trees={5: 3} must have whole numbers as steps and begin at step 0"),
        (lambda: Annoy(search_k=0), "search_k=0 must be at least 1"),
        (lambda: Annoy(threads=0), "threads=0 must be at least 1"),
        (lambda: IVF(num_lists=0), "num_lists=0 must be at least 1"),
        (lambda: IVF(nprobe={0: 0}), "nprobe=0 must be at least 1"),
        (lambda: IVF(retrain=0), "retrain=0 must be at least 1"),
    ],
)
def test_bad_options_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_center_vectors_order_cosines_by_inner_product(dtype):
    centers = ClassCenters(300, 11, bias=0.0, dtype=dtype)
    centers.rows.copy_(ROWS)
    vectors = CenterVectors(centers)
    vectors.radius = 1.2 * vectors.longest()
    index = Exact()
    index.build(vectors)
    assert torch.allclose(index.rows_CD.norm(dim=1), torch.ones(300))
    rows = centers.rows.float()
    best = (QUERIES @ rows.T).topk(6).indices
    assert torch.equal(index.query(torch.cat([QUERIES, torch.zeros(20, 1)], dim=1), 6), best)


SLOW_BUILD = """
import threading, time, torch
from heads.indexes import Annoy
from heads.indexes.vectors import TensorVectors
vectors = TensorVectors(torch.randn(20_000, 16))
build = threading.Thread(target=lambda: Annoy(num_trees=100_000).build(vectors, background=True), daemon=True)
build.start()
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_a_killed_builder_is_reported():
    failure = []

    def build() -> None:
        try:
            Annoy(num_trees=100_000).build(TensorVectors(ROWS.repeat(60, 1)), background=True)
        except RuntimeError as error:
            failure.append(str(error))

    thread = threading.Thread(target=build)
    thread.start()
    while not (builders := [pid for pid, parent in building() if parent == os.getpid()]):
        assert thread.is_alive()
    os.kill(builders[0], signal.SIGKILL)
    thread.join()
    assert failure == ["building the Annoy forest was ended by signal 9"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_a_builder_ends_with_its_killed_training(tmp_path):
    """No file is left."""
    training = subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD], cwd=Path(__file__).parents[3], env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    try:
        deadline = time.monotonic() + 60
        while not (builders := [pid for pid, parent in building() if parent == training.pid]):
            assert time.monotonic() < deadline and training.poll() is None
            time.sleep(0.1)
        training.kill()
        training.wait()
        while set(builders) & {pid for pid, _ in building()}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        training.kill()
    assert not list(tmp_path.iterdir())


def building() -> list[tuple[int, int]]:
    """Return (process, parent) of each builder. A process that has ended has no command line any more."""
    builders = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (path / "cmdline").read_text(), (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        if "annoy_build" in command:
            builders.append((int(path.name), int(status[1])))
    return builders


@pytest.mark.parametrize("kind", [Annoy, IVF])
def test_misspelt_options_are_refused(kind):
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_tree'"):
        kind(num_tree=3)


def test_help_lists_options_with_defaults():
    assert "num_trees" in Annoy.__doc__ and "Default: 50" in Annoy.__doc__
    assert repr(Annoy(5)) == "Annoy(num_trees=5, search_k=None, threads=1)" and repr(Exact()) == "Exact()"
