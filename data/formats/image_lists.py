"""Folders and lists of images.

A line of a list is `path<TAB>label`, or an image in base64 and its label, in either order. Several labels of an image
are separated by commas. In a file of im2rec, which ends in `.lst`, it is `number<TAB>label<TAB>path`, and in one of
InsightFace `number<TAB>path<TAB>label`. An image folder has a folder for each class, named like the class, with images
at any depth. A pattern such as `omniglot/*/*` names the folders of classes in folders.
"""

import base64
import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..files import LineFile, check_file, read_file
from .encoded import BadEntry, Entry, UnreadableError, labels_of, read_names, text
from .shards import PARTS, matching

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
NUMBER = re.compile(rb"-?\d+(\.\d*)?")  # a label of im2rec
PNM = [base64.b64encode(b"P%d%b" % (kind, after)) for kind in range(1, 7) for after in (b"\n", b" ", b"\r", b"\t")]
# Beginnings of JPEG, PNG, BMP, WebP, TIFF, GIF, PBM, PGM and PPM.
BASE64_BEGINS = (b"/9j/", b"iVBORw0KGgo", b"Qk", b"UklGR", b"SUkqA", b"TU0AK", b"R0lGODdh", b"R0lGODlh", *PNM)


class ImageList:
    """Reader of a list of paths or base64 images. The place of an image is the first byte of its line.

    Args:
        path: path of the list.
        root: folder that its paths are relative to; the list's folder if None.
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
                label, *others = labels_of(self._columns(line)[1])
                yield Entry(place, label, more_labels=tuple(others))
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
        """Return (path or base64, labels) of a line in either order. Raises ValueError."""
        if self.list.path.endswith(".lst"):
            return columns_of_im2rec(line)
        label, _, image = line.partition(b"\t")
        if not (label.replace(b",", b"").isdigit() and looks_encoded(image)):
            image, _, label = line.rpartition(b"\t")
        if not image:
            raise ValueError("the line must be the path or base64 of an image, a tab and a class id")
        return image, label


def columns_of_im2rec(line: bytes) -> tuple[bytes, bytes]:
    """Return (path, label) of a line in a file of im2rec or InsightFace. Raises ValueError."""
    columns = line.split(b"\t")
    if len(columns) != 3:
        raise ValueError(
            f"the line of a .lst file must be number<TAB>label<TAB>path, and it has {len(columns)} columns; lists with "
            "several labels are for detection"
        )
    _, label, path = columns
    if not NUMBER.fullmatch(label) and NUMBER.fullmatch(path):
        label, path = path, label
    whole, _, rest = label.partition(b".")
    return path, whole if not rest.strip(b"0") else label


class ImageFolder(ImageList):
    """Reader of a folder with a folder for each class. A scan writes the list of its images to a file.

    Args:
        path: path of the folder, or a pattern of the class folders, which are named by the part that the pattern finds.
        listing: path of the list that `scan` writes.

    Attributes:
        top: the folder that holds all class folders.
    """

    def __init__(self, path: str, listing: str):
        is_folder = Path(path).is_dir() or not glob.has_magic(path)
        self.top = path if is_folder else fixed_part(path)
        super().__init__(listing, root=self.top)
        self.path, self.pattern = path, None if is_folder else path

    def files(self) -> Sequence[str]:
        folders = [os.path.join(self.top, name) for name in self._class_folders()]  # noqa: PTH118
        return [self.top, *folders, str(self._names())]

    def class_names(self) -> Sequence[str]:
        """Return the names of the class folders, sorted or in the order of `classes.txt`."""
        folders = self._class_folders()
        names = read_names(self._names())
        if names is None:
            return folders
        unknown = sorted(set(folders) - set(names))
        if unknown:
            raise ValueError(f"{self._names()} does not list class {unknown[0]!r} of {self.path}")
        return names

    def _names(self) -> Path:
        return Path(self.top, "classes.txt")

    def _class_folders(self) -> list[str]:
        """Return the paths of the class folders relative to the folder that holds all of them, sorted."""
        if self.pattern is not None:
            found = (path for path in matching(self.pattern) if Path(path).is_dir())
            names = sorted(os.path.relpath(path, self.top) for path in found)
            if not names:
                raise ValueError(f"no folder matches {self.pattern}")
            return names
        if not Path(self.path).is_dir():
            raise ValueError(f"{self.path} does not exist, or is not a folder")
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
        visible = [name for name in names if not name.startswith(".")]
        if len(visible) > 1 and set(visible) <= {*PARTS}:
            raise ValueError(parts_of_a_set(self.path, visible))
        return names

    def scan(self) -> Iterator[Entry | BadEntry]:
        labels = {name: label for label, name in enumerate(self.class_names())}
        holders: dict[str, set[str]] = {}  # folders that hold images themselves, of each class
        with open(self.list.path, "wb") as listing:  # noqa: PTH123
            for name in self._class_folders():
                for path in sorted(images_below(os.path.join(self.top, name))):  # noqa: PTH118
                    holders.setdefault(name, set()).add(os.path.dirname(path))  # noqa: PTH120
                    relative = os.fsencode(os.path.relpath(path, self.top))
                    if b"\n" in relative or b"\r" in relative:
                        raise ValueError(f"{self.path}: the file name {text(relative)!r} must not contain a line break")
                    yield Entry(listing.tell(), labels[name])
                    listing.write(b"%b\t%d\n" % (relative, labels[name]))
        if self.pattern is None:
            self._check_levels(holders)

    def _check_levels(self, holders: Mapping[str, set[str]]) -> None:
        """Raise ValueError if the images lie in folders below the class folders, which may be the classes instead."""
        levels = {len(Path(os.path.relpath(path, self.top)).parts) for paths in holders.values() for path in paths}
        count = sum(map(len, holders.values()))
        if count > len(holders) > 1 and min(levels) > 1:
            choices = f"'{self.path}/*' for {len(holders):,} classes"
            if len(levels) == 1:
                choices += f", '{self.path}{'/*' * max(levels)}' for {count:,}"
            raise ValueError(
                f"{self.path} has {len(holders):,} folders, whose images lie in {count:,} folders below them; name the "
                f"folders of the classes by a pattern: {choices}"
            )


def fixed_part(pattern: str) -> str:
    """Return the folders of a pattern before the first one that has a wildcard."""
    parts = Path(pattern).parts
    return str(Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts)))


def parts_of_a_set(path: str, names: list[str]) -> str:
    """Describe a folder with the folders `train` and `val`, for example, and the remedy."""
    train, other = sorted(names, key=lambda name: not name.startswith("train"))[:2]
    return (
        f"{path} contains the parts {', '.join(names)} of a set, not a folder for each class; train on "
        f"data.source={path}/{train}, and classify other images with protocol=closed_set "
        f"protocol.closed_set.source={path}/{other}"
    )


def images_below(folder: str) -> Iterator[str]:
    """Yield the paths of all images in a folder and its subfolders."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from images_below(entry.path)
                elif entry.name.lower().endswith(ENDINGS):
                    yield entry.path
    except OSError as error:  # no permission, or circular links
        raise ValueError(f"{text(os.fsencode(folder))} cannot be listed ({error.strerror})") from None


def looks_encoded(column: bytes) -> bool:
    """Return whether a column is an image in base64 rather than a path."""
    return column.startswith(BASE64_BEGINS) and b"." not in column
