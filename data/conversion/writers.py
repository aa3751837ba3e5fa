"""Sets of encoded images, written: an LMDB folder, a .rec file, or a folder of folders.

A writer appends. `flush` makes what was written safe and tells where it stands; one that is opened there again
continues as if nothing had come after.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from ..formats.image_lists import ENDINGS as READ
from ..formats.lmdb_growing import GrowingLmdb
from ..formats.lmdb_images import value_of
from ..formats.recordio import EXACT, IMAGE, framed

LONGEST_KEY = 511  # of LMDB
LONGEST_NAME = 255  # of a file, in bytes
ENDINGS = {  # by the first two bytes
    **{b"\xff\xd8": ".jpg", b"\x89P": ".png", b"BM": ".bmp", b"RI": ".webp", b"II": ".tif", b"MM": ".tif"},
    **{b"GI": ".gif", b"P1": ".pbm", b"P4": ".pbm", b"P2": ".pgm", b"P5": ".pgm", b"P3": ".ppm", b"P6": ".ppm"},
}
ENDINGS_ALIKE = {".jpeg": ".jpg", ".tiff": ".tif"}

State = dict[str, int]  # where a writer stands


class Writer(Protocol):
    """Raises ValueError for what its format cannot hold."""

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        """The image `number`, counted from 0."""
        ...

    def flush(self) -> State: ...

    def name(self, class_names: Sequence[str]) -> None:
        """Adds the names of the classes, if they have any."""
        ...

    def close(self) -> None:
        """What was written since the last `flush` may be lost."""
        ...


class Files:
    """Files that are appended to, and cut where a state says."""

    def __init__(self, state: State, **paths: Path):
        self.files: dict[str, IO[bytes]] = {}
        for name, path in paths.items():
            if (path.stat().st_size if path.exists() else 0) < state.get(name, 0):
                raise ValueError(f"{path}: is shorter than it was; remove {path.parent} and convert again")
            file = path.open("ab")
            file.truncate(state.get(name, 0))
            file.seek(0, os.SEEK_END)
            self.files[name] = file

    def __getitem__(self, name: str) -> IO[bytes]:
        return self.files[name]

    def flush(self) -> State:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self.files.items()}

    def close(self) -> None:
        for file in self.files.values():
            file.close()


class LmdbWriter:
    """FFC's format. Keys are the source's; white space and what is not UTF-8 become %XX, since the key-label file has a
    key and a label on a line with a space between."""

    def __init__(self, folder: Path, stem: str, state: State, datum: str = "ffc"):
        folder.mkdir(exist_ok=True)
        self.folder, self.datum = folder, datum
        self.database = GrowingLmdb(folder)
        self.list = Files(state, list=folder / f"{stem}_kv.txt")
        # After a kill the database may hold images of after the state: the same ones come again.
        self.again = self.database.environment.stat()["entries"] - state.get("entries", 0)

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        raw = plain(key).encode()
        if len(raw) > LONGEST_KEY:
            raise ValueError(f"key {key!r} of {len(raw)} bytes: LMDB takes {LONGEST_KEY} at most; keys=number")
        value = value_of(encoded, self.datum)
        if not self.database.put(raw, value, overwrite=False):
            if self.again <= 0 or self.database.get(raw) != value:
                raise ValueError(f"key {key!r} is there twice, and LMDB takes each once; keys=number")
            self.again -= 1
        self.list["list"].write(b"%b %d\n" % (raw, label))

    def flush(self) -> State:
        return {"entries": self.database.commit(), **self.list.flush()}

    def name(self, class_names: Sequence[str]) -> None:
        write_names(self.folder / "classes.txt", class_names)

    def close(self) -> None:
        self.database.close()
        self.list.close()
        (self.folder / "lock.mdb").unlink(missing_ok=True)


class RecordWriter:
    """MXNet RecordIO, keys counted from 0, with `.idx` and InsightFace's `property`."""

    def __init__(self, folder: Path, stem: str, state: State):
        folder.mkdir(exist_ok=True)
        self.folder, self.stem = folder, stem
        self.files = Files(state, records=folder / f"{stem}.rec", index=folder / f"{stem}.idx")

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        if label > EXACT:
            raise ValueError(f"label {label:,}: .rec holds float32, which is exact up to {EXACT:,}; renumber=true")
        self.files["index"].write(b"%d\t%d\n" % (number, self.files["records"].tell()))
        self.files["records"].write(framed(IMAGE.pack(0, label, number, 0) + encoded))

    def flush(self) -> State:
        return self.files.flush()

    def name(self, class_names: Sequence[str]) -> None:
        write_names(self.folder / f"{self.stem}.classes.txt", class_names)

    def close(self) -> None:
        self.files.close()


class FolderWriter:
    """A folder for each class, and lists `path<TAB>label` of images to train on and to validate with.

    Args:
        class_names: what folders are called; the label, with zeros before it, where there is none.
        digits: of such labels.
        in_validation: whether the image of a number is in `val.txt`; in `train.txt` otherwise.
    """

    def __init__(self, folder: Path, state: State, class_names: Sequence[str], digits: int, in_validation: Any):
        folder.mkdir(exist_ok=True)
        folders = {plain_name(name) for name in class_names}
        if len(folders) < len(class_names) or folders & {"train.txt", "val.txt", "classes.txt"}:
            raise ValueError("format=folder: some classes cannot have folders of their names; format=rec or lmdb")
        self.folder, self.class_names, self.digits = folder, class_names, digits
        self.in_validation = in_validation
        self.resumed = bool(state)  # what was written after the state comes again
        self.lists = Files(state, train=folder / "train.txt", val=folder / "val.txt")

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        name = self.class_names[label] if len(self.class_names) else f"{label:0{self.digits}}"
        below = plain_name(name)
        path = Path(below, plain_name(plain(key).removeprefix(f"{plain(name)}/")))
        ending = ENDINGS.get(encoded[:2], ".jpg")
        if path.suffix.lower() in READ and ENDINGS_ALIKE.get(path.suffix.lower(), path.suffix.lower()) != ending:
            path = path.with_suffix(ending)  # encoded anew
        elif path.suffix.lower() not in READ:
            path = path.with_name(path.name + ending)
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise ValueError(f"key {key!r} is too long for the name of a file; keys=number")
        (self.folder / below).mkdir(exist_ok=True)
        there = self.folder / path
        if there.exists() and not self.resumed:
            raise ValueError(f"key {key!r} is there twice in class {name!r}; keys=number")
        there.write_bytes(encoded)
        self.lists["val" if self.in_validation(number) else "train"].write(f"{path}\t{label}\n".encode())

    def flush(self) -> State:
        return self.lists.flush()

    def name(self, class_names: Sequence[str]) -> None:
        write_names(self.folder / "classes.txt", [plain_name(name) for name in class_names])

    def close(self) -> None:
        self.lists.close()


def plain(key: str) -> str:
    """Without white space, control characters and what is not UTF-8: those become %XX."""
    return re.sub(r"[\s\x00-\x1f\x7f\ud800-\udfff]", _percent, key)


def one_line(text: str) -> str:
    """Without tabs and line breaks, which become %XX: a column of a list."""
    return re.sub(r"[\t\r\n]", _percent, text)


def plain_name(name: str) -> str:
    """A name of a file: no folders in it, and none that leads elsewhere."""
    return plain(name).strip("/").replace("/", "_").lstrip(".") or "_"


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def write_names(path: Path, names: Sequence[str]) -> None:
    if len(names):
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.writelines(f"{name}\n" for name in names)
