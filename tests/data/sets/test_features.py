"""Features and labels from .npy files: the records, the errors, and trainings on them."""

import json
import os
import pickle
import re

import numpy as np
import pytest
import torch

from data import label_file
from data.label_file import LabelFile
from data.sets.features import FeatureFile, features
from data.sets.images import images as build_images
from data.sets.sphere import sphere
from data.streams import InstanceStream
from experiments.embed import embed
from experiments.evaluate import evaluate
from experiments.export import export
from experiments.train import train
from tests.data.made_sets import SIDE, image, images, write_list, write_rec
from tests.experiments.commands import config, stored_rows, summary
from tests.experiments.launching.test_processes import trained

N, C, D = 600, 60, 16
SHORT = ("experiment=smoke", "trainer.max_steps=6", "evaluate.interval=null", "logger.wandb.mode=disabled")
PROBE = ("data=features", "data.num_heldout=4", "backbone=none", f"embedding_size={D}", "head=full", "batch_size=12")


def write(folder, dtype=np.float32, label_dtype=np.int64):
    """Write x.npy and x.labels.npy, the vectors of a sphere in random order. Return both arrays."""
    made = sphere(C, size=D, images_per_class=N // C)
    order = np.random.default_rng(0).permutation(N)
    x, labels = made.train.source.read(order).numpy().astype(dtype), made.train.labels[order].astype(label_dtype)
    np.save(folder / "x.npy", x)
    np.save(folder / "x.labels.npy", labels)
    return x, labels


@pytest.mark.parametrize(
    ("dtype", "label_dtype"), [(np.float32, np.int64), (np.float16, np.uint8), (np.float64, np.int32), (">f4", ">u2")]
)
def test_records_are_the_rows_of_the_file(dtype, label_dtype, tmp_path):
    x, labels = write(tmp_path, dtype, label_dtype)
    data = features(source=str(tmp_path / "x.npy"), num_heldout=0)
    assert data.shape == (D,) and data.train.num_classes == C and data.heldout is None and not len(data.class_names)
    some = np.array([599, 0, 7, 7])
    read = data.train.source.read(some)
    assert read.dtype == torch.float32 and np.array_equal(data.prepare(read).numpy(), x[some].astype(np.float32))
    assert data.train.labels[some].dtype == np.int64 and np.array_equal(data.train.labels[some], labels[some])
    assert np.array_equal(data.train.class_counts(), np.bincount(labels, minlength=C))
    order, starts = data.train.by_class.order, data.train.by_class.starts
    assert (labels[order[starts[5] : starts[6]]] == 5).all() and starts[6] - starts[5] == (labels == 5).sum()
    for part in (data.train.source, data.train.labels):
        assert len(pickle.dumps(part)) < 500 and len(pickle.loads(pickle.dumps(part))) == N


def test_classes_are_held_out_with_their_records(tmp_path):
    x, labels = write(tmp_path)
    (tmp_path / "x.labels.classes.txt").write_text("".join(f"c{c}\n" for c in range(C)))
    data = features(source=str(tmp_path / "x.npy"), num_heldout=9, seed=1)
    names = list(data.class_names)
    assert len(names) == C - 9 == data.train.num_classes and data.heldout.num_classes == 9
    records = np.arange(len(data.train))
    for label, row in zip(data.train.labels[records], data.train.source.read(records).numpy(), strict=True):
        (number,) = np.flatnonzero((x == row).all(1))
        assert names[label] == f"c{labels[number]}"
    held = data.heldout.source.read(np.arange(len(data.heldout))).numpy()
    originals = [int(labels[np.flatnonzero((x == row).all(1))[0]]) for row in held]
    assert sorted(set(originals)) == [c for c in range(C) if f"c{c}" not in names]
    (tmp_path / "x.labels.classes.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"x\.labels\.classes\.txt has 2 class names, and the labels have 60 classes"):
        features(source=str(tmp_path / "x.npy"))


def test_records_may_have_several_labels(tmp_path):
    _, labels = write(tmp_path)
    several = np.stack([labels, (labels + 1) % (C + 1), np.where(labels % 2, -1, C)], axis=1).astype(np.int16)
    several[several[:, 1] == several[:, 2], 2] = -1
    np.save(tmp_path / "x.labels.npy", several)
    data = features(source=str(tmp_path / "x.npy"), num_heldout=0)
    records = np.arange(N)
    assert data.train.num_classes == C + 1  # the last class is the first label of no record
    assert np.array_equal(data.train.labels[records], labels) and np.array_equal(data.train.targets[records], several)
    assert data.train.class_counts().tolist() == [int((several == c).sum()) for c in range(C + 1)]
    split = features(source=str(tmp_path / "x.npy"), num_heldout=9)
    assert split.train.num_classes == C + 1 - 9 and split.train.targets[np.arange(5)].shape == (5, 3)
    assert len(split.train) + len(split.heldout) == N
    np.save(tmp_path / "x.labels.npy", labels[:, None])
    assert features(source=str(tmp_path / "x.npy"), num_heldout=0).train.all_labels is None


def test_labels_are_grouped_once(tmp_path, monkeypatch):
    calls = []
    group = label_file.group
    monkeypatch.setattr(label_file, "group", lambda *given: calls.append(given) or group(*given))
    _, labels = write(tmp_path)
    for _ in range(2):
        features(source=str(tmp_path / "x.npy"), cache_dir=str(tmp_path / "cache"))
    assert len(calls) == 1
    np.save(tmp_path / "x.labels.npy", labels[::-1].copy())
    os.utime(tmp_path / "x.labels.npy", ns=(1, 1))
    data = features(source=str(tmp_path / "x.npy"), num_heldout=0, cache_dir=str(tmp_path / "cache"))
    assert len(calls) == 2 and np.array_equal(data.train.labels[np.arange(N)], labels[::-1])


LABELS = {
    "lengths": (np.zeros(599, int), "has 599 labels for 600 features; each must have its own"),
    "floats": (np.zeros(600), "must be an array (N,) or (N, L) of integers, and it is float64 of shape [600]"),
    "cubes": (np.zeros((600, 1, 1), int), "of shape [600, 1, 1]"),
    "negative": (np.r_[np.arange(598), -1, -3], "has label -1 at record 598, counted from 0"),
    "padding": (np.c_[np.arange(600), np.r_[np.full(599, -1), -2]], "has label -2 at record 599, counted from 0"),
    "no first": (np.c_[np.r_[-1, np.arange(599)], np.arange(600)], "has label -1 at record 0, counted from 0"),
    "gap": (np.arange(600) % 60 + (np.arange(600) % 60 > 6), "has gaps: no record has label 7, and the largest"),
    "huge": (np.arange(600) * 10**15, "has gaps: no record has label 1, and the largest label is 599,000,"),
    "one": (np.zeros(600, int), "has labels of one class; training needs two"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_do_not_fit_are_refused(name, tmp_path):
    write(tmp_path)
    labels, message = LABELS[name]
    np.save(tmp_path / "y.npy", labels)
    with pytest.raises(ValueError, match=re.escape(f"data.labels={tmp_path / 'y.npy'} ") + ".*" + re.escape(message)):
        features(source=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"))


def test_files_that_are_no_features_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "text.npy").write_text("1,2,3")
    (tmp_path / "folder.npy").mkdir()
    np.save(tmp_path / "flat.npy", np.zeros(600))
    np.save(tmp_path / "ints.npy", np.zeros((600, 2), int))
    np.save(tmp_path / "objects.npy", np.array([None] * 600))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    for name, message in (
        ("nothing", r"data\.source: .*nothing\.npy does not exist"),
        ("text", r"text\.npy cannot be read as a \.npy file"),
        ("folder", r"folder\.npy is a folder"),
        ("objects", r"objects\.npy cannot be read as a \.npy file"),
        ("cut", r"cut\.npy cannot be read as a \.npy file \(mmap length is greater than file size\)"),
        ("flat", r"must be an array \(N, D\) of floats, and it is float64 of shape \[600\]"),
        ("ints", r"must be an array \(N, D\) of floats, and it is int64 of shape \[600, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            features(source=str(tmp_path / f"{name}.npy"), labels=str(tmp_path / "x.labels.npy"))
    with pytest.raises(ValueError, match=r"data\.source=null must be the path"):
        features(source=None)
    (tmp_path / "x.labels.npy").unlink()
    with pytest.raises(ValueError, match=r"data\.labels: .*x\.labels\.npy does not exist"):
        features(source=str(tmp_path / "x.npy"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_number_that_is_not_finite_is_reported_with_its_record(value, tmp_path):
    x, _ = write(tmp_path, np.float64)
    x[123, 4] = value
    np.save(tmp_path / "x.npy", x)
    data = features(source=str(tmp_path / "x.npy"), num_heldout=9)
    stream = InstanceStream(data, len(data.train))
    held = data.heldout.source
    with pytest.raises(ValueError, match=r"x\.npy: record 123, counted from 0, has NaN or Inf"):
        for read in (lambda: stream.batch(0), lambda: held.read(np.arange(len(held)))):  # it is in one of them
            read()


def test_images_get_their_labels_from_a_file(tmp_path):
    """Classes in the source do not matter: a folder of loose images and a .rec of one class have none."""
    labels = np.array([2, 0, 1, 1, 0, 2], np.int16)
    np.save(tmp_path / "y.npy", labels)
    (tmp_path / "loose").mkdir()
    for number in range(6):
        (tmp_path / "loose" / f"{number}.jpg").write_bytes(image(number))
    (tmp_path / "list").mkdir()
    sources = {
        "folder": tmp_path / "loose",
        "rec": write_rec(tmp_path / "set.rec", images([0] * 6)),
        "list": write_list(tmp_path / "list" / "set.txt", images([4, 3, 2, 1, 0, 0])),
    }
    read = []
    for kind, source in sources.items():
        options = {"format": kind, "source": str(source), "size": SIDE}
        data = build_images(**options, labels=str(tmp_path / "y.npy"))
        assert np.array_equal(data.train.labels[np.arange(6)], labels) and data.train.num_classes == 3
        assert not len(data.class_names) and data.heldout is None
        read.append(data.train.source.read(np.arange(6)))
        np.save(tmp_path / "short.npy", labels[:-1])
        with pytest.raises(ValueError, match="has 5 labels for 6 images"):
            build_images(**options, labels=str(tmp_path / "short.npy"))
        with pytest.raises(ValueError, match=r"data\.labels=x\.txt must be one \.npy file"):
            build_images(**options, labels="x.txt")
    assert torch.equal(read[0], read[1]) and torch.equal(read[0], read[2])


# Trainings


@pytest.mark.parametrize("head", ["full", "ffc"])
def test_training_on_features(head, tmp_path):
    write(tmp_path)
    words = [*SHORT, "data=features", "data.num_heldout=4", "backbone=mlp", "batch_size=12", "num_workers=1"]
    words += ["head=ffc", "queue_size=20"] if head == "ffc" else ["head=full", "noise.flip=0.1", "noise.tail=0.5"]
    (tmp_path / "run").mkdir()
    assert train(config(*words, f"data.source={tmp_path / 'x.npy'}"), tmp_path / "run") == 0
    assert summary(tmp_path / "run")["num_classes"] == C - 4 and summary(tmp_path / "run")["val/rank1"] > 0


def test_training_without_a_backbone(tmp_path, workers):
    """A linear probe: checkpoints, resuming, fp16, clipping, two processes, evaluation, embedding and export."""
    write(tmp_path)
    words = [*SHORT, *PROBE, f"data.source={tmp_path / 'x.npy'}", "trainer.precision=16-mixed"]
    words += ["trainer.gradient_clip_val=1", "trainer.accumulate_grad_batches=2", "checkpoint.interval=3"]
    half = tmp_path / "run" / "checkpoints" / "step-00000003"
    for name, more in (("run", ["checkpoint.keep=2"]), ("again", [f"resume={half}"])):
        (tmp_path / name).mkdir()
        assert train(config(*words, *more), tmp_path / name) == 0
    assert workers(2).run(trained, words, tmp_path / "two") == [0, 0]
    one, again, two = (stored_rows(tmp_path / name / "checkpoints" / "latest") for name in ("run", "again", "two"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert summary(tmp_path / "again")["train/loss"] == summary(tmp_path / "run")["train/loss"]

    checkpoint = f"checkpoint={tmp_path / 'run'}"
    judged = ("protocol=closed_set", f"protocol.closed_set.source={tmp_path / 'x.npy'}")
    judged += ("protocol.closed_set.classes=id", "protocol.closed_set.resamples=0")
    with pytest.raises(ValueError, match=r"found class 59 in .*x\.npy and the model has 56 classes"):
        evaluate(config(checkpoint, *judged, name="evaluate"), tmp_path)
    embed(config(checkpoint, f"target={tmp_path / 'own.npy'}", "unit=false", name="embed"), tmp_path)
    top1 = []
    for classes in ("name", "id"):  # names in own.txt, or else ids in own.labels.npy
        own_source = (f"protocol.closed_set.source={tmp_path / 'own.npy'}", f"protocol.closed_set.classes={classes}")
        evaluate(config(checkpoint, judged[0], *own_source, judged[3], name="evaluate"), tmp_path)
        top1.append(json.loads((tmp_path / "evaluation.json").read_text())["results"][0]["metrics"]["top1"])
        (tmp_path / "own.txt").unlink(missing_ok=True)
    assert top1[0] == top1[1] > 0.1
    own = features(source=str(tmp_path / "own.npy"), num_heldout=0)
    used = features(source=str(tmp_path / "x.npy"), num_heldout=4)
    records = np.arange(len(used.train))
    assert torch.equal(own.train.source.read(records), used.train.source.read(records))
    assert np.array_equal(own.train.labels[records], used.train.labels[records])
    assert list(own.class_names) == list(used.class_names)
    export(config(checkpoint, f"target={tmp_path / 'x.pt2'}", "format=pt2", name="export"), tmp_path)
    loaded = torch.export.load(tmp_path / "x.pt2").module()
    assert torch.equal(loaded(torch.ones(3, D)), torch.ones(3, D))


def test_a_training_in_which_nothing_would_learn_is_refused(tmp_path):
    write(tmp_path)
    words = [*SHORT, *PROBE, f"data.source={tmp_path / 'x.npy'}"]
    with pytest.raises(ValueError, match=r"head=FFC stores no class centers, and the backbone has no parameters"):
        train(config(*words, "head=ffc", "queue_size=20"), tmp_path)
    with pytest.raises(ValueError, match=r"embedding_size=15 must be 16 for backbone=none"):
        train(config(*words, "embedding_size=15"), tmp_path)
    assert isinstance(LabelFile(str(tmp_path / "x.labels.npy"))[np.array([0])], np.ndarray)
    assert FeatureFile(str(tmp_path / "x.npy")).width == D
