"""The writing of a local target.

Until it is complete, a target is kept in `TARGET.partial` together with a journal, from which an interrupted
conversion resumes.
"""

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from rich.progress import Progress

from ..catalogs.catalog import Catalog
from ..formats.encoded import BadEntry
from .comparing import compare
from .images import ConvertedImage, ImageConverter, chunks, map_chunks
from .journal import Journal
from .layout import class_names, companions, image_order, in_validation, largest_label
from .options import Options, target_format
from .report import Report
from .shard_writers import ParquetWriter, TarWriter
from .writers import Files, FolderWriter, LmdbWriter, RecordWriter, State, Writer

FLUSH = 8  # chunks between two saved states


def already_exists(target: str | Path, name: str) -> ValueError:
    """Return the error for a target that would overwrite a file."""
    return ValueError(f"target={target} cannot be written: {name} already exists; remove it or choose another target")


def write(source: Catalog, options: Options, target: Path, progress: Progress) -> Report:
    """Write a target, compare it with its source, and move it to its path."""
    for path in map(Path, source.origin.paths):
        if target.resolve() == path.resolve() or path.resolve() in target.resolve().parents:
            raise ValueError(f"target={target} lies in the source {path}, which must not be changed")
    partial = target.with_name(target.name + ".partial")
    if target.exists() and not (partial / "journal.json").exists():
        shutil.rmtree(partial, ignore_errors=True)  # left by a conversion that was killed while it removed this folder
        raise already_exists(target, target.name)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(partial / "lock", timeout=0):
            report = _Writing(source, options, target, partial).run(progress)
            _remove(partial)
    except Timeout:
        raise ValueError(f"target={target} is being written by another conversion; wait for it") from None
    return report


def _remove(partial: Path) -> None:
    """Remove the folder of an unfinished target. The journal goes last, so that an interrupted removal resumes."""
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("journal.json", "lock"):
            path.unlink()
    shutil.rmtree(partial)


class _Writing:
    """A conversion into a local target.

    Args:
        target: the target's final path.
        partial: the folder of the unfinished target.
    """

    def __init__(self, source: Catalog, options: Options, target: Path, partial: Path):
        self.source, self.options, self.target, self.partial = source, options, target, partial
        self.format = target_format(options)
        self.made = partial / "made"
        self.journal = Journal(partial, source, options)
        state = self.journal.state
        self.report = Report(source.num_classes, state.get("images", 0), state.get("bytes", 0), [])

    def run(self, progress: Progress) -> Report:
        """Do the steps that the journal does not record yet."""
        if not self.journal.state.get("compared"):
            for path in (self.target, *map(Path, companions(str(self.target), self.format))):
                if path.exists():
                    raise already_exists(self.target, path.name)
            if not self.journal.state:
                shutil.rmtree(self.made, ignore_errors=True)  # left by a conversion that had saved no state
            self._copy(progress)
            classes = compare(self.source, self.options, self.format, self.made, self.target, progress)
            self.journal.save({**self.journal.state, "compared": 1, "classes": classes})
        self.report.classes = self.journal.state["classes"]
        if (self.partial / "bad.txt").exists():
            lines = (self.partial / "bad.txt").read_text().splitlines()
            self.report.unreadable = [*self.source.unreadable(), *(BadEntry(*json.loads(line)) for line in lines)]
        self._move()
        return self.report

    def _copy(self, progress: Progress) -> None:
        """Write all images that are not written yet into `made`."""
        state, report = self.journal.state, self.report
        notes_paths = {"written": self.partial / "written.bin", "bad": self.partial / "bad.txt"}
        with closing(self._writer(state)) as writer, closing(Files(state, **notes_paths)) as notes:
            position, count = state.get("position", 0), len(self.source)
            task = progress.add_task(f"Writing {self.target.name}", total=count, completed=position)
            order = (image_order(chunk, count, self.options) for chunk in chunks(count, position))

            def save() -> None:
                figures = {"position": position, "images": report.images, "bytes": report.bytes}
                self.journal.save({**writer.flush(), **notes.flush(), **figures})

            converter = ImageConverter(self.source, self.options)
            for number, (chunk, images) in enumerate(map_chunks(converter.chunk, order, self.source, self.options), 1):
                for image in images:
                    self._write_image(image, writer, notes)
                position += len(chunk)
                progress.advance(task, len(chunk))
                if number % FLUSH == 0:
                    save()
            if not report.images:
                raise ValueError(f"{', '.join(self.source.origin.paths)} contains no image that can be read")
            save()
            writer.name(class_names(self.source, self.options))

    def _write_image(self, image: ConvertedImage, writer: Writer, notes: Files) -> None:
        """Write one image, or note that it cannot be read."""
        report = self.report
        if image.reason is None:
            key = f"{report.images:09d}" if self.options.keys == "number" else image.key
            writer.write(report.images, key, image.label, image.encoded)
            notes["written"].write(image.number.to_bytes(8, "little"))
            report.images += 1
            report.bytes += len(image.encoded)
        elif self.options.on_corrupt == "stop":
            raise ValueError(
                f"{self.source.name(image.number)}: {image.reason}; on_corrupt=skip leaves out such images, "
                "and on_corrupt=list lists them"
            )
        else:
            notes["bad"].write(json.dumps([image.key, image.reason]).encode() + b"\n")

    def _writer(self, state: State) -> Writer:
        if self.format == "lmdb":
            return LmdbWriter(self.made, self.target.stem, state, self.options.datum or "ffc")
        if self.format == "rec":
            return RecordWriter(self.made, self.target.stem, state)
        if self.format in ("wds", "parquet"):
            kind = TarWriter if self.format == "wds" else ParquetWriter
            return kind(self.made, state, class_names(self.source, self.options))
        return FolderWriter(
            self.made,
            state,
            class_names(self.source, self.options),
            len(str(largest_label(self.source, self.options))),
            lambda number: bool(in_validation(np.array(number), self.options)),
        )

    def _move(self) -> None:
        """Move the complete target to its path, as far as an interrupted conversion has not done so."""
        if not self.made.exists():
            assert self.target.exists()
        elif self.format != "rec":
            self.made.rename(self.target)
        else:
            # The .rec file goes last: its existence marks the target as complete.
            for path in sorted(self.made.iterdir(), key=lambda path: path.suffix == ".rec"):
                final = self.target.with_name(path.name)
                if path.name == "property" and final.exists() and final.read_bytes() != path.read_bytes():
                    self.report.remarks.append(
                        f"{final} describes another set and was kept; InsightFace needs a folder for each set"
                    )
                else:
                    path.rename(final)
