"""WebDataset: tar files, not compressed, in which the files of a sample follow each other and share a name.

The name of a sample ends at the first dot of a file name: `a/0001.jpg`, `a/0001.cls` and `a/0001.json` are one sample.
The image is the file with an ending of images. Its class id is the text of `.cls`, or `label` in `.json`.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ..files import LARGEST, ReadFile, check_file
from .encoded import BadEntry, Entry, UnreadableError, label_of, read_names
from .image_lists import ENDINGS
from .shards import shards_of

BLOCK = 512  # bytes; every file of a tar begins at a multiple
BITS = 40  # of a place: the number of the block; the others are the number of the shard
LONGEST_TEXT = 2**16  # bytes of a file with a label


class TarShards:
    """Reader of the tar files of a set. A place names a shard, and the block of an image's header in it.

    Args:
        path: one file, a folder, or a pattern with `*`.
        label: ending of the file with the class id, or the key of .json; None for `.cls`, or else `label` in .json.
    """

    def __init__(self, path: str, label: str | None = None):
        self.path, self.label = path, label

    def __reduce__(self) -> tuple[type["TarShards"], tuple[str, str | None]]:
        return type(self), (self.path, self.label)

    @cached_property
    def shards(self) -> list[ReadFile]:
        return [ReadFile(path) for path in shards_of(self.path, ".tar")]

    def files(self) -> Sequence[str]:
        return [shard.path for shard in self.shards] + ([str(self._names())] if self._names().exists() else [])

    def class_names(self) -> Sequence[str] | None:
        return read_names(self._names())

    def _names(self) -> Path:
        """Path of the class names: in the folder of the shards, or beside a single file."""
        first = Path(self.shards[0].path)
        return first.with_suffix(".classes.txt") if self.path == str(first) else first.parent / "classes.txt"

    def scan(self) -> Iterator[Entry | BadEntry]:
        for number, shard in enumerate(self.shards):
            check_file(shard.path, "tar file")
            try:
                with tarfile.open(shard.path, "r:") as tar:
                    for sample in _samples(tar):
                        yield self._entry(number, tar, sample)
            except tarfile.TarError as error:
                raise ValueError(f"{shard.path} is not an uncompressed tar file, or is damaged ({error})") from None

    def _entry(self, number: int, tar: tarfile.TarFile, sample: list[tuple[str, tarfile.TarInfo]]) -> Entry | BadEntry:
        """Return the entry of one sample: its files by their endings."""
        ending, first = sample[0]
        key = first.name.removesuffix(f".{ending}")
        images = [member for ending, member in sample if f".{ending}" in ENDINGS]
        if not images:
            return BadEntry(key, f"it has no image, only {', '.join(ending for ending, _ in sample)}")
        try:
            label = self._label(tar, dict(sample))
        except ValueError as error:
            return BadEntry(key, str(error))
        block = images[0].offset_data // BLOCK - 1
        return Entry(number << BITS | block, label)

    def _label(self, tar: tarfile.TarFile, files: dict[str, tarfile.TarInfo]) -> int:
        """Return the class id of a sample. Raises ValueError."""
        ending = self.label or "cls"
        if ending in files:
            return label_of(_text(tar, files[ending]).strip())
        if "json" in files:
            key = self.label or "label"
            content = json.loads(_text(tar, files["json"]))
            if isinstance(content, dict) and key in content:
                return label_of(str(content[key]).encode())
            raise ValueError(f"its .json has no {key}; set data.label_column to the key of its class id")
        raise ValueError(f"it has neither .{ending} nor .json with its class id")

    def key(self, place: int) -> str:
        name, _ = self._header(place)
        return name

    def read(self, place: int) -> bytes:
        _, size = self._header(place)
        shard, start = self._at(place)
        content = shard.read(start + BLOCK, size)
        if len(content) < size:
            raise UnreadableError("the file ends within it")
        return content

    def _at(self, place: int) -> tuple[ReadFile, int]:
        """Return the shard of a place, and the first byte of the header."""
        return self.shards[place >> BITS], (place & (1 << BITS) - 1) * BLOCK

    def _header(self, place: int) -> tuple[str, int]:
        """Return the name of an image, cut to the length of old headers, and its size in bytes."""
        shard, start = self._at(place)
        try:
            member = tarfile.TarInfo.frombuf(shard.read(start, BLOCK), "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise UnreadableError(f"its header at byte {start:,} of {shard.path} is damaged ({error})") from None
        if member.size > LARGEST:
            raise UnreadableError(f"it has {member.size:,} bytes; at most {LARGEST:,} are read as one image")
        return member.name, member.size


def _samples(tar: tarfile.TarFile) -> Iterator[list[tuple[str, tarfile.TarInfo]]]:
    """Yield the files of each sample, with their endings in small letters."""
    sample: list[tuple[str, tarfile.TarInfo]] = []
    current = None
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        folder, slash, name = member.name.rpartition("/")
        stem, dot, ending = name.partition(".")
        if not member.isreg() or not dot or not stem:  # folders, hidden files and notes
            continue
        if (key := folder + slash + stem) != current and sample:
            yield sample
            sample = []
        current = key
        sample.append((ending.lower(), member))
    if sample:
        yield sample


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    if member.size > LONGEST_TEXT:
        raise ValueError(f"{member.name} has {member.size:,} bytes, which are too many for a label")
    return file.read()
