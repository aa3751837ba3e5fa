"""The check of an LMDB's pages before values are read: a damaged page may end the process.

The file is an array of pages. A page begins with its own number (8 bytes), 2 unused bytes and its kind (2 bytes). The
bounds of its free space follow, `lower` and `upper` (2 bytes each), then the positions of its nodes (2 bytes each), up
to `lower`. A node begins with the two halves of a number (2 bytes each), flags (2) and the length of its key (2), then
the key. In a branch page, halves and flags are the number of a child page. In a leaf page, the halves are the length of
the value, which follows. If the first flag is set, the number of the page where the value begins (8 bytes) follows
instead. Keys are sorted, and the key of a branch's node is the least key below it; the first node of a branch needs
none. Pages 0 and 1 describe the database: the root is that of the page with the higher transaction number.
"""

import struct
from bisect import bisect
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import lmdb
import numpy as np

from ..files import ReadFile

HEADER = struct.Struct("<QHHHH")  # number, unused, kind, lower, upper
BRANCH, LEAF, KINDS = 1, 2, 15
ORDER, ROOT, TRANSACTION = 92, 128, 144  # positions in pages 0 and 1; the order of keys is 0 unless it is customized
NODE = 8  # bytes before the key
SEPARATE = 1  # flag of a value on pages of its own


class Page(NamedTuple):
    """A page and the least key below it."""

    least: bytes
    number: int


class Damage:
    """The keys of a database that damaged pages make unreadable.

    Attributes:
        pages: damaged pages, sorted by least key.
    """

    def __init__(self, path: str, environment: lmdb.Environment):
        file, stat = ReadFile(str(Path(path, "data.mdb"))), environment.stat()
        size, last = stat["psize"], environment.info()["last_pgno"]
        heads = [file.read(number * size, size) for number in (0, 1)]
        head = max(heads, key=lambda head: _number(head, TRANSACTION, 8))
        self.pages: list[Page] = []
        self.bounds: list[bytes] = []  # least keys of all pages, sorted
        level = [Page(b"", _number(head, ROOT, 8))] if stat["entries"] and not _number(head, ORDER, 2) else []
        seen = 0
        for depth in range(stat["depth"] if level else 0):
            below: list[Page] = []
            for page in level:
                seen += 1
                inside = 2 <= page.number <= last and seen <= last  # each page may appear only once
                raw = file.read(page.number * size, size) if inside else b""
                children = _children(raw, page, LEAF if depth == stat["depth"] - 1 else BRANCH, size, last)
                if children is None:
                    self.pages.append(page)
                else:
                    below += children
            self.bounds += [page.least for page in level]
            level = below
        self.pages.sort()
        self.bounds = sorted({*self.bounds}) if self.pages else []
        self.ends = [[*self.bounds, b""][bisect(self.bounds, page.least)] for page in self.pages]

    def of(self, key: bytes) -> int | None:
        """Return the number of the damaged page that a lookup of the key visits, or None."""
        index = bisect(self.pages, Page(key, 2**64)) - 1
        if index < 0 or (self.ends[index] and key >= self.ends[index]):
            return None
        return self.pages[index].number


def _children(raw: bytes, page: Page, kind: int, size: int, last: int) -> list[Page] | None:
    """Return the child pages of a branch page, an empty list for a leaf page, or None for a damaged page."""
    if len(raw) < size:
        return None
    own, _, flags, lower, upper = HEADER.unpack_from(raw)
    count = (lower - HEADER.size) // 2
    if own != page.number or flags & KINDS != kind or not HEADER.size < lower <= upper <= size:
        return None
    places = np.frombuffer(raw, "<u2", count, HEADER.size).astype(np.int64)
    if places.min() < upper or places.max() > size - NODE or (places % 2).any():
        return None
    low, high, of_node, key = np.frombuffer(raw, "<u2")[places[:, None] // 2 + np.arange(4)].astype(np.int64).T
    ends = places + NODE + key
    if kind == BRANCH:
        children = low | high << 16 | of_node << 32
        if (ends > size).any() or (children < 2).any() or (children > last).any():
            return None
        keys = [raw[begin + NODE : end] for begin, end in zip(places.tolist(), ends.tolist(), strict=True)]
        keys[0] = page.least
        in_order = all(one < other for one, other in pairwise(keys))
        return [Page(*each) for each in zip(keys, children.tolist(), strict=True)] if in_order else None
    lengths, separate = low | high << 16, of_node & SEPARATE == SEPARATE
    if (ends + np.where(separate, 8, lengths) > size).any():
        return None
    starts = np.frombuffer(raw, "<u1")[ends[separate][:, None] + np.arange(8)].copy().view("<u8")[:, 0].astype(np.int64)
    pages = (HEADER.size + lengths[separate] + size - 1) // size
    return [] if (starts >= 2).all() and (starts <= last + 1 - np.minimum(pages, last)).all() else None


def _number(raw: bytes, place: int, length: int) -> int:
    return int.from_bytes(raw[place : place + length], "little")
