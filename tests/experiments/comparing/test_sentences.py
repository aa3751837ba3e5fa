"""The first sentences of the page: what was trained, and what came out."""

import shutil

import pytest

from experiments.comparing.comparison import Comparison
from experiments.comparing.figures import FIGURES
from experiments.comparing.loading import load
from experiments.comparing.sentences import outcome, trained
from tests.experiments.made_runs import made_run

RANK1 = FIGURES[0]
OPTIONS = {
    "data._target_": "data.sets.glyphs.glyphs",
    "backbone": {"_target_": "backbones.tiny.Tiny"},
    "margin": {"_target_": "heads.margins.CosFace", "s": 16, "m": 0.2},
}


def compared(folder) -> Comparison:
    return Comparison(load([folder])[0])


def test_what_was_trained_is_in_the_words_that_a_user_types(tmp_path):
    made_run(tmp_path / "a", options=OPTIONS)
    found = compared(tmp_path)
    assert trained(found, "") == (
        "Trained on glyphs, 1,000 classes, backbone tiny, margin cosface (s=16, m=0.2), batches of 10, 100 steps."
    )
    folder = {"data.format": "folder", "data.source": "/my/photos", "data.size": 64}
    made_run(tmp_path / "of a folder" / "c", options=folder, figures={"heldout_records": 41})
    assert trained(compared(tmp_path / "of a folder"), "").startswith(
        "Trained on folder photos of 64x64 pixels, 1,000 classes, 41 images held out, "
    )
    shutil.rmtree(tmp_path / "of a folder")
    made_run(tmp_path / "b", "full", options={**OPTIONS, "margin": {"_target_": "my.Margin"}}, steps=200)
    assert "several margins" in trained(compared(tmp_path), "").replace("(", "")
    assert "several numbers of steps" in trained(compared(tmp_path), "")


@pytest.mark.parametrize(
    ("ranks", "sentence"),
    [
        (
            {"full": (0.9,), "pfc": (0.8,)},
            "Best in rank-1: full (0.9). Every group has one run, so that differences may be",
        ),
        (
            {"full": (0.9, 0.91, 0.92), "pfc": (0.5, 0.51, 0.52)},
            "Best in rank-1: full (0.91). It differs from all others",
        ),
        (
            {"full": (0.9, 0.8, 0.7), "pfc": (0.89, 0.81, 0.69), "ffc": (0.2, 0.21, 0.19)},
            "Best in rank-1: full (0.8). Not distinguishable from it: pfc. Of these, pfc needs the least time for its "
            "step, and full needs the least memory.",
        ),
        ({"full": (0.9,), "pfc": (0.9,)}, "No group is ahead in rank-1."),
    ],
)
def test_what_came_out(ranks, sentence, tmp_path):
    costs = {"full": (4.0, 100.0), "pfc": (1.0, 200.0), "ffc": (0.5, 10.0)}
    for head, values in ranks.items():
        step, memory = costs[head]
        figures = {"head/step_ms": step, "memory/head_bytes": memory}
        for seed, rank1 in enumerate(values):
            made_run(tmp_path / f"{head}{seed}", head, seed=seed, rank1=rank1, figures=figures)
    assert outcome(compared(tmp_path), "", RANK1).startswith(sentence)
