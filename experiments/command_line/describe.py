"""The text of --help: the options of a command with their comments, from the files of conf/ that define them."""

import importlib.util
import re
from dataclasses import dataclass

from .config_files import COMMANDS, CONF, choices_of, chosen_in, groups_of

LINE = re.compile(r"^(?P<indent> *)(?P<name>\w+): *(?P<value>.*?)(?: +# (?P<comment>.*))?$")
NOT_SHOWN = ("defaults", "hydra", "_target_", "_partial_")
FLAGS = """\
-m           start a sweep: one run for each combination of the values that are written a,b,c
--cfg job    print the values of all options and exit
--help       print this help; with head=forest, for example, the options of that choice"""


@dataclass(frozen=True)
class Option:
    name: str
    value: str
    comment: str


def description(arguments: list[str], primary: str) -> str:
    """Return the text of --help, for the choices on the command line."""
    assigned = dict(word.split("=", 1) for word in arguments if re.fullmatch(r"\w+=\w+", word))
    choices = chosen_in(primary) | {group: name for group, name in assigned.items() if group in groups_of(primary)}
    parts = [_introduction(primary), *_section("", "", primary, {})]
    shown: set[str] = set()
    for group, name in choices.items():
        if name in choices_of(group) and group not in shown:
            parts += _section(group, name, f"{group}/{name}", choices, shown)
        elif group not in shown:
            parts.append(f"\n{group}=NAME: {', '.join(choices_of(group))}")
    return "\n".join([*parts, "", FLAGS])


def _introduction(primary: str) -> str:
    """Return the purpose of the command, and an example."""
    command = COMMANDS[primary]
    spec = importlib.util.find_spec(command)
    assert spec is not None and spec.loader is not None
    text = spec.loader.get_source(command) or ""  # type: ignore[attr-defined]
    purpose = text.split('"""')[1].strip().split("\n\n")[0]
    example = re.search(r"python -m .*", (CONF / f"{primary}.yaml").read_text())
    assert example is not None
    return f"{purpose}\n\nusage: python -m {command} [-m] NAME=VALUE ...\nexample: {example[0]}\n"


def _section(group: str, name: str, file: str, choices: dict[str, str], shown: set[str] | None = None) -> list[str]:
    """Return the lines of a file and of the files that it brings in."""
    text = (CONF / f"{file}.yaml").read_text()
    lines = []
    if group:
        assert shown is not None
        shown.add(group)
        others = [other for other in choices_of(group) if other != name]
        lines += ["", f"{group}={name}  (or {', '.join(others)})" if others else group]
        lines += [f"  {line}" for line in re.findall(r"^# (?!@package)(.*)", text, re.MULTILINE)]
    options = _options(text, group)
    width = max((len(f"{option.name}={option.value}") for option in options), default=0)
    lines += [f"  {f'{option.name}={option.value}':{width}}  {option.comment}".rstrip() for option in options]
    for other in re.findall(r"^ +- (\w+)$", text.partition("_self_")[0], re.MULTILINE) if group else []:
        lines += _section(group, other, f"{group}/{other}", choices, shown)[2:]
    for other, default in re.findall(r"^ +- /(\w+): (\w+)", text, re.MULTILINE) if group else []:
        chosen = choices.get(other, default)
        lines += _section(other, chosen, f"{other}/{chosen}", choices, shown)
    return lines


def _options(text: str, group: str) -> list[Option]:
    """Return the options that a file of conf/ defines, without those that take their value from others."""
    package = re.search(r"^# @package (\S+)", text)
    prefix = package[1] if package else group
    above: list[tuple[int, str]] = [] if prefix in ("", "_global_") else [(-1, prefix)]
    options, hidden = [], None
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        if hidden is not None and indent > hidden:
            continue
        hidden = None
        while above and above[-1][0] >= indent:
            above.pop()
        if match["name"] in NOT_SHOWN:
            hidden = indent
        elif not match["value"]:
            above.append((indent, match["name"]))
        elif not match["value"].startswith("${"):
            options.append(
                Option(".".join([*(name for _, name in above), match["name"]]), match["value"], match["comment"] or "")
            )
    return options
