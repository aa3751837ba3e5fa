"""Images of folders and of lists: `path<TAB>label`, or images in base64 with their labels, in either order.

A folder has a folder for each class, named like it, with images in it or deeper.
"""

import base64
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..files import LineFile, check_file, read_file
from .encoded import BadEntry, Entry, UnreadableError, label_of, read_names, text

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
PNM = [base64.b64encode(b"P%d%b" % (kind, after)) for kind in range(1, 7) for after in (b"\n", b" ", b"\r", b"\t")]
# Of JPEG, PNG, BMP, WebP, TIFF, GIF, and PBM, PGM and PPM.
BASE64_BEGINS = (b"/9j/", b"iVBORw0KGgo", b"Qk", b"UklGR", b"SUkqA", b"TU0AK", b"R0lGODdh", b"R0lGODlh", *PNM)


class ImageList:
    """Images of a list of paths or of base64. A place is the byte that a line begins at.

    Args:
        path: of the list.
        root: what its paths are relative to; the list's folder unless given.
    """

    def __init__(self, path: str, root: str | None = None):
        self.path, self.root = path, root if root is not None else str(Path(path).parent)
        self.list = LineFile(path)

    def files(self) -> Sequence[str]:
        return [str(path) for path in (Path(self.path), self._names()) if path.exists()]

    def class_names(self) -> Sequence[str] | None:
        return read_names(self._names())

    def _names(self) -> Path:
        return Path(self.path).with_suffix(".classes.txt")

    def scan(self) -> Iterator[Entry | BadEntry]:
        check_file(self.path, "list")
        for number, place, line in self.list.lines():
            try:
                yield Entry(place, label_of(self._columns(line)[1]))
            except ValueError as error:
                yield BadEntry(f"line {number}", str(error))

    def key(self, place: int) -> str:
        image, _ = self._columns(self.list.line(place))
        return f"byte-{place}" if looks_encoded(image) else text(image)

    def read(self, place: int) -> bytes:
        try:
            image, _ = self._columns(self.list.line(place))
            if looks_encoded(image):
                return base64.b64decode(image, validate=True)
            return read_file(os.path.join(os.fsencode(self.root), image))  # noqa: PTH118
        except (ValueError, OSError) as error:
            raise UnreadableError((error.strerror if isinstance(error, OSError) else None) or str(error)) from None

    def _columns(self, line: bytes) -> tuple[bytes, bytes]:
        """(path or base64, label), whichever comes first. Raises ValueError."""
        label, _, image = line.partition(b"\t")
        if not (label.isdigit() and looks_encoded(image)):
            image, _, label = line.rpartition(b"\t")
        if not image:
            raise ValueError("an image's path or base64, a tab and a class id are needed")
        return image, label


class ImageFolder(ImageList):
    """Images of a folder of folders. What is found there is listed in a file of our own, once.

    Args:
        path: of the folder.
        listing: where the list is written by `scan`, and read from.
    """

    def __init__(self, path: str, listing: str):
        super().__init__(listing, root=path)
        self.path = path

    def files(self) -> Sequence[str]:
        return [self.path, *(each.path for each in self._class_folders()), *map(str, [self._names()])]

    def class_names(self) -> Sequence[str]:
        """Sorted, or in the order of `classes.txt` where there is one."""
        folders = [each.name for each in self._class_folders()]
        names = read_names(self._names())
        if names is None:
            return folders
        unknown = sorted(set(folders) - set(names))
        if unknown:
            raise ValueError(f"{self._names()}: class {unknown[0]!r} of {self.path} is missing in it")
        return names

    def _names(self) -> Path:
        return Path(self.path, "classes.txt")

    def _class_folders(self) -> list[os.DirEntry[str]]:
        if not Path(self.path).is_dir():
            raise ValueError(f"{self.path}: there is no such folder")
        with os.scandir(self.path) as entries:
            return sorted((each for each in entries if each.is_dir()), key=lambda each: each.name)

    def scan(self) -> Iterator[Entry | BadEntry]:
        labels = {name: label for label, name in enumerate(self.class_names())}
        with open(self.list.path, "wb") as listing:  # noqa: PTH123
            for folder in self._class_folders():
                for path in sorted(images_below(folder.path)):
                    relative = os.fsencode(os.path.relpath(path, self.path))
                    if b"\n" in relative or b"\r" in relative:
                        raise ValueError(f"{text(relative)!r}: a file's name must not hold a line break")
                    yield Entry(listing.tell(), labels[folder.name])
                    listing.write(b"%b\t%d\n" % (relative, labels[folder.name]))


def images_below(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for each in entries:
                if each.is_dir():
                    yield from images_below(each.path)
                elif each.name.lower().endswith(ENDINGS):
                    yield each.path
    except OSError as error:  # no permission, or links that go round in circles
        raise ValueError(f"{text(os.fsencode(folder))}: cannot be listed ({error.strerror})") from None


def looks_encoded(column: bytes) -> bool:
    """Whether it is an image in base64, and no path."""
    return column.startswith(BASE64_BEGINS) and b"." not in column
