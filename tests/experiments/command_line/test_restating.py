"""The words of a command line that give the config of a training."""

import shlex

import pytest
from omegaconf import DictConfig, OmegaConf

from experiments.command_line import arguments
from experiments.command_line.restating import restated, text_of
from tests.experiments.commands import config

COMMANDS = {
    "defaults": ([], []),
    "a recipe": (["experiment=ms1mv3_r50", "data.source='/a b/c'"], ["data=rec", "backbone=iresnet"]),
    "nested groups": (
        ["data=sphere", "backbone=mlp", "backbone.hidden=[16,8]", "margin=arcface", "margin.m={0:0.1,100:0.5}",
         "optimizer=adamw", "schedule=cosine", "store=disk", "store_dir=x", "dtype=bf16",
         "logger.wandb.tags=[a,'b c']"],
        ["store=disk", "optimizer=adamw", "'backbone.hidden=[16,8]'"],
    ),
    "protocols": (
        ["protocol=[lfw,identification]", "protocol.lfw.source='2024'", "data=folder", "data.source=x"],
        ["data=folder"],
    ),
    "an option that conf/ lacks": (["+backbone.mine=3"], ["+backbone.mine=3"]),
}  # fmt: skip


def resolved(*words: str) -> DictConfig:
    """Return a config as a run writes it."""
    found = config(*words)
    OmegaConf.resolve(found)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_words_give_the_config(name):
    given, expected = COMMANDS[name]
    before = resolved("head=full", *given)
    words = restated(before, ["head=full"])
    assert words is not None and set(expected) <= set(words), words
    line = shlex.split(" ".join(words))
    after = config(*line)
    for each in (before, after):
        for name in ("store_dir", "head.store_dir") if "store_dir" in each else ():  # a folder of the run
            OmegaConf.update(each, name, "rows")
    assert OmegaConf.to_container(after, resolve=True) == OmegaConf.to_container(before, resolve=True)
    if not name.startswith("an option"):
        arguments.check(line)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.backbone._target_": "os.system"},
        {"backbone": {"_target_": "mine.Backbone"}},
        {"trainer": {"a b": 1}},
        {"trainer": {"x=1 hydra.run.dir": "y"}},
        {"head.margin": {"_target_": "os.mkdir"}},
    ],
)
def test_names_that_conf_lacks_are_never_in_a_command(changes):
    """The config may be that of a checkpoint that others have made."""
    before = resolved("head=full")
    for name, value in changes.items():
        OmegaConf.update(before, name, value, force_add=True, merge=name == "trainer")
    assert restated(before, ["head=full"]) is None


def test_another_head_keeps_the_other_options():
    before = resolved("head=subcenter", "sample_rate=0.3", "head.log_q=true", "dtype=bf16", "seed=4")
    words = restated(before, ["head=pfc"], ["centers_per_class", "head.centers_per_class"])
    assert words is not None and set(words) == {
        "head=pfc",
        "sample_rate=0.3",
        "head.log_q=true",
        "dtype=bf16",
        "seed=4",
    }
    assert restated(resolved("head=pfc", "seed=4"), ["head=pfc", "seed=5"]) == ["head=pfc", "seed=5"]


@pytest.mark.parametrize(
    "value", [None, True, 3, 1e-12, "plain/x-1.npy", "16-mixed", "2024", "1e5", "null", "a b", "it's", "a\\", "s3://x",
              "x=1", "", [1, "b c", None], {0: 0.1, 100: 0.5}]
)  # fmt: skip
def test_hydra_reads_the_text_of_a_value_as_that_value(value):
    found = config(f"+x={text_of(value)}").x
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value
