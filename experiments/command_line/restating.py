"""The words of a command line that give a config: choices of groups, and options that differ from their defaults."""

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..comparing.runs import flatten
from .config_files import CONF, NO_OPTIONS, choices_of, chosen_in, groups_of

PLAIN = re.compile(r"[\w/.\-]+")  # text that needs no quotes, unless it is read as a number or a word such as null
TARGET = "_target_"
# What a run sets for itself: its folders, and how it was started.
OF_A_RUN = ("resume", "head_name", "logger.wandb.group", "logger.wandb.name", "checkpoint.dir")
FOLDERS = "store_dir"  # how the names of options end whose value is a folder of the run


def restated(config: DictConfig, first: Sequence[str], without: Collection[str] = ()) -> list[str] | None:
    """Return words of `experiments.run` that give the options of a training's config, quoted for a shell.

    Args:
        config: the resolved config of a training.
        first: words that come first, such as `head=full`; what they set stays.
        without: options that the words leave out.

    Returns:
        The words; None if conf/ has no choice for a part of the config, such as one of an earlier version or of another
        program. A checkpoint of others could otherwise name any class in a command that a user copies.
    """
    try:
        return _words(config, first, without)
    except (HydraException, OmegaConfBaseException):  # names and values that no command line has
        return None


def _words(config: DictConfig, first: Sequence[str], without: Collection[str]) -> list[str] | None:
    fixed = {word.partition("=")[0] for word in first}
    left_out = {*OF_A_RUN, *without, *fixed, *(f"{group}.{TARGET}" for group in fixed)}
    wanted = {name: value for name, value in flatten(OmegaConf.to_container(config)).items() if name not in left_out}
    words = [*first, *_lists(config, fixed)]
    for group in [*chosen_in("config"), *groups_of("config")]:
        if group not in NO_OPTIONS and group not in {word.partition("=")[0] for word in words}:
            words += _choice(group, wanted, words)
    for depth in range(4):  # options of the top level first, from which others take their values
        found = _composed(*words)
        for name, value in wanted.items():
            if min(name.count("."), 3) == depth and not _agrees(name, value, found):
                if name.endswith(TARGET):
                    return None
                words.append(f"{'' if name in found else '+'}{name}={text_of(value)}")
    found = _composed(*words)
    if not all(_agrees(name, value, found) for name, value in wanted.items()):
        return None
    return [for_shell(word) for word in words]


def for_shell(word: str) -> str:
    """Quote a word for a shell, in double quotes if it contains single ones."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def text_of(value: Any) -> str:
    """Return a value as Hydra reads it on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{text_of(key)}:{text_of(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(text_of, value)) + "]"
    if isinstance(value, int | float):
        return str(value)
    if PLAIN.fullmatch(value) and OverridesParser.create().parse_override(f"x={value}").value() == value:
        return str(value)
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'")
    return f"'{escaped}'"


def _lists(config: DictConfig, fixed: Collection[str]) -> Iterator[str]:
    """Yield the choices of groups with several, such as `protocol=[lfw,ijb]`."""
    for group, default in chosen_in("config").items():
        if default == [] and group not in fixed and (names := list(config.get(group) or {})):
            yield f"{group}=[{','.join(map(str, names))}]"


def _choice(group: str, wanted: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Return the choice of a group that comes closest to the config, in a list; an empty list for its default."""
    found, sections = _composed(*words), {_section(group, name) for name in choices_of(group)}
    wrong = [
        name
        for name, value in wanted.items()
        if name not in found or (name.endswith(TARGET) and found[name] != value)
        if sections & {"_global_", name.partition(".")[0]}
    ]
    if not wrong:
        return []
    classes = {str(wanted[name]) for name in wrong if name.endswith(TARGET)}
    texts = {name: (CONF / group / f"{name}.yaml").read_text() for name in choices_of(group)}
    likely = [name for name, text in texts.items() if any(each in text for each in classes)] or list(texts)
    agreement = {f"{group}={name}": _agreement(wanted, [*words, f"{group}={name}"]) for name in likely}
    best = max(agreement, key=lambda choice: agreement[choice])
    return [best] if agreement[best] > sum(_agrees(name, value, found) for name, value in wanted.items()) else []


def _section(group: str, name: str) -> str:
    """Return the part of the config that a choice sets; "_global_" for several."""
    package = re.search(r"^# @package (\S+)", (CONF / group / f"{name}.yaml").read_text())
    return package[1] if package else group


def _agreement(wanted: dict[str, Any], words: Sequence[str]) -> int:
    """Return the number of options that words give as wanted; -1 if they cannot be combined."""
    try:
        found = _composed(*words)
    except Exception:  # Hydra has many
        return -1
    return sum(_agrees(name, value, found) for name, value in wanted.items())


def _agrees(name: str, value: Any, found: dict[str, Any]) -> bool:
    return name in found and (name.endswith(FOLDERS) or found[name] == value)


@lru_cache
def _composed(*words: str) -> dict[str, Any]:
    """Return the options that words give, by dotted keys. Those that only a run can resolve are texts."""
    with _hydra_set_aside(), initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(words))
    for name in [name for name in flatten(OmegaConf.to_container(config)) if name.endswith(FOLDERS)]:
        OmegaConf.update(config, name, "")
    return flatten(OmegaConf.to_container(config, resolve=True))


@contextmanager
def _hydra_set_aside() -> Iterator[None]:
    """Let a command that Hydra has started compose another config."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        if running is not None:
            GlobalHydra.instance().initialize(running)
