"""Parquet tables of images, as the Hugging Face Hub stores image data sets.

An image is a column of bytes, or of {bytes, path}. A label is a whole number, whose names are in the metadata of the
data set, or a text, which is the name of the class. Tables are read by row group, and the last ones are kept in memory:
a table with large row groups is slow to read at random.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..files import check_file, read_file
from .encoded import BadEntry, Entry, UnreadableError, label_of, read_names
from .shards import shards_of

BITS = 40  # of a place: the number of the row; the others are the number of the file
IMAGES, LABELS = ("image", "img", "jpg"), ("label", "labels", "class", "cls", "fine_label")  # usual names of columns
GROUPS = 64  # row groups kept in memory by each process


class ParquetTables:
    """Reader of the tables of a set. A place names a file, and a row in it.

    Args:
        path: one file, a folder, or a pattern with `*`.
        image, label: names of the columns; None for the only one with a usual name.
    """

    def __init__(self, path: str, image: str | None = None, label: str | None = None):
        self.path, self.image, self.label = path, image, label

    def __reduce__(self) -> tuple[type["ParquetTables"], tuple[str, str | None, str | None]]:
        return type(self), (self.path, self.image, self.label)

    @cached_property
    def shards(self) -> list[str]:
        paths = shards_of(self.path, ".parquet")
        for path in paths:
            check_file(path, "Parquet table")
        return paths

    def files(self) -> Sequence[str]:
        return self.shards

    @cached_property
    def columns(self) -> tuple[str, str]:
        """The columns of the image and of the label."""
        schema = opened(self.shards[0]).schema_arrow
        return (
            _column(self.path, schema.names, self.image, IMAGES, "image_column"),
            _column(self.path, schema.names, self.label, LABELS, "label_column"),
        )

    @cached_property
    def _names(self) -> Sequence[str] | None:
        """Names of the classes: in the metadata, or the texts of the labels, sorted."""
        label = self.columns[1]
        schema = opened(self.shards[0]).schema_arrow
        if "string" not in str(schema.field(label).type):  # of texts, or a dictionary of them
            names = names_in(schema.metadata or {}, label)
            return names or read_names(Path(self.shards[0]).with_suffix(".classes.txt"))
        texts: set[str] = set()
        for number in range(len(self.shards)):
            for values in self._labels(number):
                texts.update(value for value in values if isinstance(value, str))
        return sorted(texts)

    def class_names(self) -> Sequence[str] | None:
        return self._names

    def _labels(self, number: int) -> Iterator[list[Any]]:
        """Yield the labels of each row group of a file."""
        path = self.shards[number]
        for group in range(opened(path).num_row_groups):
            yield _read(path, group, self.columns[1]).to_pylist()

    def scan(self) -> Iterator[Entry | BadEntry]:
        names = self._names
        numbers = None if names is None else {name: label for label, name in enumerate(names)}
        for number in range(len(self.shards)):
            row = 0
            for values in self._labels(number):
                for value in values:
                    try:
                        label = numbers[value] if isinstance(value, str) and numbers else label_of(str(value).encode())
                        yield Entry(number << BITS | row, label)
                    except ValueError as error:
                        yield BadEntry(f"row {row} of {self.shards[number]}", str(error))
                    row += 1

    def key(self, place: int) -> str:
        number, row = place >> BITS, place & (1 << BITS) - 1
        with suppress(UnreadableError):
            if path := self._cell(place)[1]:
                return path
        return f"{Path(self.shards[number]).stem}-{row}"

    def read(self, place: int) -> bytes:
        content, path = self._cell(place)
        if content is None and path is not None:
            try:
                return read_file(Path(self.shards[place >> BITS]).parent / path)
            except OSError as error:
                raise UnreadableError(error.strerror or str(error)) from None
        if content is None:
            raise UnreadableError("the table has no image there")
        return content

    def _cell(self, place: int) -> tuple[bytes | None, str | None]:
        """Return the bytes and the path of an image, each None if the table has none."""
        number, row = place >> BITS, place & (1 << BITS) - 1
        group, first = _group_of(self.shards[number], row)
        cell = _row_group(self.shards[number], group, self.columns[0])[row - first].as_py()
        if isinstance(cell, dict):
            return cell.get("bytes"), cell.get("path")
        return (None, cell) if isinstance(cell, str) else (cell, None)


def names_in(metadata: Mapping[bytes, bytes], label: str) -> list[str] | None:
    """Return the names of the classes in the metadata of the library datasets; None if there are none."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        return None


def _column(path: str, names: Sequence[str], given: str | None, usual: Sequence[str], option: str) -> str:
    """Return the column that is given, or the first that has a usual name. Raises ValueError."""
    wanted = usual if given is None else (given,)
    found = [name for name in wanted if name in names]
    if not found:
        raise ValueError(f"{path} has no column {' or '.join(wanted)}; set data.{option} to one of {', '.join(names)}")
    return found[0]


@lru_cache(maxsize=256)
def opened(path: str) -> Any:
    """Return an open table."""
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("data=parquet needs pyarrow; pip install -e '.[parquet]'") from None
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as a Parquet table ({one_line(error)})") from None


@lru_cache(maxsize=256)
def _starts(path: str) -> list[int]:
    """Return the first row of each row group, and the number of rows."""
    about, starts = opened(path).metadata, [0]
    for group in range(about.num_row_groups):
        starts.append(starts[-1] + about.row_group(group).num_rows)
    return starts


def _group_of(path: str, row: int) -> tuple[int, int]:
    """Return the row group of a row, and its first row."""
    starts = _starts(path)
    group = bisect_right(starts, row) - 1
    return group, starts[group]


def _read(path: str, group: int, column: str) -> Any:
    """Return a column of a row group. Raises UnreadableError."""
    import pyarrow

    try:
        return opened(path).read_row_group(group, columns=[column], use_threads=False).column(0)
    except (OSError, KeyError, IndexError, pyarrow.ArrowException) as error:
        raise UnreadableError(f"{path}: row group {group} cannot be read ({one_line(error)})") from None


_row_group = lru_cache(maxsize=GROUPS)(_read)  # the images of a row group
# A table must not be used across a fork, so workers open their own.
os.register_at_fork(after_in_child=opened.cache_clear)
os.register_at_fork(after_in_child=_row_group.cache_clear)


def one_line(error: Exception) -> str:
    """Return the message of an error of pyarrow, which may have several lines."""
    return " ".join(str(error).split())
