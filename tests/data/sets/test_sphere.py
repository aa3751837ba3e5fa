"""The sphere: number of classes, noise, long tail and conflict."""

import numpy as np
import pytest

from data.sets.sphere import sphere
from experiments.instantiate import instantiate
from tests.experiments.commands import config


def test_ten_million_classes_need_no_memory():
    data = instantiate(config("data=sphere", "data.num_classes=1e7").data)
    assert len(data.train) == 10**8 and data.train.num_classes == 10**7
    indices = np.array([0, 10**8 - 1])
    assert data.train.source.read(indices).shape == (2, 128)
    assert data.train.labels[indices].tolist() == [0, 10**7 - 1]


def test_noise_determines_the_similarity_within_a_class():
    indices = np.arange(2000)
    for noise, expected in ((0.0, 1.0), (1.0, 0.5), (2.0, 0.2)):
        data = sphere(100, images_per_class=20, noise=noise)
        vectors, labels = data.train.source.read(indices).numpy(), data.train.labels[indices]
        same = (vectors[:100] * vectors[100:200]).sum(1)
        assert (labels[:100] == labels[100:200]).all()
        assert same.mean() == pytest.approx(expected, abs=0.03)
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("tail", [0.5, 1.0, 1.5])
def test_tail_follows_zipf(tail):
    data = sphere(1000, images_per_class=200, tail=tail)
    counts = np.sort(np.bincount(data.train.labels[np.arange(len(data.train))], minlength=1000))[::-1]
    ranks = np.arange(5, 100)
    slope = np.polyfit(np.log(ranks), np.log(counts[5:100]), 1)[0]
    assert slope == pytest.approx(-tail, abs=0.15)


def test_conflict_splits_classes_in_two():
    data = sphere(1000, conflict=0.3)
    directions = data.train.source.directions(np.arange(1000))
    cosine = (directions[::2] * directions[1::2]).sum(1)
    split = cosine > 0.999
    assert 0.2 < split.mean() < 0.4 and np.abs(cosine[~split]).max() < 0.5
    apart = sphere(1000).train.source.directions(np.arange(1000))
    assert (apart[::2] * apart[1::2]).sum(1).max() < 0.5


def test_nuisance_hides_the_classes_behind_a_network():
    """Vectors have to be unmixed: their own cosines hardly tell classes, those of the hidden half do."""
    options = {"size": 16, "noise": 0.3, "num_heldout": 100, "seed": 3}
    source = sphere(10, nuisance=2.0, **options).heldout.source
    indices = np.arange(800)
    classes, mixed = source.labels[indices], source.read(indices).numpy().astype(np.float64)
    alone = np.concatenate([source.read(indices[i : i + 1]).numpy() for i in range(50)])
    assert (alone == mixed[:50]).all()  # a record does not depend on the others of its batch
    # Up to their length, vectors are tanh(z @ first * gain) @ second, so that the length is found by trying.
    first, second = source.layers
    assert np.abs(first @ first.T - np.eye(16)).max() < 1e-6 and np.abs(second @ second.T - np.eye(16)).max() < 1e-6
    activations = mixed @ second.T
    lengths = np.linspace(0.9, 0.999, 100) / np.abs(activations).max(1)[:, None]
    hidden = np.arctanh(activations[:, None] * lengths[:, :, None]) @ first.T
    own = source.directions(classes)[:, None]
    assert own.shape[2] == 8  # half of the size

    def rank1(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = unit @ unit.T - 2 * np.eye(len(unit))
        return (classes[cosines.argmax(1)] == classes).mean()

    unit = hidden[:, :, :8] / np.linalg.norm(hidden[:, :, :8], axis=2, keepdims=True)
    best = (unit * own).sum(2).argmax(1)
    assert rank1(hidden[indices, best, :8]) > 0.9 > 0.3 > rank1(mixed)


def test_heldout_classes_have_other_directions():
    data = sphere(50, num_heldout=20, noise=0.0)
    train = data.train.source.read(np.arange(50)).numpy()
    heldout = data.heldout.source.read(np.arange(20)).numpy()
    assert np.abs(train @ heldout.T).max() < 0.6


@pytest.mark.parametrize(
    "option",
    [
        "num_classes=1",
        "noise=-1",
        "tail=-1",
        "nuisance=-1",
        "conflict=2",
        "size=1",
        "num_heldout=1",
        "images_per_class=0",
        "size=2.5",
    ],
)
def test_options_out_of_range_are_refused(option):
    name, value = option.split("=")
    with pytest.raises(ValueError, match=rf"data\.{option} must be (a whole number of )?(at least|in)"):
        sphere(**{"num_classes": 10, name: float(value) if "." in value else int(value)})


@pytest.mark.parametrize("number", [1e3, np.int64(1000)])
def test_whole_numbers_of_other_types_are_accepted(number):
    assert len(sphere(number).train) == 10_000


@pytest.mark.parametrize("option", ["num_classes=2.5", "size=two", "noise=much", "conflict=true"])
def test_options_of_another_type_are_refused(option):
    with pytest.raises(ValueError, match=rf"data\.{option} must be a"):
        instantiate(config("data=sphere", f"data.{option}").data)
