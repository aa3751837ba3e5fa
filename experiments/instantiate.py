"""Builds what a config names, with errors in the words of what was built."""

import inspect
from functools import partial
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig


def instantiate(config: DictConfig, **given: Any) -> Any:
    """`config._target_` called with the config's options and what is known only at run time.

    Raises:
        ValueError: what the target itself raised, without Hydra's wrapping, or options it does not take.
    """
    try:
        made = hydra.utils.instantiate(config, **given)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        if isinstance(cause, TypeError):
            raise ValueError(f"{config._target_}: {cause}") from error
        raise ValueError(str(error)) from error
    if isinstance(made, partial):
        _check_keywords(made, config)
    return made


def _check_keywords(made: partial[Any], config: DictConfig) -> None:
    """Raise ValueError for options that the target does not take, which would else be met when it is called."""
    known = inspect.signature(made.func).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in made.keywords:
        if name not in known:
            raise ValueError(f"{config._target_}: has no option {name}; it takes {', '.join(known)}")
