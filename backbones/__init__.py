"""Backbones: networks that map images or vectors to embeddings, one architecture per file.

A backbone is a module with the constructor `Backbone(input_shape=(C, H, W) or (D,), embedding_size=..., **options)`.
Its forward maps floats (N, *input_shape) to floats (N, embedding_size). If the constructor also takes `pixel_mean` and
`pixel_std`, it gets the normalization of the data's images: they are (pixel - pixel_mean) / pixel_std, of pixels in
[0, 1].
"""

from collections.abc import Sequence

UNSEEN = 0.05  # largest share of a side that the patches of a transformer may leave out


def image_shape(name: str, input_shape: Sequence[int], multiple: int = 1) -> tuple[int, int, int]:
    """Return (channels, height, width). Raises ValueError for a shape that the backbone cannot process.

    Args:
        name: name of the backbone, for the error.
        input_shape: shape of the data.
        multiple: divisor that height and width must have.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"backbone={name} needs images, but the data has vectors of shape {list(input_shape)}; use backbone=mlp"
        )
    channels, height, width = input_shape
    if height % multiple or width % multiple:
        raise ValueError(
            f"backbone={name} needs sides that are multiples of {multiple}, but the data has {height}x{width}"
        )
    return channels, height, width


def check_patch(patch: int, option: str, sides: tuple[int, int]) -> None:
    """Raise ValueError unless patches cover an image, with at most a twentieth of a side left over.

    Args:
        patch: side of a patch in pixels.
        option: name of its option, for the error.
        sides: height and width of the images.
    """
    if patch < 1 or patch > min(sides) or any(side % patch > UNSEEN * side for side in sides):
        divisors = [side for side in range(2, min(sides) + 1) if not any(whole % side for whole in sides)]
        raise ValueError(
            f"{option}={patch} must divide the images, {sides[0]}x{sides[1]} pixels, with at most a twentieth of a "
            f"side left over; patches that divide them: {', '.join(map(str, divisors)) or 'only 1'}"
        )
