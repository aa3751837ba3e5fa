"""Warm starts: rows by class name, rows from images, and the files of arcface_torch."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from data.records import RecordSet
from data.sets.glyphs import glyphs
from experiments.checkpoints.stored import Stored
from experiments.export import export
from experiments.launching.processes import Processes
from experiments.models.backbone import build_backbone
from experiments.models.trained import StoredCenters, Trained
from experiments.train import train
from experiments.training.class_means import first_images
from heads import PartialFC
from heads.group.sharding import Shard
from tests.experiments.commands import config, stored_rows, summary
from tests.experiments.launching.test_processes import trained

# Almost no training, so that a checkpoint holds the state at the start.
STILL = ("trainer.max_steps=1", "trainer.log_interval=1", "optimizer.lr=1e-12", "schedule.warmup=0")
STILL += ("optimizer.backbone.weight_decay=0", "optimizer.rows.weight_decay=0", "logger.wandb.mode=disabled")
FEW, MORE = "data.heldout=0.2", "data.heldout=0.05"  # classes of the first are among those of the second


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    words = [FEW, "trainer.max_steps=150", "logger.wandb.mode=disabled", "evaluate.interval=null"]
    assert train(config(*words), folder) == 0
    return folder


def begun(folder: Path) -> tuple[torch.Tensor, list[str], dict[str, torch.Tensor]]:
    """Return the rows, class names and state dict of the newest checkpoint."""
    newest = folder / "checkpoints" / "latest"
    stored = Stored(str(newest.resolve()))
    shared = stored.shared()
    return (
        stored_rows(newest.resolve()).get("head.centers.rows"),
        json.loads(shared["class_names"]),
        shared["state_dict"],
    )


def is_parameter(name: str) -> bool:
    """Return whether a tensor is a parameter, not a statistic of batch norm."""
    return "running" not in name and "num_batches" not in name


def of_backbone(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("backbone."): each for name, each in state.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("world_size", [1, 2])
def test_known_classes_keep_their_rows_and_new_ones_get_their_mean_image(learned, workers, tmp_path, world_size, capfd):
    words = [MORE, *STILL, f"warm_start.checkpoint={learned}"]
    assert workers(world_size).run(trained, words, tmp_path) == [0] * world_size
    (old, old_names, old_backbone), (new, names, backbone) = begun(learned), begun(tmp_path)
    known = {name: place for place, name in enumerate(old_names)}
    kept = [place for place, name in enumerate(names) if name in known]
    assert len(kept) == len(old) < len(names)
    assert torch.allclose(new[kept], old[[known[names[place]] for place in kept]], atol=1e-9)
    weights = [name for name in backbone if name.startswith("backbone.") and is_parameter(name)]
    assert all(torch.allclose(backbone[name].float(), old_backbone[name].float(), atol=1e-9) for name in weights)

    data = glyphs(heldout=0.05)
    fresh = build_backbone(config(), data.shape)
    fresh.load_state_dict(
        {n.removeprefix("backbone."): t for n, t in old_backbone.items() if n.startswith("backbone.")}
    )
    place = next(place for place, name in enumerate(names) if name not in known)
    images = np.flatnonzero(np.asarray(data.train.labels) == place)[:16]
    with torch.no_grad():
        mean = normalize(fresh.eval()(data.prepare(data.train.source.read(images)))).mean(0)
    assert torch.allclose(normalize(new[place], dim=0), normalize(mean, dim=0), atol=1e-4)
    assert float(new[place].norm()) == pytest.approx(float(old.norm(dim=1).mean()), rel=1e-4)

    by_chance = tmp_path / "random"
    assert workers(world_size).run(trained, [*words, "warm_start.rows=random"], by_chance) == [0] * world_size
    labels = np.asarray(data.train.labels)
    unknown = np.flatnonzero([names[label] not in known for label in labels])[:500]
    with torch.no_grad():
        embeddings = fresh(data.prepare(data.train.source.read(unknown)))
    right = [
        float(((embeddings @ normalize(rows).T).argmax(1).numpy() == labels[unknown]).mean())
        for rows in (new, begun(by_chance)[0])
    ]
    assert right[0] > 0.05 > 0.01 > right[1]  # images of new classes are nearest to their rows


def test_numbers_of_loaded_and_new_rows_are_printed(learned, tmp_path, capfd):
    assert train(config(MORE, *STILL, f"warm_start.checkpoint={learned}"), tmp_path) == 0
    old, new = summary(learned)["num_classes"], summary(tmp_path)["num_classes"]
    printed = capfd.readouterr().out
    assert (
        f"the rows of {old:,} classes were loaded, matched by name; new classes have {new - old:,} rows from the mean"
        in printed
    )
    assert "and 0 random rows; 0 classes are dropped" in printed
    (tmp_path / "back").mkdir()
    assert train(config(FEW, *STILL, f"warm_start.checkpoint={tmp_path}"), tmp_path / "back") == 0
    assert (
        f"rows of {old:,} classes" in (printed := capfd.readouterr().out)
        and f"{new - old:,} classes are drop" in printed
    )
    rows, again = (stored_rows(f / "checkpoints" / "latest")["head.centers.rows"] for f in (learned, tmp_path / "back"))
    assert torch.allclose(rows, again, atol=1e-9)


def test_ffc_copies_the_backbone_that_was_learned(learned, tmp_path, capfd):
    still = [word for word in STILL if not word.startswith("optimizer.rows.")]  # ffc has no such options
    words = ["head=ffc", "queue_size=100", MORE, *still, f"warm_start.checkpoint={learned}"]
    assert train(config(*words), tmp_path) == 0
    assert "there are no class centers to load" in capfd.readouterr().out
    _, _, state = begun(tmp_path)
    weights = [key for key in of_backbone(state) if is_parameter(key)]
    assert all(torch.allclose(state[f"backbone.{key}"], state[f"head.gallery.{key}"], atol=1e-9) for key in weights)


FORMATS = {
    "checkpoint_gpu_{}.pt": lambda rows: {"epoch": 1, "state_dict_softmax_fc": {"weight": rows}},
    "softmax_fc_gpu_{}.pt": lambda rows: {"weight": rows},
    "rank_{}_softmax_weight.pt": lambda rows: rows,
    "rank:{}_softmax_weight.pt": lambda rows: rows,
}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_arcface_torch_in_all_its_formats(name, learned, tmp_path):
    """Its processes hold C // W classes, and the first C % W processes one more."""
    old, _, state = begun(learned)
    backbone = of_backbone(state)
    torch.save(backbone, tmp_path / ("backbone.pth" if "rank" in name else "model.pt"))
    for rank, rows in enumerate(torch.tensor_split(old, 3)):
        torch.save(FORMATS[name](rows.clone()), tmp_path / name.format(rank))
    words = [FEW, *STILL, f"warm_start.checkpoint={tmp_path}", "warm_start.classes=id"]
    (tmp_path / "run").mkdir()
    assert train(config(*words), tmp_path / "run") == 0
    rows, _, began = begun(tmp_path / "run")
    assert torch.allclose(rows, old, atol=1e-9)
    weights = [key for key in backbone if is_parameter(key)]
    assert all(torch.allclose(of_backbone(began)[key].float(), backbone[key].float(), atol=1e-9) for key in weights)
    if not name.startswith("checkpoint"):
        backbone_file = tmp_path / ("backbone.pth" if "rank" in name else "model.pt")
        backbone_file.rename(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=r"holds no model\.pt or backbone\.pth"):
            train(config(*words), tmp_path / "run2")
    (tmp_path / name.format(1)).unlink()
    with pytest.raises(ValueError, match=re.escape("those of [1] are missing")):
        train(config(*words), tmp_path / "run2")


def test_checkpoints_that_do_not_fit_are_refused(learned, tmp_path):
    backbone = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(1)}, backbone)
    (tmp_path / "text.pt").write_text("no")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "other").mkdir()
    torch.save({"foo": torch.zeros(1)}, tmp_path / "other" / "softmax_fc_gpu_0.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other" / "backbone.pth")
    for overrides, words in (
        (["warm_start.checkpoint=/nowhere"], "warm_start.checkpoint=/nowhere does not exist"),
        ([f"warm_start.checkpoint={backbone}"], "has weights of another backbone than backbone="),
        ([f"warm_start.checkpoint={tmp_path / 'text.pt'}"], "cannot be read"),
        ([f"warm_start.checkpoint={tmp_path / 'list.pt'}"], "list.pt holds no weights of a backbone by name"),
        ([f"warm_start.checkpoint={tmp_path / 'other'}"], "softmax_fc_gpu_0.pt holds no class centers"),
        (
            [f"warm_start.checkpoint={learned}", "warm_start.classes=label"],
            "warm_start.classes=label must be one of name, id",
        ),
        ([f"warm_start.checkpoint={learned}", "warm_start.images=0"], "warm_start.images=0"),
        (
            [f"warm_start.checkpoint={learned}", "margin=softmax"],
            "has rows of 128 columns for objective=CrossEntropy, and this head's have 129; use the embedding_size, "
            "margin and objective it",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            train(config(MORE, *STILL, *overrides), tmp_path)


def test_classes_without_names_are_matched_by_number(tmp_path):
    words = ["data=sphere", "backbone=mlp", "data.num_classes=2000", *STILL]
    assert train(config(*words), tmp_path) == 0
    again = ["data=sphere", "backbone=mlp", "data.num_classes=3000", *STILL, f"warm_start.checkpoint={tmp_path}"]
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"the checkpoint has no class names; warm_start\.classes=id matches"):
        train(config(*again), tmp_path / "b")
    assert train(config(*again, "warm_start.classes=id"), tmp_path / "b") == 0
    assert torch.allclose(begun(tmp_path / "b")[0][:2000], begun(tmp_path)[0], atol=1e-9)


def test_untouched_rows_are_read_as_the_initial_rows_everywhere(tmp_path):
    """A checkpoint of store=disk holds zeros for them, which would be class centers of length 0."""
    words = ["data=sphere", "backbone=mlp", "data.num_classes=2000", "sample_rate=0.1", *STILL]
    for name, store in (("disk", ["store=disk", f"store_dir={tmp_path / 'rows'}"]), ("device", [])):
        (tmp_path / name).mkdir()
        assert train(config(*words, *store), tmp_path / name) == 0
    initial = PartialFC(2000, 128, seed=0).centers.rows
    raw = np.fromfile(next((tmp_path / "disk" / "checkpoints").glob("step-*/process-0.bin")), np.float32, offset=0)
    assert (raw.reshape(-1)[: len(raw) // 128 * 128].reshape(-1, 128) == 0).all(1).sum() > 1500
    for name in ("disk", "device"):
        found = Trained(str(tmp_path / name))
        centers = StoredCenters(found, Processes(0, 1, torch.device("cpu")))
        for blocks in (found.rows(), centers.blocks()):
            assert torch.allclose(torch.cat([rows for _, rows in blocks]), initial, atol=1e-9)
        target = tmp_path / f"{name}.safetensors"
        export(
            config(f"checkpoint={tmp_path / name}", f"target={target}", "format=safetensors", name="export"), tmp_path
        )
        assert torch.allclose(load_file(target)["centers"], initial, atol=1e-9)
        begun_from = [f"warm_start.checkpoint={tmp_path / name}", "warm_start.classes=id", "seed=7"]
        (tmp_path / name / "on").mkdir()
        assert train(config(*words, *begun_from), tmp_path / name / "on") == 0
        assert torch.allclose(begun(tmp_path / name / "on")[0], initial, atol=1e-9)


def test_first_images_of_each_class(monkeypatch):
    """Several blocks give the result of a plain loop."""
    monkeypatch.setattr("experiments.training.class_means.BLOCK", 37)
    random = np.random.default_rng(0)
    labels = random.integers(0, 20, 400)
    wanted = random.random(20) < 0.5

    class Nothing:
        def __len__(self) -> int:
            return 400

    records = RecordSet(Nothing(), labels, 20)
    for rank in range(3):
        shard = Shard(20, rank, 3)
        for limit in (1, 3, 100):
            expected = []
            for index, label in enumerate(labels):
                before = [other for other in expected if labels[other] == label]
                if shard.start <= label < shard.stop and wanted[label] and len(before) < limit:
                    expected.append(index)
            classes = np.flatnonzero(wanted)
            own = classes[(classes >= shard.start) & (classes < shard.stop)]
            assert first_images(records, own, limit).tolist() == expected
