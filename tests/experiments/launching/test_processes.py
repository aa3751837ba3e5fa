"""A run on several processes: equal to one process, resumed on equal and other numbers of processes, and ended."""

import math
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from backbones.mlp import MLP
from experiments.checkpoints.storage import Folder, step_of
from experiments.command_line.arguments import CONF
from experiments.launch import rendezvous
from experiments.launching.launch_config import number_of_processes
from experiments.launching.processes import joined
from experiments.train import train
from experiments.training.gradients import average_gradients
from tests.experiments.commands import (
    ROOT,
    call,
    command,
    config,
    environment,
    metrics,
    processes_of,
    stored_rows,
    summary,
)
from tests.workers import rank_and_world

# No BatchNorm, whose statistics are of each process's part.
SHORT = ("backbone=mlp", "data.augment=false", "data.heldout=0.05", "batch_size=60", "trainer.log_interval=1")
SHORT += ("optimizer.lr=0.05", "evaluate.interval=null", "logger.wandb.mode=disabled")
STEPS = ("trainer.max_steps=20", "checkpoint.interval=10", "checkpoint.keep=9")
HEADS = {
    "full": ["head=full"],
    "pfc": ["head=pfc"],
    "ffc": ["head=ffc", "queue_size=100"],
    "forest": ["head=forest", "index=ivf", "build=blocking", "interval=4", "head.probe_interval=5"],
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A sweep on one and on two processes, with accumulation."""
    folder = tmp_path_factory.mktemp("sweep")
    words = ["-m", "head=full", "trainer.devices=1,2", "trainer.accumulate_grad_batches=2"]
    printed = call("experiments.run", *words, *SHORT, *STEPS, "evaluate.train_records=100", f"hydra.sweep.dir={folder}")
    assert "2 runs" in printed
    return folder


def test_summaries_have_the_number_of_processes(swept):
    found = [summary(swept / str(job)) for job in range(2)]
    assert [(each["head"], each["world_size"]) for each in found] == [("full", 1), ("full", 2)]
    assert found[1]["memory/head_bytes"] < 0.51 * found[0]["memory/head_bytes"]  # of one process


def test_processes_train_like_one(swept, workers, tmp_path):
    three = ["head=full", "trainer.accumulate_grad_batches=2", *SHORT, *STEPS, "evaluate.train_records=100"]
    assert workers(3).run(trained, three, tmp_path) == [0] * 3
    one = metrics(swept / "0", "train/loss")
    assert list(one) == list(range(1, 21))
    for folder in (swept / "1", tmp_path):
        assert list(metrics(folder, "train/loss").values()) == pytest.approx(list(one.values()), rel=1e-5)
        # A share may move by some of its images: two nearest ones at almost one distance change places by rounding.
        for name, tolerance in (
            ("train/exact_loss", {"rel": 1e-3}),
            ("train/top1", {"abs": 0.03}),
            ("val/rank1", {"abs": 0.01}),
        ):
            assert summary(folder)[name] == pytest.approx(summary(swept / "0")[name], **tolerance)


def test_sampled_heads_train_alike(workers, tmp_path):
    for world_size in (1, 2):
        assert set(workers(world_size).run(trained, ["head=pfc", *SHORT, *STEPS], tmp_path / str(world_size))) == {0}
    one, two = (list(metrics(tmp_path / name, "train/loss").values()) for name in ("1", "2"))
    assert one != two and sum(two) == pytest.approx(sum(one), rel=0.1)


def trained(words: list[str], folder: Path) -> int:
    """Train in a worker as `experiments.train` does, in a process group that exists already."""
    rank, world_size = rank_and_world()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(LOCAL_WORLD_SIZE=str(world_size), GROUP_RANK="0", TORCHELASTIC_RUN_ID="test")
    folder.mkdir(exist_ok=True)
    return train(config(f"trainer.devices={world_size}", *words), folder)


@pytest.mark.parametrize(("head", "world_size"), [*((head, 2) for head in HEADS), ("full", 3)])
def test_several_processes_resume_bit_for_bit(head, world_size, workers, tmp_path):
    """The order of a sum shows in its last bits with three processes or more."""
    words = [*HEADS[head], *SHORT, *STEPS]
    assert workers(world_size).run(trained, words, tmp_path / "a") == [0] * world_size
    half = tmp_path / "a" / "checkpoints" / "step-00000010"
    assert workers(world_size).run(trained, [*words, f"resume={half}"], tmp_path / "b") == [0] * world_size
    whole, again = metrics(tmp_path / "a", "train/loss"), metrics(tmp_path / "b", "train/loss")
    assert again == {step: loss for step, loss in whole.items() if step > 10}
    both = [stored_rows(tmp_path / name / "checkpoints" / "step-00000020") for name in "ab"]
    assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())


def reduced_numbers(words: list[str], folder: Path) -> int:
    """Return in a worker how many numbers a training reduces over the processes, in tensors as large as a backbone."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        assert trained(words, folder) == 0
    sizes = [math.prod(event.input_shapes[0]) for event in profile.events() if event.name == "gloo:all_reduce"]
    return sum(size for size in sizes if size > 10_000)


@pytest.mark.parametrize("head", ["full", "ffc"])
def test_the_gradient_of_the_backbone_is_reduced_once_per_step(head, workers, tmp_path):
    short = [*HEADS[head], *SHORT, "trainer.max_steps=2", "trainer.accumulate_grad_batches=4"]
    found = workers(2).run(reduced_numbers, short, tmp_path)
    parameters = sum(p.numel() for p in MLP((1, 32, 32), 128).parameters())
    assert found == [2 * (parameters + len(list(MLP((1, 32, 32), 128).parameters())))] * 2


def averaged() -> list[list[float] | None]:
    """Return the averaged gradients of four parameters in a worker; some processes lack some of the gradients."""
    rank, _ = rank_and_world()
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters.append(torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))
    parameters[0].grad = torch.full((2,), float(rank))
    if rank == 1:
        parameters[1].grad = torch.ones(2)
    parameters[3].grad = torch.full((2,), 2.0 * rank, dtype=torch.bfloat16)
    average_gradients(parameters)
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def test_a_gradient_that_some_processes_lack_counts_as_zero(workers):
    assert workers(2).run(averaged) == [[[0.5] * 2, [0.5] * 2, None, [1.0] * 2]] * 2


@pytest.mark.parametrize("world_size", [1, 3])
def test_another_number_of_processes_resumes_with_the_same_rows(swept, world_size, workers, tmp_path):
    """The checkpoint is from two processes."""
    saved = swept / "1" / "checkpoints" / "step-00000010"
    words = ["head=full", "trainer.accumulate_grad_batches=2", f"resume={saved}", *SHORT, *STEPS]
    assert workers(world_size).run(trained, words, tmp_path) == [0] * world_size
    whole = metrics(swept / "1", "train/loss")
    again = metrics(tmp_path, "train/loss")
    assert list(again) == list(range(11, 21))
    assert list(again.values()) == pytest.approx([whole[step] for step in again], rel=1e-5)
    both = [stored_rows(folder / "checkpoints" / "step-00000020") for folder in (swept / "1", tmp_path)]
    for name, tensor in both[0].items():
        assert torch.allclose(both[1][name], tensor, rtol=1e-4, atol=1e-6) and tensor.abs().sum() > 0


def test_the_time_limit_ends_all_processes_after_the_same_step(workers, tmp_path):
    words = ["head=full", "trainer.max_time=1e-9", "trainer.accumulate_grad_batches=2", *SHORT, *STEPS]
    assert workers(2).run(trained, words, tmp_path) == [0, 0]
    found = summary(tmp_path)
    assert found["status"] == "out of time" and found["steps"] == 1 and "val/rank1" in found
    assert (tmp_path / "checkpoints" / "step-00000001").exists()


def started(folder: Path, *words: str) -> subprocess.Popen:
    """Yield a long run on two processes after its first steps."""
    long = command("experiments.run", "head=pfc", "trainer.devices=2", "trainer.max_steps=50000", *SHORT, *words)
    process = subprocess.Popen(
        [*long, f"hydra.run.dir={folder}"],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "metrics.csv").exists() or len(metrics(folder, "train/loss")) < 12:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    return process


def training_in(folder: Path) -> list[int]:
    return processes_of("experiments.train", folder)


def test_sigterm_ends_all_after_the_same_step_with_a_checkpoint(tmp_path):
    process = started(tmp_path, "checkpoint.interval=null", "trainer.accumulate_grad_batches=3")
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in printed, printed
    found = summary(tmp_path)
    assert found["status"] == "interrupted" and not training_in(tmp_path)
    assert (tmp_path / "checkpoints" / f"step-{found['steps']:08d}").exists()


def test_a_killed_process_ends_the_others_without_loss(tmp_path):
    process = started(tmp_path, "checkpoint.interval=10")
    os.kill(training_in(tmp_path)[-1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 137 and not training_in(tmp_path)
    assert re.search(rf"was ended by signal 9 \(SIGKILL\).*; the others were stopped; resume={tmp_path}", printed)
    # not where `latest` points: the kill may have struck between a checkpoint and its pointer
    step = step_of(Folder(tmp_path / "checkpoints").complete()[-1])
    words = ["head=pfc", "trainer.devices=2", *SHORT, "checkpoint.interval=10"]
    resumed = OmegaConf.load(tmp_path / "config.yaml").trainer.max_steps
    assert resumed == 50000 and step >= 10
    call("experiments.run", *words, "resume=auto", f"trainer.max_steps={step + 2}", f"hydra.run.dir={tmp_path}")
    assert max(metrics(tmp_path, "train/loss")) == step + 2


def test_a_training_does_not_outlive_its_launcher(tmp_path):
    process = started(tmp_path, "checkpoint.interval=null")
    process.kill()
    printed, _ = process.communicate()
    deadline = time.monotonic() + 60
    while training_in(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    found = summary(tmp_path)
    assert found["status"] == "interrupted", printed
    assert (tmp_path / "checkpoints" / f"step-{found['steps']:08d}").exists()


def test_processes_without_their_launcher_end_while_they_import(tmp_path):
    words = command("experiments.run", "trainer.devices=2", *SHORT, f"hydra.run.dir={tmp_path}")
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not training_in(tmp_path):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    while training_in(tmp_path) or processes_of("experiments.launching.preloaded", words[-1]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not (tmp_path / "metrics.csv").exists()


def test_a_program_ends_at_once_if_its_parent_is_gone(tmp_path):
    (tmp_path / "writes.py").write_text("import sys; print(*sys.argv[1:])")
    for parent, status, printed in ((os.getpid(), 0, "a b\n"), (1, 143, "")):
        done = subprocess.run(
            command("experiments.launching.child", parent, "writes", "a", "b"), cwd=tmp_path, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (status, printed), done.stderr


def test_a_wrong_option_is_reported_once(tmp_path):
    printed = call("experiments.run", "sample_rate=2", "trainer.devices=2", f"hydra.run.dir={tmp_path}", status=1)
    assert printed.count("sample_rate=2 must be in (0, 1]") == 1 and "Traceback" not in printed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.devices=0"], "trainer.devices=0 must be a whole number of at least 1"),
        (["trainer.devices=auto"], "trainer.devices=auto must be a whole number of at least 1"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2 needs trainer.rendezvous=HOST:PORT"),
    ],
)
def test_bad_options_are_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        number_of_processes(config(*overrides))


def test_another_number_of_started_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(ValueError, match="need 2 processes, but 3 were started"),
        joined(config("trainer.devices=2")),
    ):
        pass


def test_two_machines_meet(swept, tmp_path):
    """Both machines are this one, and run the same command."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ["head=full", "trainer.num_nodes=2", f"trainer.rendezvous=localhost:{port}", *SHORT, *STEPS]
    words += ["trainer.accumulate_grad_batches=2", f"hydra.run.dir={tmp_path}"]
    machines = [
        subprocess.Popen(command("experiments.run", *words), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [machine.wait(timeout=200) for machine in machines] == [0, 0]
    assert summary(tmp_path)["world_size"] == 2
    whole = metrics(swept / "0", "train/loss")
    assert list(metrics(tmp_path, "train/loss").values()) == pytest.approx(list(whole.values()), rel=1e-5)


TRAINS = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from experiments.train import train

train(OmegaConf.load(sys.argv[1]), Path(sys.argv[1]).parent)
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in names if "gloo" in name], names
"""


def test_no_thread_of_the_process_group_outlives_a_training(tmp_path):
    """A thread would need the interpreter during its finalization: one run in twenty ended by SIGABRT."""
    (tmp_path / "trains.py").write_text(TRAINS)
    (tmp_path / "config.yaml").write_text(
        OmegaConf.to_yaml(config("head=full", "trainer.devices=2", *SHORT, "trainer.max_steps=2"), resolve=True)
    )
    words = command("torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "trains.py")
    done = subprocess.run(
        [*words, str(tmp_path / "config.yaml")], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_machines_of_a_slurm_job_meet_at_its_first_node(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames n[3-4]" ] && echo n3 && echo n4\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ValueError, match=r"rendezvous=slurm needs a job of SLURM, but .* is not set"):
        rendezvous("slurm")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[3-4]")
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    assert rendezvous("slurm") == "n3:23456" and rendezvous("a:1") == "a:1" and rendezvous(None) == "localhost:0"


def test_a_sweep_as_jobs_of_a_cluster(tmp_path):
    """Jobs of the same package on this machine; for SLURM only the config is composed."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True)
    launcher = whole.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher") and (launcher.tasks_per_node, launcher.nodes) == (1, 1)
    words = ["-m", "hydra/launcher=submitit_local", "head=pfc", "trainer.devices=1,2", "sample_rate=0.1", *SHORT]
    printed = call("experiments.run", *words, "trainer.max_steps=4", f"hydra.sweep.dir={tmp_path}")
    assert [summary(tmp_path / job)["world_size"] for job in ("0", "1")] == [1, 2] and "2 runs" in printed
