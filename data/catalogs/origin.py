"""The files that a catalog describes."""

from dataclasses import dataclass
from pathlib import Path

from ..formats.encoded import Format
from ..formats.image_lists import ImageFolder, ImageList
from ..formats.lmdb_images import LmdbImages
from ..formats.parquet import ParquetTables
from ..formats.recordio import RecordFile
from ..formats.sources import check_source
from ..formats.webdataset import TarShards


@dataclass(frozen=True)
class Origin:
    """The source of a catalog.

    Args:
        format: one of `sources.FORMATS`.
        paths: absolute paths of the files or folders.
        labels: key-label files of the LMDB folders, one for each; each folder's own file if empty.
        root: the folder that paths in lists are relative to; the list's folder if None.
        shared: whether equal labels, or equal class names, mean the same class in all files. Otherwise the classes of
            each file are separate and follow those of the files before it.
        columns: columns of the image and of the label in Parquet tables; the second also names the label of tar shards.
    """

    format: str
    paths: tuple[str, ...]
    labels: tuple[str, ...] = ()
    root: str | None = None
    shared: bool = False
    columns: tuple[str | None, str | None] = (None, None)

    def open(self, folder: Path) -> list[Format]:
        """Return a reader for each file.

        Args:
            folder: the catalog's folder, which holds the listings of image folders.
        """
        if self.labels and len(self.labels) != len(self.paths):
            raise ValueError(
                f"labels names {len(self.labels)} key-label files for {len(self.paths)} sources; give one for each"
            )
        files: list[Format] = []
        for k, path in enumerate(self.paths):
            check_source(path, self.format)
            if self.format == "lmdb":
                files.append(LmdbImages(path, self.labels[k] if self.labels else None))
            elif self.format == "rec":
                files.append(RecordFile(path))
            elif self.format == "folder":
                files.append(ImageFolder(path, str(folder / f"listing-{k}.txt")))
            elif self.format == "wds":
                files.append(TarShards(path, self.columns[1]))
            elif self.format == "parquet":
                files.append(ParquetTables(path, *self.columns))
            else:
                files.append(ImageList(path, self.root))
        return files
