"""Vision transformer (Dosovitskiy et al., ICLR 2021), as arcface_torch trains it on faces.

It has no class token: the tokens of all patches, flattened, pass through two linear layers. Submodules have the names
of the published checkpoints, which use patch 9 on 112x112 pixels.

Legend: N images, T patches, D numbers per token.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import check_patch, image_shape
from .recompute import run_blocks

SIZES = {  # numbers per token, blocks
    "micro": (128, 4),
    "tiny": (256, 12),
    "small": (512, 12),
    "base": (512, 24),
    "large": (768, 24),
    "huge": (1024, 48),
}
HEADS = 8
BN_EPS = 2e-5


class ViT(nn.Module):
    """Blocks of attention over the patches of an image, then two linear layers with batch norm.

    Args:
        input_shape: (C, H, W). Patches cover H and W, up to a twentieth of a side: 112 pixels hold 12 patches of 9,
            and the last 4 pixels are not seen.
        embedding_size: dimension of the embeddings.
        size: `micro` (128 numbers per token, 4 blocks), for small images on a CPU; or, as published, `tiny` (256, 12),
            `small` (512, 12), `base` (512, 24), `large` (768, 24) or `huge` (1,024, 48).
        patch: side of a patch in pixels. The cost of a step grows with the square of the number of patches.
        drop_path: probability that a sample skips the last block in training, growing from 0 at the first one
            (stochastic depth; Huang et al., ECCV 2016).
        mask: share of the patches that are left out of the blocks in training, drawn for each image; a learned token
            stands for them afterwards.
        gradient_checkpointing: compute the blocks again in the backward pass, which saves memory and takes time.

    Raises:
        ValueError: an option is out of range, or patches do not cover the images.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 112, 112),
        embedding_size: int = 512,
        size: str = "tiny",
        patch: int = 8,
        drop_path: float = 0.05,
        mask: float = 0.0,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        channels, height, width = image_shape("vit", input_shape)
        check_options(size, patch, drop_path, mask, (height, width))
        dim, depth = SIZES[size]
        self.num_patches = (height // patch) * (width // patch)
        self.num_kept = max(1, int(self.num_patches * (1 - mask)))
        self.gradient_checkpointing = gradient_checkpointing
        self.patch_embed = PatchEmbed(channels, dim, patch)
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_patches, dim))
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim), requires_grad=mask > 0)
        self.blocks = nn.ModuleList(Block(dim, drop_path * i / (depth - 1)) for i in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(dim * self.num_patches, dim, bias=False),
            nn.BatchNorm1d(dim, eps=BN_EPS),
            nn.Linear(dim, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=BN_EPS),
        )
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings: (N, C, H, W) -> (N, embedding_size)."""
        x_NTD = self.patch_embed(images) + self.pos_embed
        masked = self.training and self.num_kept < self.num_patches
        if masked:
            order_NT = torch.rand(x_NTD.shape[:2], device=x_NTD.device).argsort(1)
            x_NTD = pick(x_NTD, order_NT[:, : self.num_kept])
        x_NTD = run_blocks(self.blocks, x_NTD, self.gradient_checkpointing)
        with torch.autocast(x_NTD.device.type, enabled=False):  # float32, as published, for sums of many products
            x_NTD = self.norm(x_NTD.float())
            if masked:
                missing = self.mask_token.expand(len(x_NTD), self.num_patches - self.num_kept, -1)
                x_NTD = pick(torch.cat([x_NTD, missing], 1), order_NT.argsort(1))
            embeddings: Tensor = self.feature(x_NTD.flatten(1))
        return embeddings


def check_options(size: str, patch: int, drop_path: float, mask: float, sides: tuple[int, int]) -> None:
    """Raise ValueError for options that fit neither each other nor the images."""
    if size not in SIZES:
        raise ValueError(f"backbone.size={size} must be one of {', '.join(SIZES)} for vit")
    for name, share in (("drop_path", drop_path), ("mask", mask)):
        if not 0 <= share < 1:
            raise ValueError(f"backbone.{name}={share} must be in [0, 1); 0 turns it off")
    check_patch(patch, "backbone.patch", sides)


def pick(x_NTD: Tensor, order_NK: Tensor) -> Tensor:
    """Return the tokens of each image in the given order: (N, T, D), (N, K) -> (N, K, D)."""
    return x_NTD.gather(1, order_NK[:, :, None].expand(-1, -1, x_NTD.shape[2]))


class PatchEmbed(nn.Module):
    """Linear map of each patch to a token: (N, C, H, W) -> (N, T, D)."""

    def __init__(self, channels: int, dim: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class Block(nn.Module):
    """Attention and a two-layer network, each with layer norm before it and a residual connection around it.

    Args:
        dim: numbers per token.
        drop_path: probability that a sample skips each of the two in training.
    """

    def __init__(self, dim: int, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim, 4 * dim))
        self.mlp.add_module("act", nn.ReLU6())
        self.mlp.add_module("fc2", nn.Linear(4 * dim, dim))

    def forward(self, x_NTD: Tensor) -> Tensor:
        x_NTD = x_NTD + self._dropped(self.attn(self.norm1(x_NTD)))
        return x_NTD + self._dropped(self.mlp(self.norm2(x_NTD)))

    def _dropped(self, branch_NTD: Tensor) -> Tensor:
        """Return the branch with the samples that skip it at zero, and the others scaled to keep the mean."""
        if not self.training or not self.drop_path:
            return branch_NTD
        kept = torch.empty(len(branch_NTD), 1, 1, dtype=branch_NTD.dtype, device=branch_NTD.device)
        return branch_NTD * kept.bernoulli_(1 - self.drop_path).div_(1 - self.drop_path)


class Attention(nn.Module):
    """Self-attention with eight heads, without bias in the queries, keys and values."""

    def __init__(self, dim: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_NTD: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x_NTD).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out
