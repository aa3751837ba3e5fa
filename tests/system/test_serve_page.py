"""`python -m experiments.serve` as a process: its page in a real browser, its answers, and its end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from experiments.train import train
from tests.data.made_sets import SIDE, image, images, write_folder
from tests.experiments.commands import ROOT, config

pytestmark = pytest.mark.system
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def processes_of(port: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if f"port={port}" in line and not line.startswith("Z")]


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Train a small model, and serve it with a gallery. At the end all processes of the server must have gone."""
    folder = tmp_path_factory.mktemp("serve")
    write_folder(folder / "set", images([number // 3 for number in range(30)]))
    (folder / "run").mkdir()
    words = ["data=folder", f"data.source={folder / 'set'}", f"data.size={SIDE}", "backbone=mlp", "head=full"]
    words += ["batch_size=8", "trainer.max_steps=2", "data.num_heldout=0", "trainer.accelerator=cpu"]
    assert train(config(*words, "logger.wandb.mode=disabled", "evaluate.interval=null"), folder / "run") == 0
    port = free_port()
    command = [sys.executable, "-m", "experiments.serve", f"checkpoint={folder / 'run'}", f"gallery={folder / 'set'}"]
    command += [f"port={port}", "accelerator=cpu", "max_images=3", f"hydra.run.dir={folder / 'serve'}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while True:
        assert server.poll() is None and time.monotonic() < deadline, server.communicate()[0]
        try:
            if urlopen(f"http://127.0.0.1:{port}/health").status == 200:
                break
        except OSError:
            time.sleep(0.3)
    yield f"http://127.0.0.1:{port}/"
    os.kill(server.pid, signal.SIGTERM)
    output, _ = server.communicate(timeout=60)
    assert "Traceback" not in output
    deadline = time.monotonic() + 20
    while processes_of(port) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert processes_of(port) == []


@pytest.fixture(params=SIZES)
def page(request, browser: Browser, address) -> Iterator[Page]:
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(10_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    yield page
    context.close()
    assert errors == []


def test_two_photos_are_compared(page, tmp_path):
    for name, number in (("a", 0), ("b", 1), ("c", 13)):
        (tmp_path / f"{name}.jpg").write_bytes(image(number))
    page.get_by_label("First photo").set_input_files(tmp_path / "a.jpg")
    expect(page.locator("#answer")).to_contain_text("Choose the other photo")
    expect(page.get_by_role("table", name="Nearest classes of the first photo")).to_be_visible()
    page.get_by_label("Second photo").set_input_files(tmp_path / "a.jpg")
    expect(page.locator("#score")).to_have_text("Cosine similarity 1.000")
    page.get_by_label("Second photo").set_input_files(tmp_path / "c.jpg")
    expect(page.locator("#score")).not_to_have_text("Cosine similarity 1.000")
    gallery = page.get_by_role("table", name="Nearest images of the gallery to the second photo")
    assert gallery.locator("tr").nth(1).inner_text().startswith("class 004")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert Axe().run(page).violations_count == 0
    page.emulate_media(color_scheme="dark")
    assert Axe().run(page).violations_count == 0


def test_a_file_that_is_no_image_is_named(page, tmp_path):
    (tmp_path / "notes.jpg").write_text("no image")
    page.get_by_label("First photo").set_input_files(tmp_path / "notes.jpg")
    expect(page.locator("#answer")).to_have_text("notes.jpg is not an image that this browser reads.")


def test_a_failure_of_the_server_is_shown(page, tmp_path):
    (tmp_path / "a.jpg").write_bytes(image(0))
    refusal = json.dumps({"detail": "image 1 is not base64"})
    page.route("**/predict", lambda route: route.fulfill(status=400, body=refusal))
    page.get_by_label("First photo").set_input_files(tmp_path / "a.jpg")
    expect(page.locator("#answer")).to_have_text("There is no answer: image 1 is not base64")


JSON = "application/json"


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (b"{", JSON, 'the body is not JSON; send {"images": [...]}'),
        (b"\xff", JSON, 'the body is not JSON; send {"images": [...]}'),
        (b"5", JSON, 'send {"images": [...]}'),
        (b"images=a", "application/x-www-form-urlencoded", "the body is a form;"),
    ],
)
def test_a_request_that_does_not_fit_gets_a_sentence(address, body, kind, sentence):
    with pytest.raises(HTTPError) as error:
        urlopen(Request(f"{address}predict", body, {"Content-Type": kind}))
    assert error.value.code == 400 and sentence in json.load(error.value)["detail"]


def test_the_program_of_the_documentation(address, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(image(ord(name)))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)
    (program,) = (block for block in blocks if "urllib" in block)
    program = program.replace("http://127.0.0.1:8000/", address)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stderr


def test_the_page_needs_nothing_else(address):
    content = urlopen(address).read().decode()
    assert "<title>Two photos compared</title>" in content and "src=" not in content.split("<script>")[0]
