"""The files of conf/, read without Hydra."""

import pytest
from omegaconf import OmegaConf

from experiments.command_line.config_files import choices_of, defaults_of
from experiments.comparing.runs import flatten
from tests.experiments.commands import config


@pytest.mark.parametrize("head", choices_of("head"))
def test_defaults_of_a_head_are_those_that_hydra_composes(head):
    composed = flatten(OmegaConf.to_container(config(f"head={head}"), resolve=True))
    defaults = flatten(defaults_of("head", head))
    assert defaults and defaults["head._target_"].startswith("heads.")
    assert {name: composed.get(name, "missing") for name in defaults} == defaults


def test_an_unknown_choice_has_no_defaults():
    assert defaults_of("head", "mine") == {}
