"""Builds what a config names, with errors in the words of what was built."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig


def build(config: DictConfig, **given: Any) -> Any:
    """`config._target_` called with the config's options and what is known only at run time.

    Raises:
        ValueError: what the target itself raised, without Hydra's wrapping, or options it does not take.
    """
    try:
        return instantiate(config, **given)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        if isinstance(cause, TypeError):
            raise ValueError(f"{config._target_}: {cause}") from error
        raise ValueError(str(error)) from error
