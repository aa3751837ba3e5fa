"""Pictures of the documentation: `python docs/pictures.py [NAME ...]` draws all of them, or those named.

Each is drawn by the commands that a user types. The pictures of docs/results.md are drawn by `experiments.results`, and
batch.svg is drawn by hand.
"""

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # the packages of the checkout

from data.sets.glyphs import glyphs  # noqa: E402

WIDTH = 1280
PORT = 8917
PAIRS = 300  # of each kind, in each of ten folds


def run(*words: object) -> None:
    """Run a command of the documentation."""
    subprocess.run([sys.executable, "-m", *map(str, words)], cwd=DOCS.parent, check=True)


@contextmanager
def browser_page(height: int = 800) -> Iterator[Page]:
    """Open an empty page in the installed chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": WIDTH, "height": height})
        browser.close()


def comparison(folder: Path) -> None:
    """The page of three heads with three seeds each."""
    words = ("head=full,pfc,virtual", "seed=0,1,2", "trainer.max_steps=1600", "evaluate.interval=200")
    run("experiments.run", "-m", *words, f"hydra.sweep.dir={folder}/sweep")
    run("experiments.compare", folder / "sweep")
    with browser_page() as page:
        page.goto((folder / "sweep" / "comparison.html").as_uri())
        page.wait_for_timeout(2000)  # plots are drawn after the page is loaded
        page.screenshot(path=DOCS / "comparison.png", full_page=True)


def characters(folder: Path) -> None:
    """Verification and groups of held-out characters, and the page of the service."""
    run("experiments.run", "head=pfc", "sample_rate=0.1", f"hydra.run.dir={folder}/run")
    paths = write_heldout(folder / "heldout")
    write_pairs(paths, folder / "characters.txt")
    words = ("protocol=lfw", f"protocol.lfw.source={folder}/characters.txt", "protocol.lfw.mirrored=false")
    run("experiments.evaluate", f"checkpoint={folder}/run", *words, f"hydra.run.dir={folder}/evaluation")
    copy_only(folder / "evaluation", "verification.png")
    run("experiments.cluster", f"checkpoint={folder}/run", f"source={folder}/heldout", f"hydra.run.dir={folder}/groups")
    copy_only(folder / "groups", "groups.png")
    serve(folder, [paths[0][0], paths[0][-1]])


def serve(folder: Path, photos: list[Path]) -> None:
    """The page of the service, with two photos."""
    words = (f"checkpoint={folder}/run", f"gallery={folder}/heldout", f"port={PORT}", f"hydra.run.dir={folder}/serve")
    server = subprocess.Popen([sys.executable, "-m", "experiments.serve", *words], cwd=DOCS.parent)
    try:
        wait_for(f"http://127.0.0.1:{PORT}/health")
        with browser_page(height=400) as page:
            page.goto(f"http://127.0.0.1:{PORT}/")
            page.get_by_label("First photo").set_input_files(photos[0])
            page.get_by_label("Second photo").set_input_files(photos[1])
            page.locator("#score").wait_for()
            page.wait_for_load_state("networkidle")
            page.screenshot(path=DOCS / "serve.png", full_page=True)
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        try:
            urlopen(address).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{address} does not answer")


def write_heldout(folder: Path) -> list[list[Path]]:
    """Write the held-out images of `data=glyphs` as a folder of classes, and return the paths of each class."""
    heldout = glyphs().heldout
    assert heldout is not None
    images = heldout.source.read(np.arange(len(heldout)))
    paths: list[list[Path]] = [[] for _ in range(heldout.num_classes)]
    for number, (label, image) in enumerate(zip(np.asarray(heldout.labels), images.numpy(), strict=True)):
        path = folder / f"{label:04}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
        paths[label].append(path)
    return paths


def write_pairs(paths: list[list[Path]], target: Path) -> None:
    """Write a list of pairs: as many of one class as of two."""
    same = [pair for group in paths for pair in itertools.islice(itertools.combinations(group, 2), 6)]
    different = [(paths[i][0], paths[i - shift][-1]) for shift in range(1, 7) for i in range(len(paths))]
    lines = [f"{a}\t{b}\t1" for a, b in same[: 10 * PAIRS]] + [f"{a}\t{b}\t0" for a, b in different[: 10 * PAIRS]]
    target.write_text("\n".join(lines) + "\n")


def hanzi(folder: Path) -> None:
    """Characters in their typefaces."""
    run("data.sets.hanzi", "--picture", DOCS / "hanzi.png")


def selection(folder: Path) -> None:
    """Recall of the indexes against time."""
    run("experiments.benchmark", "bench=selection", f"hydra.run.dir={folder}")
    copy_only(folder, "selection.png")


def head_step(folder: Path) -> None:
    """The cost of a step against the number of classes."""
    words = ("bench.num_classes=[10000,30000,100000,300000]", "bench.repeats=3", "bench.warmup=1")
    run("experiments.benchmark", *words, f"hydra.run.dir={folder}")
    copy_only(folder, "head_step.png")


def copy_only(folder: Path, name: str) -> None:
    """Copy the only picture of a folder to docs/."""
    (picture,) = folder.glob("*.png")
    shutil.copy(picture, DOCS / name)


PICTURES: dict[str, Callable[[Path], None]] = {
    function.__name__: function for function in (comparison, characters, hanzi, selection, head_step)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(PICTURES)}; without any: all")
    names = parser.parse_args().names
    if unknown := [name for name in names if name not in PICTURES]:
        parser.error(f"{unknown[0]} is not one of {', '.join(PICTURES)}")
    for name in names or PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            PICTURES[name](Path(folder))


if __name__ == "__main__":
    main()
