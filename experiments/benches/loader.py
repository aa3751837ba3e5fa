"""`bench=loader`: training batches from an LMDB, compared with the decoder alone and with plain loaders."""

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.augment import Faces
from data.conversion.writers import LmdbWriter
from data.counter_rng import normals
from data.formats.lmdb_images import Datum
from data.records import opened
from data.sets.images import images
from data.streams import BatchLoader, InstanceStream

from .measure import Step, Subject, interleave, median_and_spread, ratio, resident

DECODERS = ("decoder", "opencv decoder", "pillow decoder")
SUBJECTS = (*DECODERS, "loader", "finished", "opencv", "pillow")


def loader(
    source: str | None,
    count: int,
    size: int,
    batch: int,
    num_workers: list[int],
    epochs: int,
    warmup: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Return a line for each way to get a batch on one core, then one for each number of worker processes.

    `decoder` is the floor: the JPEG library alone, in a loop over images in memory. `loader` reads, decodes and stacks
    images as a worker does. `finished` also converts them to augmented floats, as the training process does. `opencv`
    and `pillow` do all of it one image at a time, the first as FFC's loader does.

    Args:
        source: an LMDB folder of JPEG images of one size; None to generate `count` images of `size` pixels.
        epochs: number of epochs over which the memory of worker processes is measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(source).expanduser().resolve() if source else make(Path(folder, "made.lmdb"), count, size)
        options: dict[str, Any] = {
            "source": str(path),
            "size": size,
            "batch": batch,
            "cache": str(Path(folder, "cache")),
        }
        subjects = {name: Subject(_subject, name=name, **options) for name in SUBJECTS}
        interleave(subjects, warmup, repeats)
        lines = []
        times = {name: subject.parts["step"] for name, subject in subjects.items()}
        for name in SUBJECTS:
            subjects[name].close()
            milliseconds, spread = median_and_spread(times[name])
            lines.append(
                {
                    "what": name,
                    "batch": batch,
                    "step_ms": milliseconds,
                    "spread_ms": spread,
                    "images_per_second": 1e3 * batch / milliseconds,
                    "over_floor": ratio(times[name], times["decoder"]),
                    "speedup": ratio(times["opencv"], times[name]),
                }
            )
        for workers in num_workers:
            lines.append(with_workers(False, workers, epochs, **options))
            lines.append(with_workers(True, workers, 2, **options))
        return lines


def make(path: Path, count: int, size: int) -> Path:
    """Write JPEG images of quality 95 with detail at all scales. At 112 pixels their size is that of aligned faces."""
    writer = LmdbWriter(path, "made", {})
    for number in range(count):
        picture = np.zeros((size, size, 3), np.float32)
        for scale, strength in ((4, 60), (12, 30), (28, 12), (size, 3)):
            noise = normals("bench picture", number, scale, np.arange(scale * scale * 3)).reshape(scale, scale, 3)
            channels = [
                Image.fromarray(noise[:, :, c]).resize((size, size), Image.Resampling.BICUBIC) for c in range(3)
            ]
            picture += strength * np.stack([np.asarray(channel) for channel in channels], axis=2)
        file = io.BytesIO()
        Image.fromarray((128 + picture).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
        writer.write(number, f"{number:06d}", number // 10, file.getvalue())
    writer.flush()
    writer.close()
    return path


def _stream(source: str, size: int, batch: int, cache: str) -> InstanceStream:
    data = images(format="lmdb", source=source, size=size, num_heldout=0, augment=Faces(), cache_dir=cache)
    return InstanceStream(data, batch)


def _subject(name: str, source: str, size: int, batch: int, cache: str) -> Step:
    torch.set_num_threads(1)
    stream = _stream(source, size, batch, cache)
    numbers = iter(range(10**9))
    catalog = stream.data.train.source.encoded  # type: ignore[attr-defined]
    if name in DECODERS:
        decode = {"decoder": simplejpeg.decode_jpeg, "opencv decoder": _by_opencv, "pillow decoder": _by_pillow}[name]
        encoded = [catalog.read(index) for index in range(min(len(catalog), 20 * batch))]

        def step() -> None:
            start = next(numbers) * batch
            for place in range(start, start + batch):
                decode(encoded[place % len(encoded)])

    elif name == "loader":

        def step() -> None:
            stream.batch(next(numbers))

    elif name == "finished":

        def step() -> None:
            examples, _, draws = stream.batch(next(numbers))
            stream.data.finish(examples, draws)

    else:
        plain = _plain(stream, source, _by_opencv if name == "opencv" else _by_pillow)
        batches = _forever(DataLoader(plain, batch, shuffle=True, drop_last=True))

        def step() -> None:
            next(batches)

    def timed() -> Mapping[str, float]:
        begin = time.perf_counter()
        step()
        return {"step": 1e3 * (time.perf_counter() - begin)}

    return timed


def _forever(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


class Plain(Dataset[tuple[Tensor, int]]):
    """A dataset that reads, decodes, mirrors and converts one image at a time."""

    def __init__(self, path: str, keys: list[bytes], labels: list[int], decode: Callable[[bytes, bool], Any]):
        self.keys, self.labels, self.decode = keys, labels, decode
        self.path = path
        self.transaction: Any = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.transaction is None:  # the first read in this worker
            self.transaction = opened(self.path, Path(self.path, "data.mdb").stat().st_ino).begin()
        datum = Datum()
        datum.ParseFromString(self.transaction.get(self.keys[index]))
        picture = self.decode(datum.ffc or datum.caffe, bool(np.random.random() < 0.5))  # noqa: NPY002
        return torch.from_numpy((picture.transpose((2, 0, 1)).astype(np.float32) - 127.5) * 0.0078125), self.labels[
            index
        ]


def _plain(stream: InstanceStream, source: str, decode: Callable[[bytes, bool], Any]) -> Plain:
    catalog = stream.data.train.source.encoded  # type: ignore[attr-defined]
    keys = [catalog.key(index).encode() for index in range(len(catalog))]
    return Plain(source, keys, catalog.labels.tolist(), decode)


def _by_opencv(encoded: bytes, mirrored: bool = False) -> Any:
    import cv2

    cv2.setNumThreads(1)
    picture: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), -1)
    return cv2.flip(picture, 1) if mirrored else picture


def _by_pillow(encoded: bytes, mirrored: bool = False) -> Any:
    picture = Image.open(io.BytesIO(encoded)).convert("RGB")
    return np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture)


def with_workers(
    plain: bool, workers: int, epochs: int, source: str, size: int, batch: int, cache: str
) -> dict[str, Any]:
    """Return images per second of worker processes, and the growth of their memory from the second epoch on."""
    stream = _stream(source, size, batch, cache)
    steps = stream.batches_per_epoch
    if plain:
        batches = _forever(DataLoader(_plain(stream, source, _by_opencv), batch, num_workers=workers, drop_last=True))
    else:
        batches = iter(BatchLoader({"instance": stream}, epochs * steps, batch, workers))
    memory = []
    for epoch in range(epochs):
        for _ in range(steps):
            next(batches)
        if epoch == 0:
            begin = time.perf_counter()
        memory.append(_own_memory_of_children())
    seconds = time.perf_counter() - begin
    return {
        "what": f"{'opencv' if plain else 'loader'}, {workers} worker{'s' if workers > 1 else ''}",
        "batch": batch,
        "images_per_second": (epochs - 1) * steps * batch / seconds,
        **({} if plain else {"epochs": epochs, "grown_bytes": memory[-1] - memory[min(1, epochs - 1)]}),
    }


def _own_memory_of_children() -> float:
    """Return the memory of this process and its children in bytes, without mapped files."""
    import multiprocessing

    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    return sum(resident("RssAnon", process) for process in processes)
