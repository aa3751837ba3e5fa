"""The backbone that a config names, checked, and the precision that it computes in."""

import inspect
from contextlib import AbstractContextManager, nullcontext

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ..instantiate import instantiate

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def build_backbone(config: DictConfig, shape: tuple[int, ...]) -> nn.Module:
    """The configured backbone, checked to give embeddings of the configured size for this data.

    `input_shape` and `embedding_size` are passed to whatever takes them: a backbone of the user's may not.
    """
    if config.embedding_size < 1:
        raise ValueError(f"embedding_size={config.embedding_size}: must be at least 1")
    make = instantiate(config.backbone, _partial_=True)
    given = {"input_shape": shape, "embedding_size": config.embedding_size}
    accepted = inspect.signature(make).parameters
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in accepted.values())
    backbone: nn.Module = make(**{name: value for name, value in given.items() if name in accepted or takes_any})
    training = backbone.training
    with torch.no_grad():
        embeddings = backbone.eval()(torch.zeros(2, *shape))
    backbone.train(training)
    if not isinstance(embeddings, Tensor) or embeddings.shape != (2, config.embedding_size):
        got = list(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise ValueError(
            f"backbone={config.backbone._target_}: gives {got} for a batch of 2, not embeddings of "
            f"[2, embedding_size={config.embedding_size}]"
        )
    return backbone


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision!r}: must be one of {', '.join(PRECISIONS)}")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """To compute in. A head computes in a precision of its own, whatever this is."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
