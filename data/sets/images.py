"""`data=lmdb`, `rec`, `folder` and `list`: images of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ..augment import Unchanged
from ..cache import cache_folder
from ..catalog import Catalog, Origin, catalog
from ..formats.decode import Decoder
from ..formats.encoded import Images, Labelled, UnreadableError
from ..formats.recordio import RecordFile
from ..formats.sources import format_of
from ..formats.unlabeled_images import Photos, has_folders, has_loose
from ..options import absolute, path_of, paths_of, whole
from ..preprocessing import preprocessing_of
from ..records import Augmentation, DataSet, Indices, RecordSet
from .split import hold_out

FORMATS = {
    "lmdb": "an LMDB folder with its key-label file",
    "rec": "a .rec file, with its .idx beside it if there is one",
    "folder": "a folder with a folder for each class",
    "list": "a file with a line `path<TAB>label`, or base64 and label, for each image",
}


def images(
    *,
    format: str,
    source: str | Sequence[str] | None,
    labels: str | Sequence[str] | None = None,
    root: str | None = None,
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
    """Images in files, of any number. Classes are numbered by label, without gaps, and found by themselves.

    Args:
        format: one of FORMATS.
        source: path of a file or folder, or several. Each brings classes of its own, unless `shared`.
        labels: of format=lmdb: the key-label file, one for each source; found in the folder unless given.
        root: of format=list: what paths are relative to; the list's folder unless given.
        shared: whether a label means the same class in all sources.
        size: side in pixels, or [height, width].
        channels: 3 (RGB) or 1 (grey).
        fit: how images of another size are brought to this one: "crop" or "stretch".
        mean, std: of pixels from 0 to 1, one number or one a channel: what training gets is (pixel - mean) / std.
        crop: share of each side of every image, about its centre, that is kept before that.
        num_heldout: classes to judge on; a twentieth, at most 500, unless given; 0 for none.
        augment: of training images; none unless given.
        cache_dir: where catalogs are kept; $HEADCOUNT_CACHE or ~/.cache/headcount unless given.
        seed: of which classes are held out.
    """
    if format not in FORMATS:
        raise ValueError(f"data.format={format}: must be one of {', '.join(FORMATS)}")
    paths = tuple(paths_of("data.source", source))
    if not paths:
        raise ValueError(f"data.source=null: the path of {FORMATS[format]} is needed")
    preprocessing = preprocessing_of(size, channels, fit, mean, std, crop, option="data.")
    if num_heldout is not None:
        num_heldout = whole("data.num_heldout", num_heldout, 0)
    origin = Origin(format, paths, tuple(paths_of("data.labels", labels)), path_of("data.root", root), shared)
    files = catalog(origin, cache_folder(cache_dir))
    if files.num_classes == 1:
        raise ValueError(f"data.source={paths[0]}: {_one_class(files)}; training needs images of two classes or more")
    records = RecordSet(EncodedImages(files, preprocessing.decoder), files.labels, files.num_classes, files.by_class)
    train, heldout, names = hold_out(records, files.class_names, num_heldout, seed)
    return DataSet(
        train=train,
        heldout=heldout,
        shape=preprocessing.shape,
        prepare=preprocessing.normalize,
        preprocessing=preprocessing,
        augment=augment or Unchanged(),
        class_names=names,
    )


def _one_class(files: Catalog) -> str:
    """Say what was found where all images are of one class, and what to pass instead."""
    path = files.origin.paths[0]
    if files.origin.format == "folder":
        name = files.names[0]
        found = f"the only folder with images in it is {name!r}, and a folder is a class"
        return f"{found}; pass data.source={path}/{name}" if has_folders(f"{path}/{name}") else found
    found = f"all of its {len(files):,} images have the label {files.label(0)}"
    if files.origin.format == "rec" and (several := RecordFile(path).num_labels(files.place(0))) > 1:
        return f"{found}, the first of {several} in a record (as in files for detection, whose labels are boxes)"
    return found


def images_at(
    path: str,
    format: str | None = None,
    *,
    root: str | None = None,
    labels: str | None = None,
    option: str = "source",
    mixed: bool = False,
) -> Labelled:
    """The images of a file or folder. Those of a folder without folders in it are of one class.

    Args:
        format: one of FORMATS; found by looking unless given.
        root, labels: as of `images`.
        option: that names the path, for errors.
        mixed: take all images of a folder that holds some beside its folders, as of one class.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format={format}: must be one of {', '.join(FORMATS)}")
    path = absolute(path)
    if not Path(path).exists():
        raise ValueError(f"{option}={path}: there is no such file or folder")
    kind = format or format_of(path)
    for name, given, of in (("root", root, "list"), ("labels", labels, "lmdb")):
        if given is not None and kind != of:
            raise ValueError(f"{name}={given}: is of format={of}, and {path} is of format={kind}")
    if kind == "folder" and format is None and has_loose(path):
        if not mixed and has_folders(path):
            raise ValueError(
                f"{option}={path}: has images both in it and in folders; format=folder takes those in folders only"
            )
        return Photos(path)
    origin = Origin(kind, (path,), tuple(paths_of("labels", labels)), path_of("root", root))
    return catalog(origin, cache_folder())


@dataclass(frozen=True)
class EncodedImages:
    """Encoded images, decoded when read."""

    encoded: Images
    decoder: Decoder

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, indices: Indices) -> Tensor:
        """(n,) -> uint8 (n, H, W, C). Raises UnreadableError, naming the image."""
        pixels = _empty(len(indices), *self.decoder.shape)
        array = pixels.numpy()
        for place, encoded in enumerate(self.encoded.read_all(np.asarray(indices))):
            try:
                self.decoder.into(array[place], encoded)
            except UnreadableError as error:
                raise UnreadableError(error.reason, self.encoded.name(int(indices[place]))) from None
        return pixels


def _empty(*shape: int) -> Tensor:
    """uint8; of a loader's worker in shared memory, where it would be copied to otherwise."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)  # type: ignore[call-overload]
