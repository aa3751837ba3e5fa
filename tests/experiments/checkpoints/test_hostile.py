"""Checkpoints that try to run code, in each command that reads one. None of them may leave a trace."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import save as torch_save

from experiments.checkpoints.checkpoint import SHARED, write_tensors
from experiments.checkpoints.state import pack
from experiments.checkpoints.storage import Folder
from experiments.checkpoints.stored import Stored
from experiments.evaluate import evaluate
from experiments.export import export
from experiments.launching.processes import Processes
from experiments.models import targets
from experiments.models.trained import Trained
from experiments.train import train
from tests.experiments.commands import config

ONE = Processes(0, 1, torch.device("cpu"))
SHORT = ("experiment=smoke", "trainer.max_steps=2", "logger.wandb.mode=disabled", "data.heldout=0.01")
SHORT += ("evaluate.interval=null", "backbone=mlp", "embedding_size=16", "head=full")
JUDGED = ("protocol=closed_set", "protocol.closed_set.records=9", "protocol.closed_set.resamples=0")
COMMANDS: dict[str, Callable[[str, Path], Any]] = {
    "evaluate": lambda path, folder: evaluate(config(f"checkpoint={path}", *JUDGED, name="evaluate"), folder),
    "export": lambda path, folder: export(
        config(f"checkpoint={path}", f"target={folder}/x.pt2", "format=pt2", name="export"), folder
    ),
    "resume": lambda path, folder: train(config(*SHORT, "trainer.max_steps=3", f"resume={path}"), folder),
    "warm_start": lambda path, folder: train(config(*SHORT, f"warm_start.checkpoint={path}"), folder),
}


class Program:
    """An object whose pickle creates the folder `ran` in the working directory."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


def raw(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def with_tensors(source: Path, target: Path, **changed: torch.Tensor) -> Path:
    """Copy a checkpoint, with changed tensors and valid digests."""
    stored = Stored(str(source))
    tensors = {name: stored.read_rows(name, 0, each.size[0]) if each.size else torch.zeros(()) for name, each in
               stored.tensors.items()}  # fmt: skip
    write_tensors({**tensors, **changed}, Folder(target), source.name, ONE, stored.initial)
    return target / source.name


def with_config(source: Path, target: Path, part: str, value: Any) -> Path:
    """Copy a checkpoint, with a changed part of its config."""
    shared = Stored(str(source)).shared()
    model_config = OmegaConf.create(shared["model"]["config"])
    OmegaConf.update(model_config, part, value, force_add=True)
    shared["model"]["config"] = OmegaConf.to_yaml(model_config)
    shared["config"] = OmegaConf.to_container(model_config)
    return with_tensors(source, target, **pack(shared, SHARED))


def with_old_metadata(source: Path, target: Path, metadata: Any) -> Path:
    path = with_tensors(source, target)
    (path / "manifest.json").rename(target / "unused")
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    return path


def with_more_metadata(source: Path, target: Path) -> Path:
    """Write metadata of torch, with a program in it."""
    torch_save({"x": torch.zeros(3)}, storage_writer=FileSystemWriter(target / "torch"), no_dist=True)
    metadata = FileSystemReader(target / "torch").read_metadata()
    metadata.planner_data = Program()
    return with_old_metadata(source, target, metadata)


def beside(source: Path, target: Path) -> Path:
    """Add pickles with the old names to a good checkpoint."""
    path = with_tensors(source, target)
    for name in (".metadata", "__0_0.distcp", "lightning", "config.yaml"):
        (path / name).write_bytes(pickle.dumps(Program()))
    return path


def leading_elsewhere(source: Path, target: Path) -> Path:
    with_old_metadata(source, target / "elsewhere", Program())
    with_tensors(source, target / "run" / "checkpoints")
    (target / "run" / "config.yaml").write_text(f"checkpoint: {{dir: {target / 'elsewhere'}}}\n")
    return target / "run"


def hub(folder: Path) -> dict[str, Any]:
    (folder / "hub").mkdir(parents=True)
    (folder / "hub" / "hubconf.py").write_text("import os\nos.mkdir('ran')\ndef model(**given): pass\n")
    return {"_target_": "torch.hub.load", "repo_or_dir": f"{folder}/hub", "model": "model", "source": "local"}


MKDIR = {"_target_": "os.mkdir", "path": "ran"}
SHELL = {"args": ["mkdir", "ran"]}
CONFIGS: dict[str, Callable[[Path], tuple[str, Any]]] = {
    "torch.hub.load": lambda folder: ("backbone", hub(folder)),
    "pathlib.Path.rmdir": lambda folder: ("backbone", {"_target_": "pathlib.Path.rmdir", "_args_": ["stays"]}),
    "what a module of ours imports": lambda folder: ("backbone", {"_target_": "heads.indexes.subprocess.run", **SHELL}),
    "a command of ours": lambda folder: (
        "backbone",
        {"_target_": "experiments.run.start", "command": ["mkdir", "ran"], "environment": {}},
    ),
    "deep in a good one": lambda folder: ("backbone.hidden", [{"x": {**MKDIR}}]),
    "by an interpolation": lambda folder: ("backbone", {"_target_": "${name}", "path": "ran"}),
    "the margin": lambda folder: ("margin", MKDIR),
    "no text": lambda folder: ("backbone._target_", ["os.mkdir"]),
}
ALL, USING = set(COMMANDS), {"evaluate", "export", "resume"}
# How each is made, and which commands refuse it; the others find nothing of it where they look, and go on.
HOSTILE: dict[str, tuple[Callable[[Path, Path], Path], set[str]]] = {
    "the shared state as a pickle": (lambda s, t: with_tensors(s, t, **{SHARED: raw(pickle.dumps(Program()))}), ALL),
    "a process's own state as a pickle": (
        lambda s, t: with_tensors(s, t, **{"process-0-of-1": raw(pickle.dumps(Program()))}),
        {"resume"},
    ),
    ".metadata": (lambda s, t: with_old_metadata(s, t, Program()), ALL),
    "a good .metadata with an extra": (with_more_metadata, ALL),
    "pickles beside": (beside, set()),
    "another checkpoint.dir": (leading_elsewhere, ALL),
    **{
        f"_target_: {name}": (lambda s, t, make=make: with_config(s, t, *make(t)), USING)
        for name, make in CONFIGS.items()
    },
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    assert train(config(*SHORT), folder) == 0
    return folder / "checkpoints" / "step-00000002"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_runs_nothing(name, command, learned, tmp_path, monkeypatch):
    make, refused = HOSTILE[name]
    (tmp_path / "work" / "stays").mkdir(parents=True)
    path = make(learned, tmp_path / "theirs")
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "out").mkdir()
    if name == "_target_: by an interpolation":
        refused = ALL
    if command in refused:
        with pytest.raises(ValueError, match=str(tmp_path)):  # the rest of the message is tested below
            COMMANDS[command](str(path), tmp_path / "out")
    else:
        COMMANDS[command](str(path), tmp_path / "out")
    assert [path.name for path in Path().iterdir()] == ["stays"] and not (tmp_path / "theirs" / "ran").exists()


def test_the_program_of_these_tests_runs(tmp_path, monkeypatch):
    """The other tests rely on it."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Program()))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("the shared state as a pickle", "its state lightning is not what this program writes"),
        (".metadata", r"written by version 0\.1, whose checkpoints can hold programs"),
        (
            "another checkpoint.dir",
            "names .*/elsewhere for its checkpoints, and paths in files are not followed; give checkpoint=",
        ),
        ("_target_: torch.hub.load", r"names backbone\._target_=torch\.hub\.load, .* add trust=\[torch\.hub\.load\]"),
        (
            "_target_: deep in a good one",
            r"names backbone\.hidden\.x\._target_=os\.mkdir, which is not part of this project",
        ),
        ("_target_: by an interpolation", r"interpolation \.backbone\._target_=\$\{name\}, which no training writes"),
    ],
)
def test_refusals_state_the_reason(name, words, learned, tmp_path):
    path = HOSTILE[name][0](learned, tmp_path)
    with pytest.raises(ValueError, match=words):
        Trained(str(path)).backbone()


class Mine(torch.nn.Module):
    """A user's own backbone."""

    def __init__(self, embedding_size: int):
        super().__init__()
        self.fc = torch.nn.Linear(1024, embedding_size)

    def forward(self, images):
        return self.fc(images.flatten(1))


def test_a_users_own_backbone_is_trusted_by_name(tmp_path):
    target = f"{__name__}.Mine"
    (tmp_path / "again").mkdir()
    assert train(config(*SHORT, f"backbone._target_={target}", "~backbone.hidden"), tmp_path) == 0
    words = (f"checkpoint={tmp_path}", *JUDGED)
    with pytest.raises(
        ValueError, match=rf"backbone\._target_={target}, .*; if it is yours, .* add trust=\[{target}\]"
    ):
        evaluate(config(*words, name="evaluate"), tmp_path)
    assert evaluate(config(*words, f"trust=[{target}]", name="evaluate"), tmp_path)
    again = [f"backbone._target_={target}", "~backbone.hidden", f"warm_start.checkpoint={tmp_path}"]
    assert train(config(*SHORT, *again), tmp_path / "again") == 0  # it builds the backbone that this command names


def test_a_checkpoint_may_name_the_classes_in_conf():
    assert {
        "backbones.tiny.Tiny",
        "heads.margins.CosFace",
        "data.augment.Faces",
        "data.sets.noise.with_noise",
    } <= targets._known()
    assert not any(name.startswith(("torch", "experiments", "hydra")) for name in targets._known())
