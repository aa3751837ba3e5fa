"""Weights of training records, against their formulas."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.records import DataSet, RecordSet
from data.streams import IdentityStream, InstanceStream
from data.weights import with_weights

LABELS = np.array([0, 0, 0, 0, 1, 1, 3])  # class 2 has no record
COUNTS = np.array([4, 2, 0, 1])


class Numbers:
    def __len__(self) -> int:
        return len(LABELS)

    def read(self, indices):
        return torch.from_numpy(np.asarray(indices))


class Nothing:
    def draws(self, keys):
        return torch.zeros(len(keys), 0)


DATA = DataSet(RecordSet(Numbers(), LABELS, 4), None, (1,), torch.Tensor.float, Nothing())  # type: ignore[arg-type]


def weights_of(data: DataSet) -> np.ndarray:
    return data.train.weights[np.arange(len(LABELS))]


@pytest.mark.parametrize(
    ("options", "of_class"),
    [
        ({"by": "inverse"}, 1 / np.maximum(COUNTS, 1)),
        ({"by": "balanced", "beta": 0.9}, (1 - 0.9) / (1 - 0.9 ** np.maximum(COUNTS, 1.0))),
        ({"by": "balanced", "beta": 0}, np.ones(4)),
    ],
)
def test_weights_of_classes(options, of_class):
    found = weights_of(with_weights(DATA, **options))
    expected = of_class[LABELS] / of_class[LABELS].mean()
    assert found.dtype == np.float32 and found == pytest.approx(expected, rel=1e-6) and found.mean() == pytest.approx(1)


@pytest.mark.parametrize("values", [np.array([3.0, 0, 5, 1]), np.array([7, 1, 0, 2, 2, 5, 9], dtype=np.int16)])
def test_weights_from_a_file_are_of_classes_or_of_records(values, tmp_path):
    np.save(tmp_path / "w.npy", values)
    data = with_weights(DATA, by="file", file=str(tmp_path / "w.npy"))
    expected = (values[LABELS] if len(values) == 4 else values).astype(float)
    assert weights_of(data) == pytest.approx(expected / expected.mean(), rel=1e-6)
    again = pickle.loads(pickle.dumps(data.train.weights))
    assert np.array_equal(again[np.arange(7)], weights_of(data))
    assert len(pickle.dumps(data.train.weights)) < 2000


def test_streams_give_the_weights_of_their_records():
    weighted = with_weights(DATA, by="inverse")
    for stream in (InstanceStream(weighted, 4), IdentityStream(weighted, 4)):
        records, labels, _, weights = stream.batch(0)
        assert torch.equal(weights, torch.from_numpy(weighted.train.weights[records.numpy()]))
        assert torch.equal(labels, torch.from_numpy(LABELS[records.numpy()]))
    assert with_weights(DATA) is DATA and len(InstanceStream(DATA, 4).batch(0)) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "none"}, "weights.by=none must be one of inverse, balanced, file, or null for none"),
        ({"by": "file"}, "weights.by=file and weights.file=null do not fit together: weights from a file need both"),
        ({"file": "w.npy"}, r"weights.by=null and weights.file=.*w\.npy do not fit together"),
        ({"by": "balanced", "beta": 1.0}, r"weights.beta=1.0 must be in \[0, 1\)"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        with_weights(DATA, **options)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "cannot be read"),
        (np.ones(5), "float64 of shape .5.; it must have one number for each of the 4 training classes, or of the 7"),
        (np.ones((7, 1)), r"shape \[7, 1\]; it must have one number"),
        (np.array(["a"] * 4), "it must have one number"),
        (np.array([1.0, 2, np.nan, 1]), "number 2, counted from 0, is nan; weights must be at least 0"),
        (np.array([1.0, -2, 1, 1]), "number 1, counted from 0, is -2.0; weights must be"),
        (np.zeros(7), "has only zeros"),
        (np.array([0.0, 0, 3, 0]), "has only zeros for classes with records"),
    ],
)
def test_files_that_do_not_fit_are_refused(values, words, tmp_path):
    if values is not None:
        np.save(tmp_path / "w.npy", values)
    with pytest.raises(ValueError, match=words):
        with_weights(replace(DATA), by="file", file=str(tmp_path / "w.npy"))
