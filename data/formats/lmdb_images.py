"""FFC's LMDB: images under text keys, and a list of keys with their classes.

A value is a protocol buffer that contains the encoded image: `message Datum { optional bytes data = 1; }`, as FFC's
`tools/make_lmdb.py` writes it. FFC's training code reads Caffe's Datum instead, which has the data in field 4. This
module reads both, and values that are JPEG files. The key-label file, `NAME_kv.txt` in the database's folder or any
other file, has a line `key label` for each image.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from ..files import LineFile, check_file
from ..records import opened
from .encoded import JPEG, BadEntry, Entry, UnreadableError, label_of, read_names, text
from .lmdb_pages import Damage

FIELDS = {"ffc": 1, "caffe": 4}  # number of the data field


def _datum() -> type:
    file = descriptor_pb2.FileDescriptorProto(name="headcount/datum.proto", package="headcount", syntax="proto2")
    field = descriptor_pb2.FieldDescriptorProto
    message = file.message_type.add(name="Datum")
    for name, number in FIELDS.items():
        # Field 1 of Caffe is an integer; a value of another type is skipped.
        message.field.add(name=name, number=number, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("headcount.Datum"))


Datum = _datum()


class LmdbImages:
    """Reader of an LMDB folder. The place of an image is the first byte of its line in the key-label file.

    Args:
        path: path of the folder.
        labels: path of the key-label file; the file in the folder if None.
    """

    def __init__(self, path: str, labels: str | None = None):
        self.path = path
        if not Path(path, "data.mdb").is_file():
            raise ValueError(f"{path} is not an LMDB folder: it contains no data.mdb")
        if labels is None:
            candidates = sorted(str(file) for file in Path(path).glob("*_kv.txt"))
            if len(candidates) != 1:
                raise ValueError(
                    f"{path} contains {len(candidates) or 'no'} files *_kv.txt; give the key-label file by `labels`"
                )
            labels = candidates[0]
        self.list = LineFile(labels)
        self._inode = Path(path, "data.mdb").stat().st_ino

    def files(self) -> Sequence[str]:
        files = [os.path.join(self.path, "data.mdb"), self.list.path, str(self._names())]  # noqa: PTH118
        return [path for path in files if Path(path).exists()]

    def class_names(self) -> Sequence[str] | None:
        return read_names(self._names())

    def _names(self) -> Path:
        return Path(self.path, "classes.txt")

    def scan(self) -> Iterator[Entry | BadEntry]:
        check_file(self.list.path, "key-label file")
        damage = Damage(self.path, opened(self.path, self._inode))
        for number, place, line in self.list.lines():
            key, _, label = line.rpartition(b" ")
            try:
                if not key:
                    raise ValueError("the line must be a key, a space and a class id")
                if damage.pages and (page := damage.of(key)) is not None:
                    yield BadEntry(text(key), f"page {page:,} of data.mdb is damaged")
                    continue
                yield Entry(place, label_of(label), key)
            except ValueError as error:
                yield BadEntry(f"line {number}", str(error))

    def key(self, place: int) -> str:
        return text(self._key(place))

    def read(self, place: int) -> bytes:
        try:
            with opened(self.path, self._inode).begin(buffers=True) as transaction:
                value = transaction.get(self._key(place))
                if value is None:
                    raise UnreadableError("the database does not contain it")
                return encoded_in(value)
        except lmdb.Error as error:
            raise UnreadableError(str(error)) from None

    def _key(self, place: int) -> bytes:
        return self.list.line(place).rpartition(b" ")[0]


def encoded_in(value: bytes | memoryview) -> bytes:
    """Return the encoded image that a value contains. Raises UnreadableError."""
    if value[:2] == JPEG:  # no protocol buffer begins with these bytes
        return bytes(value)
    datum = Datum()
    try:
        datum.ParseFromString(bytes(value))
    except DecodeError:
        raise UnreadableError("its value is not a Datum") from None
    if not (datum.ffc or datum.caffe):
        raise UnreadableError("it contains no image")
    return datum.ffc or datum.caffe


def value_of(encoded: bytes, datum: str = "ffc") -> bytes:
    """Return a value that contains the image in the field of `datum`."""
    return Datum(**{datum: encoded}).SerializeToString()
