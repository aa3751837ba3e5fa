"""The command itself: files of a run, resuming, sweeps, Ctrl-C, and messages for wrong input."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from experiments.checkpoints.storage import Folder
from experiments.launching import lock
from experiments.train import train
from experiments.training.schedule import polynomial
from tests.experiments import offline
from tests.experiments.commands import ROOT, SMOKE, call, command, config, environment, metrics, stored_rows, summary

SHORT = ("data.heldout=0.05", "trainer.max_steps=4", "trainer.log_interval=2", "evaluate.interval=null")
SHORT += ("fidelity.interval=2", "fidelity.probes=8", "logger.wandb.mode=disabled")
WANTED = {
    *("head", "num_classes", "embedding_size", "world_size", "seed", "steps", "epochs", "train/loss"),
    *("version", "commit"),
    *("throughput/images_per_second", "head/step_ms", "head/active_classes", "memory/peak_bytes"),
    *("memory/head_bytes", "val/verification_accuracy", "val/tar_at_far_1e-3", "val/rank1"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """Return the folder and the output of a short run."""
    folder = tmp_path_factory.mktemp("run") / "a"
    printed = call("experiments.run", "head=pfc", "sample_rate=0.1", *SMOKE, f"hydra.run.dir={folder}")
    return folder, printed


def test_files_of_a_run(finished):
    folder, printed = finished
    found = summary(folder)
    assert set(found) >= WANTED
    assert (found["head"], found["steps"], found["world_size"]) == ("pfc", 20, 1)
    assert found["head/active_classes"] == round(0.1 * found["num_classes"])
    assert found["memory/head_bytes"] == 2 * 4 * 128 * found["num_classes"]
    assert found["throughput/images_per_second"] > 0 and found["memory/peak_bytes"] > 2**27
    assert 0 < found["val/rank1"] <= 1
    config = OmegaConf.load(folder / "config.yaml")
    assert config.head.sample_rate == 0.1 and "${" not in (folder / "config.yaml").read_text()
    assert list(metrics(folder, "train/loss")) == [5, 10, 15, 20]
    factor = polynomial(20, config.schedule.warmup, config.schedule.power)
    rates = {step: config.optimizer.lr * factor(step - 1) for step in (5, 10, 15, 20)}
    assert metrics(folder, "train/lr") == pytest.approx(rates) and found["train/lr"] > 0  # of the step itself
    assert list(metrics(folder, "val/rank1")) == [10, 20]
    assert metrics(folder, "train/loss")[20] == found["train/loss"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        lock.FILE,
        "latest",
        "step-00000010",
        "step-00000020",
    ]
    assert (folder / "checkpoints" / "latest").resolve().name == "step-00000020"
    assert "val/rank1" in printed and "throughput/images_per_second" in printed and "images/s" in printed


def test_an_offline_run_of_wandb_is_complete(finished):
    """Its file holds the resolved config, the content of metrics.csv and the summary."""
    folder, _ = finished
    found = offline.read(folder)
    assert (found["project"], found["group"], found["job_type"]) == ("headcount", "smoke", "pfc")
    assert found["exit"] == 0
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert {name: found["config"][name] for name in config} == config and config["head"]["sample_rate"] == 0.1
    for name in ("train/loss", "val/rank1", "memory/head_bytes", "throughput/images_per_second"):
        logged = {row["trainer/global_step"]: row[name] for row in found["history"] if name in row}
        assert logged == pytest.approx(metrics(folder, name), rel=1e-5)
        images = {row["trainer/global_step"]: row["train/images"] for row in found["history"] if name in row}
        assert images == {step: step * config["batch_size"] for step in logged}  # the axis of the dashboard
    kept = summary(folder)
    assert {name: found["summary"][name] for name in kept} == kept


def test_resume_in_mid_epoch_continues_bit_for_bit(finished, tmp_path):
    folder, _ = finished
    half = folder / "checkpoints" / "step-00000010"
    again = tmp_path / "b"
    call("experiments.run", "head=pfc", *SMOKE, f"resume={half}", f"hydra.run.dir={again}")
    whole, resumed = metrics(folder, "train/loss"), metrics(again, "train/loss")
    assert resumed == {step: whole[step] for step in (15, 20)}
    assert metrics(again, "val/rank1")[20] == metrics(folder, "val/rank1")[20]
    assert_same_rows(folder, again)
    assert offline.ids(again) == offline.ids(folder)  # the same run of Weights & Biases, in another folder too


def test_resume_auto_continues_in_the_same_folder(finished, tmp_path):
    folder, _ = finished
    again = tmp_path / "c"
    shutil.copytree(folder, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "step-00000020")
    call("experiments.run", "head=pfc", *SMOKE, "resume=auto", f"hydra.run.dir={again}")
    assert metrics(again, "train/loss") == metrics(folder, "train/loss")
    assert_same_rows(folder, again)
    assert offline.ids(again) == 2 * offline.ids(folder)  # two parts of one run


def test_two_trainings_do_not_mix(finished):
    folder, _ = finished
    older = folder / "checkpoints" / "step-00000010"
    for words in ([], [f"resume={older}"]):
        with pytest.raises(ValueError, match=r"already holds step-00000020 of another training; resume .* resume=auto"):
            train(config(*SMOKE, *words), folder)


def test_best_checkpoint_and_saving_by_minutes(tmp_path):
    words = [*SMOKE, "evaluate.interval=4", "trainer.max_steps=24", "checkpoint.interval=3", "checkpoint.keep=1"]
    words += ["checkpoint.best=val/rank1", "checkpoint.best_mode=min", "logger.wandb.mode=disabled"]
    assert train(config(*words), tmp_path) == 0
    measured = metrics(tmp_path, "val/rank1")
    best = min(measured, key=measured.get)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        *(lock.FILE, "best", "latest", f"step-{best:08d}", "step-00000024"),
    }
    assert Folder(tmp_path / "checkpoints").resolve_alias("best") == f"step-{best:08d}"
    (tmp_path / "b").mkdir()
    again = [*SMOKE, "trainer.max_steps=12", "checkpoint.interval=null", "checkpoint.minutes=1e-9"]
    assert train(config(*again, "checkpoint.keep=99", "logger.wandb.mode=disabled"), tmp_path / "b") == 0
    assert len(Folder(tmp_path / "b" / "checkpoints").complete()) == 12
    unknown = ["protocol=identification", "checkpoint.best=val/identification/x", "checkpoint.dir=memory://best"]
    with pytest.raises(ValueError, match=r"checkpoint\.best=val/identification/x was not measured; available: val/"):
        train(config(*words, *unknown), tmp_path)
    assert summary(tmp_path)["status"] == "finished"


def test_resuming_a_finished_run_changes_nothing(finished, tmp_path):
    folder, _ = finished
    again = tmp_path / "d"
    shutil.copytree(folder, again, symlinks=True)
    resumed = config(*SMOKE, "head=pfc", "resume=auto", "logger.wandb.mode=disabled")
    assert train(resumed, again) == 0
    assert (again / "summary.json").read_text() == (folder / "summary.json").read_text()
    assert metrics(again, "train/loss") == metrics(folder, "train/loss")


def test_a_run_killed_before_its_summary_is_completed(finished, tmp_path):
    again = tmp_path / "f"
    shutil.copytree(finished[0], again, symlinks=True)
    (again / "summary.json").unlink()
    assert train(config(*SMOKE, "resume=auto", "logger.wandb.mode=disabled"), again) == 0
    found, whole = summary(again), summary(finished[0])
    assert found["status"] == "finished" and set(found) == set(whole)
    for name in ("steps", "seed", "train/loss", "val/rank1", "train/seconds", "memory/head_bytes"):
        assert found[name] == whole[name], name


def test_a_refused_run_leaves_no_summary_of_its_own(finished, tmp_path):
    """The run in the folder was killed, and can be resumed."""
    again = tmp_path / "g"
    shutil.copytree(finished[0], again, symlinks=True)
    (again / "summary.json").unlink()
    with pytest.raises(ValueError, match="was trained with seed=0, and this run has seed=1"):
        words = ["resume=auto", "seed=1", "trainer.max_steps=30", "logger.wandb.mode=disabled"]
        train(config(*SMOKE, *words), again)
    assert not (again / "summary.json").exists()


def test_a_run_without_steps_left_is_refused(finished, tmp_path):
    """A new folder would get an empty run that counts as finished."""
    with pytest.raises(ValueError, match=r"is at step 20, and the training has 20 steps; raise trainer.max_steps"):
        train(config(*SMOKE, f"resume={finished[0]}", "logger.wandb.mode=disabled"), tmp_path)
    assert summary(tmp_path)["status"] == "failed"


def test_a_refused_run_keeps_the_run_in_its_folder(finished, tmp_path):
    again = tmp_path / "e"
    shutil.copytree(finished[0], again, symlinks=True)
    files = ("config.yaml", "summary.json", "metrics.csv")
    before = [(again / name).read_text() for name in files]
    words = ["trainer.max_steps=60", "resume=auto", "margin.m=0.3"]
    printed = call("experiments.run", *SMOKE, *words, f"hydra.run.dir={again}", status=1)
    assert "error: resume=auto was trained with margin.m=0.2" in printed and "Traceback" not in printed
    assert [(again / name).read_text() for name in files] == before
    assert not list(again.glob(".config-*"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["head=full"], r"was trained with head._target_=heads.pfc.PartialFC"),
        (["sample_rate=0.2"], r"was trained with sample_rate=0.1, and this run has sample_rate=0.2; resume"),
        (["optimizer.lr=0.5", "seed=3"], r"was trained with seed=0, optimizer.lr=.*, and this run has seed=3, "),
        (["dtype=bf16"], "was trained with dtype=fp32, and this run has dtype=bf16"),
        (["schedule=multistep"], "was trained with schedule._target_="),
        (["data.augment=false"], "was trained with data.augment=True, and this run has data.augment=False"),
    ],
)
def test_a_resumed_training_keeps_its_options(finished, overrides, words, tmp_path):
    """Most of these options would be ignored, and all would make config.yaml describe another training."""
    half = finished[0] / "checkpoints" / "step-00000010"
    with pytest.raises(ValueError, match=words):
        train(config(*SMOKE, f"resume={half}", *overrides, "logger.wandb.mode=disabled"), tmp_path)


def test_length_and_observation_of_a_resumed_run_may_change(finished, tmp_path):
    half = finished[0] / "checkpoints" / "step-00000010"
    words = [f"resume={half}", "trainer.max_steps=12", "evaluate.interval=5", "checkpoint.keep=9", "sweep_metric=x"]
    words += ["batch_size=32", "trainer.accumulate_grad_batches=2", "logger.wandb.mode=disabled"]
    assert train(config(*SMOKE, *words), tmp_path) == 0
    assert summary(tmp_path)["steps"] == 12


def assert_same_rows(one: Path, other: Path) -> None:
    rows, again = (stored_rows(folder / "checkpoints" / "step-00000020") for folder in (one, other))
    assert set(rows) == set(again) >= {"head.centers.rows", "head.centers.momentum"}
    assert all(torch.equal(rows[name], again[name]) for name in rows)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["resume=/nowhere"], "resume=/nowhere does not exist"),
        (["resume=/tmp"], "resume=/tmp holds no checkpoint"),
        (["embedding_size=64", "resume={}"], "was trained with embedding_size=128, and this run has embedding_size=64"),
        (
            ["optimizer=adamw", "resume={}"],
            r"was trained with .*optimizer\.rows\._target_=heads\.rows\.optimizers\.RowSGD",
        ),
        (["batch_size=60", "resume={}"], "batch_size=60"),
        (["head=ffc", "resume={}"], r"was trained with head\._target_=heads\.pfc\.PartialFC"),
        (
            ["data.heldout=0.1", "resume={}"],
            r"was trained with data\.heldout=0\.05, and this run has data\.heldout=0\.1",
        ),
        (["resume={cut}/step-00000013"], r"manifest\.json is damaged.*; remove it, and use resume=.*/step-00000020"),
        (["resume={cut}/step-00000017"], r"its file process-0\.bin is damaged: it has 9 of .* bytes; remove it"),
        (
            ["resume={cut}/step-00000019"],
            r"file process-0\.bin is damaged: it does not hold the bytes that were written",
        ),
        (
            ["trainer.accumulate_grad_batches=2", "resume={}"],
            "written after 10 steps and 640 samples; resume with the sizes",
        ),
        (["batch_size=32", "resume={}"], "batch_size=32 .* after 10 steps and 640 samples"),
        (["backbone=mlp", "resume={}"], r"was trained with backbone\._target_=backbones\.tiny\.Tiny"),
    ],
)
def test_invalid_resumes_are_refused(finished, overrides, words, tmp_path):
    saved = finished[0] / "checkpoints" / "step-00000010"
    shutil.copytree(saved.with_name("step-00000020"), tmp_path / "cut" / "step-00000020")
    for step, file, length in ((13, "manifest.json", 100), (17, "process-0.bin", 9), (19, "process-0.bin", None)):
        broken = tmp_path / "cut" / f"step-{step:08d}"
        shutil.copytree(saved, broken)
        content = bytearray((broken / file).read_bytes()[:length])
        content[len(content) // 2] ^= 1
        (broken / file).write_bytes(content)
    filled = [override.format(saved, cut=tmp_path / "cut") for override in overrides]
    with pytest.raises(ValueError, match=words):
        train(config(*SMOKE, *filled, "logger.wandb.mode=disabled"), tmp_path)


def run_and_resume(words: list[str], folder: Path) -> None:
    """Run in folder `a`, resume from its middle in `b`, and assert the same losses, all in this process."""
    half = folder / "a" / "checkpoints" / "step-00000010"
    for name, resume in (("a", []), ("b", [f"resume={half}"])):
        (folder / name).mkdir()
        assert train(config(*words, *resume), folder / name) == 0
    whole, again = metrics(folder / "a", "train/loss"), metrics(folder / "b", "train/loss")
    assert again == {step: loss for step, loss in whole.items() if step > 10}


def test_ffc_resumes_bit_for_bit(tmp_path):
    words = ["head=ffc", "queue_size=100", *SMOKE, "logger.wandb.mode=disabled"]
    run_and_resume(words, tmp_path)
    assert metrics(tmp_path / "a", "val/rank1")[20] == metrics(tmp_path / "b", "val/rank1")[20]
    found = summary(tmp_path / "a")
    assert set(found) >= WANTED and found["head/active_classes"] == 100 and found["head/gallery_images"] == 64


@pytest.mark.parametrize("index", ["annoy", "ivf", "exact"])
def test_forest_resumes_bit_for_bit_with_its_index(index, tmp_path):
    words = ["head=forest", "num_active=236", f"index={index}", "build=blocking", "interval=8", *SMOKE]
    words += ["logger.wandb.mode=disabled", "head.probe_interval=5", "evaluate.train_records=100"]
    run_and_resume(words, tmp_path)
    assert_same_rows(tmp_path / "a", tmp_path / "b")
    found = summary(tmp_path / "a")
    assert set(found) >= WANTED and found["head/active_classes"] == 236 and found["head/nearest_negatives"] > 0
    assert 0 < found["head/mass_covered"] <= found["head/mass_reachable"] <= 1
    assert 0 <= found["head/index_recall"] <= 1 and found["head/index_age"] == 4
    assert found["train/exact_loss"] > 0 and 0 <= found["train/top1"] <= 1


def test_forest_builds_in_the_background(tmp_path):
    words = ["head=forest", "num_active={0:300,10:236}", "interval=5", *SMOKE, "logger.wandb.mode=disabled"]
    assert train(config(*words, "trainer.max_steps=100"), tmp_path) == 0
    found = summary(tmp_path)
    assert found["head/active_classes"] == 236 and found["head/nearest_negatives"] > 0
    assert found["head/build_seconds"] > 0 and found["head/index_age"] < 100


def test_rows_on_disk_train_as_in_memory_and_resume(finished, tmp_path):
    words = ["head=pfc", "sample_rate=0.1", "store=disk", *SMOKE, "logger.wandb.mode=disabled"]
    call("experiments.run", *words, f"hydra.run.dir={tmp_path / 'a'}")
    in_memory = metrics(finished[0], "train/loss")
    assert metrics(tmp_path / "a", "train/loss") == in_memory
    assert (tmp_path / "a" / "rows" / "0-of-1" / "rows.bin").exists()
    half = tmp_path / "a" / "checkpoints" / "step-00000010"
    (tmp_path / "b").mkdir()
    again = config(*words, f"resume={half}", f"store_dir={tmp_path / 'b' / 'rows'}")
    assert train(again, tmp_path / "b") == 0
    assert metrics(tmp_path / "b", "train/loss")[20] == in_memory[20]


def test_a_sweep_prints_one_table_and_continues_after_a_failed_run(tmp_path):
    """The rates of the study come from the command line."""
    words = ["experiments.run", "-m", "experiment=sample_rate", "sample_rate=0.05,2", "seed=0,1", *SHORT]
    printed = call(*words, f"hydra.sweep.dir={tmp_path}", status=1)
    found = [summary(tmp_path / str(job)) for job in (0, 2)]  # rates within seeds
    assert [each["steps"] for each in found] == [4] * 2 and all(0 < each["fidelity/mass"] < 1 for each in found)
    table = printed[printed.index("2 runs") : printed.index("As a page")]
    assert "pfc" in table and "±" in table and "gradient cosine" in table
    assert table.count("Left out") == 2 and "sample_rate=2" in printed
    again = call("experiments.compare", tmp_path, "--output", tmp_path / "compared")
    assert again.startswith(table) and (tmp_path / "compared" / "comparison.html").exists()


def test_optuna_gets_the_metric_of_a_run(tmp_path):
    words = ["experiments.run", "-m", "experiment=tune", "hydra.sweeper.n_trials=2", *SHORT]
    call(*words, f"hydra.sweep.dir={tmp_path}")
    best = OmegaConf.load(tmp_path / "optimization_results.yaml")
    found = [summary(tmp_path / str(job))["val/rank1"] for job in range(2)]
    assert best.best_value == max(found) and set(best.best_params) == {"optimizer.lr", "margin.m"}


def test_a_study_needs_a_sweep(tmp_path):
    printed = call("experiments.run", "experiment=heads", f"hydra.run.dir={tmp_path}", status=1)
    assert "experiment=heads is a study of several runs; add -m" in printed


def test_a_terminated_sweep_starts_no_other_run(tmp_path):
    words = command("experiments.run", "-m", "seed=0,1", *SMOKE, "trainer.max_steps=5000", "evaluate.interval=null")
    words += ["checkpoint.interval=null", f"hydra.sweep.dir={tmp_path}", "logger.wandb.mode=disabled"]
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_training(process, tmp_path / "0")
    os.kill(process.pid, signal.SIGTERM)
    try:
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
    assert summary(tmp_path / "0")["status"] == "interrupted"
    assert list((tmp_path / "0" / "checkpoints").glob("step-*")) and not (tmp_path / "1").exists()


def wait_for_training(process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "metrics.csv").exists() or len(metrics(folder, "train/loss")) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)


def test_ctrl_c_writes_the_summary(tmp_path):
    words = command("experiments.run", *SMOKE, "trainer.max_steps=5000", "evaluate.interval=null")
    words += ["checkpoint.interval=null", f"hydra.run.dir={tmp_path}", "logger.wandb.mode=disabled"]
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for_training(process, tmp_path)
    config_before = (tmp_path / "config.yaml").read_bytes()
    second = call("experiments.run", *SMOKE, "seed=1", f"hydra.run.dir={tmp_path}", status=1)
    assert (
        f"error: hydra.run.dir={tmp_path} is in use: process " in second and "is training there; wait until" in second
    )
    assert (tmp_path / "config.yaml").read_bytes() == config_before and not list(tmp_path.glob(".config-*"))
    os.kill(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    found = summary(tmp_path)
    assert found["status"] == "interrupted" and 10 <= found["steps"] < 5000 and found["train/loss"] > 0
    assert (tmp_path / "checkpoints" / f"step-{found['steps']:08d}").exists()
    assert "interrupted" in printed and "Traceback" not in printed


def test_a_wrong_option_gets_a_message(tmp_path):
    """A rule that only the head knows; test_arguments.py has the rules that are known before."""
    printed = call("experiments.run", "sample_rate=0", f"hydra.run.dir={tmp_path}", status=1)
    assert "sample_rate=0 must be in (0, 1]" in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["head=ffc", "queue_size=20"], "queue_size=20 is smaller than the 32 images"),
        (["sample_rate=1.5"], "sample_rate=1.5 must be in (0, 1]"),
        (["head=full", "min_probability=2"], "min_probability=2 must be in [0, 1); 0 leaves no row out"),
        (["head=forest", "num_active=5000"], "num_active=5000 must be a number of classes up to 2803"),
        (["head=forest", "build=later"], "build='later' must be 'background' or 'blocking'"),
        (
            ["head=ffc", "evaluate.train_records=9"],
            "evaluate.train_records=9 compares records with all classes: FFC has no class centers",
        ),
        (["trainer.gradient_clip_val=0"], "trainer.gradient_clip_val=0 must be a number above 0, or null"),
        (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1 must be a number above 0, or null"),
        (["trainer.max_steps=2.5"], "trainer.max_steps=2.5 must be a whole number of at least 1"),
        (["evaluate.interval=0"], "evaluate.interval=0 must be a whole number of at least 1"),
        (["checkpoint.keep=null"], "checkpoint.keep=null must be a whole number of at least 1"),
        (["embedding_size=abc"], "embedding_size=abc must be a whole number of at least 1"),
        (["warm_start.rows=mode"], "warm_start.rows=mode must be mean, random, or the path of a .npy file"),
        (["head=forest", "head.probe_interval=1.5"], "head.probe_interval=1.5 must be a whole number, or null"),
    ],
)
def test_options_that_a_head_refuses(overrides, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        train(config(*SMOKE, *overrides, "logger.wandb.mode=disabled"), tmp_path)
