"""`python -m experiments.pretrained weights=backbone.pth target=FOLDER`: weights of others as a checkpoint.

Takes arcface_torch's (IResNet is named there as here), PLSC's of its last versions (`._mean`, `prelu._weight`, linear
layers transposed) and of version 2.2 (`res2a_branch2a_weights`), and tells what of them matched.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.pretrained")
    from .command_line.arguments import check_or_exit

    check_or_exit("pretrained")


import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor, nn

from data.files import write_whole
from data.formats.pickles import loads
from data.options import absolute, whole
from data.preprocessing import preprocessing_of

from .checkpoints import checkpoint
from .checkpoints.storage import Folder
from .cli import command, needed
from .launching.processes import Processes
from .models.backbone import build_backbone
from .models.trained import describe_model
from .tables import console

COUNTERS = "num_batches_tracked"  # of batch norm, which no one needs
# Of PLSC 2.2, in order: what it calls things, and what they are called here. Blocks are a, b, c, ...
BATCH_NORM = {"scale": "weight", "offset": "bias", "mean": "running_mean", "variance": "running_var"}
LAYERS = {"conv1": "bn1", "fc_1": "bn2", "fc_2": "features"}
IN_BLOCK = {"_before": "bn1", "_branch2a": "bn2", "_branch2b": "bn3", "_branch1": "downsample.1"}
CONVOLUTIONS = {"2a": "conv1", "2b": "conv2", "1": "downsample.0"}


def pretrained(config: DictConfig, folder: Path) -> None:
    """Writes the folder. Raises ValueError for weights that do not fit the backbone."""
    needed(config, "weights", "target")
    target = Path(absolute(config.target))
    if target.exists():
        raise ValueError(f"target={target}: is there already; remove it or name another")
    given = read(Path(absolute(config.weights)))
    if config.embedding_size is not None:
        config.embedding_size = whole("embedding_size", config.embedding_size, 1)
    if config.embedding_size is None:
        config.embedding_size = len(given["features.weight"]) if "features.weight" in given else 512
    preprocessing = preprocessing_of(config.size, config.channels, config.fit, config.mean, config.std, config.crop)
    backbone = build_backbone(config, preprocessing.shape)
    fitting, report = match(backbone, given)
    console().print(report)
    missing = [name for name in backbone.state_dict() if name not in fitting and not name.endswith(COUNTERS)]
    if not fitting or (missing and config.strict):
        raise ValueError(
            f"weights={config.weights}: {len(missing):,} weights of {config.backbone._target_} are not in it in their "
            f"shape, {missing[0]} for one; another depth or embedding_size, or strict=false"
        )
    parts = {name.partition(".")[0] for name in backbone.state_dict()}
    beyond = [name for name in given if name not in fitting and name.partition(".")[0] in parts]
    if beyond and config.strict:
        raise ValueError(
            f"weights={config.weights}: hold {len(beyond):,} weights more than {config.backbone._target_} has, "
            f"{beyond[0]} for one; they are of another depth, or strict=false"
        )
    backbone.load_state_dict(fitting, strict=False)
    kept = {name: config[name] for name in ("backbone", "embedding_size")}
    model = describe_model(OmegaConf.create({**kept, "margin": None, "data": None}), preprocessing.shape, preprocessing)
    weights = {f"backbone.{name}": each for name, each in backbone.state_dict().items()}
    alone = Processes(0, 1, torch.device("cpu"))
    shared = {"state_dict": weights, "class_names": b"[]", "model": model}
    try:
        checkpoint.write(shared, None, {}, Folder(target / "checkpoints"), "step-00000000", alone)
    except checkpoint.CheckpointError as error:
        raise ValueError(f"target={target}: {error}") from error
    write_whole(target / "config.yaml", OmegaConf.to_yaml(config))
    console().print(f"In {target}: what checkpoint= and warm_start.checkpoint= take", soft_wrap=True, highlight=False)


def read(path: Path) -> dict[str, Tensor]:
    """Tensors by the names that they have here. Raises ValueError, also for a pickle that holds something else."""
    if path.is_dir():
        files = sorted(path.glob("*.pdparam"))
        if not files:
            raise ValueError(f"weights={path}: is a folder without .pdparam files")
        found = [loads(file.read_bytes(), str(file)) for file in files]
        for file, each in zip(files, found, strict=True):
            if not (isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str)):
                raise ValueError(f"{file}: holds no name and array")
        return named(dict(found), path, of_paddle=True)
    if not path.is_file():
        raise ValueError(f"weights={path}: there is no such file or folder")
    if path.suffix == ".pdparams":
        return named(loads(path.read_bytes(), str(path)), path, of_paddle=True)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            held: Any = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ValueError("weights=: .safetensors needs pip install -e '.[export]'") from None
    except Exception as error:
        raise ValueError(f"weights={path}: cannot be read ({str(error).splitlines()[0]})") from None
    for key in ("state_dict_backbone", "state_dict"):
        held = held.get(key, held) if isinstance(held, dict) else held
    return named(held, path, of_paddle=False)


def named(held: Any, path: Path, of_paddle: bool) -> dict[str, Tensor]:
    """
    Args:
        of_paddle: linear layers are (in, out) there.
    """
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise ValueError(f"weights={path}: holds no weights by name")
    found = {}
    for name, value in held.items():
        if isinstance(value, tuple) and value:  # paddle's, of a name of its own and the array
            value = value[-1]
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.copy())
        if isinstance(value, Tensor):
            ours = our_name(name)
            found[ours] = value.T.contiguous() if of_paddle and ours == "fc.weight" else value
    return found


def our_name(name: str) -> str:
    """Of a weight of arcface_torch or PLSC."""
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


def match(backbone: nn.Module, given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Table]:
    """What fits, and what there is to say about the rest."""
    wanted = backbone.state_dict()
    prelus = [name for name in wanted if name.endswith("prelu.weight")]
    given = dict(given)
    for number, name in enumerate(prelus):  # PLSC 2.2 counts them
        if f"p_re_lu_{number}.w_0" in given:
            given[name] = given.pop(f"p_re_lu_{number}.w_0")
    for name in prelus:
        if name in given and given[name].numel() in (1, wanted[name].numel()):  # one for all channels, or (1, C, 1, 1)
            given[name] = given[name].reshape(-1).expand(wanted[name].shape).contiguous()
    fitting = {
        name: given[name].to(each.dtype)
        for name, each in wanted.items()
        if name in given and given[name].shape == each.shape
    }
    others = {
        "in another shape": [
            f"{name} {list(given[name].shape)}, here {list(each.shape)}"
            for name, each in wanted.items()
            if name in given and name not in fitting
        ],
        "not in the weights": [name for name in wanted if name not in given and not name.endswith(COUNTERS)],
        "not of this backbone": [name for name in given if name not in wanted],
    }
    table = Table("", "weights", "")
    table.columns[1].justify = "right"
    table.add_row("matched", f"{len(fitting):,}", f"{sum(each.numel() for each in fitting.values()):,} numbers")
    for what, names in others.items():
        table.add_row(what, f"{len(names):,}", "\n".join([*names[:5], *(["..."] if len(names) > 5 else [])]))
    return fitting, table


if __name__ == "__main__":
    command("pretrained", pretrained)
