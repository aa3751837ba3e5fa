"""Construction of the objects that a config names, with errors that name their options."""

import copy
import inspect
from functools import partial
from typing import Any, get_type_hints

import hydra.utils
from hydra._internal.utils import _locate
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from .option_types import checked


def instantiate(config: DictConfig, *, _convert_: str = "none", **arguments: Any) -> Any:
    """Call `config._target_` with the config's options, or return a partial call if `config._partial_` is true.

    Scalar options are checked against the types that the target declares, nested targets included.

    Args:
        arguments: values known at run time only. OmegaConf does not get them: it would turn dataclasses into configs.

    Raises:
        ValueError: the target raised it, does not take an option, or declares another type for it.
    """
    config = with_checked_types(config)
    is_partial = arguments.pop("_partial_", config.get("_partial_", False))
    try:
        call = hydra.utils.instantiate(config, _partial_=True, _convert_=_convert_)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise ValueError(str(error)) from error
    call = partial(call, **arguments)
    if is_partial:
        _check_keywords(call, config)
        return call
    try:
        return call()
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{config._target_}: {error}") from error


def with_checked_types(config: DictConfig) -> DictConfig:
    """Return a copy of a config whose scalar options have the types that its targets declare.

    Raises:
        ValueError: an option has another type.
    """
    config = copy.deepcopy(config)
    _check_types(config)
    return config


def declared_types(target: Any) -> dict[str, Any]:
    """Return the declared types of the options of a class or function, of its dataclass `Options` if it has one."""
    source = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(getattr(target, "Options", None) or source, include_extras=True)
    except (NameError, TypeError):  # written in C, or with names that only type checkers import
        return {}


def _check_types(config: DictConfig) -> None:
    """Check the scalar options of a config and of the targets in it, and replace whole numbers written as 1e3."""
    declared = {}
    if "_target_" in config:
        try:
            declared = declared_types(_locate(config._target_))
        except ImportError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{config._get_full_key('_target_')}={config._target_} cannot be imported ({reason}); its file must be "
                "in the folder where the command starts, in an installed package, or on PYTHONPATH"
            ) from None
    for name, value in config.items():
        if isinstance(value, DictConfig):
            _check_types(value)
            if name in declared and "_target_" not in value:
                checked(config._get_full_key(name), OmegaConf.to_container(value), declared[str(name)])
        elif name in declared and (value is not None or not config.get("_partial_")):  # null is filled in by the call
            config[name] = checked(config._get_full_key(name), value, declared[str(name)])


def _check_keywords(call: partial[Any], config: DictConfig) -> None:
    """Raise ValueError for options that the target does not take, before a call raises TypeError for them."""
    target: Any = call.func
    keywords = list(call.keywords)
    while isinstance(target, partial):  # the partial call of Hydra
        target, keywords = target.func, [*keywords, *target.keywords]
    known = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in keywords:
        if name not in known:
            raise ValueError(f"{config._target_} has no option {name}; it takes {', '.join(known)}")
