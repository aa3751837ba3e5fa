"""Stores of checkpoints: a folder, or any URL that fsspec knows, such as s3:// or hdfs://.

A checkpoint is a folder `step-N`. It is complete once it has its `manifest.json`, which is written last, and only
complete checkpoints are listed. The aliases `latest` and `best` lead to one of them. Importing this module does not
import torch, because the launcher and `experiments.verify` use it too.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from fsspec.core import url_to_fs

COMPLETE = "manifest.json"
# Of version 0.1, whose checkpoints are listed too, so that they are neither removed nor mixed with others.
OLD_COMPLETE = ".metadata"
NAME = re.compile(r"step-(\d{8,})")
ASIDE = re.compile(rf"\.{NAME.pattern}\.partial")


class CheckpointStore(Protocol):
    """A folder or a URL with checkpoints. One process calls the methods; all processes may call `create` and `read`."""

    retry_seconds: tuple[float, ...]  # wait before each further attempt to write or read

    def complete(self) -> list[str]:
        """Return the names of the complete checkpoints, by step."""
        ...

    def begin(self, name: str) -> None:
        """Begin a new checkpoint, and remove the remains of a killed save."""
        ...

    def create(self, name: str, file: str) -> AbstractContextManager[BinaryIO]:
        """Open a binary file of a begun checkpoint for writing; it is flushed to disk when closed."""
        ...

    def put(self, name: str, file: str, content: bytes) -> None:
        """Write a small file of a begun checkpoint, completely or not at all."""
        ...

    def commit(self, name: str) -> None:
        """Complete a checkpoint that all processes have written."""
        ...

    def abandon(self, name: str) -> None:
        """Remove the files of a failed save if they take space from the next one."""
        ...

    def remove(self, name: str) -> None: ...

    def set_alias(self, alias: str, name: str) -> None:
        """Make `alias` lead to checkpoint `name`. It always leads to a checkpoint, also during the change."""
        ...

    def resolve_alias(self, alias: str) -> str | None:
        """Return the complete checkpoint that an alias leads to, or None."""
        ...

    def read(self, name: str, file: str, begin: int = 0, length: int | None = None) -> bytes | bytearray:
        """Return bytes of a file of a complete checkpoint; fewer than `length` if the file ends earlier."""
        ...

    def sizes(self, name: str) -> dict[str, int]:
        """Return the size in bytes of each file of a checkpoint; empty if it is missing."""
        ...


def open_store(url: str | Path) -> CheckpointStore:
    """Return the store of a folder or URL.

    Raises:
        ValueError: the protocol of the URL is unknown, or its library is not installed.
    """
    return Remote(str(url)) if "://" in str(url) else Folder(Path(url))


class Folder:
    """A local folder: checkpoints are written under another name, flushed and renamed."""

    retry_seconds: tuple[float, ...] = ()

    def __init__(self, path: Path):
        self.path = path.resolve()

    def __str__(self) -> str:
        return str(self.path)

    def complete(self) -> list[str]:
        names = {path.parent.name for mark in (COMPLETE, OLD_COMPLETE) for path in self.path.glob(f"*/{mark}")}
        return sorted((name for name in names if NAME.fullmatch(name)), key=step_of)

    def begin(self, name: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        complete = self.complete()
        for left in self.path.iterdir():
            if (NAME.fullmatch(left.name) and left.name not in complete) or ASIDE.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)
        self._aside(name).mkdir()

    @contextmanager
    def create(self, name: str, file: str) -> Iterator[BinaryIO]:
        with (self._aside(name) / file).open("wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())

    def put(self, name: str, file: str, content: bytes) -> None:
        with self.create(name, file) as opened:
            opened.write(content)

    def commit(self, name: str) -> None:
        flush(self._aside(name))
        self._aside(name).rename(self.path / name)
        flush(self.path)

    def abandon(self, name: str) -> None:
        shutil.rmtree(self._aside(name), ignore_errors=True)

    def remove(self, name: str) -> None:
        for mark in (COMPLETE, OLD_COMPLETE):  # first, so that a half-removed checkpoint is not complete
            (self.path / name / mark).unlink(missing_ok=True)
        shutil.rmtree(self.path / name)

    def set_alias(self, alias: str, name: str) -> None:
        link = self.path / f".{alias}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        os.replace(link, self.path / alias)
        flush(self.path)

    def resolve_alias(self, alias: str) -> str | None:
        target = self.path / alias
        is_complete = any((target / mark).exists() for mark in (COMPLETE, OLD_COMPLETE))
        return target.resolve().name if is_complete else None

    def read(self, name: str, file: str, begin: int = 0, length: int | None = None) -> bytes | bytearray:
        with (self.path / name / file).open("rb", buffering=0) as opened:
            opened.seek(begin)
            return opened.readall() if length is None else _read(opened, length)

    def sizes(self, name: str) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (self.path / name).glob("*") if path.is_file()}

    def _aside(self, name: str) -> Path:
        return self.path / f".{name}.partial"


class Remote:
    """A URL. Object stores have neither rename nor links.

    Files are therefore written to their final place, the manifest last, and an alias is a file that contains a name.
    """

    retry_seconds: tuple[float, ...] = (1.0, 5.0, 25.0)

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        try:
            self.files, self.path = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url} cannot be opened: {error}") from error

    def __str__(self) -> str:
        return self.url

    def complete(self) -> list[str]:
        names = [name for name in self._listed("") if NAME.fullmatch(name)]
        return sorted((name for name in names if {COMPLETE, OLD_COMPLETE} & {*self._listed(name)}), key=step_of)

    def begin(self, name: str) -> None:
        self.files.makedirs(self.path, exist_ok=True)
        complete = self.complete()
        for left in self._listed(""):
            if NAME.fullmatch(left) and left not in complete:
                self.files.rm(f"{self.path}/{left}", recursive=True)
        self.files.makedirs(f"{self.path}/{name}", exist_ok=True)

    @contextmanager
    def create(self, name: str, file: str) -> Iterator[BinaryIO]:
        with self.files.open(f"{self.path}/{name}/{file}", "wb") as opened:
            yield opened

    def put(self, name: str, file: str, content: bytes) -> None:
        self.files.pipe_file(f"{self.path}/{name}/{file}", content)

    def commit(self, name: str) -> None:
        """Do nothing: the manifest has completed it."""

    def abandon(self, name: str) -> None:
        """Do nothing: the next save removes it."""

    def remove(self, name: str) -> None:
        for mark in {COMPLETE, OLD_COMPLETE} & {*self._listed(name)}:
            self.files.rm(f"{self.path}/{name}/{mark}")
        self.files.rm(f"{self.path}/{name}", recursive=True)

    def set_alias(self, alias: str, name: str) -> None:
        self.files.pipe_file(f"{self.path}/{alias}", name.encode())

    def resolve_alias(self, alias: str) -> str | None:
        if self._listed("").get(alias, {}).get("type") != "file":
            return None
        name: str = self.files.cat_file(f"{self.path}/{alias}").decode()
        return name if name in self.complete() else None

    def read(self, name: str, file: str, begin: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""  # some stores refuse an empty range
        end = None if length is None else begin + length
        content: bytes = self.files.cat_file(f"{self.path}/{name}/{file}", start=begin, end=end)
        return content

    def sizes(self, name: str) -> dict[str, int]:
        return {file: entry["size"] or 0 for file, entry in self._listed(name).items()}

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return the entries of a folder by name, none if it is missing. Raise ValueError if that fails."""
        self.files.invalidate_cache()  # other programs write to the store too
        try:
            details = self.files.ls(f"{self.path}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # the library's own types for no connection, no permission, no bucket
            raise ValueError(f"{self.url} cannot be listed ({error})") from error
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in details}


def _read(file: FileIO, length: int) -> bytearray:
    """Read `length` bytes, or up to the end of the file; one system call may return fewer bytes than requested."""
    content, got = bytearray(length), 0
    with memoryview(content) as view:
        while got < length and (count := file.readinto(view[got:])):
            got += count
    return content if got == length else content[:got]


def name_of(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """Return the step of a checkpoint's name; 0 for a renamed one."""
    match = NAME.fullmatch(name)
    return int(match[1]) if match else 0


def flush(folder: Path) -> None:
    """Flush a folder, so that the names in it survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
