"""Trainings with weights."""

import numpy as np
import pytest
import torch

from experiments.training.assembly import assemble
from tests.experiments.commands import config
from tests.experiments.training.test_objectives import SHORT


def test_weights_reach_the_loss(tmp_path):
    """A record of a class of n records has the weight 1 / n, and the mean over all records is 1."""
    module, callbacks, _ = assemble(config(*SHORT, "weights.by=inverse"), tmp_path)
    callbacks.stop.restore_handlers()
    train = module.data.train
    counts = train.class_counts()
    batch = module.on_after_batch_transfer(next(iter(module.loader)), 0)
    images, labels, weights = batch["instance"]
    assert weights.numpy() == pytest.approx(len(train) / (counts > 0).sum() / counts[labels.numpy()])
    assert len(np.unique(weights.numpy())) > 3
    module.head.eval()
    loss, unweighted = module.head.training_loss(module.backbone, batch), module.head(module.backbone(images), labels)
    assert torch.equal(loss, module.head(module.backbone(images), labels, weights)) and loss != unweighted


def test_weights_are_refused_for_a_head_without_them(tmp_path):
    words = ["head=ffc", "weights.by=inverse", "data=folder", "data.source=nowhere"]
    with pytest.raises(ValueError, match=r"weights\.by=inverse cannot be used with head=.*, whose loss has no weights"):
        assemble(config(*words), tmp_path)
