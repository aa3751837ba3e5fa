"""Studies: equal trials, the choice of the best, final runs, results that continue, and the page drawn from them."""

import csv
import multiprocessing
import shutil
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from experiments.command_line.arguments import CONF, check, choices_of
from experiments.studies import page, plots, report, runner
from experiments.studies.results import Job, Result, Results
from experiments.studies.study import COST, IMAGES, SECONDS, TRIAL, Study, study_of
from tests.experiments.commands import ROOT, call

DOCS = ROOT / "docs"


def named(name: str) -> Study:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return study_of(compose("study", [f"tuned={name}"]).tuned, name)


def option(job: Job, name: str) -> str:
    """Return the value of an option in the words of a job."""
    return dict(word.partition("=")[::2] for word in job.words.split())[name]


def made(job: Job, rank1: float | None, **figures: float) -> Result:
    """Return a finished result of a job; one that failed without rank-1."""
    if rank1 is None:
        return Result.of(job, {})
    return Result.of(job, {"status": "finished", "version": "1", "commit": "c", "val/rank1": rank1, **figures})


@pytest.mark.parametrize("name", choices_of("tuned"))
def test_every_job_of_a_study_is_a_command_of_run(name, tmp_path):
    study = named(name)
    results = Results(tmp_path / "x.csv")
    for job in [job for job in study.jobs(results) if job.stage == TRIAL]:
        results.all.append(made(job, 0.5))
    jobs = [job for job in study.jobs(results) if job.stage in (TRIAL, IMAGES) or not study.seeds]
    tried = {option(job, "seed") for job in jobs if job.stage == TRIAL}
    final = {option(job, "seed") for job in jobs if job.stage == IMAGES}
    assert final == {str(seed) for seed in study.seeds} and not tried & final
    assert study.prediction
    for arm in study.arms:  # the last trial has one value of the arm's option; the composition is that of all
        check([job for job in jobs if job.arm == arm][-1].words.split())


def test_a_table_of_cost_has_multiples_of_the_reference(tmp_path):
    results = Results(tmp_path / "x.csv")
    for arm, step, memory, active in (("full", 200.0, 1000, 1000), ("pfc", 25.0, 1000, 100), ("none", 5.0, 0, 8)):
        figures = {"head/step_ms": step, "memory/head_bytes": memory, "head/active_classes": active}
        job = Job("x", arm, COST, 0, 10, "words")
        results.all.append(replace(made(job, 0.5), figures=figures))
    assert report.cost_table(results, "full").splitlines() == [
        "|  | active classes | step of the head | memory of the head |",
        "| --- | --- | --- | --- |",
        "| `none` | 8 | 0.025 | 0.000 |",
        "| `pfc` | 100 | 0.125 | 1.000 |",
        "| `full` | 1,000 | 1.000 | 1.000 |",
    ]


def test_arms_are_tuned_alike_and_trained_at_their_best(tmp_path):
    study, results = named("smoke"), Results(tmp_path / "x.csv")
    trials = study.jobs(results)
    assert {(job.arm, job.stage) for job in trials} == {(arm, TRIAL) for arm in ("full", "pfc", "none")}
    rates = {arm: [option(job, "optimizer.lr") for job in trials if job.arm == arm] for arm in ("full", "pfc", "none")}
    assert rates["full"] == rates["pfc"] == rates["none"] and len(set(rates["full"])) == study.trials
    assert all(job.steps == 10 and option(job, "seed") == "100" for job in trials)
    for job in trials:
        results.add(made(job, {("pfc", 0): None, ("pfc", 1): 0.1}.get((job.arm, job.number), 0.5 - 0.1 * job.number)))
    jobs = [job for job in study.jobs(results) if not results.has(job)]
    assert {(job.arm, job.stage) for job in jobs} == {(arm, stage) for arm in study.arms for stage in (COST, IMAGES)}
    final = {job.arm: job for job in jobs if job.stage == IMAGES}
    assert option(final["full"], "optimizer.lr") == rates["full"][0]
    assert option(final["pfc"], "optimizer.lr") == option(final["faster"], "optimizer.lr") == rates["pfc"][1]
    rows = [float(option(final[arm], "optimizer.rows.lr")) for arm in ("pfc", "faster")]
    assert rows[1] == pytest.approx(2 * rows[0], rel=1e-2)
    longer = replace(study, arms={"full": replace(study.arms["full"], step_factor=1.5)}).jobs(results)
    assert {(job.stage, job.steps) for job in longer} == {(TRIAL, 15), (COST, 30), (IMAGES, 60)}
    assert "optimizer.rows.lr" not in final["none"].words and "fidelity.interval=40" in final["full"].words


def test_equal_seconds_give_each_arm_the_time_of_the_reference(tmp_path):
    study, results = named("smoke"), Results(tmp_path / "x.csv")
    for job in study.jobs(results):
        results.all.append(made(job, 0.5))
    assert not [job for job in study.jobs(results) if job.stage == SECONDS]
    seconds = {"full": 2.0, "pfc": 1.0, "faster": 2.05, "none": 4.0}  # of 20 steps
    for job in study.jobs(results):
        if job.stage == COST:
            results.all.append(made(job, 0.5, **{"train/seconds": seconds[job.arm]}))
    steps = {job.arm: job.steps for job in study.jobs(results) if job.stage == SECONDS}
    assert steps == {"pfc": 80, "none": 20}  # those of `faster` are as many as at equal images, up to a twentieth
    staged = replace(study, arms=study.arms | {"pfc": replace(study.arms["pfc"], words=("stages={0:pfc,25%:full}",))})
    assert "stages={0:pfc,20:full}" in next(
        job.words for job in staged.jobs(results) if (job.arm, job.stage) == ("pfc", SECONDS)
    )


def test_an_arm_without_a_usable_trial_is_refused(tmp_path):
    study, results = named("smoke"), Results(tmp_path / "x.csv")
    for job in study.jobs(results):
        results.all.append(made(job, None))
    with pytest.raises(ValueError, match=r"arms.full: no trial has val/rank1; lower lr in conf/tuned/smoke.yaml"):
        study.jobs(results)


def test_a_study_runs_continues_and_is_drawn(tmp_path):
    words = ("experiments.study", "tuned=smoke", f"results={tmp_path}", f"folder={tmp_path / 'runs'}", "workers=1")
    printed = call(*words, "arms=[full,pfc]", "tuned.seeds=[0]")
    path = tmp_path / "smoke.csv"
    results = Results(path)
    stages = [(result.arm, result.stage) for result in results.all]
    assert {stages.count((arm, stage)) for arm in ("full", "pfc") for stage in (COST, IMAGES)} == {1}
    assert stages.count(("pfc", TRIAL)) == 2 and not report.failed(results)
    assert all(result.commit and result.version and result.value("val/rank1") for result in results.all)
    assert results.of("full", IMAGES)[0].value("fidelity/mass") == 1
    assert "smoke full trial 0: finished, val/rank1" in printed
    assert not list((tmp_path / "runs").rglob("checkpoints"))
    before = path.read_bytes()
    results.write()
    assert path.read_bytes() == before
    # The next command makes what is missing: the second seed, or nothing.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("full,images")))
    printed = call(*words, "arms=[full]", "tuned.seeds=[0]", "stages=[images]")
    assert printed.count("smoke full") == 1 and "smoke full images 0: finished" in printed
    again = Results(path)
    assert again.of("full", IMAGES)[0].figures["val/rank1"] == results.of("full", IMAGES)[0].figures["val/rank1"]
    assert "arms=['other'] must be among full, pfc, faster, none" in call(*words, "arms=[other]", status=1)


class Ended:
    """A process that was killed: the other end of its pipe is closed."""

    def __init__(self, **options):
        self.pipe, theirs = multiprocessing.Pipe()
        theirs.close()

    def end(self):
        self.pipe.close()


def test_a_killed_process_ends_the_study_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "Preloaded", Ended)
    trainer = runner.Runner(1, tmp_path / "runs")
    monkeypatch.setattr(trainer, "request", lambda job: None)
    monkeypatch.setattr(trainer.servers[0].pipe, "send", lambda request: None, raising=False)
    job = named("smoke").jobs(Results(tmp_path / "x.csv"))[0]
    with pytest.raises(ValueError, match="the process of full trial 0 was ended, perhaps for lack of memory; run the"):
        trainer.run(lambda: [job], lambda result, seconds: None)
    trainer.end()


def test_tables_judge_pairs_of_seeds(tmp_path):
    results = Results(tmp_path / "x.csv")
    study = named("smoke")
    noise = (0.0, 0.1, 0.2, 0.3, 0.4)
    for arm, ranks in {
        "full": [0.3 + each for each in noise],
        "pfc": [0.2 + each + 0.001 * (each > 0.1) for each in noise],
        "faster": [0.3 + each + 0.0001 * (each > 0.2) for each in noise],
        "none": [0.2 + each for each in noise],
    }.items():
        for seed, rank1 in enumerate(ranks):
            results.all.append(made(study.job(study.arms[arm], IMAGES, seed, 40, [], seed), rank1))
    found = report.judged(results, report.RANK1, "full", list(study.arms))
    assert found["pfc"].difference.paired and found["pfc"].beyond_noise and not found["pfc"].equivalent
    assert found["faster"].equivalent
    assert not found["none"].difference.paired and not found["none"].beyond_noise  # its batches are others
    table = report.main_table(results, "full")
    assert "| `pfc` | 0.401 ± 0.159 | -9.9 (-10.0 to -9.9) |" in table
    assert "+0.0 (-0.0 to +0.0) =" in table and "≈" in table and "memory" not in table


def test_factors_are_counted_from_the_plain_arm_too(tmp_path):
    results, study = Results(tmp_path / "x.csv"), named("hanzi_factors")
    for arm, rank1 in {"full": 0.8, "pfc": 0.7, "pfc_rows": 0.75, "small": 0.6, "small_rows": 0.62}.items():
        for seed in range(3):
            job = study.job(study.arms[arm], IMAGES, seed, 40, [], seed)
            results.all.append(made(job, rank1 + 0.01 * seed + 0.001 * (arm == "full" and seed)))
    table = report.main_table(results, "full", ("pfc", "small"))
    assert "| points from `full` | points from `pfc` or `small` |" in table
    lines = {line.split("`")[1]: line.split("|")[4].strip() for line in table.splitlines()[2:]}
    assert lines["pfc_rows"] == "+5.0 (+5.0 to +5.0)" and lines["small_rows"] == "+2.0 (+2.0 to +2.0)"
    assert lines["full"] == lines["pfc"] == lines["small"] == ""


def test_runs_at_equal_seconds_are_counted_from_the_arm_whose_time_they_had(tmp_path):
    results, study = Results(tmp_path / "x.csv"), named("smoke")
    for arm, stage, rank1 in (("full", IMAGES, 0.8), ("pfc", IMAGES, 0.7), ("full", SECONDS, 0.6)):
        for seed in range(3):
            job = study.job(study.arms[arm], stage, seed, 40, [], seed)
            results.all.append(made(job, rank1 + 0.01 * seed + 0.0001 * seed * (stage == SECONDS)))
    table = report.main_table(results, "full", timed="pfc")
    assert "| at equal seconds, from `pfc` |" in table
    (full,) = (line for line in table.splitlines() if line.startswith("| `full`"))
    assert full.split("|")[4].strip().startswith("-10.0 (")


def test_numbers_of_active_classes_are_counted_from_all_of_the_same_classes(tmp_path):
    results, study = Results(tmp_path / "x.csv"), named("sphere_number")
    for name, arm in study.arms.items():
        classes, active = int(name.partition("_c")[2]), name.partition("_")[0].removeprefix("k")
        number = float(active) if active != "full" else classes
        for seed in range(2):
            figures = {"num_classes": classes, "head/active_classes": number}
            rank1 = 0.9 - 0.01 * np.log10(classes / number) - 0.01 * seed
            results.all.append(made(study.job(arm, IMAGES, seed, 40, [], seed), rank1, **figures))
    lines = report.number_table(results).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines]
    assert [cell[0] for cell in cells] == ["10,000"] * 4 + ["30,000"] * 4 + ["100,000"] * 4
    assert cells[4:8] == [
        ["30,000", *pair] for pair in (("236", "0.0079"), ("1,000", "0.033"), ("4,000", "0.13"), ("30,000", "1"))
    ]
    assert "| -1.0 (-1.0 to -1.0) |" in next(line for line in lines if line.startswith("| 10,000 | 1,000 |"))
    assert "| -2.0 (-2.0 to -2.0) |" in next(line for line in lines if line.startswith("| 100,000 | 1,000 |"))
    plots.number(results, tmp_path / "x.png")
    assert matplotlib.image.imread(tmp_path / "x.png").std() > 0.05


def test_the_page_of_results_is_what_its_data_give(tmp_path):
    """Redraw tables and pictures from the committed files, and compare them with the committed ones."""
    docs = tmp_path / "docs"
    shutil.copytree(DOCS / "results", docs / "results", ignore=shutil.ignore_patterns("*.png"))
    shutil.copy(DOCS / "results.md", docs)
    written = page.redraw(docs)
    assert (docs / "results.md").read_text() == (DOCS / "results.md").read_text()
    pictures = [path for path in written if path.suffix == ".png"]
    assert sorted(path.name for path in pictures) == sorted(path.name for path in (DOCS / "results").glob("*.png"))
    for path in pictures:
        drawn, kept = (matplotlib.image.imread(each) for each in (path, DOCS / "results" / path.name))
        assert drawn.shape == kept.shape and np.abs(drawn - kept).max() < 0.02, path.name


def test_the_results_are_those_of_the_studies():
    """Every line of the committed data is a job that its study makes, with the words of its study."""
    for path in sorted((DOCS / "results").glob("*.csv")):
        results, study = Results(path), named(path.stem)
        wanted = {(job.arm, job.stage, job.number, job.words) for job in study.jobs(results)}
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                assert (line["arm"], line["stage"], int(line["number"]), line["words"]) in wanted
                assert (line["version"] and len(line["commit"].partition("+")[0]) == 40) or line["status"] == "failed"


def test_a_page_with_an_unknown_table_is_refused(tmp_path):
    (tmp_path / "results.md").write_text("<!-- other -->\n<!-- end -->\n")
    with pytest.raises(
        ValueError, match=r"results.md has the table 'other', which must be one of hanzi_factors, hanzi_heads,"
    ):
        page.redraw(tmp_path)
    (tmp_path / "results.md").write_text("<!-- hanzi_heads -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"hanzi_heads.csv does not exist; python -m experiments.study tuned=hanzi"):
        page.redraw(tmp_path)
