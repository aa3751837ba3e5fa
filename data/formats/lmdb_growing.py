"""Writing of an LMDB whose map grows with its content, for limited address space (`ulimit -v`)."""

from pathlib import Path
from typing import Any

import lmdb

from ..records import no_address_space

STEP = 2**28  # spare bytes of the map
# Most additional pages of a value: copies of the pages above it, and halves of split pages.
OVERHEAD = 16


class GrowingLmdb:
    """An LMDB that is written.

    Args:
        folder: folder of the database; created if it does not exist.
        options: options of `lmdb.open`.
    """

    def __init__(self, folder: Path, **options: Any):
        self.folder = folder
        try:
            self.environment = lmdb.open(str(folder), map_size=STEP, **options)
        except lmdb.MemoryError:
            raise no_address_space(str(folder), STEP) from None
        self._begin(STEP)

    def _begin(self, room: int) -> None:
        """Begin a transaction with room for so many bytes."""
        page = self.environment.stat()["psize"]
        size = (self.environment.info()["last_pgno"] + 1) * page + room + STEP  # freed pages are included
        try:
            self.environment.set_mapsize(size)
        except lmdb.MemoryError:
            raise no_address_space(str(self.folder), size) from None
        self.room, self.page = room, page
        self.transaction = self.environment.begin(write=True)

    def put(self, key: bytes, value: bytes, **options: Any) -> bool:
        """Store a value as `lmdb.Transaction.put` does. Earlier values may be committed."""
        needed = len(value) + OVERHEAD * self.page
        if needed > self.room:
            self.transaction.commit()
            self._begin(max(needed, STEP))
        self.room -= needed
        try:
            return bool(self.transaction.put(key, value, **options))
        except lmdb.MemoryError:
            raise ValueError(f"{self.folder}: memory is too small to write {len(value):,} bytes") from None

    def get(self, key: bytes) -> bytes | None:
        """Return a value, or None if the key does not exist."""
        value: bytes | None = self.transaction.get(key)
        return value

    def commit(self) -> int:
        """Write all values durably and return the number of entries."""
        self.transaction.commit()
        self._begin(STEP)
        return int(self.environment.stat()["entries"])

    def close(self) -> None:
        """Close the database; items put since the last commit may be lost."""
        self.transaction.abort()
        self.environment.close()
