"""Sets of images written as several files: tar files of WebDataset, and Parquet tables.

A file is complete after each `flush`, so that a resumed conversion begins with a new one.
"""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .writers import ENDINGS, State, write_names

ROWS = 100  # images in a row group of a table: what is read for one image


class _ShardWriter:
    """Writer of numbered files, in a folder.

    Args:
        folder: the folder.
        state: the state to continue from. Files that were begun after it are removed.
        class_names: names of the classes; empty if they are named by their labels.
    """

    ending = ""

    def __init__(self, folder: Path, state: State, class_names: Sequence[str]):
        folder.mkdir(exist_ok=True)
        self.folder, self.class_names, self.shards = folder, class_names, state.get("shards", 0)
        self.file: Any = None
        for path in folder.glob(f"*{self.ending}"):
            if int(path.stem.rpartition("-")[2]) >= self.shards:
                path.unlink()

    @property
    def path(self) -> Path:
        """Path of the current file."""
        return self.folder / f"part-{self.shards:05d}{self.ending}"

    def flush(self) -> State:
        if self.file is not None:
            self.close()
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.shards += 1
        return {"shards": self.shards}

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


class TarWriter(_ShardWriter):
    """Writer of WebDataset: `000000000.jpg` and `000000000.cls` for each image."""

    ending = ".tar"

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        if self.file is None:
            self.file = tarfile.open(self.path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        for ending, content in ((ENDINGS.get(encoded[:2], ".jpg"), encoded), (".cls", b"%d" % label)):
            member = tarfile.TarInfo(f"{number:09d}{ending}")
            member.size = len(content)
            self.file.addfile(member, io.BytesIO(content))

    def name(self, class_names: Sequence[str]) -> None:
        write_names(self.folder / "classes.txt", class_names)


class ParquetWriter(_ShardWriter):
    """Writer of tables with the columns `image`, {bytes, path}, and `label`, as the library datasets writes them."""

    ending = ".parquet"

    def __init__(self, folder: Path, state: State, class_names: Sequence[str]):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise ValueError("format=parquet needs pyarrow; pip install -e '.[parquet]'") from None
        super().__init__(folder, state, class_names)
        label = {"names": list(class_names), "_type": "ClassLabel"}
        if not len(class_names):
            label = {"dtype": "int64", "_type": "Value"}
        about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        self.schema = pa.schema([("image", image), ("label", pa.int64())], {"huggingface": json.dumps(about)})
        self.rows: list[dict[str, Any]] = []
        self.open = lambda: pq.ParquetWriter(self.path, self.schema, compression="none", use_dictionary=False)
        self.table = lambda: pa.Table.from_pylist(self.rows, self.schema)

    def write(self, number: int, key: str, label: int, encoded: bytes) -> None:
        if self.file is None:
            self.file = self.open()
        path = key.encode("utf-8", "backslashreplace").decode()
        self.rows.append({"image": {"bytes": encoded, "path": path}, "label": label})
        if len(self.rows) == ROWS:
            self._write_rows()

    def _write_rows(self) -> None:
        if self.rows:
            self.file.write_table(self.table())
            self.rows = []

    def flush(self) -> State:
        if self.file is not None:
            self._write_rows()
        return super().flush()

    def name(self, class_names: Sequence[str]) -> None:
        """Do nothing: the metadata of each table has the names."""
