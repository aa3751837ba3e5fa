"""The arguments that timm gets. A double stands for the library, which needs torchvision."""

import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from backbones.timm import Timm


class Network(nn.Linear):
    """A double of a network of timm, for images of one pixel."""

    pretrained_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

    def __init__(self, in_chans=3, num_classes=1000, patch_size=None, **given):
        super().__init__(in_chans, num_classes, bias=False)
        self.given, self.checkpointing = given, None
        if patch_size:
            self.patch_embed = SimpleNamespace(patch_size=(patch_size, patch_size))

    def forward(self, images):
        return super().forward(images.mean((2, 3)))

    def set_grad_checkpointing(self, enable):
        self.checkpointing = enable


@pytest.fixture(autouse=True)
def timm(monkeypatch):
    def create_model(name, **given):
        if "nope" in given:
            raise TypeError("unexpected keyword argument 'nope'")
        return Network(**given)

    double = SimpleNamespace(
        list_models=lambda: ["cnn", "vit"],
        get_pretrained_cfg=lambda name: SimpleNamespace(fixed_input_size=name.startswith("vit")),
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", double)


def test_random_weights_fit_the_images():
    network = Timm("vit.tag", (1, 32, 16), 7, options={"drop_path_rate": 0.1}, gradient_checkpointing=True)
    assert network(torch.ones(2, 1, 32, 16)).shape == (2, 7)
    assert network.network.given == {"img_size": (32, 16), "pretrained": False, "drop_path_rate": 0.1}
    assert network.network.checkpointing is True


def test_pretrained_weights_get_their_pixels():
    network = Timm("cnn", (1, 8, 8), 7, pretrained=True)
    other = Timm("cnn", (1, 8, 8), 7, pretrained=True, pixel_mean=(0.0,), pixel_std=(1.0,))
    images = torch.full((2, 1, 8, 8), 0.75)  # one standard deviation above the mean
    assert torch.equal(network(images * 2 - 1), nn.functional.linear(torch.ones(2, 3), network.network.weight))
    assert torch.equal(other(images), nn.functional.linear(torch.ones(2, 3), other.network.weight))
    assert network.network.given == {"pretrained": True}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": None}, "backbone=timm needs a network"),
        ({"name": "resnet1"}, "backbone.name=resnet1 is not a network of timm"),
        ({"name": "cnn", "options": {"nope": 3}}, "backbone.name=cnn cannot be built for 40x40 pixels .*'nope'"),
        ({"name": "vit", "options": {"patch_size": 16}}, "backbone.options.patch_size=16 must divide"),
    ],
)
def test_unsuitable_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Timm(input_shape=(3, 40, 40), **options)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="backbone=timm needs timm and torchvision"):
        Timm("cnn")
