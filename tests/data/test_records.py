"""Record sets."""

import numpy as np
import pytest

from data import records
from data.grouping import group
from data.records import ByClass, RecordSet
from data.sets.sphere import sphere

LABELS = np.array([4, 0, 0, 2, 4, 4, 2, 0, 0, 5, 4])  # class 1, 3 and 6 have no records
COUNTS = [4, 0, 2, 0, 4, 1, 0]


@pytest.mark.parametrize("chunk", [3, 2**20])
@pytest.mark.parametrize("by_class", [None, group(LABELS, 7)])
def test_class_counts(chunk, by_class, monkeypatch):
    """Counts follow from the records of each class, or from the labels, however many are read together."""
    monkeypatch.setattr(records, "CHUNK", chunk)
    counts = RecordSet(LABELS, LABELS, 7, by_class).class_counts()
    assert counts.dtype == np.int64 and counts.tolist() == COUNTS


def test_class_counts_of_computed_labels_and_of_their_groups_agree(monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 100)
    computed = sphere(50, images_per_class=30, tail=1.0).train
    counts = computed.class_counts()
    assert counts.sum() == len(computed) and counts.max() > 10 * counts.min()
    grouped = group(computed.labels, 50)
    mapped = ByClass(grouped.order, grouped.starts.astype(np.uint64), grouped.present)
    assert np.array_equal(RecordSet(computed.source, computed.labels, 50, mapped).class_counts(), counts)
