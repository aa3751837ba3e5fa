"""`python -m experiments.embed checkpoint=RUN source=IMAGES target=FILE.npy`: write embeddings to an array.

Row i of FILE.npy, (n, D), belongs to the image in line i of FILE.txt: `key<TAB>class`. Its class id is number i of
FILE.labels.npy, (n,), and line c of FILE.labels.classes.txt names class c, if classes have names. These are files of
`data=features`. They are written in `FILE.npy.partial`. After an interruption the same command continues, with any
number of processes.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.embed")
    from .command_line.arguments import check_or_exit

    check_or_exit("embed")


import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from data.arrays import write_header
from data.conversion.writers import one_line, write_names
from data.files import write_whole
from data.formats.encoded import Labelled, UnreadableError
from data.options import absolute
from data.records import CHUNK, DataSet, Labels, Source
from data.sets.image_source import images_at

from .cli import command, model, needed
from .launching.processes import joined
from .models.fingerprint import describe_data, encode_class_names
from .models.model import Model, Prepare, finite, unit
from .tables import console

BLOCK = 1024  # images between two safe states
DTYPES = ("float32", "float16")


def embed(config: DictConfig, folder: Path) -> None:
    """Write both files.

    Raises:
        ValueError: an option does not fit, or an image cannot be read.
    """
    needed(config, "checkpoint", "target", *(["source"] if config.source is not None else []))
    target = Path(absolute(config.target))
    if target.suffix != ".npy":
        raise ValueError(f"target={target} must end in .npy")
    if config.dtype not in DTYPES:
        raise ValueError(f"dtype={config.dtype} must be one of {', '.join(DTYPES)}")
    given = source_of(config)
    source: Labelled | OwnRecords
    with joined(config) as processes:
        embedder = model(config, processes)
        if given is not None:
            source, (images, prepare) = given, embedder.view(given)
        else:
            data = embedder.data()
            source, images, prepare = OwnRecords(data), data.train.source, data.prepare
        shape = (len(source), embedder.embedding_size)
        # An interrupted command continues only with the same images, model and options.
        options = [config.mirrored, config.unit, config.dtype, config.trainer.precision]
        files = Files(target, json.dumps([source.fingerprint, shape, embedder.name, *options]))
        files.check()
        if not processes.rank_zero_call(files.lock):
            raise ValueError(f"target={target} cannot be written: another command is writing it; wait or stop that one")
        try:
            if processes.rank_zero_call(lambda: files.begin(shape, config.dtype)):
                # Returns when all processes are done.
                embedder.together(partial(_fill, files, len(source), images, prepare, embedder, config))
            processes.rank_zero_call(lambda: files.finish(source))
        finally:
            files.unlock()
        if processes.is_rank_zero:
            message = (
                f"{target}: {shape[0]:,} embeddings of {shape[1]} numbers; {files.keys.name}: their keys and classes; "
                f"{files.labels.name}: their class ids"
            )
            console().print(message, soft_wrap=True, highlight=False)


def source_of(config: DictConfig) -> Labelled | None:
    """Return the images of `source`; None for the training records of the model's own data."""
    if config.source is not None:
        return images_at(absolute(config.source), config.format, root=config.root, labels=config.labels)
    for name in ("format", "root", "labels"):
        if config[name] is not None:
            raise ValueError(f"{name}={config[name]} applies to a source only; remove it, or name a source")
    return None


@dataclass(frozen=True)
class OwnRecords:
    """The training records of a model's own data, by number."""

    data: DataSet

    def __len__(self) -> int:
        return len(self.data.train)

    @property
    def labels(self) -> Labels:
        return self.data.train.labels

    @property
    def names(self) -> Sequence[str]:
        return self.data.class_names or [str(number) for number in range(self.data.train.num_classes)]

    @property
    def fingerprint(self) -> str:
        return str(describe_data(self.data, encode_class_names(self.data))["fingerprint"])

    def key(self, index: int) -> str:
        return str(index)


class Files:
    """The files of a target: an array, keys, labels and class names, and a folder for them until they are complete.

    Args:
        target: path of the array.
        description: description of the computation; it must be the same when a command continues.
    """

    def __init__(self, target: Path, description: str):
        self.target, self.description = target, description
        self.keys, self.labels = target.with_suffix(".txt"), target.with_suffix(".labels.npy")
        self.names = target.with_suffix(".labels.classes.txt")
        self.partial = target.with_name(f"{target.name}.partial")
        self.rows, self.done, self.about = (self.partial / name for name in ("rows.npy", "done", "about.json"))
        self._lock = FileLock(self.partial / "lock")

    def check(self) -> None:
        """Raise ValueError if the target exists, or the folder belongs to another computation."""
        if not self.about.exists():
            for path in (self.target, self.keys, self.labels, self.names):
                if path.exists():
                    raise ValueError(
                        f"target={self.target} cannot be written: {path.name} exists already; remove it or give "
                        "another name"
                    )
        elif self.about.read_text() != self.description:
            raise ValueError(
                f"target={self.target} cannot be continued: {self.partial.name} has other images, options or another "
                "checkpoint; remove it"
            )

    def lock(self) -> bool:
        """Lock the folder; return whether no other command holds it."""
        self.partial.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def unlock(self) -> None:
        self._lock.release()

    def begin(self, shape: tuple[int, int], dtype: str) -> bool:
        """Allocate the array if needed; return whether any rows may be missing. The description is written last."""
        if not self.about.exists():
            np.lib.format.open_memmap(self.rows, "w+", dtype, shape)
            self.done.write_bytes(bytes(-(-shape[0] // BLOCK)))
            write_whole(self.about, self.description)
        elif not self.rows.exists() and not self.target.exists():  # it was complete, and the target was removed since
            self.about.unlink()
            return self.begin(shape, dtype)
        return self.rows.exists()

    def finish(self, source: Labelled | OwnRecords) -> None:
        """Rename the files, the array last. A command killed in this method continues in it."""
        if self.rows.exists():
            names, count = source.names, len(source)
            keys, labels, classes = (self.partial / name for name in ("keys.txt", "labels.npy", "classes.txt"))
            with (
                keys.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as lines,
                labels.open("wb") as ids,
            ):
                write_header(ids, np.int64, (count,))
                for start in range(0, count, CHUNK):
                    chunk = np.arange(start, min(start + CHUNK, count))
                    found = np.asarray(source.labels[chunk], dtype=np.int64)
                    ids.write(found.tobytes())
                    for index, label in zip(chunk.tolist(), found.tolist(), strict=True):
                        lines.write(f"{one_line(source.key(index))}\t{one_line(names[label])}\n")
                for file in (lines, ids):
                    file.flush()
                    os.fsync(file.fileno())
            if any(name != str(number) for number, name in enumerate(names)):
                write_names(classes, [one_line(name) for name in names])
                os.replace(classes, self.names)
            os.replace(labels, self.labels)
            os.replace(keys, self.keys)
            os.replace(self.rows, self.target)
        self.about.unlink()
        shutil.rmtree(self.partial)


def _fill(files: Files, count: int, images: Source, prepare: Prepare, embedder: Model, config: DictConfig) -> None:
    """Compute this process's missing blocks.

    They are written to a file and not to mapped memory, so that a full disk is reported and does not kill the process.
    """
    offset = np.load(files.rows, mmap_mode="r").offset
    processes, done = embedder.processes, files.done.read_bytes()
    label = "the training records" if config.source is None else config.source
    missing = [number for number in range(processes.rank, len(done), processes.world_size) if not done[number]]
    with files.rows.open("r+b") as rows, files.done.open("r+b") as marks:
        for number in embedder.track(missing, "Embedding"):
            indices = np.arange(number * BLOCK, min((number + 1) * BLOCK, count))
            try:
                embeddings = embedder.embed(images, prepare, indices, mirrored=config.mirrored)
            except UnreadableError as error:
                hint = "python -m data.convert on_corrupt=skip verify=true makes a copy without such images"
                raise ValueError(f"{error}; {hint}") from None
            embeddings = unit(embeddings, label) if config.unit else embeddings
            embeddings = finite(embeddings.to(getattr(torch, config.dtype)), label)  # float16 ends at 65,504
            block = embeddings.cpu().numpy()
            rows.seek(offset + block[:1].nbytes * number * BLOCK)
            rows.write(block.tobytes())
            rows.flush()
            os.fsync(rows.fileno())
            marks.seek(number)
            marks.write(b"\1")
            marks.flush()


if __name__ == "__main__":
    command("embed", embed)
