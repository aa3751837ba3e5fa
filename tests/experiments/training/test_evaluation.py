"""Training records compared with all class centers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from data.augment import Unchanged
from data.records import DataSet, RecordSet
from experiments.training.evaluation import against_all_classes
from heads import CosFace, FullFC
from tests.experiments.protocols.models import of_pixels

NUM_CLASSES = 9


class Vectors:
    """Records of 18 numbers each."""

    def __init__(self, vectors: torch.Tensor):
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        return self.vectors[torch.from_numpy(indices)]


def evaluated(labels: np.ndarray, several: bool) -> list[dict[str, float]]:
    """Return the metrics and those of a plain computation, in a worker."""
    x = torch.randn(len(labels), 18, generator=torch.Generator().manual_seed(0))
    records = RecordSet(Vectors(x), labels[:, 0], NUM_CLASSES, all_labels=labels if several else None)
    data = DataSet(records, None, (18,), lambda examples: examples, Unchanged())
    head = FullFC(NUM_CLASSES, 18, margin=CosFace(s=4, m=0.1))
    rows = torch.randn(NUM_CLASSES, 18, generator=torch.Generator().manual_seed(1))
    shard = head.centers.shard
    head.centers.write(slice(0, shard.size), "rows", rows[shard.start : shard.stop])
    found = against_all_classes(of_pixels(backbone=nn.Identity(), data=data), head, records, 100, 0)
    cos, correct, losses = normalize(x) @ normalize(rows).T, [], []
    for row, classes in zip(cos, labels.tolist(), strict=True):
        first, *others = [label for label in classes if label >= 0][: None if several else 1]
        others_left_out = row.index_fill(0, torch.tensor(others, dtype=torch.int64), -2)
        correct.append(float(others_left_out.argmax() == first))
        log_sum = (4 * row).index_fill(0, torch.tensor([first, *others]), -torch.inf).logsumexp(0)
        targets = [4 * (row[label] - 0.1) for label in (first, *others)]
        losses.append(np.mean([float(torch.logaddexp(log_sum, target) - target) for target in targets]))
    return [found, {"train/exact_loss": np.mean(losses), "train/top1": np.mean(correct)}]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_training_records(several, world_size, workers):
    """The first class of a record is ranked among the classes that the record does not have."""
    generator = np.random.default_rng(0)
    labels = np.stack([generator.permutation(NUM_CLASSES)[:4] for _ in range(40)])
    labels[::3, 2:] = -1
    for found, expected in workers(world_size).run(evaluated, labels, several):
        assert found == pytest.approx(expected, rel=1e-5)
        assert expected["train/top1"] > 0
