"""State as JSON, with tensors aside: what a checkpoint holds is data and never a program.

Integer keys, tuples, bytes and numpy arrays survive: they are objects with one key that begins with `!`.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def packed(state: Any, prefix: str) -> dict[str, Tensor]:
    """Return the state as tensors: those in it as they are, not copied, and all else as JSON in one.

    Raises:
        ValueError: it holds something else than numbers, text, bytes, tensors, arrays, lists, tuples and dicts.
    """
    aside: list[Tensor] = []
    text = json.dumps(_encoded(state, aside, prefix)).encode()
    tensors = {f"{prefix}/{number}": tensor for number, tensor in enumerate(aside)}
    return {prefix: torch.frombuffer(bytearray(text), dtype=torch.uint8), **tensors}


def unpacked(tensors: Mapping[str, Tensor], prefix: str) -> Any:
    """Return what `packed` got. Raises ValueError for anything that it does not write."""
    try:
        return _decoded(json.loads(tensors[prefix].numpy().tobytes()), tensors, prefix)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"its state {prefix} is not what this program writes ({error})") from error


def _encoded(value: Any, aside: list[Tensor], where: str) -> Any:
    def put(tag: str, tensor: Tensor) -> dict[str, int]:
        aside.append(tensor)
        return {tag: len(aside) - 1}

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # without what a subclass adds
    if isinstance(value, Tensor):
        return put("!tensor", value.detach())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return put("!array", torch.from_numpy(np.require(value, requirements=["C", "W"])))
    if isinstance(value, bytes | bytearray):
        return put("!bytes", torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else _NO_BYTES)
    if isinstance(value, list | tuple):
        items = [_encoded(each, aside, f"{where}[{number}]") for number, each in enumerate(value)]
        return items if isinstance(value, list) else {"!tuple": items}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("!") for key in value):
            return {key: _encoded(each, aside, f"{where}.{key}") for key, each in value.items()}
        pairs = [[_encoded(key, aside, where), _encoded(each, aside, f"{where}.{key}")] for key, each in value.items()]
        return {"!dict": pairs}
    raise ValueError(
        f"{where}: a {type(value).__name__} cannot be stored in a checkpoint, which holds numbers, text, bytes, "
        "tensors, arrays, lists, tuples and dicts of them"
    )


def _decoded(value: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    if isinstance(value, list):
        return [_decoded(each, tensors, prefix) for each in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else ""
    if not tag.startswith("!"):
        return {key: _decoded(each, tensors, prefix) for key, each in value.items()}
    held = value[tag]
    if tag == "!tuple":
        return tuple(_decoded(held, tensors, prefix))
    if tag == "!dict":
        return {_decoded(key, tensors, prefix): _decoded(each, tensors, prefix) for key, each in held}
    tensor = tensors[f"{prefix}/{held}"]
    if tag == "!tensor":
        return tensor
    if tag == "!array":
        return tensor.numpy()
    if tag == "!bytes":
        return tensor.numpy().tobytes()
    raise ValueError(f"unknown {tag}")


_NO_BYTES = torch.empty(0, dtype=torch.uint8)
