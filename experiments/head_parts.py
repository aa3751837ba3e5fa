"""The objects that a head gets from other groups of the config, its margin and its objective; and what it refuses.

The heads are imported where they are needed: they import torch, which takes longer than the checks of a command line.
"""

from __future__ import annotations

import inspect
from typing import Any

from hydra._internal.utils import _locate
from omegaconf import DictConfig, OmegaConf

from .command_line.config_files import CONF, chosen_in, has, load
from .head_name import head_name
from .instantiate import instantiate, with_checked_types


def head_parts(config: DictConfig) -> dict[str, Any]:
    """Return the margin and the objective as keyword arguments of the head, each if the head has one.

    Raises:
        ValueError: they cannot be combined, or the head lacks what they need.
    """
    from heads import CrossEntropy
    from heads.core.options import option_fields
    from heads.margins import checked_margin

    kind = _locate(config.head._target_)
    by = config.weights.by if "weights" in config else None
    if by is not None and "weight" not in inspect.signature(kind.forward).parameters:
        raise ValueError(
            f"weights.by={by} cannot be used with head={head_name(config)}, whose loss has no weights; use "
            "weights.by=null, or a head with class centers: full, pfc or forest"
        )
    # A config of an earlier version has no objective.
    objective = instantiate(config.objective) if "objective" in config else CrossEntropy()
    margin = checked_margin(instantiate(config.margin))
    if "objective" in option_fields(kind):
        objective.check(
            margin,
            log_q=config.head.get("log_q", False),
            min_probability=config.head.get("min_probability", 0.0),
        )
        return {"margin": margin, "objective": objective}
    has_margin = takes(kind, "margin")
    if objective != CrossEntropy():
        raise ValueError(
            f"objective={objective} cannot be used with head={head_name(config)}, whose loss "
            f"{'is the softmax' if has_margin else 'has no objective'}; use objective=softmax without options, or a "
            "head with class centers: full, pfc or forest"
        )
    if has_margin:
        return {"margin": margin}
    name = chosen_in("config")["margin"]
    if OmegaConf.to_container(config.margin) != load(CONF / "margin" / f"{name}.yaml"):
        raise ValueError(
            f"margin={margin} cannot be used with head={head_name(config)}, whose loss has no margin; leave it at the "
            f"default, margin={name} without options"
        )
    return {}


def takes(kind: type, name: str) -> bool:
    """Return whether a head has an option; one that declares no options is taken to have each."""
    from heads.core.options import option_fields, options_of

    return options_of(kind) is None or name in option_fields(kind)


def head_options(config: DictConfig) -> Any:
    """Return the options of the head as its own class checks them.

    Raises:
        NotImplementedError: the head declares no options.
        ValueError: an option is out of range, or cannot be combined with the margin or the objective.
    """
    from heads.core.options import make_options, options_of

    kind = _locate(config.head._target_)
    parts = head_parts(config)
    if options_of(kind) is None:
        raise NotImplementedError(f"{config.head._target_} declares no options")
    own = {str(name): value for name, value in with_checked_types(config.head).items() if name != "_target_"}
    try:
        return make_options(kind, {**{name: _built(value) for name, value in own.items()}, **parts})
    except TypeError as error:
        raise ValueError(f"{config.head._target_}: {error}") from error


def _built(value: Any) -> Any:
    """Return the value of an option, with the objects that it names."""
    if has(value, "_target_"):
        return instantiate(value)
    return {name: _built(part) for name, part in value.items()} if isinstance(value, DictConfig) else value
