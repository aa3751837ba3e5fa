"""One training in this process: every committed config starts; a user's backbone, precision, accumulation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from experiments.checkpoints.storage import Folder
from experiments.command_line.arguments import CONF
from experiments.command_line.config_files import choices_of
from experiments.models.backbone import build_backbone
from experiments.models.trained import Trained
from experiments.train import train
from experiments.training import progress
from experiments.training.assembly import assemble
from experiments.training.recorder import WARMUP_BATCHES
from experiments.training.time_limit import parse_seconds
from tests.data.fonts import installed_for_tests
from tests.data.made_sets import FORMATS, SIDE, images
from tests.experiments.commands import config, metrics, summary
from tests.experiments.protocols.files import written_for

RECIPES = ("ffc_r50", "glint360k_r100_pfc01", "ms1mv3_r50", "webface42m_r100_pfc02")
CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("bench", "hydra", "cli", "tuned")
    and path.stem not in (*RECIPES, "timm")  # timm needs torchvision, and has a test with a double of it
)


def run(folder: Path, *overrides: str) -> dict[str, float]:
    short = ["experiment=smoke", "trainer.max_steps=2", "logger.wandb.mode=disabled", "trainer.accelerator=cpu"]
    if "glyphs" in config(*overrides).data._target_:
        short.append("data.heldout=0.01")
    folder.mkdir(exist_ok=True)
    assert train(config(*short, *overrides), folder) == 0
    return summary(folder)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_committed_config_starts(choice, tmp_path, monkeypatch):
    extra = {
        "data=sphere": ["backbone=mlp"],
        **{f"index={name}": ["head=forest"] for name in ("annoy", "exact", "ivf")},
        "backbone=iresnet": ["backbone.depth=18", "batch_size=8"],
        "backbone=vit": ["backbone.size=micro"],
        "backbone=hf": ["backbone.name=convnext", "backbone.config={hidden_sizes:[8,8,8,8],depths:[1,1,1,1]}"],
        "store=disk": [f"store_dir={tmp_path / 'rows'}"],  # the default is in Hydra's folder, which does not exist here
    }
    if choice == "data=hanzi":
        installed_for_tests(tmp_path / "fonts", monkeypatch)
        extra[choice] = ["sample_rate=0.5", "batch_size=8"]
    if choice.removeprefix("data=") in FORMATS or choice == "images=default":
        write, name = FORMATS.get(choice.removeprefix("data="), FORMATS["folder"])
        source = write(tmp_path / name, images([number // 3 for number in range(120)]))
        extra[choice] = [
            f"data.source={source}",
            f"data.size={SIDE}",
            "backbone=mlp",
            "batch_size=8",
            "sample_rate=0.5",
        ]
        extra["images=default"] = ["data=folder", *extra[choice]]
    if choice in ("data=features", "backbone=none"):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((120, 128)).astype(np.float32))
        np.save(tmp_path / "x.labels.npy", np.arange(120) // 3)
        source = f"data.source={tmp_path / 'x.npy'}"
        extra[choice] = ["data=features", source, "backbone=none", "batch_size=8", "sample_rate=0.5"]
    if choice in ("protocol=lfw", "protocol=ijb"):
        extra[choice] = written_for(choice.removeprefix("protocol="), tmp_path)
    overrides = [choice, *extra.get(choice, [])]
    found = run(tmp_path, *overrides)
    assert found["status"] == "finished" and found["steps"] == 2 and found["train/loss"] > 0


def test_the_study_of_all_heads_has_each_head():
    """A head that builds in the background takes part as its reproducible variant."""
    study = OmegaConf.load(CONF / "experiment" / "heads_all.yaml").hydra.sweeper.params
    heads = choices_of("head")
    assert sorted(study.head.split(",")) == [name for name in heads if f"{name}_blocking" not in heads]


@pytest.mark.parametrize(
    ("name", "head", "depth", "batch", "epochs", "decay"),
    [
        ("ms1mv3_r50", {"s": 64, "m": 0.5, "gradient": "straight"}, 50, 1024, 20, 5e-4),
        ("glint360k_r100_pfc01", {"s": 64, "m": 0.4, "sample_rate": 0.1}, 100, 1024, 20, 1e-4),
        ("webface42m_r100_pfc02", {"s": 64, "m": 0.4, "sample_rate": 0.2}, 100, 1024, 20, 5e-4),
        ("ffc_r50", {"s": 32, "m": 0.5, "queue_size": 0.01, "gallery_momentum": 0.99}, 50, 1536, 57, 1e-4),
    ],
)
def test_recipes_of_the_field(name, head, depth, batch, epochs, decay, tmp_path):
    """The options are as published, and each recipe trains two steps on small images."""
    words = [f"experiment={name}", "data=glyphs"]
    found = config(*words)
    assert (found.backbone.depth, found.batch_size, found.trainer.max_epochs) == (depth, batch, epochs)
    assert found.optimizer.lr == 0.1 and found.optimizer.backbone.weight_decay == decay
    options = {**found, **found.margin, **found.head}
    assert {key: options[key] for key in head} == head
    assert found.embedding_size == 512 and found.trainer.precision == "16-mixed"
    short = ["trainer.max_epochs=null", "trainer.max_steps=2", "data.heldout=0.005", "batch_size=8", "num_workers=0"]
    short += ["logger.wandb.mode=disabled", "trainer.log_interval=1"]
    short += ["trainer.precision=32-true"]  # convolutions in fp16 are for GPUs
    assert train(config(*words, *short), tmp_path) == 0
    assert summary(tmp_path)["steps"] == 2 and len(metrics(tmp_path, "train/loss")) == 2


def test_a_million_classes_without_storage(tmp_path):
    found = run(tmp_path, "data=sphere", "data.num_classes=200000", "data.tail=1", "backbone=mlp", "sample_rate=0.01")
    assert found["num_classes"] == 200_000 and found["head/active_classes"] == 2000


class Users(torch.nn.Module):
    """A backbone without the argument input_shape."""

    def __init__(self, embedding_size: int, bad: bool = False):
        super().__init__()
        self.fc = torch.nn.Linear(1024, embedding_size + bad)

    def forward(self, images):
        return self.fc(images.flatten(1))


def test_a_users_own_backbone(tmp_path):
    assert run(tmp_path, "backbone._target_=tests.experiments.test_train.Users")["steps"] == 2


def test_a_backbone_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"returns \[2, 129\] .* embedding_size=128"):
        run(tmp_path, "backbone._target_=tests.experiments.test_train.Users", "+backbone.bad=true")


def test_bf16_mixed_differs_a_little(tmp_path):
    plain = run(tmp_path / "a", "trainer.precision=32-true")["train/loss"]
    mixed = run(tmp_path / "b", "trainer.precision=bf16-mixed")["train/loss"]
    assert plain != mixed and mixed == pytest.approx(plain, rel=0.05)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Trained(str(folder)).backbone_state


@pytest.mark.parametrize("head", ["full", "ffc"])
def test_a_frozen_backbone_stays_as_it_is(head, tmp_path):
    """Its weights and its batch statistics, also after an evaluation; and the rows learn."""
    words = [f"head={head}", "trainer.freeze_backbone=true", "evaluate.interval=1", "seed=3"]
    if head == "ffc":
        with pytest.raises(ValueError, match=r"nothing would learn; .*, or trainer\.freeze_backbone=false"):
            run(tmp_path / "a", *words)
        return
    run(tmp_path / "a", *words)
    torch.manual_seed(3)
    for name, tensor in build_backbone(config("seed=3"), (1, 32, 32)).state_dict().items():
        assert torch.equal(weights(tmp_path / "a")[name], tensor), name
    run(tmp_path / "b", *words, "optimizer.rows.lr=0")
    one, two = (torch.cat([rows for _, rows in Trained(str(tmp_path / name)).rows()]) for name in "ab")
    assert not torch.equal(one, two)


def test_a_compiled_backbone_gives_the_same_training(tmp_path, monkeypatch):
    """Traced without the compiler of kernels, which takes half a minute."""
    calls = []
    compile_module = torch.nn.Module.compile

    def traced(module: torch.nn.Module) -> None:
        compile_module(module, backend=lambda graph, inputs: calls.append(len(inputs)) or graph.forward)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    words = ["trainer.max_steps=4", "head=full"]
    plain, compiled = run(tmp_path / "a", *words), run(tmp_path / "b", *words, "trainer.compile=true")
    assert calls and compiled["train/loss"] == plain["train/loss"] and compiled["val/rank1"] == plain["val/rank1"]
    assert weights(tmp_path / "a").keys() == weights(tmp_path / "b").keys()


def test_compiling_for_a_cpu_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"trainer\.compile=true needs a C\+\+ compiler"):
        run(tmp_path, "trainer.compile=true")


def test_accumulation_is_one_large_batch(tmp_path):
    """2 x 32 images make the same step as 64, without batch norm and clipping."""
    common = ["backbone=mlp", "data.augment=false", "trainer.gradient_clip_val=null", "head=full", "optimizer.lr=0.01"]
    common += ["trainer.max_steps=4", "trainer.log_interval=1"]
    run(tmp_path / "a", *common, "batch_size=64")
    run(tmp_path / "b", *common, "batch_size=32", "trainer.accumulate_grad_batches=2")
    one, two = (metrics(tmp_path / name, "train/loss") for name in "ab")
    assert list(one) == [1, 2, 3, 4]
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)


def test_workers_give_the_same_training(tmp_path):
    alone = run(tmp_path / "a", "num_workers=0")["train/loss"]
    assert run(tmp_path / "b", "num_workers=1")["train/loss"] == alone


@pytest.mark.parametrize(
    ("words", "rates"),
    [
        ([], (0.1, 0.1)),
        (["optimizer.rows.lr=0.02"], (0.1, 0.02)),
        (["optimizer.backbone.lr=0", "optimizer=adagrad"], (0.0, 0.1)),
        (["optimizer.backbone.lr=0.3", "optimizer.rows.lr=0.2", "optimizer=adamw"], (0.3, 0.2)),
        (["optimizer.backbone.lr=0.3", "head=ffc"], (0.3, 0.1)),
    ],
)
def test_backbone_and_rows_may_have_rates_of_their_own(words, rates, tmp_path):
    """The schedule multiplies both learning rates."""
    found = config(
        *("data=sphere", "data.num_classes=1000", "backbone=mlp", "trainer.accelerator=cpu"),
        *("logger.wandb.mode=disabled", "schedule.power=1", "schedule.warmup=0", *words),
    )
    module, _, _ = assemble(found, tmp_path)
    optimizers, schedules = module.configure_optimizers()
    assert tuple(optimizer.param_groups[0]["lr"] for optimizer in optimizers) == rates
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        schedule.step()
    left = 1 - 1 / found.trainer.max_steps
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == pytest.approx([left * r for r in rates])


def test_an_assembled_training_gives_the_losses_of_the_command(tmp_path):
    """A notebook needs no more than `assemble` and `fit`."""
    words = ["experiment=smoke", "trainer.max_steps=2", "logger.wandb.mode=disabled", "trainer.accelerator=cpu"]
    module, callbacks, trainer = assemble(config(*words, "data.heldout=0.01"), tmp_path)
    try:
        trainer.fit(module)
    finally:
        callbacks.stop.restore_handlers()
    assert module.step == 2 and callbacks.saving.store.complete() == ["step-00000002"]
    assert callbacks.recorder.latest["train/loss"] == run(tmp_path / "command")["train/loss"]


def test_a_profile_is_written_to_the_folder_of_the_run(tmp_path):
    run(tmp_path, "+trainer.profiler=simple")
    (report,) = tmp_path.glob("*profile*.txt")
    assert "training_step" in report.read_text()


def test_epochs_set_the_steps(tmp_path):
    found = run(tmp_path, "trainer.max_steps=null", "trainer.max_epochs=0.05", "batch_size=256")
    assert found["steps"] == round(0.05 * (found["steps"] / found["epochs"])) and found["epochs"] < 0.06


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=sphere"], r"backbone=tiny needs images, but the data has vectors of shape \[128\]; use backbone=mlp"),
        (
            ["checkpoint.best=val/rank"],
            "checkpoint.best=val/rank is not measured: did you mean 'val/rank1'. the evaluation measures val/ver",
        ),
        (
            ["checkpoint.best=val/lfw/accuracy"],
            "the evaluation measures val/verification_accuracy, val/tar_at_far_1e-3",
        ),
        (["+trainer.profiler=simpel"], "trainer.profiler=simpel must be one of simple, advanced, pytorch"),
        (["+data.foo=1"], "data.sets.glyphs.glyphs: .*unexpected keyword argument 'foo'"),
        (["+head.foo=1"], "unexpected keyword argument 'foo'"),
        (["+margin.foo=1"], "heads.margins.CosFace: .*unexpected keyword argument 'foo'"),
        (["+schedule.foo=1"], "experiments.training.schedule.polynomial: .*unexpected keyword argument 'foo'"),
        (["+noise.foo=1"], "data.sets.noise.with_noise has no option foo; it takes "),
        (["+backbone.foo=1"], "backbones.tiny.Tiny has no option foo; it takes "),
        (["+optimizer.backbone.foo=1"], "torch.optim.SGD has no option foo; it takes params, lr, "),
        (["+optimizer.rows.foo=1"], "heads.rows.optimizers.RowSGD has no option foo; it takes head, lr, "),
        (["trainer.max_epochs=1"], r"trainer.max_steps=2 and trainer.max_epochs=1 cannot be combined; give one"),
        (["trainer.precision=16"], "trainer.precision=16 must be one of 32-true, bf16-mixed"),
        (["trainer.accelerator=tpu"], "trainer.accelerator=tpu"),
        (["trainer.accumulate_grad_batches=0"], "accumulate_grad_batches=0"),
        (["batch_size=1000000"], "batch_size=1000000 must be between"),
        (["schedule.warmup=2"], "schedule.warmup=2"),
        (["evaluate.far=0"], "evaluate.far=0"),
        (["evaluate.interval=0"], "evaluate.interval=0"),
        (["checkpoint.keep=0"], "checkpoint.keep=0"),
        (["trainer.log_interval=0"], "trainer.log_interval=0"),
        (["optimizer.rows.lr=-1"], "optimizer.rows.lr=-1 must be a learning rate of at least 0"),
        (["logger.wandb.mode=on"], "logger.wandb.mode="),
        (["data.characters=runes"], "data.characters=runes must be one of"),
        (["embedding_size=0"], "embedding_size=0"),
        (["seed=-1"], "seed=-1"),
    ],
)
def test_bad_options_are_refused(overrides, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        run(tmp_path, *overrides)


def test_a_training_ended_by_the_clock_leaves_what_a_finished_one_leaves(tmp_path):
    words = ["trainer.max_time=1e-9", "trainer.max_steps=9", "trainer.accumulate_grad_batches=2"]
    words += ["checkpoint.interval=null", "evaluate.interval=null", "evaluate.train_records=10"]
    found = run(tmp_path, *words)
    assert found["status"] == "out of time" and found["steps"] == 1
    assert 0 <= found["val/rank1"] <= 1 and found["train/exact_loss"] > 0
    assert list(metrics(tmp_path, "train/loss")) == [1]
    assert Folder(tmp_path / "checkpoints").complete() == ["step-00000001"]
    again = run(tmp_path, *words, "trainer.max_time=null", "resume=auto")
    assert again["status"] == "finished" and again["steps"] == 9


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("00:10:00", 600), ("01:00:00:01", 86401), ("100:00:00", 360_000), ("1:02:03", 3723), (90, 90), (None, None)],
)
def test_limits_of_time(given, seconds):
    assert parse_seconds(given) == seconds
    assert parse_seconds(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create({"a": given}))).a) == seconds
    assert parse_seconds(config(f"trainer.max_time={'null' if given is None else given}").trainer.max_time) == seconds


@pytest.mark.parametrize("given", ["10:00", "ten", 0, -1, True, "00:00:00", "1:2:3", float("inf")])
def test_invalid_limits_of_time_are_refused(given):
    with pytest.raises(ValueError, match=r"trainer\.max_time=.* must be HH:MM:SS"):
        parse_seconds(given)


@pytest.mark.parametrize(("seconds", "lines"), [(10**9, [2, 4, 6, 8]), (0, [1, 2, 3, 4, 5, 6, 7, 8])])
def test_without_a_terminal_lines_are_printed_by_steps_and_by_the_clock(seconds, lines, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", seconds)
    monkeypatch.setattr(progress, "LINES", 4)
    run(tmp_path, "trainer.max_steps=8")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [int(line.split()[1].split("/")[0]) for line in printed] == lines
    assert not any(" 0 images/s" in line for line in printed)  # the speed is not known yet
    assert ("s left" in printed[0]) == (lines[0] > WARMUP_BATCHES)
