"""Commands that use a trained model: evaluate, embed, export, cluster, pretrained."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import normalize

from backbones.iresnet import IResNet
from backbones.mobilefacenet import MobileFaceNet
from data.formats.decode import Decoder
from data.formats.unlabeled_images import ImageFiles
from data.preprocessing import Preprocessing
from experiments import embed as embedding
from experiments import export_check
from experiments.cluster import cluster, grouped
from experiments.embed import embed
from experiments.evaluate import evaluate
from experiments.export import export, metadata_of
from experiments.export_formats import METADATA
from experiments.launching.processes import Processes
from experiments.models.foreign_weights import translate_name
from experiments.models.trained import Trained, model_of
from experiments.pretrained import pretrained
from experiments.train import train
from tests.data.made_sets import SIDE, image, images, write_folder, write_lmdb, write_rec
from tests.experiments.commands import ROOT, call, config, summary
from tests.experiments.protocols.files import written_for

SMOKE = ("experiment=smoke", "trainer.max_steps=3", "logger.wandb.mode=disabled", "data.heldout=0.02")
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run on glyphs that protocols evaluate at its end."""
    folder = tmp_path_factory.mktemp("trained")
    words = written_for("lfw", folder)
    assert train(config(*SMOKE, "protocol=[lfw,identification]", *words), folder) == 0
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of three classes."""
    return write_folder(tmp_path_factory.mktemp("pictures") / "set", images([n // 4 for n in range(12)]))


def model_in(folder: Path, batch_size: int = 512):
    return model_of(Trained(str(folder)), ALONE, "32-true", 0, batch_size)


def test_protocols_evaluate_a_training(trained):
    found = summary(trained)
    assert found["val/pairs/auc_low"] <= found["val/pairs/auc"] <= found["val/pairs/auc_high"]
    assert 0 < found["val/identification/rank1"] <= found["val/identification/rank5"] <= 1
    assert "val/rank1" in found


def test_the_command_has_the_results_of_the_training(trained, tmp_path):
    words = written_for("lfw", tmp_path)
    options = [f"checkpoint={trained}", "protocol=[lfw,identification,closed_set]", *words]
    evaluate(config(*options, "protocol.closed_set.records=200", name="evaluate"), tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    by_name = {each["name"]: each for each in content["results"]}
    assert list(by_name) == ["pairs", "identification", "closed_set"]
    for name in ("pairs", "identification"):
        for metric, value in by_name[name]["metrics"].items():
            assert value == summary(trained)[f"val/{name}/{metric}"], metric
    assert by_name["pairs"]["curves"]["roc"]["far"][-1] == 1 and by_name["closed_set"]["counts"]["images"] == 200
    for name in by_name:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 500 and np.asarray(picture.convert("L")).std() > 5


def test_the_command_on_two_processes(trained, pictures, tmp_path):
    """A user's command gives the same results on two processes as on one."""
    words = [f"checkpoint={trained}", "protocol=identification", f"protocol.identification.gallery={pictures}"]
    printed = call("experiments.evaluate", *words, "trainer.devices=2", f"hydra.run.dir={tmp_path / 'two'}")
    assert "rank1" in printed and "95% interval" in printed
    evaluate(config(*words, name="evaluate"), tmp_path)
    one, two = (json.loads((path / "evaluation.json").read_text()) for path in (tmp_path, tmp_path / "two"))
    assert one == two


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"protocol=\[\] must name a protocol; choose from closed_set, identification, ijb, lfw"),
        (["protocol=lfw"], "protocol.lfw.source=null"),
        (["protocol=closed_set", "checkpoint=/nowhere"], "checkpoint=/nowhere holds no checkpoint"),
        (["protocol=closed_set", "checkpoint=null"], "checkpoint= is missing"),
        (
            ["protocol=identification", "checkpoint=null"],
            "checkpoint=null needs features for everything that is compared",
        ),
        (["protocol=closed_set", "batch_size=0"], "batch_size=0"),
        (["protocol=closed_set", "trainer.precision=8"], "trainer.precision=8"),
    ],
)
def test_invalid_evaluations_are_refused(words, message, trained, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate(config(f"checkpoint={trained}", *words, name="evaluate"), tmp_path)


def test_protocols_of_one_name_are_refused(trained, tmp_path):
    words = written_for("lfw", tmp_path)
    (tmp_path / "pairs.txt").rename(tmp_path / "closed_set.txt")
    words[0] = words[0].replace("pairs.txt", "closed_set.txt")
    with pytest.raises(
        ValueError, match="has a list of pairs named closed_set, which is also the name of another result; rename"
    ):
        evaluate(config(f"checkpoint={trained}", "protocol=[lfw,closed_set]", *words, name="evaluate"), tmp_path)


def test_a_protocol_that_fails_ends_no_training(tmp_path, capfd):
    """An image that cannot be decoded is reported, everything is saved, and then the command fails."""
    words = written_for("lfw", tmp_path)
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    short = ["trainer.max_steps=4", "evaluate.interval=2", "logger.wandb.mode=disabled"]
    with pytest.raises(ValueError, match=r"3\.jpg: it is not an image.*; the training is complete, and exp"):
        train(config(*SMOKE, *short, "protocol=[lfw,identification]", *words), tmp_path)
    assert capfd.readouterr().out.count("Training continues without these metrics") == 1
    found = summary(tmp_path)
    assert found["status"] == "finished" and found["val/identification/rank1"] > 0 and found["val/rank1"] > 0
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000004"]
    (tmp_path / "3.jpg").write_bytes(image(3))
    words.append(f"checkpoint={tmp_path}")
    assert evaluate(config("protocol=lfw", *words, name="evaluate"), tmp_path)[0].metrics["auc"] > 0


def test_noise_is_part_of_the_data(tmp_path):
    """A class that was split for the training is also two classes in the evaluation."""
    words = ["noise.conflict=0.2", "protocol=closed_set", "protocol.closed_set.records=100"]
    assert train(config(*SMOKE, *words), tmp_path) == 0
    evaluate(config(f"checkpoint={tmp_path}", *words[1:], name="evaluate"), tmp_path)
    (found,) = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert found["counts"]["classes"] == summary(tmp_path)["num_classes"]
    for name, value in found["metrics"].items():
        assert value == summary(tmp_path)[f"val/closed_set/{name}"]


def test_embeddings_do_not_depend_on_the_batch(trained, pictures, tmp_path):
    """Embeddings are also close to those in float64."""
    files = ImageFiles([str(path).encode() for path in sorted(pictures.rglob("*.jpg"))])
    found = []
    for batch_size in (1, 5, 512):
        model = model_in(trained, batch_size)
        found.append(model.embed_all(*model.view(files), "images"))
    source, prepare = model.view(files)
    with torch.no_grad():
        exact = normalize(model.backbone.double()(prepare(source.read(np.arange(12))).double()))
    for each in found:
        assert (each - exact).abs().max() < 1e-5


@pytest.mark.parametrize("backbone", ["iresnet", "mobilefacenet"])
def test_embeddings_of_large_networks_do_not_depend_on_the_batch(backbone):
    network = {"iresnet": IResNet, "mobilefacenet": MobileFaceNet}[backbone](embedding_size=32)
    with torch.no_grad():
        for module in network.modules():  # as after a training: outputs of layers have unit variance
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        pictures = torch.randn(8, 3, 112, 112, generator=torch.Generator().manual_seed(0))
        network.train()(pictures)
        network.eval()
        whole = normalize(network(pictures))
        parts = normalize(torch.cat([network(part) for part in pictures.split([1, 2, 5])]))
    assert (whole - parts).abs().max() < 1e-5


def embed_config(trained, source, target, *words) -> DictConfig:
    return config(f"checkpoint={trained}", f"source={source}", f"target={target}", *words, name="embed")


@pytest.mark.parametrize("format", ["folder", "rec", "lmdb", "loose"])
def test_embeddings_of_every_format(format, trained, pictures, tmp_path):
    items = images([n // 4 for n in range(12)])
    if format == "loose":
        (tmp_path / "set").mkdir()
        for number, (_, encoded) in enumerate(items):
            (tmp_path / "set" / f"{number:02d}.jpg").write_bytes(encoded)
    source = {
        "folder": pictures,
        "rec": write_rec(tmp_path / "set.rec", items),
        "lmdb": write_lmdb(tmp_path / "set.lmdb", items),
        "loose": tmp_path / "set",
    }[format]
    embed(embed_config(trained, source, tmp_path / "out.npy"), tmp_path)
    rows = np.load(tmp_path / "out.npy")
    model = model_in(trained)
    files = ImageFiles([str(path).encode() for path in sorted(pictures.rglob("*.jpg"))])
    expected = model.embed_all(*model.view(files), "images").numpy()
    assert rows.dtype == np.float32 and np.abs(rows - expected).max() < 1e-6
    lines = [line.split("\t") for line in (tmp_path / "out.txt").read_text().splitlines()]
    wanted = {"folder": "class 002", "rec": "2", "lmdb": "2", "loose": "set"}[format]
    assert len(lines) == 12 and lines[-1][1] == wanted and len({key for key, _ in lines}) == 12
    assert np.load(tmp_path / "out.labels.npy").tolist() == [0 if format == "loose" else n // 4 for n in range(12)]
    names = {"folder": [f"class 00{n}" for n in range(3)], "loose": ["set"]}.get(format, [])
    named = tmp_path / "out.labels.classes.txt"
    assert (named.read_text().splitlines() if named.exists() else []) == names


def test_embedding_continues_after_an_interruption(trained, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "BLOCK", 5)
    options = embed_config(trained, pictures, tmp_path / "out.npy", "mirrored=true", "unit=false", "dtype=float16")
    broken = shutil.copytree(pictures, tmp_path / "broken")
    last = sorted(broken.rglob("*.jpg"))[-1]
    good = last.read_bytes()
    last.write_bytes(good[:-100])
    options.source = str(broken)
    with pytest.raises(ValueError, match=r"011\.jpg: it cannot be decoded"):
        embed(options, tmp_path)
    assert (tmp_path / "out.npy.partial" / "done").read_bytes() == b"\1\1\0"
    assert not (tmp_path / "out.npy").exists()
    with pytest.raises(ValueError, match="has other images, options or another checkpoint"):
        embed(embed_config(trained, pictures, tmp_path / "out.npy"), tmp_path)
    rows = np.load(tmp_path / "out.npy.partial" / "rows.npy", mmap_mode="r+")
    rows[0] = 7  # rows that are done are not computed again
    rows.flush()
    last.write_bytes(good)
    embed(options, tmp_path)
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == np.float16 and (found[0] == 7).all() and not (tmp_path / "out.npy.partial").exists()
    model = model_in(trained)
    files = ImageFiles([str(path).encode() for path in sorted(pictures.rglob("*.jpg"))])
    expected = model.embed(*model.view(files), np.arange(12), mirrored=True).numpy()
    assert np.abs(found[1:] - expected[1:]).max() < 0.01
    with pytest.raises(ValueError, match=r"cannot be written: out\.npy exists already"):
        embed(options, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["target=null"], "target=null must be a path"),
        (["target=x.txt"], "must end in .npy"),
        (["dtype=int8"], "dtype=int8"),
        (["source=/nowhere"], "source=/nowhere does not exist"),
        (["format=zip"], "format=zip"),
    ],
)
def test_unreadable_images_and_options_are_reported(words, message, trained, pictures, tmp_path):
    with pytest.raises(ValueError, match=message):
        embed(embed_config(trained, pictures, tmp_path / "x.npy", *words), tmp_path)


def with_statistics(backbone: str, embedding_size: int, folder: Path) -> Path:
    """Write a checkpoint of a network with batch-norm statistics."""
    network = {"iresnet": IResNet, "mobilefacenet": MobileFaceNet}[backbone](embedding_size=embedding_size)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        network.train()(
            torch.randn(4 if backbone == "iresnet" else 12, 3, 112, 112, generator=torch.Generator().manual_seed(0))
        )
    torch.save(network.state_dict(), folder / "backbone.pth")
    words = [f"weights={folder / 'backbone.pth'}", f"backbone={backbone}", f"target={folder / 'imported'}"]
    pretrained(config(*words, f"embedding_size={embedding_size}", name="pretrained"), folder)
    return folder / "imported"


@pytest.mark.parametrize("backbone", ["tiny", "iresnet", "mobilefacenet"])
def test_onnx_agrees_with_torch(backbone, trained, pictures, tmp_path):
    checkpoint = trained if backbone == "tiny" else with_statistics(backbone, 512, tmp_path)
    target = tmp_path / "model.onnx"
    export(config(f"checkpoint={checkpoint}", f"target={target}", f"source={pictures}", name="export"), tmp_path)
    session = onnxruntime.InferenceSession(target)
    model = model_in(checkpoint)
    model.backbone.eval()
    source, prepare = model.view(ImageFiles([str(path).encode() for path in sorted(pictures.rglob("*.jpg"))]))
    real = prepare(source.read(np.arange(7)))
    for inputs in (real, torch.randn(3, *real.shape[1:]), real[:1]):
        (found,) = session.run(None, {"images": inputs.numpy()})
        with torch.no_grad():
            expected = model.backbone(inputs).numpy()
            assert np.abs(found - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())
    about = session.get_modelmeta().custom_metadata_map
    channels, height, width = real.shape[1:]
    assert json.loads(about["input_shape"]) == [channels, height, width]
    assert (about["color"], about["fit"]) == ("grey" if backbone == "tiny" else "RGB", "crop")
    assert json.loads(about["mean"]) == json.loads(about["std"]) == [0.5] * channels
    assert json.loads(about["embedding_size"]) == found.shape[1] and "class_names" not in about


def documented_program():
    """Return the program that verifies two images with an exported model."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)
    (program,) = (block for block in blocks if "onnxruntime" in block)
    return program


def test_the_script_of_the_documentation(trained, pictures, tmp_path, caplog):
    """The script verifies two images with onnxruntime alone, and gets the same cosine."""
    script = documented_program()
    (tmp_path / "verify.py").write_text(script)
    assert len([line for line in script.splitlines() if line]) <= 20
    with caplog.at_level("INFO"):
        export(config(f"checkpoint={trained}", f"target={tmp_path / 'model.onnx'}", name="export"), tmp_path)
    assert not [record for record in caplog.records if record.name.startswith(("onnx", "torch.onnx"))]
    (tmp_path / "wide.png").write_bytes(image(3, side=60, kind="PNG"))
    with Image.open(tmp_path / "wide.png") as picture:
        picture.crop((0, 10, 60, 50)).save(tmp_path / "wide.png")
    two = [str(next(pictures.rglob("000.jpg"))), str(tmp_path / "wide.png")]
    done = subprocess.run(
        [sys.executable, "verify.py", "model.onnx", *two], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    model = model_in(trained)
    a, b = model.embed_all(*model.view(ImageFiles([path.encode() for path in two])), "images")
    assert float(done.stdout.split()[1]) == pytest.approx(float(a @ b), abs=1e-4)


SIZES = [(32, 32), (20, 30), (64, 64), (67, 71), (500, 375), (1024, 512)]  # the model takes 32 x 32


def test_the_script_of_the_documentation_and_embed_agree(trained, tmp_path, monkeypatch):
    """JPEG and PNG images of any size have the same embeddings."""
    (tmp_path / "set").mkdir()
    for number, size in enumerate(SIZES):
        coarse = np.random.default_rng(number).integers(0, 256, (11, 11, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        for ending in ("jpg", "png"):
            picture.save(tmp_path / "set" / f"{number}.{ending}")
    export(config(f"checkpoint={trained}", f"target={tmp_path / 'model.onnx'}", name="export"), tmp_path)
    script = documented_program().split("\n\n\na, b = ")[0]
    monkeypatch.setattr(sys, "argv", ["verify.py", str(tmp_path / "model.onnx")])
    exec(compile(script, "verify.py", "exec"), script_names := {})
    embed(embed_config(trained, tmp_path / "set", tmp_path / "out.npy"), tmp_path)
    rows = np.load(tmp_path / "out.npy")
    names = [line.split("\t")[0] for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert len(names) == 2 * len(SIZES)
    for name, row in zip(names, rows, strict=True):
        found = script_names["embedding"](tmp_path / "set" / name)
        assert found @ row / np.linalg.norm(found) >= 0.9999, name


def test_a_model_with_wrong_preprocessing_metadata_is_not_exported(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export_check, "documented", lambda encoded, metadata: torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"does not describe how images become the input.*nothing was written"):
        export(config(f"checkpoint={trained}", f"target={tmp_path / 'model.onnx'}", name="export"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_crop_of_a_training_is_part_of_its_model(pictures, tmp_path):
    """A used model sees the middle of images, as in its training."""
    words = ["data=folder", f"data.source={pictures}", "data.size=24", "data.crop=0.5", "data.num_heldout=0"]
    words += ["head=full", "batch_size=6", "trainer.max_steps=1", "evaluate.train_records=null", "data.channels=1"]
    (tmp_path / "run").mkdir()
    assert train(config(*SMOKE[:1], *words, "logger.wandb.mode=disabled"), tmp_path / "run") == 0
    target = tmp_path / "rows.npy"
    embed(config(f"checkpoint={tmp_path / 'run'}", f"source={pictures}", f"target={target}", name="embed"), tmp_path)
    model, files = model_in(tmp_path / "run"), sorted(pictures.rglob("*.jpg"))
    pixels = torch.zeros(len(files), 24, 24, 1, dtype=torch.uint8)
    for number, file in enumerate(files):
        with Image.open(file) as picture:  # of SIDE x SIDE
            middle = picture.convert("L").crop((SIDE // 4, SIDE // 4, SIDE - SIDE // 4, SIDE - SIDE // 4))
        middle.resize((24, 24), Image.Resampling.BILINEAR).save(aside := tmp_path / "middle.png")
        Decoder(24, 24, 1).into(pixels[number].numpy(), aside.read_bytes())
    with torch.no_grad():
        expected = normalize(model.backbone.eval()(model.preprocessing.normalize(pixels)))
    assert torch.allclose(torch.from_numpy(np.load(target)), expected, atol=1e-5)
    checkpoint = Trained(str(tmp_path / "run"))
    assert json.loads(metadata_of(checkpoint, False)["crop"]) == 0.5
    older = {name: value for name, value in asdict(checkpoint.preprocessing).items() if name != "crop"}
    assert Preprocessing.from_dict(older).crop == 1  # in checkpoints from before the option crop


def test_pt2_with_scores_of_all_classes(trained, tmp_path):
    target = tmp_path / "model.pt2"
    export(config(f"checkpoint={trained}", f"target={target}", "format=pt2", "scores=true", name="export"), tmp_path)
    extra = {METADATA: ""}
    module = torch.export.load(target, extra_files=extra).module()
    about = json.loads(extra[METADATA])
    model, inputs = model_in(trained), torch.randn(5, 1, 32, 32)
    model.backbone.eval()
    rows = torch.cat([rows for _, rows in Trained(str(trained)).rows()])
    with torch.no_grad():
        embeddings, scores = module(inputs)
        expected = model.backbone(inputs)
    assert (embeddings - expected).abs().max() < 1e-5
    assert (scores - normalize(expected) @ normalize(rows).T).abs().max() < 1e-5
    assert len(json.loads(about["class_names"])) == len(rows) == scores.shape[1]


@pytest.mark.parametrize("margin", ["cosface", "softmax"])
def test_centers_to_safetensors(margin, trained, tmp_path):
    checkpoint = trained
    if margin == "softmax":
        checkpoint = tmp_path / "run"
        checkpoint.mkdir()
        assert train(config(*SMOKE, "margin=softmax", "head=full"), checkpoint) == 0
    target = tmp_path / "centers.safetensors"
    export(config(f"checkpoint={checkpoint}", f"target={target}", "format=safetensors", name="export"), tmp_path)
    rows = torch.cat([rows for _, rows in Trained(str(checkpoint)).rows()])
    with safe_open(target, "pt") as file:
        assert torch.equal(file.get_tensor("centers"), rows[:, :128])
        assert set(file.keys()) == ({"centers"} if margin == "cosface" else {"centers", "bias"})
        if margin == "softmax":
            assert torch.equal(file.get_tensor("bias"), rows[:, 128])
        assert json.loads(file.metadata()["embedding_size"]) == 128
    names = target.with_suffix(".classes.txt").read_text().splitlines()
    assert names == list(Trained(str(checkpoint)).class_names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=null"], "checkpoint=null must be a path"),
        (["format=tf"], "format=tf must be one of onnx, pt2, safetensors"),
        (["target=x.zip"], "must end in .onnx"),
        (["target=/nowhere/x.onnx"], "the folder /nowhere does not exist"),
        (["format=safetensors", "tolerance=1"], "tolerance=1 applies to format=onnx and format=pt2 only"),
        (["tolerance=small"], "tolerance=small must be a number"),
        (["format=safetensors", "scores=true"], "scores=True"),
        (["format=pt2", "tolerance=-1"], "tolerance=-1 is exceeded: the exported model differs"),
    ],
)
def test_invalid_exports_are_refused(words, message, trained, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(config(f"checkpoint={trained}", *words, name="export"), tmp_path)
    assert not list(tmp_path.iterdir())


# What PLSC calls the first things of each kind, in its last versions and in 2.2, and what they are called here.
NAMES = [
    ("prelu._weight", "prelu.weight"),
    ("bn1._mean", "bn1.running_mean"),
    ("layer2.0.downsample.1._variance", "layer2.0.downsample.1.running_var"),
    ("module.layer1.0.conv1.weight", "layer1.0.conv1.weight"),
    ("conv1_weights", "conv1.weight"),
    ("bn_conv1_scale", "bn1.weight"),
    ("bn_2a_before_offset", "layer1.0.bn1.bias"),
    ("res2a_branch2a_weights", "layer1.0.conv1.weight"),
    ("bn2a_branch2a_mean", "layer1.0.bn2.running_mean"),
    ("res4c_branch2b_weights", "layer3.2.conv2.weight"),
    ("bn4c_branch2b_variance", "layer3.2.bn3.running_var"),
    ("res3a_branch1_weights", "layer2.0.downsample.0.weight"),
    ("bn3a_branch1_scale", "layer2.0.downsample.1.weight"),
    ("bn_fc_1_scale", "bn2.weight"),
    ("fc.w_0", "fc.weight"),
    ("fc.b_0", "fc.bias"),
    ("bn_fc_2_mean", "features.running_mean"),
]


@pytest.mark.parametrize(("theirs", "ours"), NAMES)
def test_names_in_plsc(theirs, ours):
    assert translate_name(theirs) == ours and ours in IResNet(depth=50, embedding_size=8).state_dict()


def in_plsc_2_2(network: IResNet) -> dict[str, torch.Tensor]:
    """Return weights as version 2.2 stores them; PReLUs are numbered, and have one value or (1, C, 1, 1)."""
    stored, prelus = {}, 0
    kinds = {"weight": "scale", "bias": "offset", "running_mean": "mean", "running_var": "variance"}
    norms = {"bn1": "before", "bn2": "branch2a", "bn3": "branch2b", "downsample.1": "branch1"}
    convolutions = {"conv1": "2a", "conv2": "2b", "downsample.0": "1"}
    for name, value in network.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            continue
        if layer.endswith("prelu"):
            stored[f"p_re_lu_{prelus}.w_0"] = value.view(1, -1, 1, 1)
            prelus += 1
        elif layer.startswith("layer"):
            stage, block, part = layer.removeprefix("layer").split(".", 2)
            place = f"{int(stage) + 1}{chr(ord('a') + int(block))}"
            if part in norms:
                stored[f"bn{'_' * (part == 'bn1')}{place}_{norms[part]}_{kinds[kind]}"] = value
            else:
                stored[f"res{place}_branch{convolutions[part]}_weights"] = value
        elif layer in ("bn1", "bn2", "features"):
            stored[f"bn_{ {'bn1': 'conv1', 'bn2': 'fc_1', 'features': 'fc_2'}[layer] }_{kinds[kind]}"] = value
        else:
            names = {"conv1.weight": "conv1_weights", "fc.weight": "fc.w_0", "fc.bias": "fc.b_0"}
            stored[names[name]] = value.T if name == "fc.weight" else value
    return stored


@pytest.fixture(scope="module")
def network() -> IResNet:
    torch.manual_seed(0)
    made = IResNet(depth=18, embedding_size=8)
    with torch.no_grad():
        made.train()(torch.randn(4, 3, 112, 112))
    return made.eval()


def in_plsc(network: IResNet) -> dict[str, np.ndarray]:
    """Return weights as the latest versions of PLSC store them."""
    stored = {}
    for name, value in network.state_dict().items():
        if "tracked" not in name:
            name = name.replace("running_mean", "_mean").replace("running_var", "_variance")
            stored[name.replace("prelu.weight", "prelu._weight")] = value.numpy()
    return {**stored, "fc.weight": np.ascontiguousarray(stored["fc.weight"].T)}


FILES = {"plain": "a.pth", "state": "a.pt", "safetensors": "a.safetensors", "plsc": "a.pdparams", "plsc 2.2": "files"}


@pytest.mark.parametrize("kind", FILES)
def test_weights_of_others(kind, network, tmp_path):
    path = tmp_path / FILES[kind]
    if kind == "plsc 2.2":
        path.mkdir()
        for number, (name, value) in enumerate(in_plsc_2_2(network).items()):
            (path / f"{number}.pdparam").write_bytes(pickle.dumps((name, np.ascontiguousarray(value.numpy())), 4))
    elif kind == "plsc":
        held = {**in_plsc(network), "head.weight": np.zeros((9, 8)), "StructuredToParameterName@@": {"fc.weight": "x"}}
        path.write_bytes(pickle.dumps(held, 4))
    elif kind == "safetensors":
        save_file(network.state_dict(), path)
    elif kind == "plain":
        torch.save(network.state_dict(), path)
    else:
        prefixed = {f"module.{name}": value for name, value in network.state_dict().items()}
        torch.save({"state_dict_backbone": prefixed, "epoch": 3}, path)
    words = [f"weights={path}", "backbone.depth=18", f"target={tmp_path / 'imported'}"]
    pretrained(config(*words, name="pretrained"), tmp_path)
    found = Trained(str(tmp_path / "imported"))
    inputs = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(found.backbone()(inputs), network(inputs))
    assert (found.preprocessing.height, found.preprocessing.channels, found.config.embedding_size) == (112, 3, 8)


def test_weights_that_do_not_fit(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    words = [f"weights={tmp_path / 'a.pth'}", f"target={tmp_path / 'imported'}"]
    with pytest.raises(ValueError, match=r"lacks 240 weights of .*IResNet .*, such as layer1\.2.*strict=false"):
        pretrained(config(*words, name="pretrained"), tmp_path)
    with pytest.raises(ValueError, match="6 weights"):
        pretrained(config(*words, "backbone.depth=18", "embedding_size=16", name="pretrained"), tmp_path)
    deeper = {f"module.{name}": each for name, each in IResNet(depth=34, embedding_size=8).state_dict().items()}
    torch.save({**deeper, "module.head.weight": torch.ones(9, 8)}, tmp_path / "r34.pth")
    words = [f"weights={tmp_path / 'r34.pth'}", "backbone.depth=18", words[1]]
    with pytest.raises(ValueError, match=r"weights that .*IResNet lacks, such as layer\d\..*; set another depth"):
        pretrained(config(*words, name="pretrained"), tmp_path)
    words[0] = f"weights={tmp_path / 'a.pth'}"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"a folder without \.pdparam files"):
        pretrained(config(f"weights={tmp_path / 'empty'}", words[2], name="pretrained"), tmp_path)
    words = [words[0], words[2]]
    assert not (tmp_path / "imported").exists()
    pretrained(config(*words, "backbone.depth=18", "embedding_size=16", "strict=false", name="pretrained"), tmp_path)
    made = Trained(str(tmp_path / "imported")).backbone()
    assert torch.equal(made.conv1.weight, network.conv1.weight) and made.fc.weight.shape[0] == 16
    for name, content, message in (
        ("bad.pth", b"x", "cannot be read"),
        ("bad.pdparams", b"cos\nsystem\n(S'true'\ntR.", r"names os\.system"),
        ("none.pth", None, "none.pth does not exist"),
    ):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            pretrained(config(f"weights={tmp_path / name}", f"target={tmp_path / 'b'}", name="pretrained"), tmp_path)


def test_groups(trained, tmp_path):
    """Equal images are in one group: five classes have two images each, and one image is alone."""
    held = [(n // 2, image(n // 2)) for n in range(10)] + [(5, image(77))]
    write_folder(tmp_path / "set", held)
    for method in ("hdbscan", "average"):
        folder = tmp_path / method
        folder.mkdir()
        words = [f"checkpoint={trained}", f"source={tmp_path / 'set'}", f"method={method}"]
        words += ["similarity=0.999"] if method == "average" else []
        cluster(config(*words, name="cluster"), folder)
        groups = [int(line.split("\t")[1]) for line in (folder / "groups.tsv").read_text().splitlines()]
        assert groups[0::2][:5] == groups[1::2] and len(groups) == 11
        with Image.open(folder / "contact_sheet.png") as sheet:
            assert sheet.height > 100
    folder = tmp_path / "query"
    folder.mkdir()
    query = next((tmp_path / "set").rglob("006.jpg"))
    cluster(config(*words, f"query={query}", "results=3", name="cluster"), folder)
    best = [line.split("\t") for line in (folder / "results.tsv").read_text().splitlines()]
    assert len(best) == 3 and {key for key, _ in best[:2]} == {"class 003/006.jpg", "class 003/007.jpg"}
    assert float(best[0][1]) == pytest.approx(1) and float(best[2][1]) < 1


def test_groups_are_ordered_by_size():
    points = np.repeat(np.eye(4, dtype=np.float32), [2, 5, 1, 3], axis=0)
    found = grouped(points, config("method=average", name="cluster"))
    assert found.tolist() == [2, 2, 0, 0, 0, 0, 0, -1, 1, 1, 1]


def test_one_group_is_found_if_all_images_are_alike():
    """No group is found if they are not alike."""
    apart = np.eye(9, 32)
    for points, group in ((np.ones((9, 32)), 0), (apart, -1)):
        unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
        assert grouped(unit, config(name="cluster")).tolist() == [group] * 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=kmeans"], "method=kmeans"),
        (["query=/nowhere.jpg"], "query=/nowhere.jpg must be the path of an image"),
        (["method=average", "similarity=2"], "similarity=2"),
        (["similarity=0.5"], "similarity=0.5 applies to method=average only"),
        (["min_size=1"], "min_size=1"),
        (["columns=many"], "columns=many"),
        (["rows=100000"], "rows=100000 must be at most 500"),
    ],
)
def test_invalid_options_of_groups_are_refused(words, message, trained, pictures, tmp_path):
    with pytest.raises(ValueError, match=message):
        cluster(config(f"checkpoint={trained}", f"source={pictures}", *words, name="cluster"), tmp_path)


def test_a_protocol_that_does_not_fit_the_model_is_refused_before_training(tmp_path):
    words = ["data=sphere", "backbone=mlp", "trainer.max_steps=2", "logger.wandb.mode=disabled"]
    for more, message in (
        (["protocol=lfw", *written_for("lfw", tmp_path)], "no model that takes images"),
        (["protocol=closed_set", "head=ffc", "queue_size=300"], "needs class centers, and there are none"),
        (["protocol=closed_set", "protocol.closed_set.source={}"], "needs class names of the model"),
    ):
        (tmp_path / "set").mkdir(exist_ok=True)
        write_folder(tmp_path / "set", images([0, 0, 1]))
        folder = tmp_path / f"run {len(more)} {more[0]} {message[:4]}"
        folder.mkdir()
        with pytest.raises(ValueError, match=message):
            train(config(*words, *(word.format(tmp_path / "set") for word in more)), folder)
        assert not list((folder / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("moment", ["keys named", "array named", "all but removed"])
def test_embedding_killed_at_its_end_continues(moment, trained, pictures, tmp_path, monkeypatch):
    """A kill may leave any of the files renamed, and the partial folder."""
    options = embed_config(trained, pictures, tmp_path / "out.npy")
    done = embedding.os.replace
    killed = {"keys named": "rows.npy", "array named": None, "all but removed": None}[moment]

    def replace(source, target):
        if Path(source).name == killed:
            raise KeyboardInterrupt
        done(source, target)

    monkeypatch.setattr(embedding.os, "replace", replace)
    if killed is None:
        monkeypatch.setattr(embedding.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    if moment == "array named":
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed(options, tmp_path)
    monkeypatch.undo()
    if moment == "all but removed":  # and the user has moved the files since
        (tmp_path / "out.npy").rename(tmp_path / "elsewhere.npy")
        for path in tmp_path.glob("out.*[yt]"):  # out.txt, out.labels.npy, out.labels.classes.txt
            path.unlink()
    embed(options, tmp_path)
    assert np.load(tmp_path / "out.npy").shape == (12, 128) and not (tmp_path / "out.npy.partial").exists()
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 12


def test_folders_with_images_and_folders_are_refused(trained, tmp_path):
    write_folder(tmp_path / "set", images([0, 0]))
    (tmp_path / "set" / ".thumbs").mkdir()
    (tmp_path / "set" / ".thumbs" / "t.jpg").write_bytes(image(9))
    (tmp_path / "set" / "cover.jpg").write_bytes(image(5))
    options = embed_config(trained, tmp_path / "set", tmp_path / "out.npy")
    with pytest.raises(ValueError, match="images directly and in subfolders; format=folder"):
        embed(options, tmp_path)
    assert not list(tmp_path.glob("out*"))
    cluster(config(f"checkpoint={trained}", f"source={tmp_path / 'set'}", name="cluster"), tmp_path)
    keys = [line.split("\t")[0] for line in (tmp_path / "groups.tsv").read_text().splitlines()]
    assert keys == ["class 000/000.jpg", "class 000/001.jpg", "cover.jpg"]
