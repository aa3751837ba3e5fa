"""Files of encoded images, written in each format: an LMDB folder, a .rec file, or a folder for each class.

A writer appends. `flush` makes everything durable and returns a state. A writer opened with that state discards all
that was written later.
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

LONGEST_KEY = 511  # bytes of a key in an LMDB
LONGEST_NAME = 255  # bytes of a file name
ENDINGS = {  # first two bytes -> ending of the file name
    **{b"\xff\xd8": ".jpg", b"\x89P": ".png", b"BM": ".bmp", b"RI": ".webp", b"II": ".tif", b"MM": ".tif"},
    **{b"GI": ".gif", b"P1": ".pbm", b"P4": ".pbm", b"P2": ".pgm", b"P5": ".pgm", b"P3": ".ppm", b"P6": ".ppm"},
}
ENDINGS_ALIKE = {".jpeg": ".jpg", ".tiff": ".tif"}

State = dict[str, int]  # positions of a writer


class Writer(Protocol):
    """Writer of one format. Raises ValueError for images that the format cannot store."""

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        """Append an image.

        Args:
            number: number of the image, counted from 0.
            key, label: its key and label in the target.
            encoded: its bytes.
        """
        ...

    def flush(self) -> State:
        """Make everything durable and return the state."""
        ...

    def name(self, class_names: Sequence[str]) -> None:
        """Write the class names, if there are any."""
        ...

    def close(self) -> None:
        """Close the files. Images written since the last `flush` may be lost."""
        ...


class Files:
    """Files open for appending, truncated to the positions of a state."""

    def __init__(self, state: State, **paths: Path):
        self.files: dict[str, IO[bytes]] = {}
        for name, path in paths.items():
            if (path.stat().st_size if path.exists() else 0) < state.get(name, 0):
                raise ValueError(f"{path} is shorter than its saved state; remove {path.parent} and convert again")
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
    """Writer of FFC's format.

    White space and bytes that are not UTF-8 become %XX in keys, since a line of the key-label file is a key, a space
    and a label.
    """

    def __init__(self, folder: Path, stem: str, state: State, datum: str = "ffc"):
        folder.mkdir(exist_ok=True)
        self.folder, self.datum = folder, datum
        self.database = GrowingLmdb(folder)
        self.list = Files(state, list=folder / f"{stem}_kv.txt")
        # A killed conversion may have stored images after its last state; these are written again.
        self.stored = self.database.environment.stat()["entries"] - state.get("entries", 0)

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        raw = plain(key).encode()
        if len(raw) > LONGEST_KEY:
            raise ValueError(
                f"key {key!r} has {len(raw)} bytes, but LMDB stores at most {LONGEST_KEY}; set keys=number"
            )
        value = value_of(encoded, self.datum)
        if not self.database.put(raw, value, overwrite=False):
            if self.stored <= 0 or self.database.get(raw) != value:
                raise ValueError(f"key {key!r} is not unique, as LMDB requires; set keys=number")
            self.stored -= 1
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
    """Writer of MXNet RecordIO with `.idx`. Keys count from 0."""

    def __init__(self, folder: Path, stem: str, state: State):
        folder.mkdir(exist_ok=True)
        self.folder, self.stem = folder, stem
        self.files = Files(state, records=folder / f"{stem}.rec", index=folder / f"{stem}.idx")

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        if label > EXACT:
            raise ValueError(
                f"label {label:,} is too large: .rec stores float32, which is exact up to {EXACT:,}; set renumber=true"
            )
        self.files["index"].write(b"%d\t%d\n" % (number, self.files["records"].tell()))
        self.files["records"].write(framed(IMAGE.pack(0, label, number, 0) + encoded))

    def flush(self) -> State:
        return self.files.flush()

    def name(self, class_names: Sequence[str]) -> None:
        write_names(self.folder / f"{self.stem}.classes.txt", class_names)

    def close(self) -> None:
        self.files.close()


class FolderWriter:
    """Writer of a folder for each class, with lists `path<TAB>label` for training and validation.

    Args:
        folder: the folder.
        state: the state to continue from.
        class_names: names of the class folders; labels with leading zeros if empty.
        digits: number of digits of such labels.
        in_validation: returns whether the image of a number is listed in `val.txt` instead of `train.txt`.
    """

    def __init__(self, folder: Path, state: State, class_names: Sequence[str], digits: int, in_validation: Any):
        folder.mkdir(exist_ok=True)
        folders = {plain_name(name) for name in class_names}
        if len(folders) < len(class_names) or folders & {"train.txt", "val.txt", "classes.txt"}:
            raise ValueError(
                "format=folder cannot store these class names, which are equal or reserved as folder names; set "
                "format=rec or format=lmdb"
            )
        self.folder, self.class_names, self.digits = folder, class_names, digits
        self.in_validation = in_validation
        self.resumed = bool(state)  # files written after the state are written again
        self.lists = Files(state, train=folder / "train.txt", val=folder / "val.txt")

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        name = self.class_names[label] if len(self.class_names) else f"{label:0{self.digits}}"
        below = plain_name(name)
        path = Path(below, plain_name(plain(key).removeprefix(f"{plain(name)}/")))
        ending = ENDINGS.get(encoded[:2], ".jpg")
        if path.suffix.lower() in READ and ENDINGS_ALIKE.get(path.suffix.lower(), path.suffix.lower()) != ending:
            path = path.with_suffix(ending)  # the encoding has changed
        elif path.suffix.lower() not in READ:
            path = path.with_name(path.name + ending)
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise ValueError(f"key {key!r} is too long for a file name; set keys=number")
        (self.folder / below).mkdir(exist_ok=True)
        file = self.folder / path
        if file.exists() and not self.resumed:
            raise ValueError(f"key {key!r} is not unique in class {name!r}; set keys=number")
        file.write_bytes(encoded)
        self.lists["val" if self.in_validation(number) else "train"].write(f"{path}\t{label}\n".encode())

    def flush(self) -> State:
        return self.lists.flush()

    def name(self, class_names: Sequence[str]) -> None:
        write_names(self.folder / "classes.txt", [plain_name(name) for name in class_names])

    def close(self) -> None:
        self.lists.close()


def plain(key: str) -> str:
    """Replace white space, control characters and bytes that are not UTF-8 by %XX."""
    return re.sub(r"[\s\x00-\x1f\x7f\ud800-\udfff]", _percent, key)


def one_line(text: str) -> str:
    """Replace tabs and line breaks by %XX, for a column of a list."""
    return re.sub(r"[\t\r\n]", _percent, text)


def plain_name(name: str) -> str:
    """Return a safe file name: without folders, and not hidden."""
    return plain(name).strip("/").replace("/", "_").lstrip(".") or "_"


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def write_names(path: Path, names: Sequence[str]) -> None:
    """Write class names, one per line; no file if there are none."""
    if len(names):
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.writelines(f"{name}\n" for name in names)
