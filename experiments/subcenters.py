"""`python -m experiments.subcenters checkpoint=RUN`: keep one row of each class, and drop the records far from it.

For a training with head=subcenter. The kept row is the dominant one, to which most records of the class are nearest.
The command writes rows.npy, the dominant rows (C, D); weights.npy, the weights of the records (N,), 0 for a dropped
one; and dropped.tsv, `record<TAB>class<TAB>angle`. It prints the command that trains on with one row a class.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.subcenters")
    from .command_line.arguments import check_or_exit

    check_or_exit("subcenters")


from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from data.arrays import write_array
from data.files import write_whole
from data.options import several
from data.records import CHUNK, DataSet, Indices, RecordSet
from data.weights import with_weights

from .cli import command, model_of_config, needed
from .command_line.config_files import options_by_choice
from .command_line.restating import for_shell, restated, text_of
from .launching.processes import joined
from .models.model import BLOCK, Model, unit
from .models.trained import READ, Trained
from .tables import console

FILES = ("rows.npy", "weights.npy", "dropped.tsv")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def subcenters(config: DictConfig, folder: Path) -> None:
    """Write the three files, and print a table and the command that trains on.

    Raises:
        ValueError: an option does not fit, or the checkpoint has no sub-centers.
    """
    check_options(config, folder)
    with joined(config) as processes:
        trained = Trained(config.checkpoint, trust=several(config.trust))
        rows_per_class = sub_centers_of(trained)
        embedder = model_of_config(config, trained, processes)
        if processes.is_rank_zero:
            print(trained, flush=True)
        data = embedder.data()
        check_records(data.train, config.checkpoint)
        labels_N = all_labels(data.train)
        slots_N = trained.stored.slots(torch.from_numpy(labels_N)).numpy()
        order_N = np.argsort(slots_N, kind="stable")  # so that rows are read once
        cosines = partial(cosines_of, trained, rows_per_class, embedder, data, slots_N, order_N, config.mirrored)
        cos_NK = np.empty((len(order_N), rows_per_class), np.float32)
        cos_NK[order_N] = embedder.gathered(len(order_N), cosines, "the training records", False).numpy()
        if processes.is_rank_zero:
            result = cleaned(labels_N, cos_NK, trained.num_classes, config.max_angle)
            if not result.is_kept_N.any():
                raise ValueError(
                    f"max_angle={config.max_angle} would drop all records; the least angle is "
                    f"{result.angle_N.min():.1f} degrees: train longer, or raise max_angle"
                )
            write_files(folder, trained, data, labels_N, result)
            console().print(table(result, labels_N, config.max_angle))
            console().print(f"In {folder}: {', '.join(FILES)}", soft_wrap=True)
            print(advice(trained, folder))


def check_options(config: DictConfig, folder: Path) -> None:
    """Raise ValueError for an option that does not fit, or a file that exists already."""
    needed(config, "checkpoint")
    is_number = isinstance(config.max_angle, int | float) and not isinstance(config.max_angle, bool)
    if not is_number or not 0 < config.max_angle <= 180:
        raise ValueError(f"max_angle={config.max_angle} must be in (0, 180] degrees; 75 is common")
    for name in FILES:
        if (folder / name).exists():
            raise ValueError(f"hydra.run.dir={folder} has {name} already; give another folder")


def sub_centers_of(trained: Trained) -> int:
    """Return the rows of a class, K. Raise ValueError if a class has no sub-centers whose cosines are compared."""
    initial, given = trained.stored.initial, f"checkpoint={trained.path}"
    if initial is None or initial.rows_per_class == 1 or not initial.of_classes:
        raise ValueError(f"{given} has no sub-centers; give a checkpoint of a training with head=subcenter")
    if not trained.normalize:
        raise ValueError(f"{given} was trained with a margin that compares no angles; use one of cosines, as cosface")
    return initial.rows_per_class


def check_records(train: RecordSet, checkpoint: str) -> None:
    """Raise ValueError unless each record has one class, and a file of weights is one of records."""
    if train.all_labels is not None:
        raise ValueError(
            f"checkpoint={checkpoint} has records with several labels, whose dominant row is not defined; use one label"
        )
    if len(train) == train.num_classes:
        raise ValueError(
            f"checkpoint={checkpoint} has as many records as classes, {len(train):,}; a class needs several records"
        )


def all_labels(train: RecordSet) -> NDArray[np.int64]:
    """Return the class of each record (N,)."""
    chunks = [np.arange(a, min(a + CHUNK, len(train))) for a in range(0, len(train), CHUNK)]
    return np.concatenate([np.asarray(train.labels[chunk], dtype=np.int64) for chunk in chunks])


def cosines_of(
    trained: Trained,
    rows_per_class: int,
    embedder: Model,
    data: DataSet,
    slots_N: NDArray[np.int64],
    order_N: Indices,
    mirrored: bool,
    places: Indices,
) -> Tensor:
    """Return the cosines (n, K) of records with the rows of their class.

    Args:
        slots_N: where the rows of the class of each record are stored.
        order_N: the records in the order of the slots.
        places: numbers of records in this order.
    """
    cos_nK = torch.empty(len(places), rows_per_class)
    starts = range(0, len(places), BLOCK)
    for start in embedder.track(starts, "Cosines with the rows of the class"):
        records = order_N[places[start : start + BLOCK]]
        embeddings = embedder.embed(data.train.source, data.prepare, records, mirrored=mirrored)
        x_nD, slots = unit(embeddings, "the training records"), slots_N[records]
        for first in range(int(slots[0]), int(slots[-1]) + 1, READ):
            chosen = np.flatnonzero((slots >= first) & (slots < first + READ))
            if len(chosen):
                ids, of_class = np.unique(slots[chosen], return_inverse=True)
                rows = trained.stored.read_rows(trained.ROWS, int(ids[0]), int(ids[-1]) + 1)
                rows = rows[ids - ids[0]].to(x_nD).view(len(ids), rows_per_class, -1)
                rows_nKD = normalize(rows, dim=2)[torch.from_numpy(of_class).to(x_nD.device)]
                cos_nK[start + chosen] = torch.einsum("nd,nkd->nk", x_nD[chosen], rows_nKD).cpu()
    return cos_nK


class Cleaned(NamedTuple):
    """Dominant rows and kept records.

    Attributes:
        counts_CK: records that are nearest to each row.
        dominant_C: the row of each class with most of them; the first of equal ones, and of a class without records.
        angle_N: degrees between each record and the dominant row of its class.
        is_kept_N: whether that is at most the largest angle.
    """

    counts_CK: NDArray[np.int64]
    dominant_C: NDArray[np.int64]
    angle_N: NDArray[np.float64]
    is_kept_N: NDArray[np.bool_]


def cleaned(labels_N: NDArray[np.int64], cos_NK: NDArray[np.float32], num_classes: int, max_angle: float) -> Cleaned:
    """Choose the dominant row of each class, and the records that are not far from it.

    Source: Deng et al., "Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces", ECCV 2020.

    Args:
        labels_N: class of each record.
        cos_NK: cosines of each record with the rows of its class.
        num_classes: C.
        max_angle: in degrees.
    """
    rows_per_class = cos_NK.shape[1]
    nearest_N = labels_N * rows_per_class + cos_NK.argmax(axis=1)
    counts_CK = np.bincount(nearest_N, minlength=num_classes * rows_per_class).reshape(num_classes, rows_per_class)
    dominant_C = counts_CK.argmax(axis=1)
    cos_N = np.take_along_axis(cos_NK, dominant_C[labels_N][:, None], axis=1)[:, 0].astype(np.float64)
    angle_N = np.degrees(np.arccos(np.clip(cos_N, -1, 1)))
    return Cleaned(counts_CK, dominant_C, angle_N, angle_N <= max_angle)


def write_files(folder: Path, trained: Trained, data: DataSet, labels_N: NDArray[np.int64], result: Cleaned) -> None:
    """Write the rows, the weights and the list of dropped records, each when it is complete."""
    width, count = trained.config.embedding_size, len(labels_N)

    def dominant_rows() -> Iterator[NDArray[np.float32]]:
        for first_class, rows in trained.rows_by_class():
            rows_kKD = rows.float().view(len(rows), -1, width).numpy()
            dominant_k = result.dominant_C[first_class : first_class + len(rows)]
            yield rows_kKD[np.arange(len(rows)), dominant_k]

    options = OmegaConf.to_container(trained.config.weights) if "weights" in trained.config else {}
    own = {name: value for name, value in options.items() if name in ("by", "beta", "file")}  # type: ignore[union-attr]
    try:
        before = with_weights(data, **own).train.weights  # the weights of the training, which are kept
    except TypeError as error:
        raise trained.stored.refused(f"it has no valid weights ({error})") from error

    def weights() -> Iterator[NDArray[np.float32]]:
        for start in range(0, count, CHUNK):
            chunk = np.arange(start, min(start + CHUNK, count))
            yield result.is_kept_N[chunk] * (np.float32(1) if before is None else before[chunk])

    write_array(folder / "rows.npy", np.float32, (trained.num_classes, width), dominant_rows())
    write_array(folder / "weights.npy", np.float32, (count,), weights())
    dropped = np.flatnonzero(~result.is_kept_N)
    lines = [
        f"{record}\t{label}\t{angle:.2f}\n"
        for record, label, angle in zip(dropped, labels_N[dropped], result.angle_N[dropped], strict=True)
    ]
    write_whole(folder / "dropped.tsv", "".join(["record\tclass\tangle\n", *lines]))


def table(result: Cleaned, labels_N: NDArray[np.int64], max_angle: float) -> Table:
    """Return the numbers of records and classes, and quantiles of the angles."""
    records, classes = len(labels_N), len(result.dominant_C)
    in_dominant = int(result.counts_CK.max(axis=1).sum())
    with_records = result.counts_CK.any(axis=1)
    kept = np.bincount(labels_N[result.is_kept_N], minlength=classes) > 0
    shown = Table(show_header=False)
    for name, number, whole in (
        ("records", records, None),
        ("nearest to the dominant row of their class", in_dominant, records),
        (f"dropped, further than {max_angle:g} degrees from it", records - int(result.is_kept_N.sum()), records),
        ("classes", classes, None),
        ("with records at more than one row", int((np.count_nonzero(result.counts_CK, axis=1) > 1).sum()), classes),
        ("without records", int((~with_records).sum()), classes),
        ("that lose all their records", int((with_records & ~kept).sum()), classes),
    ):
        shown.add_row(name, f"{number:,}" + ("" if whole is None else f" ({number / whole:.2%})"))
    for share, angle in zip(QUANTILES, np.quantile(result.angle_N, QUANTILES), strict=True):
        shown.add_row("largest angle" if share == 1 else f"angle, quantile {share:g}", f"{angle:.1f}")
    return shown


def advice(trained: Trained, folder: Path) -> str:
    """Return the command that trains on with one row a class, without the dropped records."""
    path = folder.resolve()
    rate = OmegaConf.select(trained.config, "head.sample_rate")
    old, new = str(trained.config.get("head_name")), "full" if rate in (None, 1) else "pfc"
    files = {"warm_start.checkpoint": trained.path, "warm_start.rows": path / "rows.npy"}
    files |= {"weights.by": "file", "weights.file": path / "weights.npy"}
    first = [f"head={new}", *(f"{name}={text_of(str(value))}" for name, value in files.items())]
    options = options_by_choice("config")
    words = restated(trained.config, first, set(options.get(f"head={old}", [])) - set(options[f"head={new}"]))
    if words is None:
        words = [*map(for_shell, first), "and the other options of the first training"]
    return f"To train on with one row a class, without these records:\npython -m experiments.run {' '.join(words)}"


if __name__ == "__main__":
    command("subcenters", subcenters)
