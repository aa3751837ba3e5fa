"""The configured backbone, and the precision that it computes in."""

import inspect
from contextlib import AbstractContextManager, nullcontext

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from data.preprocessing import Preprocessing

from ..instantiate import instantiate

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def build_backbone(config: DictConfig, shape: tuple[int, ...], preprocessing: Preprocessing | None = None) -> nn.Module:
    """Build the configured backbone, and check that it returns embeddings of the configured size for this data.

    `input_shape`, `embedding_size`, `pixel_mean` and `pixel_std` are passed only if the backbone takes them: a user's
    own one may not.

    Args:
        config: config of the command.
        shape: shape of the data, (C, H, W) or (D,).
        preprocessing: preprocessing of the data's images, if they have one.

    Raises:
        ValueError: an option does not fit, or the embeddings have another shape.
    """
    if config.embedding_size < 1:
        raise ValueError(f"embedding_size={config.embedding_size} must be at least 1; 512 is common")
    make = instantiate(config.backbone, _partial_=True, _convert_="all")
    options: dict[str, object] = {"input_shape": shape, "embedding_size": config.embedding_size}
    accepted = inspect.signature(make).parameters
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in accepted.values())
    options = {name: value for name, value in options.items() if name in accepted or takes_any}
    if preprocessing is not None:
        pixels = {"pixel_mean": preprocessing.mean, "pixel_std": preprocessing.std}
        options |= {name: value for name, value in pixels.items() if name in accepted}
    backbone: nn.Module = make(**options)
    training = backbone.training
    with torch.no_grad():
        try:
            embeddings = backbone.eval()(torch.zeros(2, *shape))
        except (RuntimeError, TypeError, ValueError) as error:  # of a user's own one, whatever it raises
            raise ValueError(
                f"backbone={config.backbone._target_} does not take a batch of shape {[2, *shape]} ({error}); "
                "change its options, or data.size and data.channels"
            ) from error
    backbone.train(training)
    if not isinstance(embeddings, Tensor) or embeddings.shape != (2, config.embedding_size):
        got = list(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise ValueError(
            f"backbone={config.backbone._target_} returns {got} for a batch of 2; it must return embeddings of "
            f"[2, embedding_size={config.embedding_size}]"
        )
    return backbone


def check_precision(precision: str) -> None:
    """Raise ValueError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision} must be one of {', '.join(PRECISIONS)}")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a backbone computes. A head has its own precision."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
