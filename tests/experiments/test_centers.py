"""Spherical k-means, the command that writes its result, and trainings on clusters of images without labels."""

import re

import faiss
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from data.sets.glyphs import glyphs
from experiments import kmeans
from experiments.centers import centers
from experiments.embed import embed
from experiments.kmeans import KMeans, replacements
from experiments.train import train
from tests.experiments.commands import config, stored_rows, summary


def points(count: int, clusters: int, width: int, noise: float = 1.0) -> np.ndarray:
    """Return noisy unit vectors around random directions."""
    random = np.random.default_rng(0)
    directions = normalize(torch.from_numpy(random.standard_normal((clusters, width)))).numpy()
    x = directions[random.integers(0, clusters, count)] + noise / width**0.5 * random.standard_normal((count, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def clusters_of(x: np.ndarray, num_clusters: int, k: int = 1, **options) -> tuple[torch.Tensor, np.ndarray]:
    """Return the centers and the labels (n, k) of all records."""
    means = KMeans(lambda records: torch.from_numpy(x[records]), len(x), num_clusters, **options)
    table = means.fit()
    return table, np.concatenate([block.labels_nk for block in means.assigned(table, np.arange(len(x)), "", k)])


def plain_kmeans(x: np.ndarray, c: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's iterations in float64, with a cosine in place of the distance; no cluster may become empty."""
    labels = np.full(len(x), -1)
    for _ in range(iterations):
        before, labels = labels, np.argmax(x @ c.T, axis=1)
        if (before == labels).all():
            break
        c = np.stack([x[labels == k].sum(0) for k in range(len(c))])
        c /= np.linalg.norm(c, axis=1, keepdims=True)
    return c, labels


@pytest.mark.parametrize("iterations", [1, 4, 50])
def test_iterations_equal_plain_ones(iterations, monkeypatch):
    x = points(700, 20, 8)
    monkeypatch.setattr(kmeans, "BLOCK", 100)
    monkeypatch.setattr(kmeans, "TILES", {"cpu": (30, 7)})
    begin = KMeans(lambda records: torch.from_numpy(x[records]), len(x), 20, iterations=0).fit().numpy()
    found, labels = clusters_of(x, 20, iterations=iterations)
    expected, _ = plain_kmeans(x.astype(np.float64), begin.astype(np.float64), iterations)
    assert np.abs(found.numpy() - expected).max() < 1e-5
    assert np.array_equal(labels[:, 0], np.argmax(x @ expected.T, axis=1))


@pytest.mark.parametrize("search", ["exact", "ivf"])
def test_clusters_are_as_good_as_those_of_faiss(search):
    x = points(4000, 100, 16)
    table, labels = clusters_of(x, 100, search=search, seed=3)
    again, _ = clusters_of(x, 100, search=search, seed=3)
    other, _ = clusters_of(x, 100, search=search, seed=4)
    assert torch.equal(table, again) and not torch.equal(table, other)
    theirs = faiss.Kmeans(16, 100, niter=20, spherical=True, min_points_per_centroid=1)
    theirs.train(x)
    ours, reference = ((x @ np.asarray(each).T).max(1).mean() for each in (table, theirs.centroids))
    assert ours > 0.99 * reference
    assert (x * table.numpy()[labels[:, 0]]).sum(1).mean() > 0.99 * ours


def test_the_iterations_use_a_part_of_many_records():
    x, read = points(5000, 10, 8), []
    means = KMeans(lambda records: read.append(records) or torch.from_numpy(x[records]), len(x), 10, points=20)
    table = means.fit()
    assert len(set(np.concatenate(read).tolist())) == 200 and (x @ table.numpy().T).max(1).mean() > 0.6


def test_an_empty_cluster_begins_again_in_a_large_one():
    labels, cosines = np.array([0, 0, 2, 2, 2, 4]), np.array([0.9, 0.8, 0.7, 0.3, 0.5, 0.1], np.float32)
    empty, records = replacements(labels, cosines, 5)
    assert empty.tolist() == [1, 3] and records.tolist() == [3, 1]  # 5 is alone in its cluster
    empty, records = replacements(labels[:2], cosines[:2], 4)
    assert empty.tolist() == [1] and records.tolist() == [1]
    x = np.repeat(np.eye(6, dtype=np.float32), 50, axis=0)  # many initial centers are equal, and all but one lose
    _, labels = clusters_of(x, 6)
    assert sorted(np.bincount(labels[:, 0], minlength=6)) == [50] * 6


def run(folder, *words):
    centers(config(f"source={folder / 'x.npy'}", f"target={folder / 'c.npy'}", *words, name="centers"), folder)
    return np.load(folder / "c.npy"), np.load(folder / "c.labels.npy")


@pytest.mark.parametrize("nearest", [1, 3])
def test_the_command_writes_centers_and_the_clusters_of_all_records(nearest, tmp_path, capsys):
    x = points(500, 12, 8)
    np.save(tmp_path / "x.npy", (7 * x).astype(np.float64))  # compared by cosine
    table, labels = run(tmp_path, "num_clusters=12", f"nearest={nearest}")
    assert table.dtype == np.float32 and np.allclose(np.linalg.norm(table, axis=1), 1, atol=1e-5)
    best = np.argsort(-(x @ table.T), axis=1, kind="stable")[:, :nearest]
    assert np.array_equal(labels, best[:, 0] if nearest == 1 else best)
    assert "12 centers; c.labels.npy: the clusters of 500 records" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"c\.npy exists already"):
        run(tmp_path, "num_clusters=12")


def test_centers_without_a_record_are_left_out(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.repeat(np.eye(3, dtype=np.float32), 4, axis=0))
    table, labels = run(tmp_path, "num_clusters=8")
    assert len(table) == 3 and np.allclose(table[labels], np.load(tmp_path / "x.npy"))
    assert re.search(r"left out, without a record +│ 5", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_clusters=null"], "num_clusters=null must be a whole number of at least 2"),
        (["num_clusters=1"], "num_clusters=1 must be a whole number of at least 2"),
        (["num_clusters=51"], "num_clusters=51 must be between 2 and the number of records, 50"),
        (["search=hnsw"], "search=hnsw must be one of exact, ivf"),
        (["nearest=6"], "nearest=6 must be at most num_clusters=5"),
        (["iterations=0"], "iterations=0 must be"),
        (["labels=y.txt"], "y.txt must end in .npy"),
        (["target=/nowhere/c.npy"], "the folder /nowhere does not exist"),
        (["source=/nowhere.npy"], "source: /nowhere.npy does not exist"),
        (["source=null"], "source=null must be a path"),
    ],
)
def test_wrong_options_are_refused(words, message, tmp_path):
    np.save(tmp_path / "x.npy", points(50, 5, 4))
    given = [f"source={tmp_path / 'x.npy'}", f"target={tmp_path / 'c.npy'}", "num_clusters=5", *words]
    with pytest.raises(ValueError, match=re.escape(message)):
        centers(config(*given, name="centers"), tmp_path)


@pytest.mark.parametrize(("value", "message"), [(0, "record 7, counted from 0, has length 0"), (np.nan, "record 7, ")])
def test_a_record_without_direction_is_named(value, message, tmp_path):
    x = points(50, 5, 4)
    x[7] = value
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "num_clusters=5")
    assert not list(tmp_path.glob("*c.*"))


def test_a_training_on_clusters_of_images_without_labels(tmp_path):
    """Each image is a class of its own at first; the held-out characters are evaluated by their true classes."""
    short = ("logger.wandb.mode=disabled", "data.augment=false", "embedding_size=16", "head=full")
    short += ("backbone=mlp", "backbone.hidden=[16]", "optimizer.lr=0.02", "trainer.log_interval=1")
    images = glyphs()
    np.save(tmp_path / "each.npy", np.arange(len(images.train)))
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    words = [*short, "trainer.max_steps=2", f"data.labels={tmp_path / 'each.npy'}"]
    assert train(config(*words), first) == 0
    embed(config(f"checkpoint={first}", f"target={tmp_path / 'x.npy'}", name="embed"), tmp_path)
    assert np.array_equal(np.load(tmp_path / "x.labels.npy"), np.arange(len(images.train)))
    table, labels = run(tmp_path, "num_clusters=300")
    words = [*short, "trainer.max_steps=1", "optimizer.lr=1e-12", f"data.labels={tmp_path / 'c.labels.npy'}"]
    words += [f"warm_start.checkpoint={first}", f"warm_start.rows={tmp_path / 'c.npy'}", "evaluate.train_records=2000"]
    assert train(config(*words), second) == 0
    rows = stored_rows(second / "checkpoints" / "latest")["head.centers.rows"]
    assert np.allclose(rows, table, atol=1e-6) and len(rows) == labels.max() + 1
    result = summary(second)
    assert result["num_classes"] == len(table) and result["train/top1"] > 0.99  # each image is nearest to its center
    assert result["val/rank1"] == pytest.approx(summary(first)["val/rank1"], abs=0.01)
    np.save(tmp_path / "c.labels.npy", labels[1:])
    with pytest.raises(ValueError, match=r"has [\d,]+ labels for [\d,]+ training images"):
        glyphs(labels=str(tmp_path / "c.labels.npy"))
