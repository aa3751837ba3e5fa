"""`data=lmdb`, `rec`, `folder`, `list`, `wds` and `parquet`: a training set of the user's own images."""

from collections.abc import Sequence
from pathlib import Path

from ..augment import Unchanged
from ..cache import cache_folder
from ..catalogs.catalog import Catalog, catalog
from ..catalogs.origin import Origin
from ..formats.encoded import Images
from ..formats.recordio import RecordFile
from ..formats.sources import FORMATS
from ..formats.unlabeled_images import UnlabeledImages, has_folders
from ..label_file import with_labels
from ..options import path_of, paths_of, whole
from ..preprocessing import preprocessing_of
from ..records import Augmentation, DataSet, RecordSet
from .encoded_images import EncodedImages
from .split import hold_out


def images(
    *,
    format: str,
    source: str | Sequence[str] | None,
    labels: str | Sequence[str] | None = None,
    root: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    shared: bool = False,
    size: float | Sequence[float] = 112,
    channels: int = 3,
    fit: str = "crop",
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    crop: float = 1.0,
    num_heldout: int | None = None,
    augment: Augmentation | None = None,
    cache_dir: str | None = None,
    seed: int = 0,
) -> DataSet:
    """Return the images of files or folders. Their labels become class ids without gaps.

    Args:
        format: one of FORMATS.
        source: path of a file or folder, or several. The classes of several sources are separate unless `shared`.
        labels: key-label file of each LMDB source; the file in its folder if None. Or for any format a .npy file with
            a class id for each image, in the order of the sources, as `experiments.embed` reads them. The labels of the
            sources are then ignored, and a folder may have images without subfolders.
        root: folder that the paths of lists are relative to; the list's folder if None.
        image_column: column of the images in Parquet tables; None for `image` and other usual names.
        label_column: column of the labels in Parquet tables, or the ending of the label's file in tar files, or a key
            of its .json; None for `label`, `cls` and other usual names.
        shared: whether a label means the same class in all sources.
        size: side in pixels, or [height, width].
        channels: 3 (RGB) or 1 (grey).
        fit: how images of another size are brought to this size: "crop" or "stretch".
        mean, std: one number or one for each channel; the backbone gets (pixel / 255 - mean) / std.
        crop: share of each side that is kept first, about the centre of every image.
        num_heldout: classes held out for evaluation; a twentieth, at most 500, if None; 0 for none.
        augment: augmentation of training images; none if None.
        cache_dir: folder of the catalogs; by default $HEADCOUNT_CACHE or ~/.cache/headcount.
        seed: seed of the choice of held-out classes.
    """
    preprocessing = preprocessing_of(size, channels, fit, mean, std, crop, option="data.")
    if num_heldout is not None:
        num_heldout = whole("data.num_heldout", num_heldout, 0)
    cache, label_file = cache_folder(cache_dir), _label_file(format, labels)
    origin = _origin(format, source, None if label_file else labels, root, shared, (image_column, label_column))
    names: Sequence[str] = ()
    if label_file:
        unlabeled = EncodedImages(_unlabeled(origin, cache), preprocessing.decoder)
        records = with_labels(unlabeled, label_file, cache, "images")
    else:
        files = catalog(origin, cache)
        if files.num_classes == 1:
            path, reason = files.origin.paths[0], _one_class(files)
            raise ValueError(f"data.source={path} has one class: {reason}; training needs two classes or more")
        decoded, names = EncodedImages(files, preprocessing.decoder), files.class_names
        records = RecordSet(decoded, files.labels, files.num_classes, files.by_class, all_labels=files.all_labels)
    train, heldout, names = hold_out(records, names, num_heldout, seed)
    augment = augment or Unchanged()
    shape, prepare = preprocessing.shape, preprocessing.normalize
    return DataSet(train, heldout, shape, prepare, augment, names, preprocessing)


def _origin(
    format: str,
    source: str | Sequence[str] | None,
    labels: str | Sequence[str] | None,
    root: str | None,
    shared: bool,
    columns: tuple[str | None, str | None],
) -> Origin:
    if format not in FORMATS:
        raise ValueError(f"data.format={format} must be one of {', '.join(FORMATS)}")
    paths = tuple(paths_of("data.source", source))
    if not paths:
        raise ValueError(f"data.source=null must be the path of {FORMATS[format]}")
    return Origin(format, paths, tuple(paths_of("data.labels", labels)), path_of("data.root", root), shared, columns)


def _label_file(format: str, labels: str | Sequence[str] | None) -> str | None:
    """Return the path of a .npy file of labels; None for the labels of the sources."""
    paths = paths_of("data.labels", labels)
    if len(paths) == 1 and paths[0].endswith(".npy"):
        return paths[0]
    if paths and format != "lmdb":
        raise ValueError(f"data.labels={labels} must be one .npy file with a class id for each image")
    return None


def _unlabeled(origin: Origin, cache: Path) -> Images:
    """Return the images of an origin, whose labels are not used."""
    path = origin.paths[0]
    if origin.format == "folder" and len(origin.paths) == 1 and Path(path).is_dir() and not has_folders(path):
        return UnlabeledImages(path)
    return catalog(origin, cache)


def _one_class(files: Catalog) -> str:
    """Describe a source whose images are all of one class, and the path to pass instead."""
    path = files.origin.paths[0]
    if files.origin.format == "folder":
        name = files.names[0]
        reason = f"the only folder with images in it is {name!r}, and a folder is a class"
        return f"{reason}; pass data.source={path}/{name}" if has_folders(f"{path}/{name}") else reason
    reason = f"all of its {len(files):,} images have the label {files.label(0)}"
    if files.origin.format == "rec" and (count := RecordFile(path).num_labels(files.place(0))) > 1:
        return f"{reason}, the first of {count} in a record (files for detection have boxes as labels)"
    return reason
