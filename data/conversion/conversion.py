"""A conversion at work: images go from a catalog into a writer, are read back, and get their name.

What is written lies in `TARGET.partial` meanwhile, with a journal of how far it is: one that was killed goes on.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import simplejpeg
from filelock import FileLock, Timeout
from fsspec.core import url_to_fs
from numpy.typing import NDArray
from rich.progress import Progress

from ..catalog import Catalog, Origin, catalog
from ..counter_rng import permute, uniforms
from ..files import write_whole
from ..formats.decode import Decoder, decodable, opened
from ..formats.encoded import Bad, UnreadableError
from ..workers import in_order
from .writers import Files, FolderWriter, LmdbWriter, RecordWriter, State, Writer

CONF = Path(__file__).resolve().parents[2] / "conf" / "convert.yaml"
CHUNK = 256  # images that a worker handles together
FLUSH = 8  # chunks between two safe states
QUALITY = 95  # of encode=jpeg
VALIDATION = 0.1  # share of the images, of format=folder

T = TypeVar("T")


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
    keys: str | None
    shuffle: bool
    seed: int
    datum: str | None
    encode: str | None
    quality: int | None
    size: int | None
    verify: bool
    on_corrupt: str
    validation: float | None
    num_workers: int | None
    cache_dir: str | None


@dataclass
class Report:
    """What a conversion has done.

    Args:
        classes: of images; of a target of pairs, which has none, the pairs.
    """

    classes: int
    images: int
    bytes: int
    unreadable: list[Bad]
    remarks: list[str] = field(default_factory=list)


def target_format(options: Options) -> str:
    """As given, or as the target is called."""
    found = options.format or {".lmdb": "lmdb", ".rec": "rec", ".bin": "bin"}.get(Path(str(options.target)).suffix)
    if found not in ("lmdb", "rec", "folder", "bin"):
        raise ValueError(
            f"target={options.target}, format={options.format}: format must be lmdb, rec, folder or bin; a target that "
            "ends in .lmdb, .rec or .bin needs none"
        )
    if found in ("rec", "bin") and not str(options.target).endswith(f".{found}"):
        raise ValueError(f"target={options.target}, format={found}: must end in .{found}")
    return found


def look(source: Catalog, options: Options, progress: Progress) -> Report:
    """Decodes everything and writes nothing."""
    report = Report(source.num_classes, 0, 0, list(source.unreadable()))
    task = progress.add_task("Looking", total=len(source))
    for chunk, images in _worked(Reader(source, options).chunk, chunks(len(source)), source, options):
        for image in images:
            if image.reason is None:
                report.images += 1
                report.bytes += len(image.encoded)
            else:
                report.unreadable.append(Bad(image.key, image.reason))
        progress.advance(task, len(chunk))
    return report


def upload(source: Catalog, options: Options, progress: Progress, cache: Path) -> Report:
    """Writes to the cache folder, then to a URL. An upload that fails is begun again by the same command."""
    url = str(options.target).rstrip("/")
    staging = cache / "uploads" / hashlib.sha256(json.dumps(identity(source, options)).encode()).hexdigest()[:16]
    staged, kept = staging / "made" / Path(url).name, staging / "report.json"
    try:
        files, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"target={url}: {error}") from error
    try:
        parent = path.rpartition("/")[0]
        there = [each for each in (path, *_beside(path, target_format(options))) if files.exists(each)]
        if there and not kept.exists():
            raise taken(url, there[0])
        if not kept.exists():
            if staged.exists():
                shutil.rmtree(staging)  # killed between its name and its report
            report = write(source, options, staged, progress)
            write_whole(kept, json.dumps([report.classes, report.images, report.bytes, report.unreadable]))
        folder, below = (staged, path) if staged.is_dir() else (staged.parent, parent)
        # Readers look for lists and indexes first: they come last.
        paths = [each for each in folder.rglob("*") if each.is_file()]
        paths.sort(key=lambda each: (-each.stat().st_size, str(each)))
        task = progress.add_task("Uploading", total=sum(each.stat().st_size for each in paths))
        for each in paths:
            remote = f"{below}/{each.relative_to(folder).as_posix()}"
            if each.name != "property" or not files.exists(remote):
                files.makedirs(remote.rpartition("/")[0], exist_ok=True)
                files.put_file(str(each), remote)
            progress.advance(task, each.stat().st_size)
    except ValueError:
        raise
    except Exception as error:  # whatever its library has for no connection, no permission, no bucket
        raise ValueError(f"target={url}: {error}; the same command goes on where it was") from error
    classes, images, size, unreadable = json.loads(kept.read_text())
    shutil.rmtree(staging)
    return Report(classes, images, size, [Bad(*each) for each in unreadable])


def write(source: Catalog, options: Options, target: Path, progress: Progress) -> Report:
    """Writes, compares, and gives the target its name."""
    kind = target_format(options)
    for path in map(Path, source.origin.paths):
        if target.resolve() == path.resolve() or path.resolve() in target.resolve().parents:
            raise ValueError(f"target={target}: lies in the source {path}, which is not written to")
    partial = target.with_name(target.name + ".partial")
    if target.exists() and not (partial / "journal.json").exists():
        shutil.rmtree(partial, ignore_errors=True)  # all that was left to do was to remove it
        raise taken(target, target.name)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(partial / "lock", timeout=0):
            report = _write(source, options, kind, target, partial, progress)
            _remove(partial)
    except Timeout:
        raise ValueError(f"target={target}: another conversion is writing there") from None
    return report


def _remove(partial: Path) -> None:
    """The journal last: one that is killed here goes on with removing."""
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("journal.json", "lock"):
            path.unlink()
    shutil.rmtree(partial)


def _write(source: Catalog, options: Options, kind: str, target: Path, partial: Path, progress: Progress) -> Report:
    journal = Journal(partial, source, options)
    state, made = journal.state, partial / "made"
    report = Report(source.num_classes, state.get("images", 0), state.get("bytes", 0), [])
    if not state.get("compared"):
        for there in (target, *map(Path, _beside(str(target), kind))):
            if there.exists():
                raise taken(target, there.name)
        if not state:
            shutil.rmtree(made, ignore_errors=True)  # of one that was killed before it had written anything for good
        _copy(source, options, kind, made, target, journal, report, progress)
        classes = compare(source, options, kind, made, target, progress)
        journal.note({**journal.state, "compared": 1, "classes": classes})
    report.classes = journal.state["classes"]
    if (partial / "bad.txt").exists():
        found = (partial / "bad.txt").read_text().splitlines()
        report.unreadable = [*source.unreadable(), *(Bad(*json.loads(line)) for line in found)]
    # One that is killed here goes on with what is left.
    if not made.exists():
        assert target.exists()
    elif kind != "rec":
        made.rename(target)
    else:
        for path in sorted(made.iterdir(), key=lambda path: path.suffix == ".rec"):  # what makes it complete comes last
            there = target.with_name(path.name)
            if path.name == "property" and there.exists() and there.read_bytes() != path.read_bytes():
                report.remarks.append(f"{there} is of another set, and stays: InsightFace wants a folder for each")
            else:
                path.rename(there)
    return report


def taken(target: str | Path, by: str) -> ValueError:
    return ValueError(f"target={target}: there is {by} already; remove it or name another")


def _beside(target: str, kind: str) -> list[str]:
    """What else is written than the target itself, and must not be there."""
    stem = target.removesuffix(".rec")
    return [f"{stem}.idx", f"{stem}.classes.txt"] if kind == "rec" else []


def _copy(
    source: Catalog,
    options: Options,
    kind: str,
    made: Path,
    target: Path,
    journal: "Journal",
    report: Report,
    progress: Progress,
) -> None:
    """Writes all images that are not there yet, into `made`."""
    with (
        closing(_writer(kind, made, target, source, options, journal.state)) as writer,
        closing(Files(journal.state, written=made.parent / "written.bin", bad=made.parent / "bad.txt")) as notes,
    ):
        position = journal.state.get("position", 0)
        task = progress.add_task(f"Writing {target.name}", total=len(source), completed=position)
        order = (_order(chunk, len(source), options) for chunk in chunks(len(source), position))

        def safe() -> None:
            figures = {"position": position, "images": report.images, "bytes": report.bytes}
            journal.note({**writer.flush(), **notes.flush(), **figures})

        work = _worked(Reader(source, options).chunk, order, source, options)
        for number, (chunk, images) in enumerate(work, 1):
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
                safe()
        if not report.images:
            raise ValueError(f"{', '.join(source.origin.paths)}: none of the images can be read")
        safe()
        writer.name(_names(source, options))


def compare(source: Catalog, options: Options, kind: str, made: Path, target: Path, progress: Progress) -> int:
    """Reads everything back; the number of classes. Raises ValueError where it is not what was to be written."""
    written: NDArray[np.int64] = np.memmap(made.parent / "written.bin", "<i8", "r").view(np.ndarray)
    if kind == "folder":  # it has an order of its own; the lists have that of writing
        of_validation = _in_validation(np.arange(len(written)), options)
        lists = [(made / "train.txt", written[~of_validation]), (made / "val.txt", written[of_validation])]
        filled = [(path, indices) for path, indices in lists if len(indices)]
        written = np.concatenate([indices for _, indices in filled])
        origin = Origin("list", tuple(str(path) for path, _ in filled), shared=True)
    else:
        origin = Origin(kind, (str(made if kind == "lmdb" else made / f"{target.stem}.rec"),))
    again = catalog(origin, made.parent / "catalogs")
    if len(again) != len(written):
        raise ValueError(
            f"{made}: {len(again):,} images read back, {len(written):,} were written; remove it and try again"
        )
    pairs = (np.stack([chunk, written[chunk]], axis=1) for chunk in chunks(len(written)))
    task = progress.add_task(f"Comparing {target.name}", total=len(written))
    for chunk, wrong in _worked(Comparer(Reader(source, options), again).chunk, pairs, source, options):
        if wrong:
            raise ValueError(f"{made}: read back wrong: {wrong[0]}; remove it and try again")
        progress.advance(task, len(chunk))
    if kind == "rec":
        width, height = opened(again.read(0)).size
        (made / "property").write_text(f"{again.largest_label + 1},{height},{width}\n")
    return again.num_classes


def identity(source: Catalog, options: Options) -> dict[str, Any]:
    """What tells one conversion from another."""
    may_change = ("verify", "on_corrupt", "num_workers", "cache_dir")
    of = {name: value for name, value in asdict(options).items() if name not in may_change}
    return dict(json.loads(json.dumps({**of, "catalog": source.folder.name})))


class Journal:
    """How far a conversion is, in its folder. Refuses to go on with that of another one."""

    def __init__(self, folder: Path, source: Catalog, options: Options):
        self.path, self.of = folder / "journal.json", identity(source, options)
        self.state: State = {}
        if self.path.exists():
            found = json.loads(self.path.read_text())
            if found["of"] != self.of:
                raise ValueError(f"{folder}: holds another conversion, not finished; remove it, or finish that one")
            self.state = found["state"]

    def note(self, state: State) -> None:
        self.state = state
        write_whole(self.path, json.dumps({"of": self.of, "state": state}))


def chunks(count: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
    for begin in range(start, count, CHUNK):
        yield np.arange(begin, min(begin + CHUNK, count))


def _worked(
    work: Callable[[NDArray[np.int64]], T], chunks: Iterable[NDArray[np.int64]], source: Catalog, options: Options
) -> Iterator[tuple[NDArray[np.int64], T]]:
    return in_order(work, chunks, options.num_workers or 0, ", ".join(source.origin.paths))


def _order(positions: NDArray[np.int64], count: int, options: Options) -> NDArray[np.int64]:
    """A shuffle of any number of images that takes no memory."""
    return permute(positions, count, options.seed) if options.shuffle else positions


def _in_validation(numbers: NDArray[np.int64], options: Options) -> NDArray[np.bool_]:
    share = VALIDATION if options.validation is None else options.validation
    return uniforms("validation", options.seed, numbers) < share


def _by_file(source: Catalog, options: Options) -> bool:
    """Whether the labels of the files are written, and not class ids."""
    return source.numbered and not options.renumber


def _names(source: Catalog, options: Options) -> Sequence[str]:
    """Of the classes that are written; none where they go by the labels of the files."""
    return () if _by_file(source, options) else source.class_names


def _writer(kind: str, made: Path, target: Path, source: Catalog, options: Options, state: State) -> Writer:
    if kind == "lmdb":
        return LmdbWriter(made, target.stem, state, options.datum or "ffc")
    if kind == "rec":
        return RecordWriter(made, target.stem, state)
    largest = source.largest_label if _by_file(source, options) else source.num_classes - 1
    return FolderWriter(
        made,
        state,
        _names(source, options),
        len(str(largest)),
        lambda number: bool(_in_validation(np.array(number), options)),
    )


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
        key, label = self.source.key(index), self.label(index)
        try:
            encoded = self.encoded(index)
            if self.options.verify or self.options.on_corrupt == "list":
                decodable(encoded)
            else:
                opened(encoded)
        except UnreadableError as error:
            return Read(index, key, label, b"", error.reason)
        return Read(index, key, label, encoded)

    def label(self, index: int) -> int:
        """As it is written."""
        return self.source.label(index) if _by_file(self.source, self.options) else int(self.source.labels[index])

    def encoded(self, index: int) -> bytes:
        """As it is written. Raises UnreadableError."""
        return written(self.source.read(index), self.options)


def written(encoded: bytes, options: Options) -> bytes:
    """An image as the options want it. Raises UnreadableError."""
    if options.encode is None:
        return encoded
    side = options.size
    width, height = opened(encoded).size if side is None else (side, side)
    pixels = np.empty((height, width, 3), np.uint8)
    Decoder(height, width, 3).into(pixels, encoded)
    try:
        return bytes(simplejpeg.encode_jpeg(pixels, options.quality or QUALITY))
    except ValueError as error:
        raise UnreadableError(f"it cannot be encoded ({error})") from None


@dataclass(frozen=True)
class Comparer:
    """What a worker does with what was written: reads it back and holds it against the source."""

    reader: Reader
    target: Catalog

    def chunk(self, pairs: NDArray[np.int64]) -> list[str]:
        """What is wrong, of images given by their numbers in the target and in the source (n, 2)."""
        return [f"{self.target.key(a)}: {wrong}" for a, b in pairs.tolist() if (wrong := self._wrong(a, b)) is not None]

    def _wrong(self, of_target: int, of_source: int) -> str | None:
        try:
            expected, encoded = self.reader.encoded(of_source), self.target.read(of_target)
            if self.reader.options.verify:
                decodable(encoded)
        except UnreadableError as error:
            return error.reason
        if encoded != expected:
            return "other bytes than its source has"
        same = self.target.label(of_target) == self.reader.label(of_source)
        return None if same else "another label than its source has"
