"""Trainings whose options change at given steps."""

import pytest
import torch
from omegaconf import OmegaConf

from experiments.comparing.runs import flatten, normalized
from experiments.training import resuming
from experiments.training.assembly import assemble
from tests.experiments.commands import config, metrics, stored_rows
from tests.experiments.launching.test_processes import trained
from tests.experiments.training.test_objectives import END, MIDDLE, SHORT

SCHEDULES = ("sample_rate={0:0.1,4:1}", "margin.m={0:0.05,2:0.2}", "margin.max_negative_cosine={0:null,1:0.9}")
WORDS = [*(word for word in SHORT if not word.startswith("sample_rate")), *SCHEDULES, "schedule=cosine"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_switch_from_sampled_to_exact_resumes_bit_for_bit(world_size, workers, tmp_path):
    """The checkpoint of step 3 has sampled; step 5 is the first exact one."""
    assert workers(world_size).run(trained, WORDS, tmp_path / "a") == [0] * world_size
    again = [*WORDS, f"resume={tmp_path / 'a' / MIDDLE}"]
    assert workers(world_size).run(trained, again, tmp_path / "b") == [0] * world_size
    whole, rest = (metrics(tmp_path / name, "train/loss") for name in "ab")
    assert rest == {step: loss for step, loss in whole.items() if step > 3} and len(rest) == 3
    both = [stored_rows(tmp_path / name / END) for name in "ab"]
    assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())
    momentum = [stored_rows(tmp_path / "a" / when)["head.centers.momentum"].any(1).sum() for when in (MIDDLE, END)]
    assert momentum[0] < 301 == momentum[1]
    in_force = {name: metrics(tmp_path / "a", f"head/{name}") for name in ("sample_rate", "margin_m", "active_classes")}
    assert list(in_force["sample_rate"].values()) == [0.1] * 4 + [1] * 2
    assert list(in_force["margin_m"].values()) == [0.05] * 2 + [0.2] * 4
    assert in_force["active_classes"][6] == -(-301 // world_size) > 3 * in_force["active_classes"][4]
    assert list(metrics(tmp_path / "a", "head/margin_max_negative_cosine")) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("now", ["sample_rate={0:0.1,5:1}", "sample_rate=0.1", "sample_rate={0:0.1,4:1,9:0.5}"])
def test_another_schedule_does_not_resume(now):
    began = OmegaConf.to_container(config(SCHEDULES[0], "resume=x"), resolve=True)
    resuming.check(began, config("sample_rate={0:0.1,4:1.0}", "resume=x"))
    with pytest.raises(ValueError, match=r"trained with sample_rate={0: 0\.1, 4: 1}, and this run has sample_rate="):
        resuming.check(began, config(now, "resume=x"))


def test_a_schedule_is_one_option():
    assert flatten({"head": {"rate": {0: 0.1, 5: 1}}, "tags": {}}) == {"head.rate": {0: 0.1, 5: 1}, "tags": {}}
    assert normalized({0: 1, 5: None}) == normalized({0: 1.0, 5: None}) != normalized({0: 1, 6: None})


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("sample_rate={5:0.1}", "sample_rate={5: 0.1} must have whole numbers as steps and begin at step 0"),
        ("head.log_q={0:1}", "head.log_q={0: 1} must be true or false"),
        ("margin.m={0:0.1,5:abc}", "margin m='abc' must be a number"),
        ("margin=arcface margin.gradient={0:exact}", "margin.gradient={0: 'exact'} must be text"),
    ],
)
def test_wrong_schedules_are_refused_before_anything_starts(word, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence.replace("{", r"\{")):
        assemble(config(*word.split(), "data=folder", "data.source=nowhere"), tmp_path)
