"""Images prepared as the metadata of an exported model says, and held against those that the model was trained on."""

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

SIMILAR = 0.9999  # least cosine between embeddings of an image prepared here and as the metadata says
SCALES = (1, 2, 3.7)  # of test pictures, in sizes of the model's input

Run = Callable[[Tensor], list[NDArray[np.float32]]]  # an exported model: images to embeddings, and perhaps scores


def check_preprocessing(run: Run, preprocessing: Preprocessing, about: Mapping[str, str]) -> None:
    """Raise ValueError where images that are prepared as the metadata says give other embeddings than here."""
    least = 1.0
    for encoded in pictures(preprocessing.width, preprocessing.height):
        pixels = np.empty((1, preprocessing.height, preprocessing.width, preprocessing.channels), np.uint8)
        preprocessing.decoder.into(pixels[0], encoded)
        ours, theirs = run(preprocessing.normalize(torch.from_numpy(pixels))), run(documented(encoded, about))
        least = min(least, float(cosine_similarity(torch.from_numpy(ours[0]), torch.from_numpy(theirs[0]))))
    print(f"Images of other sizes, prepared as the metadata says: cosine {least:.6f} or more", flush=True)
    if not least >= SIMILAR:
        raise ValueError(
            f"the metadata does not say how images become the input: their embeddings have a cosine of {least:.6f}, "
            f"and {SIMILAR} is needed; nothing was written"
        )


def documented(encoded: bytes, about: Mapping[str, str]) -> Tensor:
    """Prepare an image as docs/evaluation.md says, with Pillow and the metadata alone."""
    told: dict[str, Any] = {name: value if value.isalpha() else json.loads(value) for name, value in about.items()}
    size = told["width"], told["height"]
    image = Image.open(io.BytesIO(encoded)).convert("RGB" if told["channels"] == 3 else "L")
    left, top = (side * (1 - told.get("crop", 1)) / 2 for side in image.size)
    image = image.crop((left, top, image.width - left, image.height - top))
    bilinear = Image.Resampling.BILINEAR
    image = ImageOps.fit(image, size, bilinear) if told["fit"] == "crop" else image.resize(size, bilinear)
    pixels = np.asarray(image).reshape(*size[::-1], -1) / 255
    return torch.from_numpy(((pixels - told["mean"]) / told["std"]).transpose(2, 0, 1)[None].astype(np.float32))


def pictures(width: int, height: int) -> Iterator[bytes]:
    """Make encoded pictures of several sizes, as JPEG and PNG, with detail down to the model's pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for scale in SCALES:
        size = round(scale * width), round(scale * height)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        for kind in ("JPEG", "PNG"):
            picture.save(file := io.BytesIO(), kind)
            yield file.getvalue()
