"""Checks of a command line before Hydra reads it. The message about a wrong word names the right one.

Hydra refuses unknown options by itself. It cannot know that `sample_rate` belongs to `head=pfc`, what a misspelt word
meant, or that nothing reads an option added with +.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import SWEEPS
from ..imports import begin_imports
from ..option_types import checked
from . import combinations, hints, options
from .config_files import COMMANDS, CONF, choices_of, chosen_in, groups_of, has, own_options, users_of
from .schema import OfLightning

T = TypeVar("T")
# Flags of Hydra -> whether a value follows.
FLAGS = {
    **dict.fromkeys((*SWEEPS, "--run", "-r", "--resolve", "--hydra-help", "--version", "--info", "-i"), False),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--experimental-rerun"), True),
    **dict.fromkeys(("--config-name", "-cn", "--config-path", "-cp"), True),
}
EITHER = ("trainer.max_steps", "trainer.max_epochs")  # how long a training is


def check(arguments: list[str], primary: str = "config") -> None:
    """Check the words of a command line against the config that they give.

    Raises:
        ValueError: a word is not an option or not a choice of its group, or a value is of another type or out of range.
    """
    overrides = [_parsed(word) for word in split(arguments, primary)[1]]
    elsewhere = any(override.key_or_group == "hydra/launcher" for override in overrides)  # on another machine
    own = own_options(primary)
    groups = [group for group in groups_of(primary) if group not in own]
    chosen = _chosen(overrides, groups, primary)
    others = [override for override in overrides if not override.key_or_group.startswith(("hydra.", "hydra/"))]
    composed: dict[str, DictConfig] = {}
    for combination in covering(product(*chosen.values())):
        choices = [f"{group}={name}" for group, name in zip(chosen, combination, strict=True)]
        config = _composed(choices, chosen, primary)
        composed = dict.fromkeys(choices, config) | composed
        for override in (override for override in others if override.key_or_group not in groups):
            _check_option(override, config, choices, primary)
            _check_values(override, config, options.TRAINING if primary == "config" else options.MODEL_USE, elsewhere)
    if primary == "config":
        fixed = [o for o in others if o.key_or_group not in groups and not o.is_sweep_override()]
        combinations.check(chosen, composed, fixed, primary)
    if len(lengths := [override.input_line for override in overrides if _sets_length(override)]) == len(EITHER):
        raise ValueError(f"{lengths[0]} and {lengths[1]} cannot be combined; give one of them")
    swept = [override for override in overrides if override.is_sweep_override()]
    is_sweep = set(SWEEPS) & set(arguments) or any(override.key_or_group == "hydra.mode" for override in overrides)
    if swept and not is_sweep:
        raise ValueError(_needs_sweep(swept[0], primary))


def completed(arguments: list[str], primary: str = "config") -> list[str]:
    """Return checked arguments in the form that Hydra takes: flags first, and one length of the training.

    `trainer.max_epochs=N` gets `trainer.max_steps=null`, and the reverse. A default or an experiment sets one of them,
    and a command line means the one that it names.
    """
    flags, words = split(arguments, primary)
    lengths = [override for override in map(_parsed, words) if override.key_or_group in EITHER]
    if primary == "config" and len(lengths) == 1 and _sets_length(lengths[0]):
        (other,) = set(EITHER) - {lengths[0].key_or_group}
        words.append(f"{other}=null")
    return [*flags, *words]


def check_or_exit(primary: str = "config") -> None:
    """Check the arguments of this process. End it with a message for a wrong word, or with the options for --help.

    The imports that follow run without garbage collection, until the command calls `end_imports`.
    """
    if primary != "config" and "RANK" in os.environ:
        return  # experiments.launch started this process
    if {"--help", "-h"} & set(sys.argv[1:]):
        from .describe import description

        print(description(sys.argv[1:], primary))
        sys.exit()
    try:
        check(sys.argv[1:], primary)
        sys.argv[1:] = completed(sys.argv[1:], primary)
    except ValueError as error:
        sys.exit(f"error: {error}")
    begin_imports()


def split(arguments: list[str], primary: str = "config") -> tuple[list[str], list[str]]:
    """Return the flags of Hydra with their values, and the overrides. Raise ValueError for other words."""
    flags, words = [], []
    rest = iter(arguments)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if flag in FLAGS:
            flags += [word, *([value] if FLAGS[flag] and not equals and (value := next(rest, "")) else [])]
        elif flag in ("--shell-completion", "-sc"):
            raise ValueError(
                f"{word} cannot be used: completion does not work with python -m; --help lists all options"
            )
        elif word.startswith("-"):
            raise ValueError(_without_dashes(word, next(rest, None), primary))
        elif equals or word.startswith("~"):
            words.append(word)
        else:
            raise ValueError(hints.bare_word(word, primary))
    return flags, words


def covering(combinations: Iterable[tuple[T, ...]]) -> Iterator[tuple[T, ...]]:
    """Yield the first combination, and those that differ from it in one place.

    An option that a choice lacks is missing from every combination with it, so these combinations show every error.
    Composing one takes up to a second: 4 x 3 x 2 choices make 24 combinations, and this yields 7.
    """
    first: tuple[T, ...] | None = None
    for combination in combinations:
        first = first or combination
        if sum(one != other for one, other in zip(combination, first, strict=True)) <= 1:
            yield combination


def _chosen(overrides: list[Override], groups: list[str], primary: str) -> dict[str, list[str]]:
    """Return the choices of the command line for each group. Raise ValueError for one that does not exist."""
    chosen = {o.key_or_group: _values(o) for o in overrides if o.key_or_group in groups and not o.is_delete()}
    for group, names in chosen.items():
        for name in (name for choice in names for name in choice.strip("[]").split(",")):
            if name not in (*choices_of(group), "null", "None") and (name or names == [""]):
                raise ValueError(hints.unknown_choice(group, name, primary))
    for name in chosen.get("experiment", []):  # the sweep of a study, unless the command line has the group
        for group, values in _swept_by(name).items():
            if group in groups:
                chosen.setdefault(group, values)
    return chosen


def _composed(choices: list[str], chosen: dict[str, list[str]], primary: str) -> DictConfig:
    """Return the config of one combination of choices."""
    line = " ".join(choices)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(primary, choices)
    except MissingConfigException as error:
        raise ValueError(
            f"{line} cannot be composed: {str(error).splitlines()[0]}; see the extras in the README"
        ) from None
    except ConfigCompositionException as error:
        # Only some choices of another group bring in this group, such as `store`.
        for group in chosen:
            if owners := users_of(group):
                raise ValueError(hints.belongs_elsewhere(group, owners, choices, primary)) from None
        raise ValueError(f"{line or primary} cannot be composed: {str(error).strip().splitlines()[0]}") from None


def _parsed(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        name, _, value = word.partition("=")
        quoted = value.strip("'\"").replace('"', '\\"')
        raise ValueError(
            f"{word} cannot be parsed ({str(error).splitlines()[0]}); if the value is text with other than plain "
            f"letters, quote it: '{name}=\"{quoted}\"'"
        ) from None


def _check_option(override: Override, config: DictConfig, choices: list[str], primary: str) -> None:
    """Check that the config has the option, or that a class or Lightning reads an option added with +."""
    key, line = override.key_or_group, override.input_line or ""
    exists = has(config, key)
    if override.is_delete():
        if not _within_target(config, key):
            raise ValueError(f"{line} cannot be removed; write {key}=null, or leave it unchanged")
    elif override.is_add() and exists:
        raise ValueError(f"{line} cannot be added, because {key} exists; write {line.lstrip('+')}")
    elif (override.is_add() or override.is_force_add()) and _is_read(config, key, primary):
        return
    if not exists:
        raise ValueError(hints.unknown_option(key, line.partition("=")[2] or None, config, choices, primary))


def _is_read(config: DictConfig, key: str, primary: str) -> bool:
    """Return whether a class of the config, or Lightning, reads an option that is not in conf/."""
    parent, _, last = key.rpartition(".")
    lightning = primary == "config" and parent == "trainer" and last in OfLightning.__annotations__
    return lightning or _within_target(config, key)


def _within_target(config: DictConfig, key: str) -> bool:
    """Return whether the option is an argument of a class that the config names."""
    parts = key.split(".")
    above = (OmegaConf.select(config, ".".join(parts[:length])) for length in range(len(parts) - 1, 0, -1))
    return any(isinstance(node, DictConfig) and "_target_" in node for node in above)


def _check_values(override: Override, config: DictConfig, declared: Mapping[str, Any], elsewhere: bool) -> None:
    """Check each value of an option by its declared type, or else by the type of its default.

    Args:
        elsewhere: whether the command runs on another machine, where paths may exist that are missing here.
    """
    key = override.key_or_group
    if override.is_delete():
        return
    try:
        default = OmegaConf.select(config, key)
    except OmegaConfBaseException:  # its value is known at run time only
        default = None
    values = override.value()
    if override.is_sweep_override() and not isinstance(values, ChoiceSweep):
        return  # a range, or a distribution of a sweeper
    for value in values.list if isinstance(values, ChoiceSweep) else [values]:
        value = value.text if isinstance(value, QuotedString) else value
        if isinstance(value, str) and "${" in value:
            continue
        takes_flag = isinstance(default, DictConfig) and "_target_" in default  # data.augment=false
        if isinstance(default, DictConfig) and not isinstance(value, dict | None | (bool if takes_flag else dict)):
            raise ValueError(hints.value_of_section(key, value, default))
        if key in declared:
            checked(key, value, declared[key])
        elif isinstance(default, bool):
            checked(key, value, bool)
        elif isinstance(default, int | float) and isinstance(value, bool | str):  # others may be allowed
            if hints.SCHEDULE.match(str(value)):
                raise ValueError(hints.unquoted_schedule(key, value))
            checked(key, value, float)
        if not elsewhere:
            options.check_exists(key, value)


def _needs_sweep(override: Override, primary: str) -> str:
    """Return the message about several values without -m."""
    key, line = override.key_or_group, override.input_line
    answer = f"{line} has several values and needs a sweep; write python -m {COMMANDS[primary]} -m {line}"
    takes_list = chosen_in(primary).get(key) == [] and isinstance(override.value(), ChoiceSweep)
    return f"{answer}, or {key}=[{','.join(_values(override))}] for all of them together" if takes_list else answer


def _without_dashes(word: str, following: str | None, primary: str) -> str:
    """Return the message about an option in the form of other programs: --batch_size 64."""
    name, equals, value = word.lstrip("-").partition("=")
    if not equals and following is not None and not following.startswith("-") and "=" not in following:
        value = following
    line = f"{word} {value}" if value and not equals else word
    plain = f"{name.replace('-', '_')}={value or 'VALUE'}"
    try:
        check([plain], primary)
    except ValueError as error:
        return f"{line} must be written without dashes; {error}"
    return f"{line} must be written without dashes; write {plain}"


def _sets_length(override: Override) -> bool:
    """Return whether an override sets the length of the training."""
    return override.key_or_group in EITHER and not override.is_delete() and override.value() is not None


def _swept_by(experiment: str) -> dict[str, list[str]]:
    """Return the options that an experiment sweeps over, and their values."""
    path = CONF / "experiment" / f"{experiment}.yaml"
    params = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") if path.exists() else None
    return {str(name): str(values).split(",") for name, values in (params or {}).items()}


def _values(override: Override) -> list[str]:
    """Return the values of an override as text."""
    value = override.value()
    if isinstance(value, Glob):
        return list(value.filter(choices_of(override.key_or_group)))
    if override.is_choice_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    return [f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)]
