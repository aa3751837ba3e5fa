"""Images at a path that a user gives to a command."""

from pathlib import Path

from ..cache import cache_folder
from ..catalogs.catalog import catalog
from ..catalogs.origin import Origin
from ..formats.encoded import Labelled
from ..formats.shards import exists
from ..formats.sources import FORMATS, format_of
from ..formats.unlabeled_images import UnlabeledImages, has_folders, has_images
from ..options import absolute, path_of, paths_of


def images_at(
    path: str,
    format: str | None = None,
    *,
    root: str | None = None,
    labels: str | None = None,
    option: str = "source",
    mixed: bool = False,
) -> Labelled:
    """Return the images of a file or folder. The images of a folder without subfolders are one class.

    Args:
        format: one of FORMATS; detected if None.
        root: the folder that paths in a list are relative to; the list's folder if None.
        labels: the key-label file of an LMDB; the file in its folder if None.
        option: name of the option with the path, for error messages.
        mixed: accept a folder with images directly and in subfolders, and take all of them as one class.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format={format} must be one of {', '.join(FORMATS)}")
    path = absolute(path)
    if not exists(path):
        raise ValueError(f"{option}={path} does not exist")
    kind = format or format_of(path)
    for name, value, applies in (("root", root, "list"), ("labels", labels, "lmdb")):
        if value is not None and kind != applies:
            raise ValueError(f"{name}={value} applies to format={applies} only; {path} has format={kind}")
    if kind == "folder" and format is None and Path(path).is_dir() and has_images(path):
        if not mixed and has_folders(path):
            raise ValueError(
                f"{option}={path} contains images directly and in subfolders; format=folder reads only those in "
                "subfolders"
            )
        return UnlabeledImages(path)
    origin = Origin(kind, (path,), tuple(paths_of("labels", labels)), path_of("root", root))
    return catalog(origin, cache_folder())
