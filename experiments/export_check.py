"""Comparison of images prepared by an exported model's metadata with images prepared by this program."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import cosine_similarity

from data.preprocessing import Preprocessing

SIMILAR = 0.9999  # least cosine between the embeddings of an image prepared in both ways
SCALES = (1, 2, 3.7)  # sizes of test images, as multiples of the model's input size

Run = Callable[[Tensor], list[NDArray[np.float32]]]  # an exported model: images to embeddings, and scores if any


def check_preprocessing(run: Run, preprocessing: Preprocessing, metadata: Mapping[str, str]) -> None:
    """Raise ValueError if images prepared by the metadata have other embeddings than images prepared here."""
    least = 1.0
    for encoded in test_images(preprocessing.width, preprocessing.height):
        pixels = np.empty((1, preprocessing.height, preprocessing.width, preprocessing.channels), np.uint8)
        preprocessing.decoder.into(pixels[0], encoded)
        ours, theirs = run(preprocessing.normalize(torch.from_numpy(pixels))), run(documented(encoded, metadata))
        least = min(least, float(cosine_similarity(torch.from_numpy(ours[0]), torch.from_numpy(theirs[0]))))
    print(f"Images of other sizes, prepared by the metadata: cosine {least:.6f} or more", flush=True)
    if not least >= SIMILAR:
        raise ValueError(
            f"the metadata does not describe how images become the input: embeddings have a cosine of {least:.6f}, and "
            f"it must be at least {SIMILAR}; nothing was written"
        )


def documented(encoded: bytes, metadata: Mapping[str, str]) -> Tensor:
    """Prepare an image as in docs/evaluation.md, with Pillow and the metadata alone."""
    values: dict[str, Any] = {key: text if text.isalpha() else json.loads(text) for key, text in metadata.items()}
    size = values["width"], values["height"]
    image = Image.open(io.BytesIO(encoded)).convert("RGB" if values["channels"] == 3 else "L")
    left, top = (side * (1 - values.get("crop", 1)) / 2 for side in image.size)
    image = image.crop((left, top, image.width - left, image.height - top))
    bilinear = Image.Resampling.BILINEAR
    image = ImageOps.fit(image, size, bilinear) if values["fit"] == "crop" else image.resize(size, bilinear)
    pixels = np.asarray(image).reshape(*size[::-1], -1) / 255
    return torch.from_numpy(((pixels - values["mean"]) / values["std"]).transpose(2, 0, 1)[None].astype(np.float32))


def test_images(width: int, height: int) -> Iterator[bytes]:
    """Yield encoded images of several sizes, as JPEG and PNG, with details as small as the model's pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for scale in SCALES:
        size = round(scale * width), round(scale * height)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        for kind in ("JPEG", "PNG"):
            picture.save(file := io.BytesIO(), kind)
            yield file.getvalue()
