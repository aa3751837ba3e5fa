"""`python -m experiments.pretrained weights=backbone.pth target=FOLDER`: import weights of other projects.

The result is a checkpoint. The command reads weights of arcface_torch and PLSC, and reports which of them match.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.pretrained")
    from .command_line.arguments import check_or_exit

    check_or_exit("pretrained")


from collections.abc import Collection
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from data.files import write_whole
from data.options import absolute, whole
from data.preprocessing import Preprocessing, preprocessing_of

from .checkpoints.attempts import CheckpointError
from .checkpoints.checkpoint import write
from .checkpoints.storage import Folder, name_of
from .cli import command, needed
from .launching.processes import Processes
from .models.backbone import build_backbone
from .models.foreign_weights import COUNTERS, match_weights, read_weights
from .models.trained import describe_model
from .tables import console


def pretrained(config: DictConfig, folder: Path) -> None:
    """Write the checkpoint.

    Raises:
        ValueError: the weights cannot be read or do not fit the backbone.
    """
    needed(config, "weights", "target")
    target = Path(absolute(config.target))
    if target.exists():
        raise ValueError(f"target={target} exists already; remove it or give another name")
    weights = read_weights(Path(absolute(config.weights)))
    if config.embedding_size is not None:
        config.embedding_size = whole("embedding_size", config.embedding_size, 1)
    if config.embedding_size is None:
        config.embedding_size = len(weights["features.weight"]) if "features.weight" in weights else 512
    preprocessing = preprocessing_of(config.size, config.channels, config.fit, config.mean, config.std, config.crop)
    backbone = build_backbone(config, preprocessing.shape, preprocessing)
    fitting, report = match_weights(backbone, weights)
    console().print(report)
    check_complete(config, backbone, fitting, weights)
    backbone.load_state_dict(fitting, strict=False)
    write_checkpoint(config, backbone, preprocessing, target)
    console().print(
        f"In {target}: a checkpoint for checkpoint= and warm_start.checkpoint=", soft_wrap=True, highlight=False
    )


def check_complete(config: DictConfig, backbone: nn.Module, fitting: Collection[str], weights: Collection[str]) -> None:
    """Raise ValueError if no weights fit, or with `strict` if weights of the backbone are missing or left over."""
    missing = [name for name in backbone.state_dict() if name not in fitting and not name.endswith(COUNTERS)]
    if not fitting or (missing and config.strict):
        raise ValueError(
            f"weights={config.weights} lacks {len(missing):,} weights of {config.backbone._target_} in their shape, "
            f"such as {missing[0]}; set another depth or embedding_size, or strict=false"
        )
    parts = {name.partition(".")[0] for name in backbone.state_dict()}
    left_over = [name for name in weights if name not in fitting and name.partition(".")[0] in parts]
    if left_over and config.strict:
        raise ValueError(
            f"weights={config.weights} has {len(left_over):,} weights that {config.backbone._target_} lacks, such as "
            f"{left_over[0]}; set another depth, or strict=false"
        )


def write_checkpoint(config: DictConfig, backbone: nn.Module, preprocessing: Preprocessing, target: Path) -> None:
    """Write a checkpoint that has a model and no training, and the config of this command."""
    kept = {name: config[name] for name in ("backbone", "embedding_size")}
    model = describe_model(OmegaConf.create({**kept, "margin": None, "data": None}), preprocessing.shape, preprocessing)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    shared = {"state_dict": state, "class_names": b"[]", "model": model}
    try:
        write(shared, None, {}, Folder(target / "checkpoints"), name_of(0), Processes(0, 1, torch.device("cpu")))
    except CheckpointError as error:
        raise ValueError(f"target={target} cannot be written: {error}") from error
    write_whole(target / "config.yaml", OmegaConf.to_yaml(config))


if __name__ == "__main__":
    command("pretrained", pretrained)
