"""Networks of transformers, with random weights and with the weights of a folder."""

import json
import sys

import pytest
import torch

from backbones.hf import HuggingFace
from data.preprocessing import preprocessing_of
from experiments.models.backbone import build_backbone
from tests.experiments.commands import config

SMALL = {
    "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8},
    "convnext": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
}
SMALL["vit"]["patch_size"] = 8


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("vit", (1, 32, 32)), ("vit", (3, 64, 32)), ("dinov2", (1, 32, 32)), ("convnext", (3, 64, 32))],
)
def test_embeddings_of_any_images(name, shape):
    network = HuggingFace(name, shape, 7, config=SMALL[name])
    images = torch.randn(2, *shape, requires_grad=True)
    embeddings = network(images)
    embeddings.square().sum().backward()
    assert embeddings.shape == (2, 7) and images.grad.abs().sum() > 0


def test_pools():
    torch.manual_seed(0)
    network = HuggingFace("vit", (1, 16, 16), 32, config=SMALL["vit"]).eval()
    images = torch.randn(2, 1, 16, 16)
    hidden = network.network(images).last_hidden_state
    assert isinstance(network.fc, torch.nn.Identity)  # hidden states are embeddings already
    assert torch.equal(network(images), hidden.mean(1))
    network.pool = "first"
    assert torch.equal(network(images), hidden[:, 0])


@pytest.fixture
def folder(tmp_path, capfd):
    """A folder with a network of three channels and 16x16 pixels, as transformers writes it."""
    torch.manual_seed(1)
    network = HuggingFace("vit", (3, 16, 16), 32, config=SMALL["vit"])
    network.network.save_pretrained(tmp_path)
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    return tmp_path, network.eval()


def test_pretrained_weights_and_pixels(folder):
    path, original = folder
    network = HuggingFace(str(path), (3, 16, 16), 32, pretrained=True).eval()
    images = torch.rand(2, 3, 16, 16)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.1, 0.2, 0.3])
    normalized = (images - mean[:, None, None]) / std[:, None, None]
    ours, expected = network(images * 2 - 1), original(normalized)
    assert (ours - expected).abs().max() < 1e-5
    grey = images[:, :1]
    one = HuggingFace(str(path), (1, 32, 32), 32, pretrained=True).eval()
    assert one(grey.repeat(1, 1, 2, 2)).shape == (2, 32)  # larger images, of one channel
    assert not any(name.startswith("pixels") for name in network.state_dict())


def test_the_normalization_of_the_data_is_undone(folder):
    """Embeddings of the same pixels do not depend on `data.mean` and `data.std`."""
    path, _ = folder
    words = ("backbone=hf", f"backbone.name={path}", "backbone.pretrained=true", "embedding_size=32")
    images = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    embeddings = []
    for mean, std in ((0.5, 0.5), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), (0, 1)):
        preprocessing = preprocessing_of(16, 3, "crop", mean, std)
        backbone = build_backbone(config(*words), preprocessing.shape, preprocessing).eval()
        embeddings.append(backbone(preprocessing.normalize(images)))
    assert (embeddings[0] - embeddings[1]).abs().max() < 1e-5 > (embeddings[0] - embeddings[2]).abs().max()


def test_weights_of_another_shape_are_refused_in_one_sentence(folder):
    path, _ = folder
    with pytest.raises(ValueError, match="cannot be built") as error:
        HuggingFace(str(path), (3, 16, 16), 32, pretrained=True, config={"hidden_size": 64})
    assert str(error.value).count("backbone.name=") == 1
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be built") as error:
        HuggingFace(str(path), (3, 16, 16), 32, pretrained=True)
    assert str(error.value).count("backbone.name=") == 1


def test_gradient_checkpointing_keeps_gradients():
    torch.manual_seed(0)
    network, images = HuggingFace("vit", (1, 16, 16), 8, config=SMALL["vit"]), torch.randn(3, 1, 16, 16)
    torch.manual_seed(0)
    other = HuggingFace("vit", (1, 16, 16), 8, config=SMALL["vit"], gradient_checkpointing=True)
    for each in (network, other):
        each(images).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": None}, "backbone=hf needs a network"),
        ({"name": "nope"}, "backbone.name=nope is neither a kind of network, nor a folder"),
        ({"name": "vit", "pretrained": True}, "backbone.name=vit is a kind of network without weights"),
        ({"name": "vit", "config": {"hidden_siz": 3}}, "backbone.config.hidden_siz=3 is not an option of vit"),
        ({"name": "vit", "config": {"patch_size": 7}}, "backbone.config.patch_size=7 must divide"),
        ({"name": "vit", "pool": "last"}, "backbone.pool=last must be one of mean, first"),
        ({"name": "convnext", "pool": "first"}, "backbone.pool=first takes the class token"),
        ({"name": "convnext", "gradient_checkpointing": True}, "is not offered by convnext"),
        ({"name": "bert"}, "backbone.name=bert does not take images"),
    ],
)
def test_unsuitable_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        HuggingFace(**{"config": SMALL.get(options["name"]), "input_shape": (1, 32, 32), **options})


def test_pixels_of_a_folder_must_be_known(folder):
    path, _ = folder
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        HuggingFace(str(path), (3, 16, 16), 32, pretrained=True)
    with pytest.raises(ValueError, match="3 channels, and the data have 4"):
        (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0] * 3, "image_std": [1] * 3}))
        HuggingFace(str(path), (4, 16, 16), 32, pretrained=True)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[hf\]'"):
        HuggingFace("vit")
