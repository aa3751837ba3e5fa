"""Where checkpoints lie: a folder, or any URL that fsspec knows, such as s3:// or hdfs://.

A checkpoint is a folder `step-N`. It is complete once it has its `manifest.json`, which is written last, and only
complete ones are ever listed. `latest` (and `best`) point to one of them. Imports no torch: the launcher and
`experiments.verify` read here too.
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
OLD_COMPLETE = ".metadata"  # of version 0.1; such checkpoints are listed, so that none is removed or mixed with others
NAME = re.compile(r"step-(\d{8,})")
ASIDE = re.compile(rf"\.{NAME.pattern}\.partial")


class CheckpointStore(Protocol):
    """A folder or a URL with checkpoints. All but `create` and `read` are for one process to call."""

    retry_seconds: tuple[float, ...]  # waits before each further attempt to write or read

    def complete(self) -> list[str]:
        """Names of the complete checkpoints, by step."""
        ...

    def begin(self, name: str) -> None:
        """Makes room for a new checkpoint, and removes what a killed save left behind."""
        ...

    def create(self, name: str, file: str) -> AbstractContextManager[BinaryIO]:
        """The binary file of a checkpoint that has begun, open for writing; safe on disk at its end."""
        ...

    def put(self, name: str, file: str, content: bytes) -> None:
        """Write a small file of a checkpoint that has begun, whole or not at all."""
        ...

    def commit(self, name: str) -> None:
        """All processes have written: from here on it is there."""
        ...

    def abandon(self, name: str) -> None:
        """Remove what a failed save has written, where that takes room from what is written next."""
        ...

    def remove(self, name: str) -> None: ...

    def set_alias(self, pointer: str, name: str) -> None:
        """`pointer` leads to `name`, and at no moment to nothing."""
        ...

    def resolve_alias(self, pointer: str) -> str | None:
        """The complete checkpoint that a pointer leads to."""
        ...

    def read(self, name: str, file: str, begin: int = 0, length: int | None = None) -> bytes | bytearray:
        """Bytes of a file of a complete checkpoint; fewer than `length` where the file ends before."""
        ...

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of each file of a checkpoint; none if it is missing."""
        ...


def open_store(url: str | Path) -> CheckpointStore:
    """Raises ValueError for a URL of no known protocol, or one whose library is not installed."""
    return Remote(str(url)) if "://" in str(url) else Folder(Path(url))


class Folder:
    """Checkpoints are written aside, flushed and renamed."""

    retry_seconds: tuple[float, ...] = ()

    def __init__(self, path: Path):
        self.path = path.resolve()

    def __str__(self) -> str:
        return str(self.path)

    def complete(self) -> list[str]:
        found = {path.parent.name for mark in (COMPLETE, OLD_COMPLETE) for path in self.path.glob(f"*/{mark}")}
        return sorted((name for name in found if NAME.fullmatch(name)), key=step_of)

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
        for mark in (COMPLETE, OLD_COMPLETE):  # first: what is half removed is not complete
            (self.path / name / mark).unlink(missing_ok=True)
        shutil.rmtree(self.path / name)

    def set_alias(self, pointer: str, name: str) -> None:
        link = self.path / f".{pointer}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        os.replace(link, self.path / pointer)
        flush(self.path)

    def resolve_alias(self, pointer: str) -> str | None:
        target = self.path / pointer
        there = any((target / mark).exists() for mark in (COMPLETE, OLD_COMPLETE))
        return target.resolve().name if there else None

    def read(self, name: str, file: str, begin: int = 0, length: int | None = None) -> bytes | bytearray:
        with (self.path / name / file).open("rb", buffering=0) as opened:
            opened.seek(begin)
            return opened.readall() if length is None else _read(opened, length)

    def sizes(self, name: str) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (self.path / name).glob("*") if path.is_file()}

    def _aside(self, name: str) -> Path:
        return self.path / f".{name}.partial"


class Remote:
    """Object stores have neither rename nor links: files go straight to their place, the manifest last, and a pointer
    is a file with a name in it."""

    retry_seconds: tuple[float, ...] = (1.0, 5.0, 25.0)

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        try:
            self.files, self.path = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url}: {error}") from error

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
        """It is complete already."""

    def abandon(self, name: str) -> None:
        """The next save removes it."""

    def remove(self, name: str) -> None:
        for mark in {COMPLETE, OLD_COMPLETE} & {*self._listed(name)}:
            self.files.rm(f"{self.path}/{name}/{mark}")
        self.files.rm(f"{self.path}/{name}", recursive=True)

    def set_alias(self, pointer: str, name: str) -> None:
        self.files.pipe_file(f"{self.path}/{pointer}", name.encode())

    def resolve_alias(self, pointer: str) -> str | None:
        if self._listed("").get(pointer, {}).get("type") != "file":
            return None
        name: str = self.files.cat_file(f"{self.path}/{pointer}").decode()
        return name if name in self.complete() else None

    def read(self, name: str, file: str, begin: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""  # a range of nothing is an error to some stores
        end = None if length is None else begin + length
        content: bytes = self.files.cat_file(f"{self.path}/{name}/{file}", start=begin, end=end)
        return content

    def sizes(self, name: str) -> dict[str, int]:
        return {file: each["size"] or 0 for file, each in self._listed(name).items()}

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        """What is in a folder, by name; nothing where it is missing, but never because the store does not answer."""
        self.files.invalidate_cache()  # others write here too
        try:
            details = self.files.ls(f"{self.path}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # whatever its library has for no connection, no permission, no bucket
            raise ValueError(f"{self.url}: cannot be listed ({error})") from error
        return {each["name"].rstrip("/").rpartition("/")[2]: each for each in details}


def _read(file: FileIO, length: int) -> bytearray:
    """Read so many bytes, or those up to the end of the file; a system call may give fewer than it was asked for."""
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
    """Names in a folder are safe from a crash once the folder itself is flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
