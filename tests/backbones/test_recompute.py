"""Gradient checkpointing changes neither gradients nor batch statistics."""

import copy

import pytest
import torch

from backbones.iresnet import IResNet
from backbones.resnet import ResNet
from backbones.vit import ViT


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: IResNet((1, 16, 16), 8, depth=18), (1, 16, 16)),
        (lambda: ResNet((1, 32, 32), 8), (1, 32, 32)),
        (lambda: ViT((1, 16, 16), 8, drop_path=0.3, mask=0.25), (1, 16, 16)),
    ],
)
def test_gradients_and_statistics_are_the_same(build, shape):
    torch.manual_seed(0)
    network, images = build(), torch.randn(6, *shape)
    other = copy.deepcopy(network)
    other.gradient_checkpointing = True
    stored = []
    for each in (network, other):
        torch.manual_seed(1)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            loss = each(images).square().sum()
        loss.backward()
        stored.append(sum(sizes))
    for (name, ours), theirs in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    for (name, ours), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name
    assert stored[1] < 0.5 * stored[0]
