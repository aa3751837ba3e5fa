"""State as JSON with separate tensors: a checkpoint holds data and never a program.

Integer keys, tuples, bytes and numpy arrays are preserved, as objects with one key that begins with `!`.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(state: Any, prefix: str) -> dict[str, Tensor]:
    """Return the state as tensors: its own tensors, not copied, and one of JSON that holds everything else.

    Raises:
        ValueError: the state holds anything but numbers, text, bytes, tensors, arrays, lists, tuples and dicts.
    """
    aside: list[Tensor] = []
    text = json.dumps(_encode(state, aside, prefix)).encode()
    tensors = {f"{prefix}/{number}": tensor for number, tensor in enumerate(aside)}
    return {prefix: torch.frombuffer(bytearray(text), dtype=torch.uint8), **tensors}


def unpack(tensors: Mapping[str, Tensor], prefix: str) -> Any:
    """Return the state that `pack` was given. Raise ValueError for anything that `pack` does not write."""
    try:
        return _decode(json.loads(tensors[prefix].numpy().tobytes()), tensors, prefix)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"its state {prefix} is not what this program writes ({error})") from error


def _encode(value: Any, aside: list[Tensor], where: str) -> Any:
    def put(tag: str, tensor: Tensor) -> dict[str, int]:
        aside.append(tensor)
        return {tag: len(aside) - 1}

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # without the additions of a subclass
    if isinstance(value, Tensor):
        return put("!tensor", value.detach())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return put("!array", torch.from_numpy(np.require(value, requirements=["C", "W"])))
    if isinstance(value, bytes | bytearray):
        return put("!bytes", torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else _NO_BYTES)
    if isinstance(value, list | tuple):
        items = [_encode(item, aside, f"{where}[{number}]") for number, item in enumerate(value)]
        return items if isinstance(value, list) else {"!tuple": items}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("!") for key in value):
            return {key: _encode(item, aside, f"{where}.{key}") for key, item in value.items()}
        pairs = [[_encode(key, aside, where), _encode(item, aside, f"{where}.{key}")] for key, item in value.items()]
        return {"!dict": pairs}
    raise ValueError(
        f"{where} has type {type(value).__name__}, which a checkpoint cannot store; use numbers, text, bytes, tensors, "
        "arrays, or lists, tuples and dicts of them"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors, prefix) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else ""
    if not tag.startswith("!"):
        return {key: _decode(item, tensors, prefix) for key, item in value.items()}
    held = value[tag]
    if tag == "!tuple":
        return tuple(_decode(held, tensors, prefix))
    if tag == "!dict":
        return {_decode(key, tensors, prefix): _decode(item, tensors, prefix) for key, item in held}
    tensor = tensors[f"{prefix}/{held}"]
    if tag == "!tensor":
        return tensor
    if tag == "!array":
        return tensor.numpy()
    if tag == "!bytes":
        return tensor.numpy().tobytes()
    raise ValueError(f"{tag} is unknown")


_NO_BYTES = torch.empty(0, dtype=torch.uint8)
