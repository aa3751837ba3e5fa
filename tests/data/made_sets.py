"""Sets of small images in every format, written and read by the formats' descriptions, without the tested code."""

import base64
import io
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 24
MAGIC = struct.pack("<I", 0xCED7230A)


def image(number: int, side: int = SIDE, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """Return an encoded smooth image, different for each number."""
    small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).convert(mode).save(file, kind, quality=92)
    return file.getvalue()


def images(labels: Sequence[int]) -> list[tuple[int, bytes]]:
    """Return a list of (label, encoded image)."""
    return [(label, image(number)) for number, label in enumerate(labels)]


def bomb(kind: str = "JPEG", side: int = 20_000) -> bytes:
    """Return a small file whose header declares 400 million pixels."""
    encoded = bytearray(image(0, kind=kind))
    if kind == "JPEG":
        place = encoded.index(b"\xff\xc0") + 5  # the frame's height and width
        encoded[place : place + 4] = struct.pack(">HH", side, side)
    else:
        import zlib

        encoded[16:24] = struct.pack(">II", side, side)
        encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    return bytes(encoded)


def record(payload: bytes, flag: int = 0) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(payload)) + payload + bytes(-len(payload) % 4)


def rec_payload(label: float, encoded: bytes, key: int = 0) -> bytes:
    return struct.pack("<IfQQ", 0, label, key, 0) + encoded


def write_rec(path: Path, items: Sequence[tuple[int, bytes]], header: bool = False, index: bool = True) -> Path:
    """Write a set like im2rec, with InsightFace's header and identity records if `header`."""
    payloads = [rec_payload(label, encoded, key + header) for key, (label, encoded) in enumerate(items)]
    if header:
        classes = len({label for label, _ in items})
        numbers = struct.pack("<ff", len(items) + 1, len(items) + 1 + classes)
        identities = [struct.pack("<IfQQff", 2, 0, 0, 0, 1, 2)] * classes
        payloads = [struct.pack("<IfQQ", 2, 0, 0, 0) + numbers, *payloads, *identities]
    offset, lines = 0, []
    with path.open("wb") as file:
        for key, payload in enumerate(payloads):
            lines.append(f"{key}\t{offset}\n")
            offset += file.write(record(payload))
    if index:
        path.with_suffix(".idx").write_text("".join(sorted(lines, key=lambda line: line[::-1])))  # in any order
    return path


def read_rec(path: Path) -> list[tuple[int, bytes]]:
    """Return (label, image) of each record, by the format's description."""
    items, parts, data, at = [], [], path.read_bytes(), 0
    while at < len(data):
        magic, word = struct.unpack_from("<II", data, at)
        assert magic == 0xCED7230A
        parts.append(data[at + 8 : at + 8 + word % 2**29])
        at += 8 + -(-(word % 2**29) // 4) * 4
        if word >> 29 in (0, 3):
            payload, parts = MAGIC.join(parts), []
            items.append((int(struct.unpack_from("<If", payload)[1]), payload[24:]))
    return items


def datum(encoded: bytes) -> bytes:
    """Return a protocol buffer with field 1 of wire type 2: its length in groups of 7 bits, and the bytes."""
    length, digits = len(encoded), b""
    while length >= 128:
        digits, length = digits + bytes([length % 128 + 128]), length // 128
    return b"\x0a" + digits + bytes([length]) + encoded


def write_lmdb(path: Path, items: Sequence[tuple[int, bytes]], keys: Sequence[bytes] | None = None) -> Path:
    """Write a set like FFC."""
    keys = [b"%05d.jpg" % number for number in range(len(items))] if keys is None else keys
    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for key, (_, encoded) in zip(keys, items, strict=True):
            transaction.put(key, datum(encoded))
    lines = [b"%b %d\n" % (key, label) for key, (label, _) in zip(keys, items, strict=True)]
    (path / f"{path.stem}_kv.txt").write_bytes(b"".join(lines))
    return path


def read_lmdb(path: Path) -> list[tuple[int, bytes]]:
    """Return (label, image) of each line of the key-label file, like FFC's loader, by the format's description."""
    items = []
    (lines,) = path.glob("*_kv.txt")
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        for line in lines.read_text().splitlines():
            key, label = line.split(" ")
            value = transaction.get(key.encode())
            size = shift = 0
            for at in range(1, 6):
                size, shift = size | (value[at] & 127) << shift, shift + 7
                if value[at] < 128:
                    break
            assert value[0] == 0x0A and at + 1 + size == len(value)
            items.append((int(label), value[at + 1 :]))
    return items


def write_folder(path: Path, items: Sequence[tuple[int, bytes]]) -> Path:
    for number, (label, encoded) in enumerate(items):
        folder = path / f"class {label:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.jpg").write_bytes(encoded)
    return path


def write_list(path: Path, items: Sequence[tuple[int, bytes]]) -> Path:
    """Write a list and its images into one folder."""
    for number, (_, encoded) in enumerate(items):
        path.with_name(f"{number}.jpg").write_bytes(encoded)
    path.write_text("".join(f"{number}.jpg\t{label}\n" for number, (label, _) in enumerate(items)))
    return path


def write_base64(path: Path, items: Sequence[tuple[int, bytes]], label_first: bool = True) -> Path:
    lines = [(str(label), base64.b64encode(encoded).decode()) for label, encoded in items]
    path.write_text("".join("\t".join(line if label_first else line[::-1]) + "\n" for line in lines))
    return path


def tar_member(name: str, content: bytes) -> bytes:
    """Return a file of a tar: a header of 512 bytes, and the content padded to 512."""
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000644\0",
        b"0000000\0" * 2,
        b"%011o\0" % len(content),
        b"0" * 11 + b"\0",
    )
    head = b"".join(fields) + b" " * 8 + b"0"
    head = head.ljust(257, b"\0") + b"ustar\x0000"
    head = head.ljust(512, b"\0")
    head = head[:148] + b"%06o\0 " % sum(head) + head[156:]
    return head + content + bytes(-len(content) % 512)


def write_tar(path: Path, items: Sequence[tuple[int, bytes]]) -> Path:
    """Write a shard of WebDataset."""
    members = []
    for number, (label, encoded) in enumerate(items):
        members += [tar_member(f"{number:05d}.cls", b"%d" % label), tar_member(f"{number:05d}.jpg", encoded)]
    path.write_bytes(b"".join(members) + bytes(1024))
    return path


def read_tar(path: Path) -> list[tuple[int, bytes]]:
    """Return (label, image) of all shards in a folder, by the standard library."""
    items = []
    for shard in sorted(path.glob("*.tar")):
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        keys = sorted({name.split(".")[0] for name in files})
        items += [(int(files[f"{key}.cls"]), files[f"{key}.jpg"]) for key in keys]
    return items


def write_parquet(path: Path, items: Sequence[tuple[int, bytes]], row_group_size: int = 2) -> Path:
    """Write a table as the library datasets does."""
    rows = [
        {"image": {"bytes": encoded, "path": f"{number}.jpg"}, "label": label}
        for number, (label, encoded) in enumerate(items)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def read_parquet(path: Path) -> list[tuple[int, bytes]]:
    """Return (label, image) of all tables in a folder."""
    rows = [row for file in sorted(path.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return [(row["label"], row["image"]["bytes"]) for row in rows]


# format -> its writer, and a file name
FORMATS = {
    "lmdb": (write_lmdb, "set.lmdb"),
    "rec": (write_rec, "set.rec"),
    "folder": (write_folder, "set"),
    "list": (write_list, "set.txt"),
    "wds": (write_tar, "set.tar"),
    "parquet": (write_parquet, "set.parquet"),
}
