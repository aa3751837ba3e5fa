"""Combinations of head, margin and objective on a command line, checked before the first run of a sweep starts.

The classes know what they can be combined with, and importing them takes longer than all other checks together. So only
combinations that may be refused are checked: every single choice of conf/ can be combined with the defaults.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product

from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import DictConfig, OmegaConf

from .config_files import chosen_in, has, with_defaults

PARTS = ("head", "margin", "objective")


def check(
    chosen: Mapping[str, list[str]], composed: Mapping[str, DictConfig], overrides: Sequence[Override], primary: str
) -> None:
    """Raise ValueError if a head cannot have its margin, its objective, weights, or one of its options.

    Args:
        chosen: the choices of the command line for each group.
        composed: the config of each choice `group=name`, beside the first choices of the other groups.
        overrides: options with one value.
    """
    swept = {part: chosen[part] for part in PARTS if part in chosen}
    others = [f"{group}={names[0]}" for group, names in chosen.items() if group not in PARTS]
    weighted = any(override.key_or_group == "weights.by" for override in overrides)
    for names in product(*swept.values()) if swept else []:
        choices = [f"{part}={name}" for part, name in zip(swept, names, strict=True)]
        parts = dict(choice.split("=", 1) for choice in with_defaults([*others, *choices], primary))
        if weighted or _may_be_refused(parts, chosen_in(primary)):
            config = copy.deepcopy(composed[choices[0]])
            for choice in choices[1:]:
                part = choice.split("=")[0]
                config[part] = composed[choice][part]
            OmegaConf.update(config, "head_name", parts["head"], force_add=True)
            _check_config(config, overrides)


def _may_be_refused(parts: Mapping[str, str], usual: Mapping[str, str]) -> bool:
    """Return whether a combination has an objective other than the default, or two other parts."""
    unusual = [part for part in PARTS if parts[part] != usual[part]]
    return (len(unusual) > 1 or "objective" in unusual) and not {"null", "None"} & {parts[part] for part in PARTS}


def _check_config(config: DictConfig, overrides: Iterable[Override]) -> None:
    from ..head_parts import head_options  # imports torch

    for override in overrides:
        if has(config, key := override.key_or_group) and not override.is_delete():
            value = override.value()
            OmegaConf.update(config, key, value.text if isinstance(value, QuotedString) else value)
    if has(config, "store_dir"):  # known at run time only
        OmegaConf.update(config, "store_dir", "rows")
    with suppress(NotImplementedError, ImportError):  # where it trains, a class may exist that is missing here
        head_options(config)
