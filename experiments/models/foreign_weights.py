"""Weights of arcface_torch and PLSC, by the names that a backbone of this project has.

arcface_torch names the weights of an IResNet and of a vision transformer as this project does. Recent PLSC uses other
names (`._mean`, `prelu._weight`) and transposes linear layers; PLSC 2.2 has its own names (`res2a_branch2a_weights`).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from data.formats.pickles import loads

COUNTERS = "num_batches_tracked"  # counters of batch norm, which need no value
# Names in PLSC 2.2 and here. Blocks are named a, b, c, ...
BATCH_NORM = {"scale": "weight", "offset": "bias", "mean": "running_mean", "variance": "running_var"}
LAYERS = {"conv1": "bn1", "fc_1": "bn2", "fc_2": "features"}
IN_BLOCK = {"_before": "bn1", "_branch2a": "bn2", "_branch2b": "bn3", "_branch1": "downsample.1"}
CONVOLUTIONS = {"2a": "conv1", "2b": "conv2", "1": "downsample.0"}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file or folder by the names of this project.

    Raises:
        ValueError: it cannot be read, or a pickle holds anything but weights.
    """
    if path.is_dir():
        files = sorted(path.glob("*.pdparam"))
        if not files:
            raise ValueError(f"weights={path} is a folder without .pdparam files; give a file or a folder of PLSC")
        pairs = [loads(file.read_bytes(), str(file)) for file in files]
        for file, pair in zip(files, pairs, strict=True):
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise ValueError(f"{file} does not hold a name and an array")
        return _renamed(dict(pairs), path, from_paddle=True)
    if not path.is_file():
        raise ValueError(f"weights={path} does not exist; give a file or folder of weights")
    if path.suffix == ".pdparams":
        return _renamed(loads(path.read_bytes(), str(path)), path, from_paddle=True)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ValueError(f"weights={path} needs safetensors; pip install -e '.[export]'") from None
    except Exception as error:
        raise ValueError(f"weights={path} cannot be read ({str(error).splitlines()[0]})") from None
    for key in ("state_dict_backbone", "state_dict"):
        content = content.get(key, content) if isinstance(content, dict) else content
    return _renamed(content, path, from_paddle=False)


def _renamed(content: Any, path: Path, from_paddle: bool) -> dict[str, Tensor]:
    """Return the tensors by the names of this project; linear layers of paddle are (in, out), and are transposed."""
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"weights={path} holds no weights by name")
    weights = {}
    for name, value in content.items():
        if isinstance(value, tuple) and value:  # paddle's pair of a name and an array
            value = value[-1]
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.copy())
        if isinstance(value, Tensor):
            own_name = translate_name(name)
            weights[own_name] = value.T.contiguous() if from_paddle and own_name == "fc.weight" else value
    return weights


def translate_name(name: str) -> str:
    """Return the name here of a weight of arcface_torch or PLSC."""
    name = re.sub(r"^(module\.|backbone\.)+", "", name)
    name = re.sub(r"\._mean$", ".running_mean", name)
    name = re.sub(r"\._variance$", ".running_var", name)
    name = re.sub(r"\._weight$", ".weight", name)
    if match := re.fullmatch(r"bn_?(conv1|fc_1|fc_2)_(scale|offset|mean|variance)", name):
        return f"{LAYERS[match[1]]}.{BATCH_NORM[match[2]]}"
    if match := re.fullmatch(r"bn_?(\d)(.)(_before|_branch2a|_branch2b|_branch1)_(scale|offset|mean|variance)", name):
        return f"{_block(match[1], match[2])}.{IN_BLOCK[match[3]]}.{BATCH_NORM[match[4]]}"
    if match := re.fullmatch(r"res(\d)(.)_branch(2a|2b|1)_weights", name):
        return f"{_block(match[1], match[2])}.{CONVOLUTIONS[match[3]]}.weight"
    return {"conv1_weights": "conv1.weight", "fc.w_0": "fc.weight", "fc.b_0": "fc.bias"}.get(name, name)


def _block(stage: str, letter: str) -> str:
    return f"layer{int(stage) - 1}.{ord(letter) - ord('a')}"


def match_weights(backbone: nn.Module, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Table]:
    """Return the weights that fit a backbone, and a table of the others."""
    wanted = backbone.state_dict()
    prelus = [name for name in wanted if name.endswith("prelu.weight")]
    weights = dict(weights)
    for number, name in enumerate(prelus):  # PLSC 2.2 numbers them
        if f"p_re_lu_{number}.w_0" in weights:
            weights[name] = weights.pop(f"p_re_lu_{number}.w_0")
    for name in prelus:  # one number for all channels, or (1, C, 1, 1)
        if name in weights and weights[name].numel() in (1, wanted[name].numel()):
            weights[name] = weights[name].reshape(-1).expand(wanted[name].shape).contiguous()
    fitting = {
        name: weights[name].to(tensor.dtype)
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape == tensor.shape
    }
    others = {
        "in another shape": [
            f"{name} {list(weights[name].shape)}, here {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in weights and name not in fitting
        ],
        "not in the weights": [name for name in wanted if name not in weights and not name.endswith(COUNTERS)],
        "not in this backbone": [name for name in weights if name not in wanted],
    }
    table = Table("", "weights", "")
    table.columns[1].justify = "right"
    table.add_row("matched", f"{len(fitting):,}", f"{sum(tensor.numel() for tensor in fitting.values()):,} numbers")
    for label, names in others.items():
        table.add_row(label, f"{len(names):,}", "\n".join([*names[:5], *(["..."] if len(names) > 5 else [])]))
    return fitting, table
