"""Backbones: images (or vectors) to embeddings. One architecture a file, chosen by config.

A backbone is any module built as `Backbone(input_shape=(C, H, W) or (D,), embedding_size=..., **options)`
whose forward maps (N, *input_shape) float to (N, embedding_size) float.
"""

from collections.abc import Sequence


def image_shape(name: str, input_shape: Sequence[int], multiple: int = 1) -> tuple[int, int, int]:
    """(channels, height, width), or a sentence saying what this backbone takes."""
    if len(input_shape) != 3:
        raise ValueError(
            f"backbone={name} takes images, the data gives vectors of {list(input_shape)}: use backbone=mlp"
        )
    channels, height, width = input_shape
    if height % multiple or width % multiple:
        raise ValueError(
            f"backbone={name} takes sides that are multiples of {multiple}, the data gives {height}x{width}"
        )
    return channels, height, width
