"""Comparison of finished runs: grouping, the point of the comparison, marks, files, and runs that are left out."""

import csv
import io
import json
import os
import statistics
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import compare
from experiments.comparing import runs
from experiments.comparing.comparison import Comparison
from experiments.comparing.figures import FIGURES, TIME, Figure
from experiments.comparing.loading import load
from experiments.comparing.notes import notes_on
from experiments.comparing.page import page
from tests.experiments.made_runs import BATCH, CLASSES, made_run

RANK1 = FIGURES[0]
SPEED = Figure("throughput/images_per_second", "images/s", True)


@pytest.fixture
def wide(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def printed(capsys, *paths: Path, **how) -> str:
    compare.show(list(paths), **how)
    return capsys.readouterr().out


def compared(folder: Path, *arguments) -> Comparison:
    return Comparison(load([folder])[0], *arguments)


def rates(folder: Path, figures: dict[float, tuple[float, ...]]) -> Path:
    for rate, values in figures.items():
        for seed, value in enumerate(values):
            made_run(folder / f"{rate}-{seed}", seed=seed, rank1=value, options={"sample_rate": rate})
    return folder


def test_means_over_seeds_and_marks(tmp_path, capsys, wide):
    rates(tmp_path, {0.1: (0.5, 0.51, 0.52), 0.5: (0.9, 0.92, 0.91), 0.7: (0.9, 0.88, 0.91)})
    out = printed(capsys, tmp_path)
    lines = [line for line in out.splitlines() if "pfc" in line]
    assert "0.5100 ± 0.0100 │" in lines[0]
    assert "0.9100 ± 0.0100 *" in lines[1] and "0.8967 ± 0.0153 ≈" in lines[2]
    assert "≈ not distinguishable from the best" in out
    assert out.count("sample_rate") == 1 and "seed " not in out and "at 1,000 images" in out


def test_at_equal_images_steps_and_seconds(tmp_path):
    """One run is twice as long, the other twice as fast. rank-1 rises linearly."""
    made_run(tmp_path / "fast", "full", steps=100, rank1=0.6, seconds_per_step=0.05)
    made_run(tmp_path / "long", "pfc", steps=200, rank1=0.8, seconds_per_step=0.1)
    for axis in ("images", "steps"):
        comparison = compared(tmp_path, axis)
        assert comparison.at[""] == (100 * BATCH if axis == "images" else 100)
        assert comparison.columns(RANK1) == [[pytest.approx(0.6)], [pytest.approx(0.4)]]
        assert comparison.columns(TIME) == [[pytest.approx(5.0)], [pytest.approx(10.0)]]
    comparison = compared(tmp_path, "seconds")
    assert comparison.at[""] == pytest.approx(5.0)
    assert comparison.columns(RANK1) == [[pytest.approx(0.6)], [pytest.approx(0.2)]]
    assert comparison.columns(TIME) == [[pytest.approx(5.0)], [pytest.approx(5.0)]]
    assert comparison.columns(SPEED) == [[200.0], [100.0]]


def test_at_a_chosen_point(tmp_path, capsys, wide):
    made_run(tmp_path / "long", "full", steps=200)
    made_run(tmp_path / "short", "pfc", steps=100)
    note = "Compared at 100 steps, the end of short; 1 of 2 runs are longer. --at sets another point"
    assert note in printed(capsys, tmp_path, axis="steps")
    comparison = compared(tmp_path, "steps", 150)
    assert comparison.columns(RANK1) == [[pytest.approx(0.6)], []]
    assert "Runs that ended before 150 steps: short" in printed(capsys, tmp_path, axis="steps", at=150)
    assert "Runs not evaluated by then (evaluate.interval sets when): long, short" in printed(
        capsys, tmp_path, axis="steps", at=5
    )
    for point in (-1, float("inf")):
        with pytest.raises(ValueError, match=f"--at {point} must be a number above 0"):
            compared(tmp_path, "steps", point)


def test_a_run_that_its_clock_ended_is_compared(tmp_path):
    """The run is compared at the steps that it has. A run in progress is left out."""
    made_run(tmp_path / "1", steps=50, status="out of time", options={"trainer.max_steps": 100})
    made_run(tmp_path / "2", steps=50, seed=1, status="out of time")
    with (tmp_path / "2" / "metrics.csv").open("a") as file:
        file.write("60,0,train/loss,9.0\n")
    finished, left_out = load([tmp_path])
    assert [run.folder.name for run in finished] == ["1"]
    assert [reason for _, reason in left_out] == [
        "its summary is of step 50: the run was resumed and is in progress or was killed, its last entry is of step 60 "
        "of 50"
    ]


def test_unfinished_runs_are_left_out_with_the_reason(tmp_path, capsys, wide):
    made_run(tmp_path / "9")
    made_run(tmp_path / "10", rank1=0.1, seed=1, status="failed")
    made_run(tmp_path / "11", rank1=0.1, seed=2)
    (tmp_path / "11" / "summary.json").unlink()
    made_run(tmp_path / "12", rank1=0.1, seed=3)
    (tmp_path / "12" / "summary.json").write_text('{"status": "fini')
    made_run(tmp_path / "13", rank1=0.1, seed=4)
    (tmp_path / "13" / "config.yaml").write_text("a: [")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "config.yaml").write_text("checkpoint: 9\n")
    out = printed(capsys, tmp_path)
    assert "1 runs" in out and "0.8000" in out and "0.1000" not in out and "evaluation" not in out
    reasons = [line.split("(")[1] for line in out.splitlines() if line.startswith("Left out")]
    assert reasons[:2] == [
        "failed at step 100)",
        "no summary.json: the run is in progress or was killed, its last entry is of step 100 of 100)",
    ]
    assert reasons[2].startswith("summary.json is damaged: ") and reasons[3].startswith("config.yaml is damaged: ")
    assert len(reasons) == 4


def test_many_runs_that_never_began_do_not_hide_others(tmp_path, capsys, wide):
    for number in range(20):
        run = made_run(tmp_path / str(number), seed=number, status="failed" if number == 19 else "finished")
        if number < 18:
            (run / "summary.json").unlink()
            (run / "metrics.csv").unlink()
    out = [line for line in printed(capsys, tmp_path).splitlines() if line.startswith("Left out")]
    assert len(out) == 13 and out[0].endswith("19 (failed at step 100)") and out[-1] == "Left out: 7 more"


def test_odd_folders_are_reported_and_ignored(tmp_path, capsys, wide):
    """Files of other programs, files that a kill truncated, and files that no program wrote."""
    made_run(tmp_path / "good")
    cut = made_run(tmp_path / "cut", seed=1)
    (cut / "summary.json").unlink()
    with (cut / "metrics.csv").open("a") as file:
        file.write("110,1700.0,val/rank1,\n120,0,val/ra")
    files = tmp_path / "good" / "wandb" / "run-1" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text("head:\n  value:\n    _target_: x\n")
    (tmp_path / "folder" / "config.yaml").mkdir(parents=True)
    for name, text in (("word", "9"), ("odd", 'head: "${{ x }}"\n'), ("other", "head: a\ntrainer: null\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    small = made_run(tmp_path / "small", seed=2)
    (small / "config.yaml").write_text("head:\n  _target_: x\nbatch_size: null\n")
    words = made_run(tmp_path / "words", seed=3)
    (words / "summary.json").write_text('{"status": "finished", "steps": 3, "head": "x", "val/rank1": "high"}')
    out = printed(capsys, tmp_path)
    reasons = {Path(line.split()[2]).name: line for line in out.splitlines() if line.startswith("Left out")}
    assert set(reasons) == {"cut", "odd", "small", "word", "words"} and "0.8000" in out
    assert "its last entry is of step 100" in reasons["cut"] and "batch_size must be a whole number" in reasons["small"]
    assert "it holds no options" in reasons["word"] and "val/rank1 is not a number" in reasons["words"]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        (-0.5, "-0.5"),
        ("-0.5", "-0.5"),
        ("+1e3", "+1e3"),
        ("plain", "plain"),
    ],
)
def test_no_cell_is_a_formula(value, cell, tmp_path):
    """Text that a spreadsheet would run as a formula is quoted. Negative numbers stay numbers."""
    for number, option in enumerate((value, "other")):
        made_run(tmp_path / str(number), options={"=option": option})
    text = compare._csv(compare.group_lines(compared(tmp_path)))
    row = next(line for line in csv.DictReader(io.StringIO(text)) if line["'=option"] != "other")
    assert row["'=option"] == cell


def test_folders_of_rows_do_not_separate_seeds(tmp_path):
    for seed in range(3):
        folder = tmp_path / str(seed)
        made_run(folder, seed=seed, options={"store_dir": f"{folder}/rows", "head.store_dir": f"{folder}/rows"})
    assert [len(group.runs) for group in compared(tmp_path).groups] == [3]


def test_an_option_of_the_data_makes_a_problem_though_another_agrees_with_it(tmp_path):
    for size in (64, 128):
        made_run(tmp_path / str(size), options={"embedding_size": size, "data.size": size})
    comparison = compared(tmp_path)
    assert comparison.problems == ["data.size=64", "data.size=128"] and comparison.options == ["embedding_size"]


def test_an_option_that_only_some_runs_of_a_head_have_separates_them(tmp_path):
    made_run(tmp_path / "0")
    made_run(tmp_path / "1", options={"backbone_width": 64})
    made_run(tmp_path / "2", "full", options={"min_probability": 0})
    comparison = compared(tmp_path)
    assert [group.label for group in comparison.groups] == ["full", "pfc", "pfc backbone_width=64"]


def test_heads_of_the_same_name_are_distinguished(tmp_path):
    made_run(tmp_path / "0")
    made_run(tmp_path / "1", options={"head._target_": "mine.PartialFC"})
    assert [group.head for group in compared(tmp_path).groups] == ["heads.pfc.PartialFC", "mine.PartialFC"]


def test_two_names_of_one_class_are_distinguished(tmp_path):
    """Two choices of the group `head` that build the same class."""
    made_run(tmp_path / "0", "forest", options={"build": "background"})
    made_run(tmp_path / "1", "forest", options={"build": "blocking", "head_name": "forest_blocking"})
    assert [group.head for group in compared(tmp_path).groups] == ["forest", "forest_blocking"]


def test_runs_without_a_recorded_name_are_compared_by_class(tmp_path):
    for place, head in enumerate(("pfc", "full")):
        run = made_run(tmp_path / str(place), head)
        for name, before, after in (("config.yaml", f"head_name: {head}\n", ""),
                                    ("summary.json", f'"head": "{head}"', f'"head": "{CLASSES[head]}"')):  # fmt: skip
            text = (run / name).read_text()
            assert before in text
            (run / name).write_text(text.replace(before, after))
    assert [group.head for group in compared(tmp_path).groups] == ["FullFC", "PartialFC"]


def test_an_option_named_objective_separates_runs(tmp_path):
    """The metric of the sweeper does not, and no option that merely begins as an ignored one is ignored."""
    for place, objective in enumerate(("softmax", "triplet")):
        made_run(tmp_path / str(place), options={"objective": objective, "sweep_metric": f"val/{place}"})
    assert [group.label for group in compared(tmp_path).groups] == ["pfc objective=softmax", "pfc objective=triplet"]
    assert not runs.matters("sweep_metric") and runs.matters("sweep_metric_2") and runs.matters("seeds")


def test_a_run_in_progress_is_left_out(tmp_path, capsys, wide):
    """The run was resumed in place for more steps, and its summary is older."""
    folder = made_run(tmp_path / "0")
    made_run(tmp_path / "1", seed=1)
    with (folder / "metrics.csv").open("a") as file:
        file.write("150,0,train/loss,1\n")
    out = printed(capsys, tmp_path)
    assert "its summary is of step 100: the run was resumed and is in progress or was killed" in out
    assert "its last entry is of step 150" in out


def test_options_of_a_fidelity_that_is_off_do_not_matter(tmp_path):
    made_run(tmp_path / "0", options={"fidelity.interval": None, "fidelity.probes": 8})
    made_run(tmp_path / "1", seed=1, options={"fidelity.interval": None, "fidelity.probes": 16.0})
    assert [len(group.runs) for group in compared(tmp_path).groups] == [2]


def test_similar_values_of_options_are_distinguished(tmp_path):
    for place, flip in enumerate((0.1234561, 0.1234562)):
        made_run(tmp_path / str(place), options={"optimizer.lr": flip})
    assert [len(group.runs) for group in compared(tmp_path).groups] == [1, 1]


def test_runs_without_evaluation_count_for_costs_only(tmp_path, capsys, wide):
    made_run(tmp_path / "0", seed=0)
    made_run(tmp_path / "1", seed=1, rank1=None)
    comparison = compared(tmp_path)
    assert comparison.columns(RANK1) == [[0.8]] and comparison.columns(SPEED) == [[100.0, 100.0]]
    assert "Runs without an evaluation, compared by costs only: 1" in printed(capsys, tmp_path)


def test_other_classes_are_another_problem(tmp_path, capsys, wide):
    for place, (head, classes, rank1) in enumerate(
        [("full", 1000, 0.7), ("pfc", 1000, 0.6), ("full", 5000, 0.5), ("pfc", 5000, 0.4)]
    ):
        for seed in (0, 1):
            made_run(tmp_path / f"{place}{seed}", head, num_classes=classes, rank1=rank1, seed=seed)
    comparison = compared(tmp_path)
    assert [(group.head, group.problem) for group in comparison.groups] == [
        ("full", "1,000 classes"),
        ("full", "5,000 classes"),
        ("pfc", "1,000 classes"),
        ("pfc", "5,000 classes"),
    ]
    assert [comparison.best(RANK1, problem) for problem in comparison.problems] == [0, 1]
    assert set(comparison.differences["val/rank1"]) == {(0, 2), (1, 3)}
    out = printed(capsys, tmp_path)
    assert out.count("*") == 1 + 2 and "2 problems (1,000 classes; 5,000 classes)" in out


def test_single_runs_get_no_mark(tmp_path, capsys, wide):
    made_run(tmp_path / "a", "full", rank1=0.7)
    made_run(tmp_path / "b", "pfc", rank1=0.6)
    out = printed(capsys, tmp_path)
    assert "one run of each, so that differences may be noise; best in bold" in out and "*" not in out


def test_faults_of_the_data_are_another_problem(tmp_path):
    made_run(tmp_path / "0", options={"noise.flip": 0.0, "data.tail": 0})
    made_run(tmp_path / "1", options={"noise.flip": 0.2, "data.tail": 0})
    assert compared(tmp_path).problems == ["noise.flip=0.0", "noise.flip=0.2"]


def test_runs_of_one_name_are_distinguished_by_their_folders(tmp_path, capsys, wide):
    made_run(tmp_path / "morning" / "0", seed=0, rank1=None)
    made_run(tmp_path / "evening" / "0", seed=1, rank1=None)
    assert "costs only: evening/0, morning/0" in printed(capsys, tmp_path)


def test_the_same_run_twice_is_one(tmp_path, capsys, wide):
    old, new = made_run(tmp_path / "b", rank1=0.1), made_run(tmp_path / "a", rank1=0.9)
    os.utime(old / "summary.json", (1, 1))
    out = printed(capsys, tmp_path)
    assert "0.9000" in out and "0.1000" not in out
    assert f"Left out: {old} (the same options and seed as {new}, which is newer)" in out


def test_paths_without_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no run under"):
        compare.show([tmp_path])
    with pytest.raises(ValueError, match="nothing is not a folder"):
        compare.show([tmp_path / "nothing"])


def test_one_run_has_no_best_and_no_error_bar(tmp_path, capsys, wide):
    made_run(tmp_path / "0")
    out = printed(capsys, tmp_path)
    assert (
        "0.8000" in out and "0.8000 *" not in out and "One run gives no error bar; run several seeds: all groups" in out
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_fit_the_terminal(width, tmp_path):
    rates(tmp_path, {0.1: (0.8, 0.81), 0.5: (0.85, 0.85)})
    console = Console(width=width, record=True, force_terminal=True)
    for table in compare.tables(compared(tmp_path), width):
        console.print(table)
    text = console.export_text()
    assert "0.8050 ± 0.0071" in text and "0.8500 ± 0.0000 *" in text and "1.0 ± 0.0" not in text and "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_an_option_of_one_head_makes_no_column(tmp_path):
    made_run(tmp_path / "0", options={"sample_rate": 0.1})
    made_run(tmp_path / "1", "full")
    assert compared(tmp_path).options == []


def test_a_value_of_the_users_of_an_own_option_makes_a_column(tmp_path):
    made_run(tmp_path / "0", options={"sample_rate": 0.3, "head.sample_rate": 0.3})
    made_run(tmp_path / "1", "full")
    assert compared(tmp_path).options == ["sample_rate"]
    assert [group.label for group in compared(tmp_path).groups] == ["full", "pfc sample_rate=0.3"]


def test_a_protocol_that_only_one_run_has_makes_no_other_problem(tmp_path):
    protocol = {"protocol.identification.resamples": 1000}
    made_run(tmp_path / "0", options=protocol)
    made_run(tmp_path / "1", seed=1)
    assert compared(tmp_path).problems == [""] and len(compared(tmp_path).groups) == 1
    made_run(tmp_path / "2", seed=2, options={"protocol.identification.resamples": 10})
    assert len(compared(tmp_path).problems) > 1


def test_options_at_the_defaults_of_their_heads_make_no_column(tmp_path):
    """The names of the heads say enough, unless one run has another value."""
    for head, rate in (("pfc", 0.1), ("subcenter", 1.0)):
        made_run(tmp_path / head, head, options={"sample_rate": rate, "head.sample_rate": rate})
    assert compared(tmp_path).options == []
    made_run(tmp_path / "more", "pfc", options={"sample_rate": 0.2, "head.sample_rate": 0.2})
    comparison = compared(tmp_path)
    assert comparison.options == ["sample_rate"]
    assert [group.label for group in comparison.groups] == [
        *("pfc sample_rate=0.1", "pfc sample_rate=0.2", "subcenter sample_rate=1")
    ]


def test_parts_are_shown_by_their_class(tmp_path):
    """Options at the defaults of their part make no column; classes of one name are shown with their modules."""
    softmax = {"objective._target_": "heads.objectives.CrossEntropy", "objective.label_smoothing": 0.0}
    qmargin = {"objective._target_": "heads.objectives.QMargin", "objective.alpha": 1.5}
    made_run(tmp_path / "0", options=softmax)
    made_run(tmp_path / "1", options=qmargin)
    comparison = compared(tmp_path)
    assert comparison.options == ["objective"]
    assert [group.label for group in comparison.groups] == ["pfc objective=CrossEntropy", "pfc objective=QMargin"]
    made_run(tmp_path / "2", options={**qmargin, "objective.alpha": 1.2})
    assert "pfc objective=QMargin objective.alpha=1.2" in [group.label for group in compared(tmp_path).groups]
    made_run(tmp_path / "3", options={"objective._target_": "mine.QMargin"})
    labels = [group.label for group in compared(tmp_path).groups]
    assert len(labels) == 4 and "pfc objective=mine.QMargin" in labels


def test_other_data_at_their_defaults_are_another_problem(tmp_path):
    for data in ("glyphs", "sphere"):
        made_run(tmp_path / data, options={"data._target_": f"data.sets.{data}.{data}"})
    assert len(compared(tmp_path).problems) == 2


def test_runs_are_compared_in_pairs_if_they_share_seeds_and_batches(tmp_path):
    """Compare heads that differ by 0.01 where seeds differ by 0.2; `none` has other batches, `forest` other seeds."""
    for seed in range(3):
        noise = 0.2 * seed + 0.001 * (seed == 1)
        made_run(tmp_path / f"full-{seed}", "full", seed=seed, rank1=0.3 + noise)
        made_run(tmp_path / f"pfc-{seed}", "pfc", seed=seed, rank1=0.29 + 0.2 * seed)
        made_run(
            tmp_path / f"none-{seed}", "none", seed=seed, rank1=0.29 + 0.2 * seed, options={"head.images_per_class": 4}
        )
        made_run(tmp_path / f"forest-{seed}", "forest", seed=seed + 3, rank1=0.29 + 0.2 * seed)
    comparison = compared(tmp_path)
    figure = next(figure for figure in comparison.figures if figure.name == "val/rank1")
    verdicts = {comparison.groups[i].head: verdict for i, verdict in comparison.against(figure, 0).items()}
    assert {head: verdict.difference.paired for head, verdict in verdicts.items()} == {
        "pfc": True,
        "none": False,
        "forest": False,
    }
    assert {head: verdict.beyond_noise for head, verdict in verdicts.items()} == {
        "pfc": True,
        "none": False,
        "forest": False,
    }
    assert verdicts["pfc"].difference.mean == pytest.approx(-0.0103, abs=1e-4)
    assert not verdicts["pfc"].equivalent


def test_a_head_is_judged_together_with_the_others(tmp_path, capsys, wide):
    """The difference of `pfc` from `full` has p = 0.016: a difference of two heads, and none among six."""
    made = {"full": (0.9,) * 4, "pfc": (0.89, 0.88, 0.88, 0.87)}
    made |= {f"other{number}": (0.897, 0.902, 0.898, 0.901) for number in range(4)}
    for head, values in made.items():
        place = tmp_path / ("two" if head in ("full", "pfc") else "more")
        for seed, value in enumerate(values):
            made_run(place / f"{head}-{seed}", head, seed=seed, rank1=value)
    alone, among = printed(capsys, tmp_path / "two"), printed(capsys, tmp_path)
    assert "0.8800 ± 0.0082 │" in alone and "0.8800 ± 0.0082 ≈" in among
    # The interval of the others is 0.43 points below to 0.33 points above.
    out = printed(capsys, tmp_path, within=0.5)
    assert "= within 0.5 points of the best" in out and out.count("0.8995 ± 0.0024 =") == 4
    assert printed(capsys, tmp_path, within=0.4).count("0.8995 ± 0.0024 ≈") == 4
    with pytest.raises(ValueError, match="--within 0 must be a number of points above 0"):
        compare.show([tmp_path], within=0)


def test_the_files(tmp_path, monkeypatch, capsys):
    rates(tmp_path / "runs", {0.1: (0.5, 0.51, 0.52), 0.5: (0.9, 0.92, 0.91)})
    words = ["compare", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)
    compare.main()
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["sample_rate"], line["runs"], line["seeds"]) for line in lines] == [
        ("0.1", "3", "0 1 2"),
        ("0.5", "3", "0 1 2"),
    ]
    assert float(lines[1]["val/rank1"]) == pytest.approx(0.91)
    assert float(lines[1]["val/rank1 deviation"]) == pytest.approx(statistics.stdev((0.9, 0.92, 0.91)))
    with (tmp_path / "out" / "differences.csv").open(newline="") as file:
        rows = {line["figure"]: line for line in csv.DictReader(file)}
    assert rows["val/rank1"]["beyond_noise"] == "True" and float(rows["val/rank1"]["difference"]) == pytest.approx(-0.4)
    assert rows["head/step_ms"]["beyond_noise"] == "False"
    assert rows["val/rank1"]["paired"] == "True" and rows["val/rank1"]["equivalent"] == "False"
    assert float(rows["val/rank1"]["p"]) == float(rows["val/rank1"]["p_holm"]) < 0.01  # one pair
    assert "comparison.html" in capsys.readouterr().out


def test_the_page_contains_its_data(tmp_path):
    made_run(tmp_path / "0", rank1=0.5, options={"backbone": "</script>"})
    made_run(tmp_path / "1", rank1=0.7, options={"backbone": "<b> {{data}} <!--<script>", "clip": float("inf")}, seed=3)
    made_run(tmp_path / "2", status="interrupted", seed=4)
    html = page(*compare.show([tmp_path]))
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    assert [group["label"] for group in data["groups"]] == [
        "pfc backbone=</script>",
        "pfc backbone=<b> {{data}} <!--<script> clip=inf",
    ]
    assert data["groups"][1]["values"]["val/rank1"] == {"mean": 0.7, "deviation": None}
    assert data["leftOut"][0]["reason"] == "interrupted at step 100" and data["groups"][1]["runs"][0]["seed"] == 3


def test_wrong_arguments_end_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match=r"error: .*nothing is not a folder"):
        compare.main()


def test_curves_are_means_where_all_runs_were_measured(tmp_path):
    for seed, (rank1, steps) in enumerate([(0.8, 100), (0.6, 200)]):
        made_run(tmp_path / str(seed), seed=seed, rank1=rank1, steps=steps, options={"trainer.max_steps": None})
    comparison = compared(tmp_path)
    curve = comparison.curve(comparison.groups[0], "val/rank1")
    assert curve["images"][0] == 20 * BATCH and curve["images"][-1] == 100 * BATCH
    assert curve["mean"][-1] == pytest.approx((0.8 + 0.3) / 2)
    assert curve["deviation"][-1] == pytest.approx(np.std([0.8, 0.3], ddof=1), rel=1e-5)
    assert comparison.curve(comparison.groups[0], "nothing") == {}


def test_figures_of_protocols_are_compared_too(tmp_path):
    made_run(tmp_path / "0", figures={"val/lfw/accuracy": 0.9, "val/lfw/accuracy_low": 0.8, "val/lfw/eer": 0.1})
    run = load([tmp_path])[0][0]
    with (run.folder / "metrics.csv").open("a") as file:
        file.write("100,0,val/lfw/accuracy,0.9\n")
    names = [figure.name for figure in compared(tmp_path).figures]
    assert "val/lfw/accuracy" in names and not {"val/lfw/eer", "val/lfw/accuracy_low"} & set(names)


def test_missing_times_and_nan_have_no_value(tmp_path):
    """An old run has no times, and a figure of a run is NaN."""
    folder = made_run(tmp_path / "0", figures={"head/step_ms": float("nan")})
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(line for line in lines if "seconds" not in line) + "\n7,0,val/ra")
    with pytest.raises(ValueError, match=r"--equal seconds needs train/seconds in metrics.csv, which no run has"):
        compared(tmp_path, "seconds")
    other = made_run(tmp_path / "1", "full")
    comparison = compared(tmp_path, "seconds")
    assert comparison.columns(RANK1) == [[0.8], []] and comparison.columns(TIME) == [[10.0], []]
    assert comparison.columns(FIGURES[8]) == [[5.0], []]
    assert any("without times in metrics.csv" in note for note in notes_on(comparison, {folder: "0", other: "1"}))
    json.dumps(comparison.curve(comparison.groups[1], "val/rank1"), allow_nan=False)
