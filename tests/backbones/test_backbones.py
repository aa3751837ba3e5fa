"""Backbones: shapes, published sizes, and errors for unsuitable data."""

import pytest
import torch

from backbones.iresnet import IResNet
from backbones.mlp import MLP
from backbones.mobilefacenet import MobileFaceNet
from backbones.resnet import ResNet
from backbones.tiny import Tiny
from backbones.vit import ViT


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Tiny, (1, 32, 32)),
        (Tiny, (3, 40, 24)),
        (MLP, (10,)),
        (MLP, (1, 8, 8)),
        (MobileFaceNet, (3, 112, 112)),
        (ResNet, (3, 224, 224)),
        (lambda *a: IResNet(*a, depth=18), (3, 112, 112)),
        (lambda *a: IResNet(*a, depth=18), (1, 32, 32)),
        (lambda *a: ViT(*a, size="micro"), (1, 32, 32)),
        (lambda *a: ViT(*a, patch=9), (3, 112, 112)),
    ],
)
@pytest.mark.parametrize("embedding_size", [7, 512])
def test_embeddings_of_any_size(build, shape, embedding_size):
    network = build(shape, embedding_size)
    images = torch.randn(2, *shape, requires_grad=True)
    embeddings = network(images)
    embeddings.square().sum().backward()
    assert embeddings.shape == (2, embedding_size)
    assert torch.isfinite(embeddings).all() and torch.isfinite(images.grad).all()


# Numbers of parameters of the published networks, with 512 features (ResNet: 1000).
@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (lambda: IResNet(depth=18), 24.03),
        (lambda: IResNet(depth=34), 34.14),
        (lambda: IResNet(depth=50), 43.59),
        (lambda: IResNet(depth=100), 65.15),
        (lambda: IResNet(depth=200), 118.8),
        (lambda: ResNet(embedding_size=1000, depth=50), 25.56),
        (lambda: ResNet(embedding_size=1000, depth=101), 44.55),
        (lambda: ResNet(embedding_size=1000, depth=152), 60.19),
    ],
)
def test_size_equals_the_published_one(build, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in build().parameters())
    assert round(count / 1e6, 4 - len(str(int(millions)))) == pytest.approx(millions, abs=0.051)


def test_mobilefacenet_has_about_a_million_parameters():
    with torch.device("meta"):
        count = sum(p.numel() for p in MobileFaceNet(embedding_size=128).parameters())
    assert 0.9e6 < count < 1.1e6


def test_iresnet_has_the_published_names():
    with torch.device("meta"):
        names = IResNet(depth=50).state_dict()
    for name in ("conv1.weight", "bn1.running_mean", "prelu.weight", "layer1.0.bn1.weight", "layer3.13.conv2.weight"):
        assert name in names
    for name in ("layer2.0.downsample.0.weight", "layer4.2.bn3.bias", "bn2.weight", "fc.bias", "features.weight"):
        assert name in names


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Tiny((128,)), "use backbone=mlp"),
        (lambda: Tiny((1, 30, 32)), "multiples of 8"),
        (lambda: IResNet((3, 100, 112)), "multiples of 16"),
        (lambda: IResNet(depth=42), "backbone.depth=42"),
        (lambda: ResNet(depth=18), "backbone.depth=18"),
    ],
)
def test_unsuitable_data_and_depths_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
