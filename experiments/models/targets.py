"""Which classes and functions the config of a checkpoint may name: those of this project's conf/, and trusted ones.

A checkpoint's `_target_` is called with options of the checkpoint's, so a hostile one could run anything that can be
imported, by modules of this project too (`heads.indexes.subprocess.run`). So names are compared whole, and nothing is
imported before that.
"""

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..command_line.arguments import CONF

GROUPS = ("backbone", "data", "images", "margin", "noise")  # of conf/, whose choices a model and its data are built of


def check_resolved(config: Any, given: str) -> None:
    """Raise ValueError for an interpolation, which could make a name after it was checked. None is ever saved.

    Args:
        config: of a checkpoint.
        given: the option and value that name the checkpoint, for errors.
    """
    for where, value in _texts(OmegaConf.to_container(config), ""):
        if "${" in value:
            raise ValueError(f"{given}: its config has the interpolation {where}={value}, which no training writes")


def check(config: Any, name: str, trust: Collection[str], given: str) -> None:
    """Raise ValueError unless all that this part of a resolved config names may be called.

    Args:
        name: of the part.
        trust: what may be called besides.
        given: the option and value that name the checkpoint, for errors.
    """
    if not isinstance(config, DictConfig) or "_target_" not in config:
        raise ValueError(f"{given}: its config has no {name}._target_")
    for where, value in _texts(OmegaConf.to_container(config), name):
        if where.endswith("._target_") and value not in {*_known(), *trust}:
            raise ValueError(
                f"{given}: its config names {where}={value}, which is not of this project; if it is yours, or you "
                f"trust who wrote it, add trust=[{value}]"
            )


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted place of each text in it, and the text; what stands at a `_target_` is one."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield where, str(key)
            yield from _texts(str(each) if key == "_target_" else each, f"{where}.{key}")
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, where)
    elif isinstance(value, str):
        yield where, value


@cache
def _known() -> frozenset[str]:
    """Return what conf/ names."""
    files = [path for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
    texts = [text for path in files for text in _texts(OmegaConf.to_container(OmegaConf.load(path)), path.stem)]
    return frozenset(value for where, value in texts if where.endswith("._target_"))
