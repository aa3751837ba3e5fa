"""fp16: the loss scale never reaches the head, and no process skips a step alone."""

from pathlib import Path

import pytest
import torch

from experiments.launching.processes import Processes
from experiments.train import train
from experiments.training.module import check_advance
from experiments.training.precision import LossScale
from heads import Head, PartialFC
from tests.experiments.commands import SMOKE, config, metrics, summary
from tests.experiments.launching.test_processes import trained
from tests.workers import rank_and_world

HALF = (
    *SMOKE,
    "optimizer.lr=0.005",
    "backbone=mlp",
    "trainer.precision=16-mixed",
    "logger.wandb.mode=disabled",
    "trainer.log_interval=1",
)


def test_the_scale_multiplies_only_the_gradient_of_embeddings():
    scale = LossScale(Processes(0, 1, torch.device("cpu")))
    x = torch.randn(3, 4, requires_grad=True)
    seen = []
    embeddings = scale.apply(x)
    embeddings.register_hook(lambda gradient: seen.append(gradient))
    embeddings.sum().backward()
    assert torch.equal(seen[0], torch.ones(3, 4)) and torch.equal(x.grad, torch.full((3, 4), 2.0**16))
    assert torch.equal(embeddings, x)


def test_a_gradient_too_small_for_fp16_is_scaled_before_it_is_rounded():
    scale = LossScale(Processes(0, 1, torch.device("cpu")))
    x = torch.ones(1, 2, dtype=torch.float16, requires_grad=True)
    embeddings = scale.apply(x)
    assert embeddings.dtype == torch.float32
    (1e-9 * embeddings).sum().backward()
    assert x.grad.dtype == torch.float16 and x.grad[0, 0] == pytest.approx(1e-9 * 2**16, rel=1e-2)


def trained_with_an_overflow(words: list[str], folder: Path) -> int:
    """Train in a worker; at steps 5 and 6 the second process alone finds an infinite gradient."""
    plain, calls = LossScale.unscale, []

    def unscale(self, optimizer):
        calls.append(1)
        if len(calls) in (6, 7) and rank_and_world()[0] == 1:
            next(p for p in optimizer.param_groups[0]["params"]).grad[0] = torch.inf
        plain(self, optimizer)

    LossScale.unscale = unscale
    try:
        return trained(words, folder)
    finally:
        LossScale.unscale = plain


def test_all_processes_skip_a_step_if_one_overflows(workers, tmp_path):
    words = [*HALF, "trainer.max_steps=12", "batch_size=60"]
    assert workers(2).run(trained, words, tmp_path / "a") == [0, 0]
    assert workers(2).run(trained_with_an_overflow, words, tmp_path / "b") == [0, 0]  # and with equal backbones
    plain, skipped = (summary(tmp_path / name)["train/skipped_steps"] for name in "ab")
    assert skipped == plain + 2
    losses = [metrics(tmp_path / name, "train/loss") for name in "ab"]
    assert [losses[0][step] for step in range(1, 7)] == [losses[1][step] for step in range(1, 7)]
    assert losses[0][7] != losses[1][7]


def test_fp16_trains_like_fp32_and_resumes_bit_for_bit(tmp_path):
    for name, words in (
        ("half", []),
        ("again", [f"resume={tmp_path / 'half/checkpoints/step-00000010'}"]),
        ("single", ["trainer.precision=32-true"]),
    ):
        (tmp_path / name).mkdir()
        assert train(config(*HALF, *words), tmp_path / name) == 0
    half, again, single = (metrics(tmp_path / name, "train/loss") for name in ("half", "again", "single"))
    assert again == {step: loss for step, loss in half.items() if step > 10}
    assert half != single and list(half.values()) == pytest.approx(list(single.values()), rel=0.02)


def test_sync_batchnorm_needs_gpus(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.sync_batchnorm=true needs GPUs"):
        train(config(*SMOKE, "trainer.sync_batchnorm=true"), tmp_path)


class Former(Head):
    """A head whose advance() is that of version 0.2."""

    def advance(self) -> None:
        self.step += 1


def test_a_head_that_cannot_be_told_of_skipped_steps_is_refused():
    check_advance(PartialFC(10, 4))
    with pytest.raises(
        ValueError, match=r"Former\.advance\(\) has no argument for that; define it as advance\(self, appl"
    ):
        check_advance(Former())
