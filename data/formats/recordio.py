"""MXNet RecordIO: `.rec` with an optional `.idx`.

All numbers are little endian. A record is the magic number, a word of 3 bits flag and 29 bits length, and the payload,
padded to 4 bytes. A payload that contains the magic number at a multiple of 4 is split there: its parts have the flags
1, 2, ..., 3, and the magic number between them is left out. The payload of an image is a header (flag, label, id,
second id), `flag` further labels if that is not 0, and the encoded image. `.idx` has a line `key<TAB>offset` for each
record, in any order.

InsightFace's files begin with a header record, key 0. It has no image and two labels, of which the first states that
keys 1 .. label - 1 are images. The following records describe identities and are not read. The label is float32 and
exact only below 2^24; near a larger label, records without an image are assumed to be identities.
"""

import math
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import ReadFile, check_file, open_file
from .encoded import BadEntry, Entry, UnreadableError, read_names

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
HEAD = struct.Struct("<II")
IMAGE = struct.Struct("<IfQQ")
SHORT = struct.Struct("<IIIf")  # HEAD and the beginning of IMAGE
LONGEST = 2**29 - 1
SEARCHED = 2**20  # bytes that are searched at a time
EXACT = 2**24 - 1  # the largest float32 label that no other whole number is rounded to


class Image(NamedTuple):
    """The parts of a payload."""

    flag: int
    labels: tuple[float, ...]
    id: int
    encoded: bytes

    @property
    def of_insightface(self) -> bool:
        """Return whether the record is InsightFace's header or an identity, not an image."""
        return self.flag == 2 and not self.encoded


class RecordFile:
    """Reader of a .rec file. The place of an image is the first byte of its record.

    Args:
        path: path of the .rec file. Its .idx in the same folder is used if it exists.
    """

    def __init__(self, path: str):
        self.path, self.file = path, ReadFile(path)

    @property
    def index(self) -> Path:
        """Path of the .idx file."""
        return Path(self.path).with_suffix(".idx")

    def files(self) -> Sequence[str]:
        return [str(path) for path in (Path(self.path), self.index, self._names()) if path.exists()]

    def class_names(self) -> Sequence[str] | None:
        return read_names(self._names())

    def _names(self) -> Path:
        return Path(self.path).with_suffix(".classes.txt")

    def key(self, place: int) -> str:
        """Return the id in the record's header, which im2rec and InsightFace set to the key."""
        try:
            return str(unpack(self._payload(place)[0]).id)
        except UnreadableError:
            return f"the record at byte {place}"

    def num_labels(self, place: int) -> int:
        """Return the number of labels of a record."""
        return len(unpack(self._payload(place)[0]).labels)

    def read(self, place: int) -> bytes:
        return unpack(self._payload(place)[0]).encoded

    def scan(self) -> Iterator[Entry | BadEntry]:
        check_file(self.path, "file")
        size = self.file.size()
        if size == 0:
            raise ValueError(f"{self.path}: the file is empty")
        for key, offset, may_be_identity in self._images():
            try:
                yield Entry(offset, self._label(offset, size))
            except UnreadableError as error:
                if not (may_be_identity and self._is_identity(offset)):
                    yield BadEntry(str(key), str(error))

    def _images(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (key, offset, whether it may be an identity) of the images, in file order.

        The images are all records, or those announced by a header record. Keys are those of the index, or the numbers
        of the records without an index.
        """
        if not self.index.exists():
            last, slack = self._header(0)
            for key, offset in self._hops():
                if last is None or 1 <= key <= last + slack:
                    yield key, offset, last is not None and slack > 0 and key >= last - slack
            return
        keys, offsets = read_index(self.index)
        zero = np.flatnonzero(keys == 0)
        last, slack = self._header(int(offsets[zero[0]])) if len(zero) else (None, 0)
        if last is not None:
            images = (keys >= 1) & (keys <= last + slack)
            keys, offsets = keys[images], offsets[images]
            if len(keys) < last - slack:
                raise ValueError(
                    f"{self.path}: the header record states {last:,} images, but {self.index.name} contains "
                    f"{len(keys):,} of them"
                )
        for i in np.argsort(offsets, kind="stable"):
            yield int(keys[i]), int(offsets[i]), last is not None and slack > 0 and int(keys[i]) >= last - slack

    def _hops(self) -> Iterator[tuple[int, int]]:
        """Yield (number, offset) of each record. After a damaged one, resume at the next magic number."""
        size, offset, number = self.file.size(), 0, 0
        while offset < size:
            yield number, offset
            try:
                offset = self._payload(offset)[1]
            except UnreadableError:
                offset = self._next_magic(offset + 4, size)
            number += 1

    def _next_magic(self, offset: int, size: int) -> int:
        """Return where the next record may begin, at or after `offset`; the end of the file if there is none."""
        while offset < size:
            words = np.frombuffer(self.file.read(offset, SEARCHED)[: (size - offset) // 4 * 4], "<u4")
            for place in np.flatnonzero(words[:-1] == MAGIC):
                if words[place + 1] >> 29 in (0, 1):
                    return offset + 4 * int(place)
            if len(words) * 4 < SEARCHED:
                break
            offset += SEARCHED - 4  # overlaps by a word, since the length follows the magic number
        return size

    def _is_identity(self, offset: int) -> bool:
        try:
            return unpack(self._payload(offset)[0]).of_insightface
        except UnreadableError:
            return False

    def _header(self, offset: int) -> tuple[int | None, int]:
        """Return the last key of an image and its rounding error; None and 0 unless `offset` has a header record."""
        try:
            image = unpack(self._payload(offset)[0])
        except UnreadableError:
            return None, 0  # the scan reports it
        if not image.of_insightface or not 1 <= image.labels[0] < 2**53:
            return None, 0
        end = int(image.labels[0])
        return end - 1, 0 if end <= EXACT else int(np.spacing(np.float32(end)))

    def _label(self, offset: int, size: int) -> int:
        """Return the first label of the image at `offset`, if possible from its first bytes."""
        head = self._read(offset, SHORT.size)
        if len(head) == SHORT.size:
            # A record in one part has flag 0, so its second word is the length.
            magic, length, flag, label = SHORT.unpack(head)
            if magic == MAGIC and flag == 0 and IMAGE.size < length <= min(LONGEST, size - offset - HEAD.size):
                return _class_id(label)
        image = unpack(self._payload(offset)[0])
        if not image.encoded:
            raise UnreadableError("it contains no image")
        return _class_id(image.labels[0])

    def _payload(self, offset: int) -> tuple[bytes, int]:
        """Return the payload of the record at `offset`, its parts joined, and the offset of the next record."""
        parts: list[bytes] = []
        while True:
            head = self._read(offset, HEAD.size)
            if len(head) < HEAD.size:
                raise UnreadableError("the file ends before it" if not parts else "the file ends within it")
            magic, word = HEAD.unpack(head)
            flag, length = word >> 29, word & LONGEST
            if magic != MAGIC:
                raise UnreadableError(f"no record begins at byte {offset}: the magic number is missing")
            if flag > 3 or (flag in (0, 1)) != (not parts):
                raise UnreadableError(f"flag {flag} at byte {offset} is out of order")
            parts.append(self._read(offset + HEAD.size, length))
            if len(parts[-1]) < length:
                raise UnreadableError("the file ends within it")
            offset += HEAD.size + padded(length)
            if flag in (0, 3):
                return MAGIC_BYTES.join(parts), offset

    def _read(self, offset: int, length: int) -> bytes:
        return self.file.read(offset, length) if offset < 2**62 else b""


def _class_id(label: float) -> int:
    if not (math.isfinite(label) and label >= 0 and label == int(label)):
        raise UnreadableError(f"label {label} is not a class id; class ids are whole numbers from 0")
    if label > EXACT:
        raise UnreadableError(
            f"label {int(label):,} is too large: .rec stores labels as float32, which merges classes above {EXACT:,}; "
            "convert the original set to LMDB or to a list"
        )
    return int(label)


def unpack(payload: bytes) -> Image:
    """Return the parts of a payload. Raises UnreadableError for a payload that is too short."""
    if len(payload) < IMAGE.size:
        raise UnreadableError("it is empty" if not payload else f"its {len(payload)} bytes are too few for a header")
    flag, label, number, _ = IMAGE.unpack_from(payload)
    start = IMAGE.size + 4 * flag
    if len(payload) < start:
        raise UnreadableError(f"it is too short for its {flag} labels")
    labels = struct.unpack_from(f"<{flag}f", payload, IMAGE.size) if flag else (label,)
    return Image(flag, labels, number, payload[start:])


def read_index(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return keys and offsets, in the order of the file.

    Raises:
        ValueError: a line is not two whole numbers, or a key is not unique.
    """
    numbers = []
    carried = b""
    with open(open_file(path), "rb") as file:  # noqa: PTH123
        while chunk := file.read(2**24):
            chunk, _, carried = (carried + chunk).rpartition(b"\n")
            numbers.append(_numbers(chunk, path))
    numbers.append(_numbers(carried, path))
    both = np.concatenate(numbers)
    if len(both) % 2 or (both < 0).any():
        raise ValueError(f"{path}: every line must be a key, a tab and an offset")
    keys, offsets = both[::2], both[1::2]
    in_order = np.sort(keys)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    if len(repeated):
        raise ValueError(f"{path}: key {repeated[0]} is listed twice; keys must be unique")
    return keys, offsets


def _numbers(chunk: bytes, path: Path) -> NDArray[np.int64]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy only warns if it stops early
        try:
            return np.fromstring(chunk.decode("ascii"), np.int64, sep=" ") if chunk.strip() else np.empty(0, np.int64)
        except (ValueError, DeprecationWarning):
            raise ValueError(f"{path}: every line must be a key, a tab and an offset") from None


def padded(length: int) -> int:
    """Round a length up to a multiple of 4."""
    return -(-length // 4) * 4


def framed(payload: bytes) -> bytes:
    """Return the record of a payload, split at each magic number at a multiple of 4."""
    if len(payload) > LONGEST:
        raise ValueError(f"an image has {len(payload):,} bytes, but a record can contain at most {LONGEST:,}")
    cuts = []
    cut = payload.find(MAGIC_BYTES)
    while cut >= 0:
        if cut % 4 == 0:
            cuts.append(cut)
        cut = payload.find(MAGIC_BYTES, cut + (4 if cut % 4 == 0 else 1))
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)]
    flags = [1, *[2] * (len(cuts) - 1), 3] if cuts else [0]
    record = bytearray()
    for flag, start, end in zip(flags, starts, ends, strict=True):
        length = end - start
        record += HEAD.pack(MAGIC, flag << 29 | length) + payload[start:end] + bytes(padded(length) - length)
    return bytes(record)
