"""Options stand once: the files of conf/, the classes that they name, and the tables in docs/ agree."""

import inspect
import re
from dataclasses import MISSING

import pytest
from hydra._internal.utils import _locate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments import option_tables
from experiments.command_line.config_files import CONF, choices_of, has
from experiments.command_line.options import MODEL_USE, TRAINING
from experiments.command_line.schema import OfLightning
from experiments.comparing.runs import flatten
from experiments.instantiate import declared_types
from experiments.option_types import checked
from heads.core.options import option_fields, signature
from tests.experiments.commands import config

GROUPS = ("head", "margin", "objective", "index", "optimizer", "data", "noise", "weighting", "backbone", "schedule")
GROUPS += ("protocol",)
# Options of heads that are known at run time only, that other groups give, or that store=disk brings in.
RUNTIME = {"margin", "objective", "class_counts", "seed", "store_dir"}
# Files that others bring in.
SHARED = ("head/forest", "centers/default", "loss/default", "store/device", "images/default")
FILES = [(group, choice) for group in GROUPS for choice in choices_of(group)]


def nodes(node):
    """Yield the sections that name a target."""
    if OmegaConf.is_dict(node) and not node._is_none():
        if "_target_" in node:
            yield node
        for name in node:
            yield from nodes(node._get_node(name))


def targets_of(group, choice):
    """Yield (target, section) of one file of conf/, with what it brings in."""
    words = ["head=forest"] if group == "index" else []
    composed = config(*words, f"{group}={choice}")
    section = composed.head if group == "index" else composed[{"weighting": "weights"}.get(group, group)]
    yield from ((_locate(node._target_), node) for node in nodes(section) if not node._target_.startswith("torch."))


def parameters_of(target):
    """Return the parameters of a class or function, those of its dataclass of options included."""
    return (signature(target) if option_fields(target) else inspect.signature(target)).parameters


@pytest.mark.parametrize(("group", "choice"), FILES)
def test_options_of_a_target_are_those_of_its_class(group, choice):
    for target, node in targets_of(group, choice):
        options = set(map(str, node)) - {"_target_", "_partial_"}
        assert options <= set(parameters_of(target)), target
        if option_fields(target) and group != "optimizer":  # rare options of optimizers are added with +
            around = set(node._get_parent()._get_parent()) if "_partial_" in node else set()  # given once for several
            assert set(option_fields(target)) - RUNTIME - around <= options, target
        for name in options & set(declared_types(target)):
            value = default_of(node, name)
            if value is not MISSING and (value is not None or "_partial_" not in node):
                checked(name, value, declared_types(target)[name])


@pytest.mark.parametrize(("group", "choice"), FILES)
def test_defaults_agree(group, choice):
    """A difference, and no other value, has a comment in the file: `# differs: why`."""
    text = "\n".join((CONF / f"{name}.yaml").read_text() for name in (f"{group}/{choice}", *SHARED))
    for target, node in targets_of(group, choice):
        for name, parameter in parameters_of(target).items():
            value = default_of(node, name)
            if name in node and MISSING not in (value, default_in(parameter)):
                differs = re.search(rf"^ *{name}: .*# (.*; )?differs: \w", text, re.MULTILINE)
                assert bool(differs) == (not same(value, parameter.default)), (target, name, value)


def default_in(parameter):
    return MISSING if parameter.default is inspect.Parameter.empty else parameter.default


def same(value, default):
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return plain == (list(default) if isinstance(default, tuple) else default)


def default_of(node, name):
    """Return a value of conf/; MISSING for what Hydra knows at run time only, and for sections."""
    try:
        value = node.get(name)
    except OmegaConfBaseException:
        return MISSING
    return MISSING if OmegaConf.is_dict(value) else value


def test_every_option_without_a_class_has_a_type():
    """The sections of a training, and of the use of a model, are covered."""
    training, use = config(), config(name="evaluate")
    for declared, composed, sections in (
        (TRAINING, training, ("trainer", "evaluate", "fidelity", "checkpoint", "warm_start", "logger")),
        (MODEL_USE, use, ("trainer",)),
    ):
        everything = flatten(OmegaConf.to_container(composed))
        names = {name for name in everything if name.startswith(tuple(f"{section}." for section in sections))}
        lightning = {f"trainer.{name}" for name in OfLightning.__annotations__}
        assert {name for name in declared if "." in name and not name.startswith("optimizer.")} - lightning == names
        for name, kind in declared.items():
            if has(composed, name.rpartition(".")[0]) and has(composed, name):
                checked(name, OmegaConf.select(composed, name), kind)


def test_tables_of_the_documentation_are_current(monkeypatch):
    """`python -m experiments.option_tables` writes them."""
    monkeypatch.setattr("sys.argv", ["option_tables", "--check"])
    option_tables.main()


def test_tables_that_are_not_current_are_reported(monkeypatch, tmp_path):
    document = tmp_path / "heads.md"
    document.write_text(f"before\n{option_tables.BEGIN}\nold\n{option_tables.END}\nafter\n")
    monkeypatch.setattr(option_tables, "DOCUMENT", document)
    monkeypatch.setattr("sys.argv", ["option_tables", "--check"])
    with pytest.raises(SystemExit, match=r"not current; run python -m experiments.option_tables"):
        option_tables.main()
    monkeypatch.setattr("sys.argv", ["option_tables"])
    option_tables.main()
    text = document.read_text()
    assert (
        text.startswith("before\n")
        and text.endswith("\nafter\n")
        and "| `sample_rate` | number or {step: number} | `0.1` |" in text
    )
