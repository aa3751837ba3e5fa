"""An LMDB that is written, with a map that grows with it: address space may be limited, by `ulimit -v` say."""

from pathlib import Path
from typing import Any

import lmdb

from ..records import no_address_space

STEP = 2**28  # bytes of the map that are not written yet
OVERHEAD = 16  # pages that a value may take besides its own: copies of those above it, and halves of those that split


class GrowingLmdb:
    """
    Args:
        folder: of the database, which is made unless it is there.
        options: of `lmdb.open`.
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
        size = (self.environment.info()["last_pgno"] + 1) * page + room + STEP  # what was freed takes some, too
        try:
            self.environment.set_mapsize(size)
        except lmdb.MemoryError:
            raise no_address_space(str(self.folder), size) from None
        self.room, self.page = room, page
        self.transaction = self.environment.begin(write=True)

    def put(self, key: bytes, value: bytes, **options: Any) -> bool:
        """Store a value as `lmdb.Transaction.put` does. What was put before may be committed."""
        needed = len(value) + OVERHEAD * self.page
        if needed > self.room:
            self.transaction.commit()
            self._begin(max(needed, STEP))
        self.room -= needed
        try:
            return bool(self.transaction.put(key, value, **options))
        except lmdb.MemoryError:
            raise ValueError(f"{self.folder}: there is no memory to write {len(value):,} bytes") from None

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self.transaction.get(key)
        return found

    def commit(self) -> int:
        """Make what was put safe and return the number of entries."""
        self.transaction.commit()
        self._begin(STEP)
        return int(self.environment.stat()["entries"])

    def close(self) -> None:
        """Close the database; items put since the last commit may be lost."""
        self.transaction.abort()
        self.environment.close()
