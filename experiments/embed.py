"""`python -m experiments.embed checkpoint=RUN source=IMAGES target=FILE.npy`: embeddings of images, as an array.

Row i of FILE.npy, (n, D), is of the image that line i of FILE.txt names: `key<TAB>class`. Both are made in
`FILE.npy.partial`; the same command goes on with one that was stopped, with any number of processes.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.embed")
    from .command_line.arguments import check_or_exit

    check_or_exit("embed")


import json
import os
import shutil
from functools import partial as partial_of
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from data.conversion.writers import one_line
from data.files import write_whole
from data.formats.encoded import Labelled, UnreadableError
from data.options import absolute
from data.records import Source
from data.sets.image_source import images_at

from .cli import command, model, needed
from .launching.processes import joined
from .models.model import Model, Prepare, finite, unit
from .tables import console

BLOCK = 1024  # images between two safe states
DTYPES = ("float32", "float16")
ABOUT = "about.json"  # of the partial folder: what is made in it


def embed(config: DictConfig, folder: Path) -> None:
    """Writes both files. Raises ValueError for options and images that do not allow it."""
    needed(config, "checkpoint", "source", "target")
    path, target = absolute(config.source), Path(absolute(config.target))
    keys, partial = target.with_suffix(".txt"), target.with_name(f"{target.name}.partial")
    if target.suffix != ".npy":
        raise ValueError(f"target={target}: must end in .npy")
    if config.dtype not in DTYPES:
        raise ValueError(f"dtype={config.dtype}: must be one of {', '.join(DTYPES)}")
    source = images_at(path, config.format, root=config.root, labels=config.labels)
    with joined(config) as processes:
        embedder = model(config, processes)
        images, prepare = embedder.view(source)
        shape = (len(source), embedder.embedding_size)
        # What goes on must be of the same images and model.
        options = [config.mirrored, config.unit, config.dtype, config.trainer.precision]
        about = json.dumps([source.fingerprint, shape, embedder.name, *options])
        if not (partial / ABOUT).exists():
            for there in (target, keys):
                if there.exists():
                    raise ValueError(f"target={target}: there is {there.name} already; remove it or name another")
        elif (partial / ABOUT).read_text() != about:
            raise ValueError(
                f"target={target}: {partial.name} is of other images, options or another checkpoint; remove it"
            )
        lock = FileLock(partial / "lock")
        if not processes.rank_zero_call(lambda: _locked(lock, partial)):
            raise ValueError(f"target={target}: another command is writing there")
        try:
            if processes.rank_zero_call(lambda: _begin(partial, about, target, shape, config.dtype)):
                fill = partial_of(_fill, partial, len(source), images, prepare, embedder, config)
                embedder.together(fill)  # all are done
            processes.rank_zero_call(lambda: _finish(partial, source, target, keys))
        finally:
            lock.release()
        if processes.is_rank_zero:
            told = f"{target}: {shape[0]:,} embeddings of {shape[1]} numbers; {keys.name}: key and class of each"
            console().print(told, soft_wrap=True, highlight=False)


def _locked(lock: FileLock, partial: Path) -> bool:
    partial.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _begin(partial: Path, about: str, target: Path, shape: tuple[int, int], dtype: str) -> bool:
    """Room for all, unless it is there; whether there is something to be done. `about` comes last."""
    if not (partial / ABOUT).exists():
        np.lib.format.open_memmap(partial / "rows.npy", "w+", dtype, shape)
        (partial / "done").write_bytes(bytes(-(-shape[0] // BLOCK)))
        write_whole(partial / ABOUT, about)
    elif not (partial / "rows.npy").exists() and not target.exists():  # finished once, and removed since
        (partial / ABOUT).unlink()
        return _begin(partial, about, target, shape, dtype)
    return (partial / "rows.npy").exists()


def _fill(partial: Path, count: int, images: Source, prepare: Prepare, embedder: Model, config: DictConfig) -> None:
    """This process's blocks, as far as they are not done. Written to files, not to mapped memory: a full disk is told
    of, and does not end the process."""
    offset = np.load(partial / "rows.npy", mmap_mode="r").offset
    processes, done = embedder.processes, (partial / "done").read_bytes()
    own = [number for number in range(processes.rank, len(done), processes.world_size) if not done[number]]
    with (partial / "rows.npy").open("r+b") as rows, (partial / "done").open("r+b") as marks:
        for number in embedder.track(own, "Embedding"):
            indices = np.arange(number * BLOCK, min((number + 1) * BLOCK, count))
            try:
                found = embedder.embed(images, prepare, indices, mirrored=config.mirrored)
            except UnreadableError as error:
                hint = "python -m data.convert on_corrupt=skip verify=true makes a copy without such images"
                raise ValueError(f"{error}; {hint}") from None
            found = unit(found, config.source) if config.unit else found
            found = finite(found.to(getattr(torch, config.dtype)), config.source)  # float16 holds up to 65,504
            block = found.cpu().numpy()
            rows.seek(offset + block[:1].nbytes * number * BLOCK)
            rows.write(block.tobytes())
            rows.flush()
            os.fsync(rows.fileno())
            marks.seek(number)
            marks.write(b"\1")
            marks.flush()


def _finish(partial: Path, source: Labelled, target: Path, keys: Path) -> None:
    """The array gets its name last. One that is killed here goes on here."""
    if (partial / "rows.npy").exists():
        names = source.names
        with (partial / "keys.txt").open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for index, label in enumerate(source.labels):
                file.write(f"{one_line(source.key(index))}\t{one_line(names[label])}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial / "keys.txt", keys)
        os.replace(partial / "rows.npy", target)
    (partial / ABOUT).unlink()
    shutil.rmtree(partial)


if __name__ == "__main__":
    command("embed", embed)
