"""The classes and functions that a checkpoint's config may name: those in this project's conf/, and trusted ones.

A `_target_` is called with options from the checkpoint. A hostile checkpoint could therefore run anything that can be
imported, also through modules of this project (`heads.indexes.subprocess.run`). Complete names are compared, before
anything is imported.
"""

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..command_line.arguments import CONF

GROUPS = ("backbone", "data", "images", "margin", "noise")  # groups of conf/ from which a model and its data are built


def check_resolved(config: Any, given: str) -> None:
    """Raise ValueError for an interpolation, which could form a name after the check. Trainings write none.

    Args:
        config: config of a checkpoint.
        given: option and value that name the checkpoint, for messages.
    """
    for where, value in _texts(OmegaConf.to_container(config), ""):
        if "${" in value:
            raise ValueError(
                f"{given} cannot be used: its config has the interpolation {where}={value}, which no training writes"
            )


def check(config: Any, name: str, trust: Collection[str], given: str) -> None:
    """Raise ValueError unless everything that this part of a resolved config names may be called.

    Args:
        name: name of the part.
        trust: additional names that may be called.
        given: option and value that name the checkpoint, for messages.
    """
    if not isinstance(config, DictConfig) or "_target_" not in config:
        raise ValueError(f"{given} cannot be used: its config has no {name}._target_")
    for where, value in _texts(OmegaConf.to_container(config), name):
        if where.endswith("._target_") and value not in {*_known(), *trust}:
            raise ValueError(
                f"{given} cannot be used: its config names {where}={value}, which is not part of this project; if it "
                f"is yours, or you trust its author, add trust=[{value}]"
            )


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the content of each string in a config; the value of a `_target_` counts as one."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield where, str(key)
            yield from _texts(str(item) if key == "_target_" else item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, where)
    elif isinstance(value, str):
        yield where, value


@cache
def _known() -> frozenset[str]:
    """Return all names in conf/."""
    files = [path for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
    texts = [text for path in files for text in _texts(OmegaConf.to_container(OmegaConf.load(path)), path.stem)]
    return frozenset(value for where, value in texts if where.endswith("._target_"))
