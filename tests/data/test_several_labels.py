"""Records with several labels: lists, open-set splits, noise, streams, and trainings on them."""

import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from data.augment import Unchanged
from data.catalogs.catalog import Catalog, catalog
from data.catalogs.origin import Origin
from data.conversion.options import parse
from data.convert import convert
from data.records import DataSet, RecordSet
from data.sets.glyphs import FACES, glyphs
from data.sets.images import images as build
from data.sets.noise import with_noise
from data.streams import IdentityStream, InstanceStream
from data.weights import with_weights
from experiments.train import train
from tests.data.made_sets import SIDE, image, write_base64, write_list
from tests.experiments.commands import config, summary

LABELS = ["70,7", "7", "70,9,7", "1000000", "9,9,70,9"]
CLASS_IDS = [[2, 0, -1], [0, -1, -1], [2, 1, 0], [3, -1, -1], [1, 2, -1]]  # of 7, 9, 70 and 1000000


def items(labels: list[str]) -> list[tuple[str, bytes]]:
    return [(label, image(number)) for number, label in enumerate(labels)]


def opened(*paths: object, shared: bool = False) -> Catalog:
    return catalog(Origin("list", tuple(map(str, paths)), shared=shared), paths[0].parent / "cache")


@pytest.mark.parametrize("kind", ["paths", "label first", "label last"])
def test_a_list(kind, tmp_path):
    path = tmp_path / "set.txt"
    write_list(path, items(LABELS)) if kind == "paths" else write_base64(path, items(LABELS), kind == "label first")
    for found in (opened(path), pickle.loads(pickle.dumps(opened(path)))):
        assert found.all_labels.tolist() == CLASS_IDS
        assert found.labels.tolist() == [row[0] for row in CLASS_IDS]
        assert list(found.class_names) == ["7", "9", "70", "1000000"]
        assert [found.label(index) for index in range(5)] == [70, 7, 70, 1_000_000, 9]
        assert [found.read(index) for index in range(5)] == [image(number) for number in range(5)]
    starts, order = found.by_class.starts.tolist(), found.by_class.order.tolist()
    assert [order[a:b] for a, b in pairwise(starts)] == [[1], [4], [0, 2], [3]]


def test_one_label_an_image(tmp_path):
    found = opened(write_list(tmp_path / "set.txt", items(["1", "0,0", "1"])))
    assert found.all_labels is None
    assert found.labels.tolist() == [1, 0, 1]


def test_several_lists(tmp_path):
    (tmp_path / "b").mkdir()
    paths = [
        write_list(tmp_path / "a.txt", items(["5", "5,3"])),
        write_list(tmp_path / "b/b.txt", items(["3", "0,5,3"])),
    ]
    apart, together = opened(*paths), opened(*paths, shared=True)
    assert apart.all_labels.tolist() == [[1, -1, -1], [1, 0, -1], [3, -1, -1], [2, 4, 3]]
    assert list(apart.class_names) == ["0/3", "0/5", "1/0", "1/3", "1/5"]
    assert together.all_labels.tolist() == [[2, -1, -1], [2, 1, -1], [1, -1, -1], [0, 2, 1]]
    assert list(together.class_names) == ["0", "3", "5"]


def test_class_names(tmp_path):
    path = write_list(tmp_path / "set.txt", items(["0,2", "1"]))
    (tmp_path / "set.classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="has label 2, but only 2 class names"):
        opened(path)
    (tmp_path / "set.classes.txt").write_text("a\nb\nc\n")
    assert list(opened(path).class_names) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("3,", "'' is not a class id"),
        ("3, 5", "' 5' is not a class id"),
        ("3,-1", "'-1' is not a class id"),
        (",".join(map(str, range(1001))), "1,001 labels are too many; an image may have 1,000"),
    ],
)
def test_wrong_lines_are_refused(labels, message, tmp_path):
    path = write_list(tmp_path / "set.txt", items(["1", labels]))
    with pytest.raises(ValueError, match=re.escape(f"1 of 2 entries cannot be read: line 2: {message}")):
        opened(path)


def test_a_conversion_is_refused(tmp_path):
    path = write_list(tmp_path / "set.txt", items(LABELS))
    with pytest.raises(ValueError, match=r"has several labels for an image, and a converted set has one; train on"):
        convert(parse([f"source={path}", f"target={tmp_path / 'set.lmdb'}", f"cache_dir={tmp_path / 'cache'}"]))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A list of 90 images with 1 to 3 of 30 classes; the first label of image i is i % 30."""
    generator = np.random.default_rng(0)
    labels = [",".join(map(str, [i % 30, *generator.choice(30, i % 3, replace=False)])) for i in range(90)]
    return write_list(tmp_path_factory.mktemp("several") / "set.txt", items(labels))


def sets(path, **options: object) -> DataSet:
    cache = str(path.parent / "cache")
    return build(format="list", source=str(path), size=SIDE, cache_dir=cache, **options)


def test_an_open_set_split(path):
    """Held-out images are those whose first class is held out; the labels of the others lose the held-out classes."""
    whole, data = sets(path, num_heldout=0), sets(path, num_heldout=6)
    assert data.train.num_classes == 24
    assert data.heldout.num_classes == 6
    assert data.heldout.all_labels is None
    assert len(data.train) + len(data.heldout) == 90
    known = {name: number for number, name in enumerate(data.class_names)}
    lines = [line.split("\t")[1] for line in path.read_text().splitlines()]
    pixels = {
        tuple(p.flatten().tolist()): line for p, line in zip(whole.train.source.read(np.arange(90)), lines, strict=True)
    }
    every = data.train.all_labels[np.arange(len(data.train))]
    assert np.array_equal(every[:, 0], data.train.labels[np.arange(len(data.train))])
    removed = 0
    for p, row in zip(data.train.source.read(np.arange(len(data.train))), every, strict=True):
        names = list(dict.fromkeys(pixels.pop(tuple(p.flatten().tolist())).split(",")))
        assert [known[name] for name in names if name in known] == [label for label in row if label >= 0]
        removed += sum(name not in known for name in names)
    assert removed > 0
    assert {line.split(",")[0] for line in pixels.values()}.isdisjoint(known)
    counts = np.bincount(every[every >= 0], minlength=24)
    assert data.train.class_counts().tolist() == counts.tolist()


def test_streams(path):
    data = sets(path, num_heldout=6)
    whole = InstanceStream(data, 8, seed=4)
    examples, labels, _ = whole.batch(3)
    assert labels.shape == (8, 3)
    assert labels.dtype == torch.int64
    parts = [InstanceStream(data, 8, seed=4, rank=rank, world_size=3).batch(3) for rank in range(3)]
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    of_record = {
        tuple(p.flatten().tolist()): row.tolist()
        for p, row in zip(
            data.train.source.read(np.arange(len(data.train))),
            data.train.all_labels[np.arange(len(data.train))],
            strict=True,
        )
    }
    assert [of_record[tuple(p.flatten().tolist())] for p in examples] == labels.tolist()
    with pytest.raises(ValueError, match="several labels, and the identity stream groups records"):
        IdentityStream(data, 8)


def made(labels: np.ndarray, num_classes: int) -> DataSet:
    records = RecordSet(labels, labels[:, 0], num_classes, all_labels=labels)
    return DataSet(records, None, (1,), lambda x: x, Unchanged(), [f"c{k}" for k in range(num_classes)])


def test_flipped_labels():
    """Each label becomes that of another class on its own; one that the record has already is left out."""
    before = np.stack([np.arange(6000) % 50, 50 + np.arange(6000) % 50, np.full(6000, -1)], 1)
    after = with_noise(made(before, 100), flip=0.2).train
    every = after.all_labels
    assert np.array_equal(every[:, 0], after.labels)
    assert (every[:, 2] == -1).all()
    changed = every != before
    assert np.allclose(changed[:, :2].mean(0), 0.2, atol=0.02)
    assert np.isclose((changed[:, 0] & changed[:, 1]).mean(), 0.04, atol=0.01)
    assert (every[:, 0] != every[:, 1]).all()
    assert 1 < (every[:, 1] == -1).sum() < 40
    assert after.class_counts().sum() == (every >= 0).sum()


def test_split_classes():
    """Half of the images of a class get the label of its second half, whatever the place of the label."""
    generator = np.random.default_rng(0)
    before = np.stack([generator.permutation(20)[:2] for _ in range(400)])
    noisy = with_noise(made(before, 20), conflict=0.5)
    every, names = noisy.train.all_labels, noisy.class_names
    counts, old = noisy.train.class_counts(), np.bincount(before.ravel(), minlength=20)
    assert noisy.train.num_classes == len(names) > 22
    for new in range(20, noisy.train.num_classes):
        of_class = int(names[new][1:-4])
        assert set(before[every == new]) == {of_class}
        assert (counts[of_class], counts[new]) == ((old[of_class] + 1) // 2, old[of_class] // 2)


@pytest.mark.parametrize(("name", "value"), [("tail", 1.0), ("shallow", 2)])
def test_leaving_out_images_of_classes_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"noise\.{name}={value} leaves out images class by class, .* remove it"):
        with_noise(made(np.array([[0, 1], [1, -1]]), 2), **{name: value})


def test_class_counts_count_every_label(monkeypatch):
    monkeypatch.setattr("data.records.CHUNK", 2)
    data = made(np.array([[0, 2], [2, -1], [2, 1], [4, -1]]), 6)
    assert data.train.class_counts().tolist() == [1, 1, 3, 0, 1, 0]
    with pytest.raises(ValueError, match="the set has 2 records but 1 labels"):
        RecordSet(np.zeros(2), np.zeros(2), 2, all_labels=np.zeros((1, 2)))


def test_weights():
    """An image has the mean weight of its classes."""
    data = with_weights(made(np.array([[0, 2], [2, -1], [2, 1], [3, -1]]), 4), by="inverse")
    expected = np.array([(1 + 1 / 3) / 2, 1 / 3, (1 / 3 + 1) / 2, 1])
    weights = data.train.weights[np.arange(4)]
    assert weights.dtype == np.float32
    assert weights / weights[3] == pytest.approx(expected)


def test_glyphs_with_typefaces():
    one, two = glyphs(), glyphs(labels="character_typeface")
    number = one.train.num_classes
    assert two.train.num_classes == number + len(FACES)
    assert two.class_names == [*one.class_names, *FACES]
    every = two.train.all_labels
    assert np.array_equal(every[:, 0], one.train.labels)
    assert two.train.class_counts()[:number].tolist() == one.train.class_counts().tolist()
    assert two.train.class_counts()[number:].min() > 400
    # A character has different images by different typefaces.
    assert len(np.unique(every, axis=0)) == len(every)
    assert np.array_equal(two.heldout.labels, one.heldout.labels)
    with pytest.raises(ValueError, match=r"data.labels=typeface must be one of character, character_typeface"):
        glyphs(labels="typeface")


def words(path, *more: str) -> list[str]:
    return [
        *("experiment=smoke", "trainer.max_steps=3", "batch_size=8", "logger.wandb.mode=disabled", "backbone=mlp"),
        *("trainer.accelerator=cpu", f"data.size={SIDE}", "data=list", f"data.source={path}", "data.num_heldout=6"),
        *more,
    ]


@pytest.mark.parametrize(
    "options",
    [
        (
            "head=pfc",
            "sample_rate=0.5",
            "noise.flip=0.1",
            "noise.conflict=0.2",
            "weights.by=inverse",
            "fidelity.interval=2",
        ),
        ("head=full", "objective=uniface", "positives=draw:1", "margin=class_margin", "evaluate.train_records=20"),
    ],
)
def test_training(options, path, tmp_path):
    assert train(config(*words(path, *options, "protocol=closed_set")), tmp_path) == 0
    result = summary(tmp_path)
    assert "val/rank1" in result
    assert 0 <= result["val/closed_set/top1"] <= 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("head=ffc queue_size=0.5", "the identity stream groups records of one class"),
        ("noise.tail=1", "noise.tail=1"),
        ("head=full margin=sv", "margin=SVSoftmax .* cannot be used with several labels a sample"),
    ],
)
def test_refused(option, message, path, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(config(*words(path, *option.split())), tmp_path)
