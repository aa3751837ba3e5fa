"""Files next to a checkpoint: a damaged config, a link to itself."""

import re
import sys

import pytest

from experiments import train
from experiments.checkpoints.finding import find

DAMAGED = [
    ("a: [", "config.yaml is damaged: while parsing a flow node"),
    ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
    ("a: !odd 3", "could not determine a constructor for the tag '!odd'"),
    ("a: &x [1]\nb: *x", "config.yaml is damaged: it has aliases (*x)"),
    ("7", "config.yaml is damaged: it holds no options"),
    ("- a", "config.yaml is damaged: it holds no options"),
    ("a: '${{'", "config.yaml is damaged: "),
    ("a: 1\na: 2", "found duplicate key a"),
]


@pytest.mark.parametrize("text", [text for text, _ in DAMAGED])
def test_a_damaged_config_beside_a_checkpoint(text, tmp_path):
    """The config is read only for the place of the checkpoints, and a damaged one names none."""
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"checkpoint={tmp_path} holds no checkpoint; give a run's folder or one of"):
        find(str(tmp_path), tmp_path, None, "checkpoint")


@pytest.mark.parametrize(("text", "words"), DAMAGED)
def test_a_damaged_config_of_a_training(text, words, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path)])
    monkeypatch.setattr(train, "end_with_parent", lambda: None)
    with pytest.raises(SystemExit, match=f"error: {tmp_path}: .*{re.escape(words)}"):
        train.main()


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "write python -m experiments.train RUN_FOLDER"), (["/nowhere"], "/nowhere/config.yaml: No such file")],
)
def test_a_training_without_a_folder(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *words])
    monkeypatch.setattr(train, "end_with_parent", lambda: None)
    with pytest.raises(SystemExit, match=f"error: {message}"):
        train.main()


@pytest.mark.parametrize("inside", ["latest", "latest/x", "checkpoints/latest"])
def test_a_link_to_itself_is_reported(inside, tmp_path):
    for folder in (tmp_path, tmp_path / "checkpoints"):
        folder.mkdir(exist_ok=True)
        (folder / "latest").symlink_to("latest")
    with pytest.raises(ValueError, match=r"is a link to itself; give a checkpoint|holds no checkpoint"):
        find(str(tmp_path / inside), tmp_path, None)
    with pytest.raises(ValueError, match=r"holds no checkpoint; give a run's folder"):
        find(str(tmp_path), tmp_path, None)
