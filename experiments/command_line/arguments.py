"""Command lines checked before Hydra sees them, so that a wrong word gets a sentence that says what to write.

Hydra refuses unknown options by itself; it cannot know that `sample_rate` belongs to `head=pfc`, what a typo meant, or
that an option added with + is read by nothing.
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

from ..option_types import checked
from . import hints, options
from .schema import OfLightning

CONF = hints.CONF
T = TypeVar("T")
SWEEPS = ("-m", "--multirun")
# Hydra's own, and whether a value follows.
FLAGS = {
    **dict.fromkeys((*SWEEPS, "--run", "-r", "--resolve", "--hydra-help", "--version", "--info", "-i"), False),
    **dict.fromkeys(("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--experimental-rerun"), True),
    **dict.fromkeys(("--config-name", "-cn", "--config-path", "-cp"), True),
}
EITHER = ("trainer.max_steps", "trainer.max_epochs")  # how long a training is


def check(arguments: list[str], primary: str = "config") -> None:
    """Check the words of a command line against the config that they give.

    Raises:
        ValueError: a word is no option, no choice of its group, or breaks a rule that is known without torch.
    """
    overrides = [_parsed(word) for word in split(arguments, primary)[1]]
    elsewhere = any(override.key_or_group == "hydra/launcher" for override in overrides)  # on another machine
    own = hints.own_options(primary)
    groups = [group for group in hints.groups_of(primary) if group not in own]
    chosen = _chosen(overrides, groups, primary)
    others = [each for each in overrides if not each.key_or_group.startswith(("hydra.", "hydra/"))]
    for combination in covering(product(*chosen.values())):
        choices = [f"{group}={name}" for group, name in zip(chosen, combination, strict=True)]
        config = _composed(choices, chosen, primary)
        for override in (override for override in others if override.key_or_group not in groups):
            _check_option(override, config, choices, primary)
            _check_values(override, config, options.TRAINING if primary == "config" else options.MODEL_USE, elsewhere)
    if len(given := [override for override in overrides if _decides(override)]) == len(EITHER):
        raise ValueError(f"{given[0].input_line} {given[1].input_line}: give one of them")
    swept = [override for override in overrides if override.is_sweep_override()]
    if swept and not set(SWEEPS) & set(arguments) and not any(each.key_or_group == "hydra.mode" for each in overrides):
        raise ValueError(_of_a_sweep(swept[0], primary))


def completed(arguments: list[str], primary: str = "config") -> list[str]:
    """Return checked arguments as Hydra takes them: flags first, and `trainer.max_steps=null` with
    `trainer.max_epochs=N`, or the reverse.

    Both of these have a value by default or in an experiment, and a command line means the one that it names.
    """
    flags, words = split(arguments, primary)
    given = [override for override in map(_parsed, words) if override.key_or_group in EITHER]
    if primary == "config" and len(given) == 1 and _decides(given[0]):
        (other,) = set(EITHER) - {given[0].key_or_group}
        words.append(f"{other}=null")
    return [*flags, *words]


def check_or_exit(primary: str = "config") -> None:
    """Check what this command was called with. A wrong word ends it with a sentence, and --help with the options."""
    if primary != "config" and "RANK" in os.environ:
        return  # one of several processes that experiments.launch started
    if {"--help", "-h"} & set(sys.argv[1:]):
        from .describe import description

        print(description(sys.argv[1:], primary))
        sys.exit()
    try:
        check(sys.argv[1:], primary)
        sys.argv[1:] = completed(sys.argv[1:], primary)
    except ValueError as error:
        sys.exit(f"error: {error}")


def split(arguments: list[str], primary: str = "config") -> tuple[list[str], list[str]]:
    """Return Hydra's own flags with what follows them, and the overrides. Raises ValueError for other words."""
    flags, words = [], []
    rest = iter(arguments)
    for word in rest:
        flag, equals, _ = word.partition("=")
        if flag in FLAGS:
            flags += [word, *([value] if FLAGS[flag] and not equals and (value := next(rest, "")) else [])]
        elif flag in ("--shell-completion", "-sc"):
            raise ValueError(f"{word}: completion does not work with python -m; --help lists all options")
        elif word.startswith("-"):
            raise ValueError(_without_dashes(word, next(rest, None), primary))
        elif equals or word.startswith("~"):
            words.append(word)
        else:
            raise ValueError(hints.of_a_bare_word(word, primary))
    return flags, words


def covering(combinations: Iterable[tuple[T, ...]]) -> Iterator[tuple[T, ...]]:
    """Yield the first of all combinations, and those that differ from it in one place: each value at least once.

    An option that a choice lacks is lacking whatever the other choices are, so these find what all would find. To
    compose one takes up to a second: 4 x 3 x 2 choices make 24 combinations, and this yields 7.
    """
    first: tuple[T, ...] | None = None
    for combination in combinations:
        first = first or combination
        if sum(one != other for one, other in zip(combination, first, strict=True)) <= 1:
            yield combination


def _chosen(overrides: list[Override], groups: list[str], primary: str) -> dict[str, list[str]]:
    """Return the choices that are given for each group, checked to exist."""
    chosen = {o.key_or_group: _values(o) for o in overrides if o.key_or_group in groups and not o.is_delete()}
    for group, names in chosen.items():
        for name in (name for choice in names for name in choice.strip("[]").split(",")):
            if name not in (*hints.choices_of(group), "null", "None") and (name or names == [""]):
                raise ValueError(hints.of_no_choice(group, name, primary))
    for name in chosen.get("experiment", []):  # what a study sweeps over, unless the command line does
        for group, values in _swept_by(name).items():
            if group in groups:
                chosen.setdefault(group, values)
    return chosen


def _composed(choices: list[str], chosen: dict[str, list[str]], primary: str) -> DictConfig:
    told = " ".join(choices)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(primary, choices)
    except MissingConfigException as error:
        raise ValueError(f"{told}: {str(error).splitlines()[0]}; see the extras in the README") from None
    except ConfigCompositionException as error:
        # A group that only some choices of another group bring in, such as `store`.
        for group in chosen:
            if owners := hints.users_of(group):
                raise ValueError(hints.belongs(group, owners, choices, primary)) from None
        raise ValueError(f"{told or primary}: {str(error).strip().splitlines()[0]}") from None


def _parsed(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        name, _, value = word.partition("=")
        quoted = value.strip("'\"").replace('"', '\\"')
        raise ValueError(
            f"{word}: is no option that Hydra can read ({str(error).splitlines()[0]}); if it is a text with other than "
            f"plain letters, quote it: '{name}=\"{quoted}\"'"
        ) from None


def _check_option(override: Override, config: DictConfig, choices: list[str], primary: str) -> None:
    """Check that the config has the option, or that something reads it if it is added."""
    key, line = override.key_or_group, override.input_line or ""
    there = hints.has(config, key)
    if override.is_delete():
        if not _within_target(config, key):
            raise ValueError(f"{line}: an option cannot be removed; write {key}=null, or leave it as it is")
    elif override.is_add() and there:
        raise ValueError(f"{line}: {key} is there already; write {line.lstrip('+')}")
    elif (override.is_add() or override.is_force_add()) and _is_read(config, key, primary):
        return
    if not there:
        raise ValueError(hints.of_no_option(key, line.partition("=")[2] or None, config, choices, primary))


def _is_read(config: DictConfig, key: str, primary: str) -> bool:
    """Whether something reads an option that is not in conf/: a class that is built with it, or Lightning."""
    parent, _, last = key.rpartition(".")
    lightning = primary == "config" and parent == "trainer" and last in OfLightning.__annotations__
    return lightning or _within_target(config, key)


def _within_target(config: DictConfig, key: str) -> bool:
    """Whether the option is an argument of a class that the config names."""
    parts = key.split(".")
    above = (OmegaConf.select(config, ".".join(parts[:length])) for length in range(len(parts) - 1, 0, -1))
    return any(isinstance(node, DictConfig) and "_target_" in node for node in above)


def _check_values(override: Override, config: DictConfig, declared: Mapping[str, Any], elsewhere: bool) -> None:
    """Check each value that an option is given, by its declared type or else by the type of its default.

    Args:
        elsewhere: whether the command runs on another machine, where paths may exist that are missing here.
    """
    key = override.key_or_group
    if override.is_delete():
        return
    try:
        default = OmegaConf.select(config, key)
    except OmegaConfBaseException:  # it is known only while a command runs
        default = None
    given = override.value()
    if override.is_sweep_override() and not isinstance(given, ChoiceSweep):
        return  # a range, or what a sweeper draws from
    for value in given.list if isinstance(given, ChoiceSweep) else [given]:
        value = value.text if isinstance(value, QuotedString) else value
        if isinstance(value, str) and "${" in value:
            continue
        takes_flag = isinstance(default, DictConfig) and "_target_" in default  # data.augment=false
        if isinstance(default, DictConfig) and not isinstance(value, dict | None | (bool if takes_flag else dict)):
            raise ValueError(hints.of_several(key, value, default))
        if key in declared:
            checked(key, value, declared[key])
        elif isinstance(default, bool):
            checked(key, value, bool)
        elif isinstance(default, int | float) and isinstance(value, bool | str):  # it may take null, a list or steps
            checked(key, value, float)
        if not elsewhere:
            options.check_exists(key, value)


def _of_a_sweep(override: Override, primary: str) -> str:
    key, line = override.key_or_group, override.input_line
    told = f"{line}: several values are a sweep; write python -m {hints.COMMANDS[primary]} -m {line}"
    takes_list = hints.chosen_in(primary).get(key) == [] and isinstance(override.value(), ChoiceSweep)
    return f"{told}, or {key}=[{','.join(_values(override))}] for all of them together" if takes_list else told


def _without_dashes(word: str, following: str | None, primary: str) -> str:
    """Return the sentence for an option that is written as other programs want it: --batch_size 64."""
    name, equals, value = word.lstrip("-").partition("=")
    if not equals and following is not None and not following.startswith("-") and "=" not in following:
        value = following
    told = f"{word} {value}" if value and not equals else word
    plain = f"{name.replace('-', '_')}={value or 'VALUE'}"
    try:
        check([plain], primary)
    except ValueError as error:
        return f"{told}: options are written without dashes; {error}"
    return f"{told}: options are written without dashes; write {plain}"


def _decides(override: Override) -> bool:
    """Whether it says how long a training is."""
    return override.key_or_group in EITHER and not override.is_delete() and override.value() is not None


def _swept_by(experiment: str) -> dict[str, list[str]]:
    path = CONF / "experiment" / f"{experiment}.yaml"
    params = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") if path.exists() else None
    return {str(name): str(values).split(",") for name, values in (params or {}).items()}


def _values(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, Glob):
        return list(value.filter(hints.choices_of(override.key_or_group)))
    if override.is_choice_sweep():
        return [str(each) for each in override.sweep_string_iterator()]
    return [f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)]
