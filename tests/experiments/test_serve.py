"""The service without its server: what it computes, and the requests that it refuses."""

import asyncio
import base64
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fastapi import HTTPException, Request

from data.formats.encoded import UnreadableError
from experiments.protocols.image_sets import image_set
from experiments.serve import serve
from experiments.serving.predictor import Predictor
from experiments.serving.service import Service, Settings, refuse_malformed
from experiments.train import train
from tests.data.made_sets import SIDE, image, images, write_folder
from tests.experiments.commands import config

ITEMS = images([number // 3 for number in range(30)])
COMMON = (
    "data=folder",
    f"data.size={SIDE}",
    "backbone=mlp",
    "batch_size=8",
    "trainer.max_steps=2",
    "data.num_heldout=0",
)
QUIET = ("logger.wandb.mode=disabled", "trainer.accelerator=cpu", "evaluate.interval=null")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder of images, and trainings on it by head."""
    folder = tmp_path_factory.mktemp("serve")
    write_folder(folder / "set", ITEMS)
    for name, words in {
        "full": ["head=full"],
        "softmax": ["head=full", "margin=softmax"],
        "none": ["head=none"],
        "subcenter": ["head=subcenter", "sample_rate=1.0", "centers_per_class=2"],
    }.items():
        (folder / name).mkdir()
        found = config(*COMMON, *QUIET, *words, f"data.source={folder / 'set'}")
        assert train(found, folder / name) == 0
    return folder


def predictor(made, name, top=3):
    return Predictor(str(made / name), (), "cpu", "32-true", top)


@pytest.mark.parametrize("name", ["full", "softmax", "subcenter"])
def test_embeddings_and_nearest_classes(name, made):
    of = predictor(made, name)
    encoded = [ITEMS[4][1], ITEMS[9][1]]
    found = of.predict(encoded)
    pixels = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    for place, each in enumerate(encoded):
        of.model.preprocessing.decoder.into(pixels[place].numpy(), each)
    with torch.no_grad():
        embeddings = of.model.backbone.eval()(of.model.preprocessing.normalize(pixels)).double()
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    assert torch.tensor([each["embedding"] for each in found]).double().sub(unit).abs().max() < 1e-6
    for number, each in enumerate(found):
        scores = {}
        for class_id, rows in enumerate(of.rows.double().view(10, -1, of.rows.shape[-1])):
            if name == "softmax":  # the last column is a bias
                logits = rows[:, :-1] @ embeddings[number] + rows[:, -1]
                scores[f"class {class_id:03d}"] = float(logits.max())
            else:
                scores[f"class {class_id:03d}"] = float((rows @ unit[number]).max())
        best = sorted(scores, key=scores.get, reverse=True)[:3]
        assert [nearest["class"] for nearest in each["classes"]] == best
        assert [nearest["score"] for nearest in each["classes"]] == pytest.approx(
            [scores[name] for name in best], abs=1e-5
        )
        assert [nearest["id"] for nearest in each["classes"]] == [int(name[-3:]) for name in best]


def test_a_head_without_class_centers(made):
    (found,) = predictor(made, "none").predict([image(1)])
    assert list(found) == ["embedding"] and np.linalg.norm(found["embedding"]) == pytest.approx(1)


def test_a_gallery_of_images(made):
    of = predictor(made, "full", top=2)
    of.add_gallery(image_set(str(made / "set")))
    (found,) = of.predict([ITEMS[7][1]])
    first, second = found["gallery"]
    assert first["number"] == 7 and first["class"] == "class 002" and first["score"] == pytest.approx(1, abs=1e-5)
    assert second["score"] < first["score"]


def text(encoded):
    return base64.b64encode(encoded).decode()


@pytest.fixture(scope="module")
def service(made):
    of = Service(Settings(str(made / "full"), (), "cpu", "32-true", None, 3, max_images=2), max_batch_size=4)
    of.setup("cpu")
    return of


def test_requests_together_and_alone(service):
    """Images of several requests are embedded together, and each request gets its own."""
    requests = [[text(ITEMS[0][1])], ["data:image/jpeg;base64," + text(ITEMS[4][1]), text(ITEMS[8][1])]]
    decoded = [service.decode_request({"images": images}) for images in requests]
    assert decoded == [[ITEMS[0][1]], [ITEMS[4][1], ITEMS[8][1]]]
    together = [service.encode_response(each) for each in service.unbatch(service.predict(service.batch(decoded)))]
    alone = [service.encode_response(service.predict(each)) for each in decoded]
    for one, two in zip(together, alone, strict=True):
        assert one["model"] == two["model"] and len(one["results"]) == len(two["results"])
        for first, second in zip(one["results"], two["results"], strict=True):
            assert first["embedding"] == pytest.approx(second["embedding"], abs=1e-6)
            assert [each["class"] for each in first["classes"]] == [each["class"] for each in second["classes"]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1], 'send {"images": [...]}'),
        ({"image": "x"}, 'send {"images": [...]}'),
        ({"images": []}, 'send {"images": [...]}'),
        ({"images": [text(image(0))] * 3}, "3 images are more than max_images=2"),
        ({"images": [text(image(0)), "%"]}, "image 2 is not base64"),
        ({"images": [text(b"no image")]}, "image 1 cannot be read: it is not an image"),
        ({"images": [5]}, "image 1 is not base64"),
    ],
)
def test_requests_that_cannot_be_answered(content, sentence, service):
    with pytest.raises(HTTPException) as error:
        service.decode_request(content)
    assert error.value.status_code == 400 and error.value.detail.startswith(sentence)


def test_a_request_that_is_too_large():
    """LitServe's interruption of the reading becomes a status and a sentence."""

    async def receive():
        raise HTTPException(413, "Payload too large")

    async def answer(request):
        raise AssertionError("it was answered")

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    with ThreadPoolExecutor() as thread:  # this thread may have a loop of playwright
        answered = thread.submit(lambda: asyncio.run(refuse_malformed(Request(scope, receive), answer))).result()
    assert answered.status_code == 413 and b"more than max_mb" in answered.body


def test_a_damaged_image_is_refused_before_it_is_embedded(service):
    with pytest.raises(UnreadableError):
        service.predictor.check(image(0)[:200])


def test_checkpoints_and_options_that_do_not_fit(made, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32))
    np.save(tmp_path / "x.labels.npy", np.arange(40) // 4)
    words = [
        "data=features",
        f"data.source={tmp_path / 'x.npy'}",
        "backbone=mlp",
        "batch_size=8",
        "trainer.max_steps=1",
    ]
    (tmp_path / "a").mkdir()
    train(config(*words, *QUIET, "head=full", "data.num_heldout=0"), tmp_path / "a")
    for options, sentence in (
        (["checkpoint=null"], "checkpoint=null must be a path"),
        ([f"checkpoint={tmp_path / 'nothing'}"], "holds no checkpoint"),
        ([f"checkpoint={tmp_path / 'a'}"], "was trained on vectors and takes no images"),
        ([f"checkpoint={made / 'full'}", "precision=fp8"], "precision=fp8 must be one of"),
    ):
        with pytest.raises(ValueError, match=sentence):
            serve(config(*options, name="serve"), tmp_path)
    monkeypatch.setitem(sys.modules, "litserve", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[serve\]'"):
        serve(config(f"checkpoint={made / 'full'}", name="serve"), tmp_path)
