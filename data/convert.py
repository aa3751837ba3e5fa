"""`python -m data.convert source=... target=...`: images of any format we read, as LMDB, .rec or a folder.

Images keep their bytes unless `encode=jpeg` asks for others. What is written is made in `TARGET.partial`, so that a
conversion that was killed goes on where it was, is read back and compared, and gets its name at the end. The source is
never written to.
"""

import difflib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import simplejpeg
from fsspec.core import url_to_fs
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .cache import cache_folder
from .catalog import Catalog, Origin, catalog
from .decode import Decoder, decodable, opened
from .encoded import Bad, UnreadableError
from .images import FORMATS
from .keyed import permute, uniforms
from .lmdb_images import FIELDS
from .records import forget_opened
from .writers import Files, FolderWriter, LmdbWriter, RecordWriter, State, Writer, plain

CHUNK = 256  # images that a worker handles together
FLUSH = 8  # chunks between two safe states
SMALL = 5000  # images for which starting workers takes longer than the work
TOLD = 20  # of the unreadable images, on the screen
CONF = Path(__file__).resolve().parent.parent / "conf" / "convert.yaml"


@dataclass
class Options:
    """Of the command; `conf/convert.yaml` tells what they are."""

    source: Any
    target: str | None
    format: str | None
    source_format: str | None
    labels: Any
    root: str | None
    shared: bool
    renumber: bool
    keys: str
    shuffle: bool
    seed: int
    datum: str
    encode: str | None
    quality: int
    size: int | None
    verify: bool
    on_corrupt: str
    validation: float
    num_workers: int | None
    cache_dir: str | None


class Read(NamedTuple):
    """An image on its way: encoded, or why not."""

    number: int  # in the source
    key: str
    label: int
    encoded: bytes
    reason: str | None = None


@dataclass(frozen=True)
class Reader:
    """What a worker does with images of the source."""

    source: Catalog
    options: Options

    def chunk(self, indices: NDArray[np.int64]) -> list[Read]:
        return [self.one(int(index)) for index in indices]

    def one(self, index: int) -> Read:
        key = self.source.key(index)
        label = int(self.source.labels[index]) if self.options.renumber else self.source.label(index)
        try:
            encoded = self.source.read(index)
            if self.options.encode is not None:
                encoded = self._encoded(encoded)
            elif self.options.verify or self.options.on_corrupt == "list":
                decodable(encoded)
            else:
                opened(encoded)
        except UnreadableError as error:
            return Read(index, key, label, b"", error.reason)
        return Read(index, key, label, encoded)

    def _encoded(self, encoded: bytes) -> bytes:
        side = self.options.size
        width, height = opened(encoded).size if side is None else (side, side)
        pixels = np.empty((height, width, 3), np.uint8)
        Decoder(height, width, 3).into(pixels, encoded)
        return simplejpeg.encode_jpeg(pixels, self.options.quality)


@dataclass(frozen=True)
class Comparer:
    """What a worker does with what was written: reads it back and holds it against the source."""

    reader: Reader
    target: Catalog
    of_target: NDArray[np.int64]  # the source's image of each of the target's

    def chunk(self, indices: NDArray[np.int64]) -> list[str]:
        """What is wrong with these images of the target."""
        return [f"{self.target.key(int(i))}: {wrong}" for i in indices if (wrong := self._wrong(int(i))) is not None]

    def _wrong(self, index: int) -> str | None:
        expected = self.reader.one(int(self.of_target[index]))
        try:
            encoded = self.target.read(index)
            if self.reader.options.verify:
                decodable(encoded)
        except UnreadableError as error:
            return error.reason
        if encoded != expected.encoded:
            return "other bytes than its source has"
        return None if self.target.label(index) == expected.label else "another label than its source has"


T = TypeVar("T")


class Workers:
    """Runs a function over chunks of indices, in order, a few chunks ahead; in this process if there are no workers."""

    def __init__(self, count: int):
        self.count = count
        self.pool = ProcessPoolExecutor(count, get_context("spawn")) if count else None

    def run(
        self, function: Callable[[NDArray[np.int64]], T], chunks: Iterable[NDArray[np.int64]]
    ) -> Iterator[tuple[NDArray[np.int64], T]]:
        """(chunk, what the function makes of it)"""
        if self.pool is None:
            for chunk in chunks:
                yield chunk, function(chunk)
            return
        waiting: deque[tuple[NDArray[np.int64], Future[T]]] = deque()
        for chunk in chunks:
            waiting.append((chunk, self.pool.submit(function, chunk)))
            if len(waiting) > 2 * self.count:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


@dataclass
class Report:
    """What a conversion has done."""

    classes: int
    images: int
    bytes: int
    unreadable: list[Bad]


def convert(options: Options, screen: Console | None = None) -> Report:
    """Converts; raises ValueError for options, sources and images that do not allow it."""
    screen = screen or Console()  # a bar on a terminal only
    check(options)
    cache = cache_folder(options.cache_dir)
    origin = Origin(
        source_format(options),
        tuple(str(Path(path).expanduser().resolve()) for path in several(options.source)),
        tuple(several(options.labels)),
        options.root,
        options.shared,
    )
    source = catalog(origin, cache, "stop" if options.on_corrupt == "stop" else "skip")
    count = options.num_workers
    if count is None:
        count = 0 if len(source) < SMALL else os.cpu_count() or 1
    bars = Progress(console=screen, transient=True, disable=not screen.is_terminal)
    try:
        with Workers(count) as workers, bars as progress:
            if options.on_corrupt == "list":
                report = look(source, options, workers, progress)
            elif "://" in str(options.target):
                report = upload(source, options, workers, progress, cache)
            else:
                assert options.target is not None
                report = write(source, options, Path(options.target).expanduser(), workers, progress)
    finally:
        forget_opened()
    tell(report, options, screen)
    return report


def check(options: Options) -> None:
    """Raises ValueError for options that are wrong by themselves."""
    if not several(options.source):
        raise ValueError("source=null: a path is needed, as in source=faces.rec target=faces.lmdb")
    if options.on_corrupt not in ("stop", "skip", "list"):
        raise ValueError(f"on_corrupt={options.on_corrupt}: must be stop, skip or list")
    if options.on_corrupt != "list":
        if options.target is None:
            raise ValueError("target=null: a path is needed, as in source=faces.rec target=faces.lmdb")
        target_format(options)
    if options.encode not in (None, "jpeg"):
        raise ValueError(f"encode={options.encode}: must be jpeg, or null to keep the bytes")
    if options.size is not None and (options.encode is None or options.size < 1):
        raise ValueError(f"size={options.size}: at least 1, and only with encode=jpeg")
    if not 1 <= options.quality <= 100:
        raise ValueError(f"quality={options.quality}: must lie between 1 and 100")
    if options.datum not in FIELDS:
        raise ValueError(f"datum={options.datum}: must be one of {', '.join(FIELDS)}")
    if options.keys not in ("source", "number"):
        raise ValueError(f"keys={options.keys}: must be source or number")
    if not 0 <= options.validation < 1:
        raise ValueError(f"validation={options.validation}: a share in [0, 1) is needed")
    if options.num_workers is not None and options.num_workers < 0:
        raise ValueError(f"num_workers={options.num_workers}: must not be negative")


def several(given: Any) -> list[str]:
    return [] if given is None else [str(given)] if isinstance(given, str | Path) else [str(each) for each in given]


def source_format(options: Options) -> str:
    """As given, or as the first source looks."""
    if options.source_format is not None:
        if options.source_format not in FORMATS:
            raise ValueError(f"source_format={options.source_format}: must be one of {', '.join(FORMATS)}")
        return options.source_format
    path = Path(several(options.source)[0]).expanduser()
    if not path.exists():
        raise ValueError(f"source={path}: there is no such file or folder")
    if path.is_dir():
        return "lmdb" if (path / "data.mdb").exists() else "folder"
    return "rec" if path.suffix == ".rec" else "list"


def target_format(options: Options) -> str:
    """As given, or as the target is called."""
    found = options.format or {".lmdb": "lmdb", ".rec": "rec"}.get(Path(str(options.target)).suffix)
    if found not in ("lmdb", "rec", "folder"):
        raise ValueError(
            f"target={options.target}, format={options.format}: format must be lmdb, rec or folder; a target that ends "
            "in .lmdb or .rec needs none"
        )
    return found


def look(source: Catalog, options: Options, workers: Workers, progress: Progress) -> Report:
    """Decodes everything and writes nothing."""
    report = Report(source.num_classes, 0, 0, list(source.unreadable()))
    task = progress.add_task("Looking", total=len(source))
    for chunk, images in workers.run(Reader(source, options).chunk, chunks(len(source))):
        for image in images:
            if image.reason is None:
                report.images += 1
                report.bytes += len(image.encoded)
            else:
                report.unreadable.append(Bad(image.key, image.reason))
        progress.advance(task, len(chunk))
    return report


def upload(source: Catalog, options: Options, workers: Workers, progress: Progress, cache: Path) -> Report:
    """Writes to the cache folder, then to a URL. An upload that fails is begun again by the same command."""
    url = str(options.target).rstrip("/")
    try:
        files, path = url_to_fs(url)
        there = files.exists(path)
    except (ImportError, ValueError, OSError) as error:
        raise ValueError(f"target={url}: {error}") from error
    if there:
        raise ValueError(f"target={url}: there is something already; remove it or name another")
    staged = cache / "uploads" / plain(url).replace("/", "_") / Path(url).name
    staged.parent.mkdir(parents=True, exist_ok=True)
    kept = staged.parent / "report.json"
    if not kept.exists():
        report = write(source, options, staged, workers, progress)
        kept.write_text(json.dumps([report.classes, report.images, report.bytes, report.unreadable]))
    classes, images, size, unreadable = json.loads(kept.read_text())
    folder = staged if staged.is_dir() else staged.parent
    below = f"{path}/" if staged.is_dir() else f"{path.rpartition('/')[0]}/"
    # Readers look for lists and indexes first: they come last.
    paths = sorted(
        (each for each in folder.rglob("*") if each.is_file() and each != kept),
        key=lambda each: (-each.stat().st_size, str(each)),
    )
    task = progress.add_task("Uploading", total=sum(each.stat().st_size for each in paths))
    for each in paths:
        remote = below + each.relative_to(folder).as_posix()
        files.makedirs(remote.rpartition("/")[0], exist_ok=True)
        files.put_file(str(each), remote)
        progress.advance(task, each.stat().st_size)
    shutil.rmtree(staged.parent)
    return Report(classes, images, size, [Bad(*each) for each in unreadable])


def write(source: Catalog, options: Options, target: Path, workers: Workers, progress: Progress) -> Report:
    """Writes, compares, and gives the target its name."""
    kind = target_format(options)
    for path in source.origin.paths:
        if target.resolve() == Path(path) or Path(path) in target.resolve().parents:
            raise ValueError(f"target={target}: lies in the source {path}, which is not written to")
    if target.exists():
        raise ValueError(f"target={target}: there is something already; remove it or name another")
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    journal = Journal(partial, source, options)
    made = partial / "made"
    if not journal.state:
        shutil.rmtree(made, ignore_errors=True)  # of one that was killed before it had written anything for good
    report = Report(source.num_classes, journal.state.get("images", 0), journal.state.get("bytes", 0), [])
    with (
        closing(_writer(kind, made, target, source, options, journal.state)) as writer,
        closing(Files(journal.state, written=partial / "written.bin", bad=partial / "bad.txt")) as notes,
    ):
        position = journal.state.get("position", 0)
        task = progress.add_task(f"Writing {target.name}", total=len(source), completed=position)
        order = (_order(chunk, len(source), options) for chunk in chunks(len(source), position))
        for number, (chunk, images) in enumerate(workers.run(Reader(source, options).chunk, order), 1):
            for image in images:
                if image.reason is None:
                    key = f"{report.images:09d}" if options.keys == "number" else image.key
                    writer.write(report.images, key, image.label, image.encoded)
                    notes["written"].write(image.number.to_bytes(8, "little"))
                    report.images += 1
                    report.bytes += len(image.encoded)
                elif options.on_corrupt == "stop":
                    raise ValueError(
                        f"{source.name(image.number)}: {image.reason}. on_corrupt=skip leaves such images out, "
                        "on_corrupt=list lists them"
                    )
                else:
                    notes["bad"].write(json.dumps([image.key, image.reason]).encode() + b"\n")
            position += len(chunk)
            progress.advance(task, len(chunk))
            if number % FLUSH == 0:
                journal.note(writer, notes, position, report)
        if not report.images:
            raise ValueError(f"{', '.join(source.origin.paths)}: none of the images can be read")
        journal.note(writer, notes, position, report)
        writer.name(source.class_names if options.renumber or not source.numbered else ())
    compare(source, options, kind, made, target, workers, progress)
    found = (partial / "bad.txt").read_text().splitlines()
    report.unreadable = [*source.unreadable(), *(Bad(*json.loads(line)) for line in found)]
    if kind == "rec":
        _finish_rec(made, target, source, report, options)
    else:
        made.rename(target)
    shutil.rmtree(partial)
    return report


def compare(
    source: Catalog, options: Options, kind: str, made: Path, target: Path, workers: Workers, progress: Progress
) -> None:
    """Reads everything back. Raises ValueError where it is not what was to be written."""
    written = np.fromfile(made.parent / "written.bin", "<u8").astype(np.int64)
    if kind == "folder":  # it has an order of its own; the lists have that of writing
        of_validation = _in_validation(np.arange(len(written)), options)
        lists = [(made / "train.txt", written[~of_validation]), (made / "val.txt", written[of_validation])]
        filled = [(path, indices) for path, indices in lists if len(indices)]
        written = np.concatenate([indices for _, indices in filled])
        origin = Origin("list", tuple(str(path.resolve()) for path, _ in filled), shared=True)
    else:
        path = made if kind == "lmdb" else made / f"{target.stem}.rec"
        origin = Origin(kind, (str(path.resolve()),))
    again = catalog(origin, made.parent / "catalogs")
    if len(again) != len(written):
        raise ValueError(
            f"{made}: {len(again):,} images read back, {len(written):,} were written; remove it and try again"
        )
    comparer = Comparer(Reader(source, options), again, written)
    task = progress.add_task(f"Comparing {target.name}", total=len(written))
    for chunk, wrong in workers.run(comparer.chunk, chunks(len(written))):
        if wrong:
            raise ValueError(f"{made}: read back wrong: {wrong[0]}; remove it and try again")
        progress.advance(task, len(chunk))


class Journal:
    """How far a conversion is, in its folder. Refuses to go on with that of another one."""

    def __init__(self, folder: Path, source: Catalog, options: Options):
        self.path = folder / "journal.json"
        self.state: State = {}
        may_change = ("verify", "on_corrupt", "num_workers", "cache_dir")
        of = {name: value for name, value in asdict(options).items() if name not in may_change}
        self.of = json.loads(json.dumps({**of, "catalog": source.folder.name}))
        if self.path.exists():
            found = json.loads(self.path.read_text())
            if found["of"] != self.of:
                raise ValueError(f"{folder}: holds another conversion, not finished; remove it, or finish that one")
            self.state = found["state"]

    def note(self, writer: Writer, notes: Files, position: int, report: Report) -> None:
        self.state = {
            **writer.flush(),
            **notes.flush(),
            "position": position,
            "images": report.images,
            "bytes": report.bytes,
        }
        new = self.path.with_suffix(".new")
        with new.open("w") as file:
            json.dump({"of": self.of, "state": self.state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)


def chunks(count: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
    for begin in range(start, count, CHUNK):
        yield np.arange(begin, min(begin + CHUNK, count))


def _order(positions: NDArray[np.int64], count: int, options: Options) -> NDArray[np.int64]:
    """A shuffle of any number of images that takes no memory."""
    return permute(positions, count, options.seed) if options.shuffle else positions


def _in_validation(numbers: NDArray[np.int64], options: Options) -> NDArray[np.bool_]:
    return uniforms("validation", options.seed, numbers) < options.validation


def _writer(kind: str, made: Path, target: Path, source: Catalog, options: Options, state: State) -> Writer:
    if kind == "lmdb":
        return LmdbWriter(made, target.stem, state, options.datum)
    if kind == "rec":
        return RecordWriter(made, target.stem, state)
    names = source.class_names if options.renumber or not source.numbered else ()
    as_labels = source.numbered and len(source.class_names) and not options.renumber
    largest = int(source.class_names[-1]) if as_labels else source.num_classes - 1
    digits = len(str(largest))
    return FolderWriter(made, state, names, digits, lambda number: bool(_in_validation(np.array(number), options)))


def _finish_rec(made: Path, target: Path, source: Catalog, report: Report, options: Options) -> None:
    width, height = (options.size, options.size) if options.size else opened(_first_of(made, target)).size
    target.with_name("property").write_text(f"{source.num_classes},{height},{width}\n")
    for path in sorted(made.iterdir(), key=lambda path: path.suffix == ".rec"):  # what makes it complete comes last
        path.rename(target.parent / (path.name if path.suffix != ".rec" else target.name))


def _first_of(made: Path, target: Path) -> bytes:
    return catalog(Origin("rec", (str((made / f"{target.stem}.rec").resolve()),)), made.parent / "catalogs").read(0)


def tell(report: Report, options: Options, screen: Console) -> None:
    table = Table(title=f"{options.target or 'Looked at'}", title_justify="left", show_header=False)
    for name, value in (
        ("classes", f"{report.classes:,}"),
        ("images", f"{report.images:,}"),
        ("bytes", f"{report.bytes:,}"),
        ("unreadable", f"{len(report.unreadable):,}"),
    ):
        table.add_row(name, value)
    screen.print(table)
    for bad in report.unreadable[:TOLD]:
        screen.print(f"unreadable: {bad.key}: {bad.reason}", markup=False, highlight=False)
    if len(report.unreadable) > TOLD:
        screen.print(f"and {len(report.unreadable) - TOLD:,} more")


def parse(words: list[str]) -> Options:
    """NAME=VALUE each. Raises ValueError for what is no option."""
    known = OmegaConf.load(CONF)
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or name not in known:
            close = difflib.get_close_matches(name, [str(each) for each in known], n=1)
            raise ValueError(
                f"{word}: no option NAME=VALUE; {f'did you mean {close[0]}? ' if close else ''}--help lists them"
            )
    try:
        options = OmegaConf.merge(OmegaConf.structured(Options), known, OmegaConf.from_dotlist(words))
    except OmegaConfBaseException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return OmegaConf.to_object(options)  # type: ignore[return-value]


def main() -> None:
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(f"{__doc__}\n{CONF.read_text()}")
        return
    try:
        options = parse(sys.argv[1:])
        report = convert(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on where it was.")
    sys.exit(1 if options.on_corrupt == "list" and report.unreadable else 0)


if __name__ == "__main__":
    main()
