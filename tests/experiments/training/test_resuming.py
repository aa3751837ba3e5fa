"""A training resumes only with the options and the data it began with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data.records import DataSet, RecordSet
from experiments.evaluate import evaluate
from experiments.models import fingerprint
from experiments.train import train
from experiments.training import resuming
from tests.data.made_sets import images, write_folder
from tests.experiments.commands import config

SHORT = ("backbone=mlp", "head=full", "logger.wandb.mode=disabled", "evaluate.interval=null", "batch_size=4")
SHORT += ("data.size=16", "data.num_heldout=0", "trainer.log_interval=1")


class Nothing:
    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count


def data(labels: list[int], names: list[str]) -> DataSet:
    train = RecordSet(Nothing(len(labels)), np.array(labels), len(names) or max(labels) + 1)
    return DataSet(train, None, (3, 4, 4), torch.Tensor.float, lambda examples, draws: examples, names)


BEGAN = data([0, 0, 1, 1, 2, 2], ["a", "b\n", "c\udc80"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            data([0, 0, 1, 1, 2, 2], ["a", "b\n", "d"]),
            r"class 2 was 'c.*' in the training, and is 'd' .*\(1 of 3 cl",
        ),
        (data([0, 0, 1, 1, 2, 2], ["c\udc80", "a", "b\n"]), r"class 0 was 'a' .* \(3 of 3 classes"),
        (data([0, 0, 1, 1, 2, 2, 3], ["a", "b\n", "c\udc80", "d"]), "on 3 classes, and the data now have 4"),
        (data([0, 0, 1, 1, 2, 2, 2], ["a", "b\n", "c\udc80"]), "on 6 records, and the data now have 7"),
        (data([0, 0, 1, 2, 1, 2], ["a", "b\n", "c\udc80"]), "have other labels"),
        (data([0, 0, 1, 1, 2, 2], []), "have other labels or class names"),
    ],
)
def test_other_data_are_refused(changed, words):
    names = fingerprint.encode_class_names(BEGAN)
    then = fingerprint.describe_data(BEGAN, names)
    resuming.check_data(then, names, data([0, 0, 1, 1, 2, 2], ["a", "b\n", "c\udc80"]), "x")
    with pytest.raises(
        ValueError,
        match=rf"^resume=x has other data: .*{words}.*; .* warm_start\.checkpoint=, which matches classes by",
    ):
        resuming.check_data(then, names, changed, "x")


def test_the_fingerprint_reads_few_labels_and_no_image():
    class Counted:
        asked = 0

        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, indices):
            self.asked += len(indices)
            return indices % 7

    labels = Counted()
    many = RecordSet(Nothing(10**9), labels, 7)
    description = fingerprint.describe_data(DataSet(many, None, (1,), torch.Tensor.float, lambda e, d: e), b"[]")
    assert description["records"] == 10**9 and labels.asked == fingerprint.LABELS


@pytest.mark.parametrize(
    ("then", "now"),
    [("trainer.sync_batchnorm", True), ("seed", 1), ("optimizer.lr", 1.0), ("backbone.hidden", [1])],
)
def test_these_options_may_not_change(then, now):
    here = config("backbone=mlp", "resume=x")
    began = OmegaConf.to_container(here, resolve=True)
    resuming.check(began, here)
    OmegaConf.update(here, then, now)
    with pytest.raises(ValueError, match=f"^resume=x was trained with {then}=.*, and this run has {then}="):
        resuming.check(began, here)


@pytest.mark.parametrize(
    ("then", "now", "kinds"),
    [
        ("margin=cosface", "margin=adaface", ("margins.CosFace", "margins.AdaFace")),
        ("objective=uniface", "objective=bce", ("objectives.UniFace", "objectives.BCE")),
    ],
)
def test_another_margin_or_objective_does_not_resume(then, now, kinds):
    group = then.split("=")[0]
    with pytest.raises(
        ValueError, match=r" and this run has ".join(rf"{group}._target_=heads.{kind}," for kind in kinds)[:-1]
    ):
        resuming.check(OmegaConf.to_container(config(then, "resume=x"), resolve=True), config(now, "resume=x"))


@pytest.mark.parametrize(("name", "may_change"), [("sweep_metric", True), ("head_name", True), ("objective", False)])
def test_options_that_may_change_are_matched_by_exact_name(name, may_change):
    """The sweeper's metric and the name of the head do not matter. A longer name is another option."""
    for option, may in ((name, may_change), (f"{name}_2", False)):
        composed = OmegaConf.to_container(config("resume=x"), resolve=True)
        began, now = ({**composed, option: value} for value in ("a", "b"))
        if may:
            resuming.check(began, OmegaConf.create(now))
        else:
            with pytest.raises(ValueError, match=f"was trained with {option}=a, and this run has {option}=b"):
                resuming.check(began, OmegaConf.create(now))


def test_a_renamed_folder_is_another_class(tmp_path):
    """Rows are identified by number, so a resumed training would use those of other classes."""
    photos = write_folder(tmp_path / "photos", images([n // 4 for n in range(24)]))
    words = ["data=folder", f"data.source={photos}", f"data.cache_dir={tmp_path / 'cache'}", *SHORT]
    (tmp_path / "a").mkdir()
    assert train(config(*words, "trainer.max_steps=2"), tmp_path / "a") == 0
    moved = shutil.copytree(photos, tmp_path / "moved")
    again = [*words, "trainer.max_steps=3", f"resume={tmp_path / 'a'}", f"data.source={moved}"]
    (tmp_path / "b").mkdir()
    assert train(config(*again), tmp_path / "b") == 0  # the same classes in another folder
    first = sorted(path for path in Path(moved).iterdir() if path.is_dir())[0]
    first.rename(moved / "zebra")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=rf"class 0 was '{first.name}' .* \(6 of 6 classes have other names\)"):
        train(config(*again), tmp_path / "c")
    rows = f"store_dir={tmp_path / 'rows'}"
    with pytest.raises(ValueError, match=rf"class 0 was '{first.name}'"):
        train(config(*again, "store=disk", rows), tmp_path / "c")
    assert not np.fromfile(tmp_path / "rows" / "0-of-1" / "rows.bin", np.uint8).any()  # nothing was read into them
    judged = config(f"checkpoint={tmp_path / 'b'}", "protocol=closed_set", name="evaluate")
    with pytest.raises(ValueError, match=rf"^checkpoint=.* cannot use its own data: class 0 was '{first.name}'"):
        evaluate(judged, tmp_path / "c")
    (moved / "zebra").rename(first)
    assert evaluate(judged, tmp_path / "c")
