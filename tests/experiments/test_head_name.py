"""The name of a head in tables and summaries: what the user typed, or else its class."""

import pytest
from omegaconf import OmegaConf

from experiments.head_name import head_name, record_head_name
from tests.experiments.commands import config


@pytest.mark.parametrize(
    ("words", "choice", "name"),
    [
        (["head=forest_blocking"], "forest_blocking", "forest_blocking"),
        (["seed=1"], "pfc", "pfc"),
        (["head._target_=mine.Band"], "pfc", "Band"),
        (["head=full", "++head._target_=mine.Band"], "full", "Band"),
    ],
)
def test_the_choice_of_the_group_is_recorded(words, choice, name):
    composed = config(*words)
    settings = OmegaConf.create({"overrides": {"task": words}, "runtime": {"choices": {"head": choice}}})
    record_head_name(composed, settings)
    assert composed.head_name == head_name(composed) == name


def test_a_config_without_a_name_gives_the_class():
    assert head_name(config("head=forest")) == "HashingForest"
