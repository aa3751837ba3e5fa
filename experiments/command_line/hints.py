"""Messages about wrong words on a command line. They suggest what was meant, from conf/ and other programs' names.

A suggestion needs a reason: a wrong one is worse than none.
"""

import difflib
import re
from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf

from .config_files import (
    COMMANDS,
    CONF,
    all_keys,
    choices_of,
    commands_with,
    groups_of,
    has,
    load,
    options_by_choice,
    owners_of,
    with_defaults,
)
from .habits import HABITS, MERGED, REASONS, RENAMED, RENAMED_CHOICES, REUSED

CUTOFF = 0.8  # least ratio of difflib: glyph and glyphs have 0.91, memory and memory_gb 0.80, node and mode 0.75
SHOWN = 3
SCHEDULE = re.compile(r"\d+:")  # how a schedule begins without braces
SHORTEST = 4  # letters of a beginning that stands for a name: elas of elasticface


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean X? " for a name that is nearly a known one, or nothing."""
    close = closest(name, known)
    return f"did you mean {close!r}? " if close else ""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one is nearest to, if it is near enough."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=CUTOFF)
    same_letters = [known_name for known_name in names if sorted(known_name) == sorted(name)]  # pcf -> pfc
    return next(iter(close or same_letters), None)


def unknown_option(key: str, value: str | None, config: DictConfig, chosen: list[str], primary: str) -> str:
    """Return the message about an option that the config does not have.

    Args:
        key: the option, without a leading + or ~.
        value: the value of the option; None if there is none.
        config: composed from the choices on the command line.
        chosen: these choices, `group=name`.
    """
    parent, _, last = key.rpartition(".")
    if key in RENAMED:
        return _renamed(key, value, config, chosen, primary)
    if key in MERGED and has(config, MERGED[key]):
        return f"{key} is not an option of {' '.join(chosen) or 'this config'}; write {_assigned(MERGED[key], value)}"
    if parent and has(config, parent) and OmegaConf.select(config, parent) is None:
        return f"{key} is not an option of {' '.join(chosen) or 'this config'}, where {parent} is null"
    if owners := owners_of(key, chosen, primary):
        return belongs_elsewhere(key, owners, chosen, primary)
    present = all_keys(config)
    word = last.lower().replace("-", "_")
    meant, reason = word, ""
    if primary == "config":
        meant, reason = HABITS.get(word, word), f"{REASONS[word]}; " if word in REASONS else ""
    meant, equals, implied = meant.partition("=")
    value = implied if equals else value
    no_option = f"{key} is not an option; {reason}"
    if meant in groups_of(primary):
        return f"{no_option}write {_chosen(meant, value, primary)}"
    if meant in present or meant.startswith("hydra."):
        return f"{no_option}write {_assigned(meant, value)}"
    for known in (present, [name for options in options_by_choice(primary).values() for name in options]):
        if same := _ending_with(key, known) or _ending_with(meant, known):
            names = " or ".join(_assigned(name, value) for name in same)
            owners = [] if known is present or len(same) > 1 else owners_of(same[0], chosen, primary)
            return f"{no_option}write {names}{f', which belongs to {_listed(owners)}' if owners else ''}"
    close = did_you_mean(key, present) or _same_last_part(last, present)
    others = [command for command in commands_with(key) if command != COMMANDS[primary]]
    if others and not close:
        return f"{key} is not an option of {COMMANDS[primary]}; it belongs to python -m {_listed(others)}"
    return f"{no_option}{close}--help lists all options"


def unknown_choice(group: str, name: str, primary: str) -> str:
    """Return the message about a choice that a group does not have."""
    if renamed := RENAMED_CHOICES.get(f"{group}={name}"):
        return f"{group}={name} was renamed; write {renamed}"
    if group in REUSED and "/" in name:
        return f"{group}={name} is a metric, whose option was renamed; write {_assigned(REUSED[group], name)}"
    available = choices_of(group)
    others = [other for other in groups_of(primary) if other != group and name in choices_of(other)]
    if others:
        named, is_one = (f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in (group, others[0]))
        return f"{group}={name} must name {named}, and {name} is {is_one}; write {others[0]}={name}"
    if len(available) == 1:  # the group only holds options
        (only,) = available
        return value_of_section(group, name, OmegaConf.create(load(CONF / group / f"{only}.yaml")))
    longer = [choice for choice in available if len(name) >= SHORTEST and choice.startswith(name)]
    meant = f"did you mean {longer[0]!r}? " if len(longer) == 1 else did_you_mean(name, available)
    return f"{group}={name} is not available; {meant}choose one of {', '.join(available)}"


def value_of_section(key: str, value: object, node: DictConfig) -> str:
    """Return the message about a value given to a section, which holds options of its own."""
    names = [f"{key}.{name}" for name in map(str, node) if not name.startswith("_")]
    reason = f"; {REASONS[key]}" if key in REASONS else ""
    return f"{key}={value} cannot be set, because {key} holds several options: {', '.join(names)}{reason}"


def unquoted_schedule(key: str, value: object) -> str:
    """Return the message about a schedule without braces, as a shell passes it on if they are not quoted."""
    return f"{key}={value} must be a number; a schedule needs braces and quotes: '{key}={{{value},1000:1}}'"


def bare_word(word: str, primary: str) -> str:
    """Return the message about a word that is not NAME=VALUE."""
    name, colon, value = word.lstrip("-").partition(":")
    groups = [group for group in groups_of(primary) if name in choices_of(group)]
    if groups and not colon:
        return f"{word} needs the name of its option; write {groups[0]}={name}"
    if value:
        return f"{word} must be written with an equals sign; write {name}={value}"
    return f"{word} must be written NAME=VALUE, without spaces; --help lists all options"


def belongs_elsewhere(key: str, owners: Iterable[str], chosen: list[str], primary: str) -> str:
    """Return the message about an option of other choices than those on the command line."""
    groups = {owner.split("=")[0] for owner in owners}
    present = ", ".join(choice for choice in with_defaults(chosen, primary) if choice.split("=")[0] in groups)
    return f"{key} is not an option of {present or 'this config'}; it belongs to {' and '.join(sorted(set(owners)))}"


def _renamed(key: str, value: str | None, config: DictConfig, chosen: list[str], primary: str) -> str:
    """Return the message about the earlier name of an option."""
    renamed = RENAMED[key]
    if has(config, renamed):
        return f"{key} was renamed; write {_assigned(renamed, value)}"
    return f"{key} was renamed to {renamed}; {unknown_option(renamed, value, config, chosen, primary)}"


def _ending_with(end: str, known: Iterable[str]) -> list[str]:
    """Return the options with the fewest parts that end in `end`, without those that `head.` repeats."""
    names = sorted({name for name in known if f".{name}".endswith(f".{end}")})
    names = [name for name in names if not name.startswith("head.")] or names
    least = min((name.count(".") for name in names), default=0)
    return [name for name in names if name.count(".") == least][:SHOWN]


def _same_last_part(last: str, present: list[str]) -> str:
    close = closest(last, [name.rpartition(".")[2] for name in present])
    return f"did you mean {' or '.join(map(repr, _ending_with(close, present)))}? " if close else ""


def _chosen(group: str, value: str | None, primary: str) -> str:
    """Return `group=value`, with the group that has this choice."""
    for owner in (group, *groups_of(primary)):
        if value in choices_of(owner):
            return f"{owner}={value}"
    return f"{group}=NAME, one of {', '.join(choices_of(group))}"


def _assigned(name: str, value: str | None) -> str:
    return f"{name}={'VALUE' if value is None else value}"


def _listed(names: list[str]) -> str:
    several = sorted(set(names))
    return " or ".join(several) if len(several) <= SHOWN else f"{', '.join(several[:SHOWN])} and others"
