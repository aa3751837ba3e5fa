"""`bench=search`: search of probes among distractors in files, compared with the matrix products alone."""

import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..launching.processes import Processes
from ..models.model import BLOCK, Model
from ..protocols.identification import Identification
from .measure import PeakOwn, Step, Subject, interleave, median_and_spread, ratio, timed


def search(
    num_probes: int,
    num_mates: list[int],
    num_distractors: float,
    embedding_size: int,
    similarity: float,
    warmup: int,
    repeats: int,
    folder: str | None,
) -> list[dict[str, Any]]:
    """Return a line for each number of mates. `own_bytes` is the peak memory without the gallery, a mapped file.

    Args:
        num_mates: gallery features of each probe's own class.
        similarity: mean cosine of a probe and its mates.
        folder: parent of the temporary files; None for the temporary folder.
    """
    lines = []
    with tempfile.TemporaryDirectory(dir=folder) as path:
        make(Path(path), "distractors", int(num_distractors), embedding_size, seed=2)
        for mates in num_mates:
            pair(Path(path), num_probes, mates, embedding_size, similarity)
            options = {"folder": path, "num_probes": num_probes, "size": embedding_size}
            subjects = {
                "protocol": Subject(_protocol, **options),
                "products": Subject(_products, count=int(num_distractors), **options),
            }
            interleave(subjects, warmup, repeats)
            ours, floor = (subjects[name].parts["ms"] for name in ("protocol", "products"))
            own = max(subjects["protocol"].parts["own"])
            for subject in subjects.values():
                subject.close()
            lines.append(
                {
                    "probes": num_probes,
                    "mates": mates,
                    "distractors": int(num_distractors),
                    "embedding_size": embedding_size,
                    "search_ms": median_and_spread(ours)[0],
                    "products_ms": median_and_spread(floor)[0],
                    "over_floor": ratio(ours, floor),
                    "own_bytes": own,
                    "rank1": subjects["protocol"].parts["rank1"][0],
                }
            )
    return lines


def make(folder: Path, name: str, count: int, size: int, seed: int) -> None:
    """Write features in random directions."""
    rows = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, size))
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        rows[start:stop] = torch.randn(stop - start, size, generator=generator).numpy()


def pair(folder: Path, num_probes: int, num_mates: int, size: int, similarity: float) -> None:
    """Write probes, and a gallery with mates of each probe."""
    make(folder, "probes", num_probes, size, seed=0)
    probes = np.load(folder / "probes.npy")
    noise = np.random.default_rng(1).normal(size=(num_probes * num_mates, size)).astype(np.float32)
    mates = similarity * np.repeat(probes, num_mates, 0) + (1 - similarity**2) ** 0.5 * noise
    np.save(folder / "gallery.npy", mates.astype(np.float32))
    for name, count in (("probes", 1), ("gallery", num_mates)):
        lines = [f"{number}\t{number // count}\n" for number in range(num_probes * count)]
        (folder / f"{name}.txt").write_text("".join(lines))


def _protocol(folder: str, num_probes: int, size: int) -> Step:
    gallery, probes, distractors = (f"{folder}/{name}.npy" for name in ("gallery", "probes", "distractors"))
    protocol = Identification(gallery, probes, distractors, resamples=0)
    model = Model(torch.nn.Identity(), size, Processes(0, 1, torch.device("cpu")), nullcontext, None, _no_data)

    def step() -> Mapping[str, float]:
        with PeakOwn() as memory:
            before = memory.peak
            milliseconds, (result,) = timed(partial(protocol, model))
        return {"ms": milliseconds, "own": memory.peak - before, "rank1": result.metrics["rank1"]}

    return step


def _no_data() -> Any:
    raise AssertionError


def _products(folder: str, num_probes: int, size: int, count: int) -> Step:
    """Return a step of as many products of the same sizes, with one block that stays in the caches."""
    probes, block = torch.randn(num_probes, size), torch.randn(min(BLOCK, count), size)
    out = torch.empty(num_probes, len(block))

    def products() -> None:
        for _ in range(-(-count // len(block))):
            torch.mm(probes, block.T, out=out)

    return lambda: {"ms": timed(products)[0]}
