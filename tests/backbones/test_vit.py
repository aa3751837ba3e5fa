"""The vision transformer, compared with a plain float64 computation; patches, masks and skipped blocks."""

import pytest
import torch

from backbones.vit import SIZES, ViT


@pytest.fixture
def small(monkeypatch):
    """A transformer of two blocks and 16 numbers per token."""
    monkeypatch.setitem(SIZES, "tiny", (16, 2))
    torch.manual_seed(0)
    return lambda **options: ViT((3, 8, 12), 5, patch=4, **options)


def layer_norm(x, layer):
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def attention(x, layer):
    """Return attention with eight heads, one head and one image at a time."""
    out = torch.empty_like(x)
    d = x.shape[-1] // 8
    queries, keys, values = (x @ layer.qkv.weight.T).chunk(3, -1)
    for n in range(len(x)):
        for h in range(0, x.shape[-1], d):
            q, k, v = (part[n, :, h : h + d] for part in (queries, keys, values))
            out[n, :, h : h + d] = torch.softmax(q @ k.T / d**0.5, -1) @ v
    return out @ layer.proj.weight.T + layer.proj.bias


def naive(network, images):
    """Return the embeddings in eval mode, patch by patch."""
    weight, bias = network.patch_embed.proj.weight.flatten(1), network.patch_embed.proj.bias
    patches = [images[:, :, a : a + 4, b : b + 4].flatten(1) for a in (0, 4) for b in (0, 4, 8)]
    x = torch.stack([patch @ weight.T + bias for patch in patches], 1) + network.pos_embed
    for block in network.blocks:
        x = x + attention(layer_norm(x, block.norm1), block.attn)
        hidden = (layer_norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias).clamp(0, 6)
        x = x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    x = layer_norm(x, network.norm).flatten(1)
    for linear, norm in (network.feature[:2], network.feature[2:]):
        x = x @ linear.weight.T
        x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return x


def test_embeddings_equal_a_plain_computation(small):
    network, images = small(), torch.randn(3, 3, 8, 12)
    network(torch.randn(64, 3, 8, 12))  # batch statistics other than 0 and 1
    network.eval()
    exact = naive(network.double(), images.double())
    network.float()
    naive_error = (naive(network, images) - exact).abs().max()
    assert (network(images) - exact).abs().max() <= 2 * naive_error + 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("size", "patch", "millions"), [("tiny", 9, 19.14), ("small", 9, 76.02), ("base", 9, 113.83), ("large", 9, 255.68)]
)
def test_sizes_equal_the_published_ones(size, patch, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in ViT((3, 112, 112), 512, size, patch).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_masked_patches_change_nothing(small):
    network = small(mask=0.5, drop_path=0.0)
    kept = network.num_kept
    seen = []
    network.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    images = torch.randn(2, 3, 8, 12)
    network(images)
    tokens = network.patch_embed(images) + network.pos_embed
    assert (network.num_patches, kept) == (6, 3)
    for n in range(2):  # each of the tokens in the blocks is another one of this image
        matches = (seen[0][n][:, None] == tokens[n][None]).all(-1)
        assert matches.sum(1).tolist() == [1] * kept and matches.any(0).sum() == kept
    network.eval()(images)
    assert seen[1].shape[1] == 6


def test_a_mask_token_stands_where_its_patch_was(small):
    network = small(mask=0.5, drop_path=0.0)
    network.blocks = torch.nn.ModuleList()
    network.norm = torch.nn.Identity()
    network.mask_token.data.fill_(100.0)
    flat = []
    network.feature[0].register_forward_hook(lambda module, inputs, output: flat.append(inputs[0]))
    images = torch.randn(2, 3, 8, 12)
    network(images)
    tokens = network.patch_embed(images) + network.pos_embed
    out = flat[0].view(2, 6, 16)
    masked = (out == 100).all(-1)
    assert masked.sum(1).tolist() == [3, 3]
    assert torch.equal(out[~masked], tokens[~masked])


def test_skipped_blocks_keep_the_mean(small):
    network = small(drop_path=0.75)
    block, ones = network.blocks[1], torch.ones(4000, 1, 1)
    dropped = block._dropped(ones)
    assert set(dropped.flatten().tolist()) == {0.0, 4.0}
    assert dropped.mean() == pytest.approx(1, abs=0.12)
    assert torch.equal(network.blocks[0]._dropped(ones), ones) and torch.equal(block.eval()._dropped(ones), ones)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "giant"}, "backbone.size=giant must be one of micro, tiny"),
        ({"mask": 1.0}, r"backbone.mask=1.0 must be in \[0, 1\)"),
        ({"drop_path": -0.1}, r"backbone.drop_path=-0.1 must be in \[0, 1\)"),
        ({"patch": 9}, "backbone.patch=9 must divide the images, 32x32 pixels, .*: 2, 4, 8, 16, 32"),
        ({"patch": 64}, "backbone.patch=64 must divide"),
        ({"patch": 0}, "backbone.patch=0 must divide"),
    ],
)
def test_unsuitable_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ViT((1, 32, 32), 8, **options)
