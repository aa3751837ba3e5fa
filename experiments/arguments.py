"""Command-line overrides checked before Hydra sees them, so that a wrong one gets a sentence that helps.

Hydra refuses unknown options by itself; it cannot know that `sample_rate` belongs to `head=pfc`, nor
what a typo meant.
"""

import difflib
import sys
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).resolve().parent.parent / "conf"


def check(arguments: list[str], primary: str = "config") -> None:
    """Raises ValueError for a group choice or an option that the composed config does not have."""
    overrides = [_parsed(word) for word in arguments if "=" in word and not word.startswith("-")]
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - _options(primary)
    chosen = {o.key_or_group: _values(o) for o in overrides if o.key_or_group in groups and not o.is_delete()}
    for name in chosen.get("experiment", []):  # what a study sweeps over, unless the command line does
        for group, values in _swept_by(name).items():
            if group in groups:
                chosen.setdefault(group, values)
    for group, names in chosen.items():
        available = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        for name in (name for choice in names for name in choice.strip("[]").split(",") if name):
            if name not in (*available, "null", "None"):
                raise ValueError(f"{group}={name}: {did_you_mean(name, available)}choose one of {', '.join(available)}")
    for combination in product(*chosen.values()):
        choices = [f"{group}={name}" for group, name in zip(chosen, combination, strict=True)]
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config = compose(primary, choices)
        except MissingConfigException as error:
            raise ValueError(
                f"{' '.join(choices)}: {str(error).splitlines()[0]}; see the extras in the README"
            ) from None
        except ConfigCompositionException as error:
            # A group that only some choices of another group bring in, such as `store`.
            for group in chosen:
                if owners := _users(group):
                    raise ValueError(_belongs(group, owners, " ".join(choices), primary)) from None
            told = str(error).strip().splitlines()[0]
            raise ValueError(f"{' '.join(choices) or primary}: {told}") from None
        for override in overrides:
            key = override.key_or_group
            if key in groups or key.startswith(("hydra.", "hydra/")) or override.is_add() or override.is_force_add():
                continue
            if not _has(config, key):
                raise ValueError(_unknown(key, " ".join(choices), config, primary))
            _check_kind(override, config)


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


def _check_kind(override: Override, config: DictConfig) -> None:
    """Raises ValueError for words where the config has a number, or true or false."""
    try:
        default = OmegaConf.select(config, override.key_or_group)
    except OmegaConfBaseException:  # it is known only while a command runs
        return
    if not isinstance(default, bool | int | float):
        return
    given = override.value()
    for value in given.list if isinstance(given, ChoiceSweep) else [given]:
        value = value.text if isinstance(value, QuotedString) else value
        if isinstance(value, str) and "${" in value:
            continue
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{override.key_or_group}={value}: must be true or false")
        if not isinstance(default, bool) and isinstance(value, bool | str):
            raise ValueError(f"{override.key_or_group}={value}: a number is needed")


def check_or_exit(primary: str = "config") -> None:
    """What this command was called with; a wrong word ends it with a sentence."""
    try:
        check(sys.argv[1:], primary)
    except ValueError as error:
        sys.exit(f"error: {error}")


def did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _swept_by(experiment: str) -> dict[str, list[str]]:
    path = CONF / "experiment" / f"{experiment}.yaml"
    params = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") if path.exists() else None
    return {str(name): str(values).split(",") for name, values in (params or {}).items()}


def _values(override: Override) -> list[str]:
    if override.is_choice_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    value = override.value()
    return [f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)]


def _has(config: DictConfig, key: str) -> bool:
    *parents, last = key.split(".")
    node = OmegaConf.select(config, ".".join(parents)) if parents else config
    return isinstance(node, DictConfig) and last in node


def _unknown(key: str, choices: str, config: DictConfig, primary: str) -> str:
    parent = key.rpartition(".")[0]
    if parent and _has(config, parent) and OmegaConf.select(config, parent) is None:
        return f"{key}: no option of {choices or 'this config'}, where {parent} is null"
    owners = []
    for path in sorted(CONF.glob("*/*.yaml")):
        first = path.read_text().partition("\n")[0]
        package = first.removeprefix("# @package ") if first.startswith("# @package ") else path.parent.name
        within = key if package == "_global_" else key.removeprefix(f"{package}.")
        is_there = package == "_global_" or within != key
        if path.parent.name != "experiment" and is_there and _has(OmegaConf.load(path), within):  # type: ignore[arg-type]
            users = _users(path.parent.name)
            brought_in = set(users) & set(_defaults(choices, primary))
            owners += users if users and not brought_in else [f"{path.parent.name}={path.stem}"]
    if owners:
        return _belongs(key, owners, choices, primary)
    hint = did_you_mean(key, _all_keys(config))
    return f"{key}: no such option; {hint}`--cfg job` lists them all"


def _belongs(key: str, owners: list[str], choices: str, primary: str) -> str:
    groups = {owner.split("=")[0] for owner in owners}
    chosen = ", ".join(choice for choice in _defaults(choices, primary) if choice.split("=")[0] in groups)
    return f"{key}: no option of {chosen or 'this config'}; it belongs to {' and '.join(sorted(set(owners)))}"


def _users(group: str) -> list[str]:
    """The choices that bring in a group which is not of the primary config, through others or not."""
    users = []
    for path in sorted(CONF.glob("*/*.yaml")):
        node = OmegaConf.load(path)
        defaults = node.get("defaults") or [] if isinstance(node, DictConfig) else []
        if any(isinstance(default, DictConfig) and f"/{group}" in default for default in defaults):
            users += _users(path.parent.name) or [f"{path.parent.name}={path.stem}"]
    return users


def _options(primary: str) -> set[str]:
    """Keys of the primary config that are options, though groups of others may be called the same."""
    return {str(key) for key in OmegaConf.load(CONF / f"{primary}.yaml")} - set(_chosen_in(primary))  # type: ignore[union-attr]


def _chosen_in(primary: str) -> dict[str, Any]:
    """The groups of the primary config, and what it chooses of each."""
    node = OmegaConf.load(CONF / f"{primary}.yaml")
    assert isinstance(node, DictConfig)
    choices = [each for each in node.get("defaults") or [] if isinstance(each, DictConfig)]
    return {str(group): choice for each in choices for group, choice in each.items()}


def _defaults(choices: str, primary: str) -> list[str]:
    """The choice of every group that has one, as given or by default."""
    chosen = dict(choice.split("=") for choice in choices.split())
    for group, choice in _chosen_in(primary).items():
        if choice != []:
            chosen.setdefault(group, str(choice))
    return [f"{group}={choice}" for group, choice in chosen.items()]


def _all_keys(node: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for name in node:
        keys.append(prefix + str(name))
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            keys += _all_keys(child, prefix + str(name) + ".")
    return keys
