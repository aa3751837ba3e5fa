"""Groups, choices and options as the files of conf/ define them. Imports no torch."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import safe_load

CONF = Path(__file__).resolve().parents[2] / "conf"
# Commands by their primary config.
COMMANDS = {
    "config": "experiments.run",
    **{
        name: f"experiments.{name}"
        for name in ("evaluate", "embed", "export", "cluster", "centers", "subcenters", "pretrained", "serve")
    },
    **{name: f"experiments.{name}" for name in ("benchmark", "plan", "dashboard", "study")},
    "convert": "data.convert",
}
NO_OPTIONS = ("experiment", "hydra")  # groups whose files set options of other groups


def has(config: Any, key: str) -> bool:
    """Return whether a config has an option, also if its value is null."""
    *parents, last = key.split(".")
    node = OmegaConf.select(config, ".".join(parents)) if parents else config
    return isinstance(node, DictConfig) and last in node


def choices_of(group: str) -> list[str]:
    """Return the names of the files of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def groups_of(primary: str) -> list[str]:
    """Return the groups that a command chooses from, including those that its choices bring in."""
    groups = list(chosen_in(primary))
    for group in groups:  # grows
        text = "".join(path.read_text() for path in (CONF / group).glob("*.yaml"))
        groups += [other for other in re.findall(r"^ +- /(\w+):", text, re.MULTILINE) if other not in groups]
    return groups


def users_of(group: str) -> list[str]:
    """Return the choices that bring in a group, directly or through other groups."""
    users = []
    for path in sorted(CONF.glob("*/*.yaml")):
        defaults = load(path).get("defaults") or []
        if any(isinstance(default, dict) and f"/{group}" in default for default in defaults):
            users += users_of(path.parent.name) or [f"{path.parent.name}={path.stem}"]
    return users


def own_options(primary: str) -> set[str]:
    """Return the keys of a primary config that are options, even if a group of another command has the same name."""
    return {str(key) for key in load(CONF / f"{primary}.yaml")} - set(chosen_in(primary))


def chosen_in(primary: str) -> dict[str, Any]:
    """Return the groups of a primary config, each with its default choice."""
    defaults = load(CONF / f"{primary}.yaml").get("defaults") or []
    return {
        str(group): choice
        for default in defaults
        if isinstance(default, dict)
        for group, choice in default.items()
        if not str(group).startswith("override ")
    }


def with_defaults(chosen: list[str], primary: str) -> list[str]:
    """Return the choice of every group that has one, from the command line, its experiment, or by default."""
    choices = dict(choice.split("=", 1) for choice in chosen)
    for group, choice in (chosen_in(primary) | _chosen_by(choices.get("experiment", ""))).items():
        if choice != []:
            choices.setdefault(group, str(choice))
    return [f"{group}={choice}" for group, choice in choices.items()]


def _chosen_by(experiment: str) -> dict[str, str]:
    """Return the groups that an experiment chooses from in place of the defaults, each with its choice."""
    path = CONF / "experiment" / f"{experiment}.yaml"
    choices: dict[str, str] = {}
    for default in (load(path).get("defaults") or []) if path.exists() else []:
        if isinstance(default, str) and default != "_self_":
            choices |= _chosen_by(default)
        elif isinstance(default, dict):
            choices |= {group.removeprefix("override /"): choice for group, choice in default.items()}
    return choices


def owners_of(key: str, chosen: list[str], primary: str) -> list[str]:
    """Return the choices that have the option, other than those on the command line."""
    owners = []
    for choice, options in options_by_choice(primary).items():
        if key in options:
            users = users_of(choice.split("=")[0])
            brought_in = set(users) & set(with_defaults(chosen, primary))
            owners += users if users and not brought_in else [choice]
    return owners


def commands_with(key: str) -> list[str]:
    """Return the commands that have the option."""
    return [
        command
        for primary, command in COMMANDS.items()
        if key in own_options(primary)
        or key in groups_of(primary)
        or any(key in options for options in options_by_choice(primary).values())
    ]


@cache
def options_by_choice(primary: str) -> dict[str, list[str]]:
    """Return the options that each choice of the command's groups defines, by `group=name`."""
    options = {}
    for group in groups_of(primary):
        if group in NO_OPTIONS:
            continue
        for path in sorted((CONF / group).glob("*.yaml")):
            package = re.search(r"^# @package (\S+)", path.read_text())
            prefix = package[1] if package else group
            options[f"{group}={path.stem}"] = _flat(load(path), "" if prefix == "_global_" else f"{prefix}.")
    return options


@cache
def defaults_of(group: str, name: str) -> dict[str, Any]:
    """Return the options of a choice and of those that it brings in, by full name; none for an unknown choice."""
    found = _brought_in(group, name)
    return {
        key: found.get(value[2:-1], value) if isinstance(value, str) and value.startswith("${") else value
        for key, value in found.items()
    }


def _brought_in(group: str, name: str) -> dict[str, Any]:
    """Return the options of a choice as its files write them, with references such as ${dtype}."""
    path = CONF / group / f"{name}.yaml"
    if not path.exists():
        return {}
    package = re.search(r"^# @package (\S+)", path.read_text())
    prefix = package[1] if package else group
    found: dict[str, Any] = {}
    for default in load(path).get("defaults") or []:
        if isinstance(default, dict):
            for other, choice in default.items():
                found |= _brought_in(str(other).removeprefix("override ").removeprefix("/"), str(choice))
        elif default != "_self_":
            found |= _brought_in(group, default)
    return found | _leaves(load(path), "" if prefix == "_global_" else f"{prefix}.")


def all_keys(node: DictConfig, prefix: str = "") -> list[str]:
    """Return the full names of all options and sections of a config."""
    keys = []
    for name in node:
        keys.append(prefix + str(name))
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            keys += all_keys(child, prefix + str(name) + ".")
    return keys


def _flat(node: dict[str, Any], prefix: str) -> list[str]:
    keys = []
    for name, child in node.items():
        if prefix or name not in ("defaults", "hydra"):
            keys += [f"{prefix}{name}", *(_flat(child, f"{prefix}{name}.") if isinstance(child, dict) else [])]
    return keys


def _leaves(node: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the values of nested options by full name."""
    leaves: dict[str, Any] = {}
    for name, child in node.items():
        if prefix or name not in ("defaults", "hydra"):
            leaves |= _leaves(child, f"{prefix}{name}.") if isinstance(child, dict) else {f"{prefix}{name}": child}
    return leaves


@cache
def load(path: Path) -> dict[str, Any]:
    """Return the options in a file of conf/, before Hydra composes it."""
    options = safe_load(path.read_text())
    return options if isinstance(options, dict) else {}
