"""`python -m experiments.option_tables`: write the tables of options in docs/heads.md from the dataclasses in heads/.

With `--check`, exit with status 1 if the tables are not current.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m experiments.option_tables")


import dataclasses
import re
import sys
from collections.abc import Iterator
from typing import Any, get_args

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from heads.core.options import option_fields
from heads.core.schedule import Schedule, declares_number
from heads.rows.options import CenterOptions, LossOptions

from .command_line.config_files import CONF, choices_of
from .option_types import NOUNS, SCHEDULE

DOCUMENT = CONF.parent / "docs" / "heads.md"
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"
GROUPS = {
    "head": "Heads",
    "margin": "Margins",
    "objective": "Objectives",
    "index": "Indexes",
    "optimizer": "Row optimizers",
}
INTRODUCTION = """\
`python -m experiments.option_tables` writes these tables from the classes. The defaults are those of the classes, for
your own training loop. `python -m experiments.run --help` lists the defaults of the command line. A `None` is written
`null` there."""


def tables() -> str:
    """Return the tables of all groups in Markdown."""
    of_loss, of_rows = option_fields(LossOptions), option_fields(CenterOptions)
    stored = {name: field for name, field in of_rows.items() if name not in of_loss}
    parts = [INTRODUCTION, "### Heads with class centers", "All of them have these:", table(of_loss)]
    parts += ["Those that store their rows, such as `full`, `pfc` and `forest`, have these too:", table(stored)]
    for group, title in GROUPS.items():
        parts.append(f"### {title}")
        for choice, target in classes_of(group):
            fields = option_fields(target)
            for shared in (of_loss, stored) if group == "head" else ():
                if shared.keys() <= fields.keys():
                    fields = {name: field for name, field in fields.items() if name not in shared}
            parts.append(f"`{group}={choice}`, `{target.__name__}`:")
            parts.append(table(fields, schedules=group == "margin") if fields else "No options.")
    return "\n\n".join(parts)


def classes_of(group: str) -> Iterator[tuple[str, type]]:
    """Yield each choice of a group that names a class of heads/, with the class."""
    for choice in choices_of(group):
        for name in targets(OmegaConf.load(CONF / group / f"{choice}.yaml")):
            if name.startswith("heads."):
                yield choice, get_class(name)


def targets(node: Any) -> Iterator[str]:
    """Yield the targets of a file of conf/, without those inside another target."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node._target_
            return
        for name in node:
            yield from targets(node._get_node(name))


def table(fields: dict[str, dataclasses.Field[Any]], *, schedules: bool = False) -> str:
    """Return the table of some options. With `schedules`, each number may be one."""
    lines = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        meaning = field.metadata["help"].replace("|", "\\|")
        declared = Schedule if schedules and declares_number(field.type) else field.type
        lines.append(f"| `{name}` | {kind_of(declared)} | `{field.default}` | {meaning} |")
    return "\n".join(lines)


def kind_of(declared: Any) -> str:
    """Return the type of an option in words."""
    if set(get_args(Schedule)) <= set(get_args(declared)):
        return f"number or {SCHEDULE}"
    kinds = [kind for kind in get_args(declared) or (declared,) if kind is not type(None)]
    return " or ".join(
        dict.fromkeys(NOUNS.get(kind, getattr(kind, "__name__", "")).removeprefix("a ") for kind in kinds)
    )


def main() -> None:
    document = DOCUMENT.read_text()
    current = re.sub(rf"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{tables()}\n{END}", document, flags=re.DOTALL)
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(current)
    elif current != document:
        sys.exit("error: the tables of docs/heads.md are not current; run python -m experiments.option_tables")


if __name__ == "__main__":
    main()
