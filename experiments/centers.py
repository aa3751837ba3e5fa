"""`python -m experiments.centers source=x.npy num_clusters=C target=FILE.npy`: cluster features by spherical k-means.

FILE.npy, (C, D), has the centers, which `warm_start.rows` takes as class centers. FILE.labels.npy, (N,), has the
cluster of each record, which `data.labels` takes as class ids. With both, images without labels can be trained on.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.centers")
    from .command_line.arguments import check_or_exit

    check_or_exit("centers")


from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from data.arrays import beside, floats, mapped, write_array
from data.options import absolute, whole

from .cli import command, needed
from .kmeans import SEARCHES, Indices, KMeans
from .launching.processes import device_for
from .tables import console, shown


def centers(config: DictConfig, folder: Path) -> None:
    """Cluster the features and write both files.

    Raises:
        ValueError: an option does not fit, or a record has no direction.
    """
    target, labels = check_options(config)
    path = absolute(config.source)
    array = mapped("source", path, "f", 2)
    if not 2 <= config.num_clusters <= len(array):
        raise ValueError(
            f"num_clusters={config.num_clusters} must be between 2 and the number of records, {len(array):,}"
        )
    device = device_for("auto")

    def read(records: Indices) -> Tensor:
        return torch.from_numpy(directions(array, records, path)).to(device)

    options = {name: config[name] for name in ("num_clusters", "iterations", "points", "search", "seed")}
    kmeans = KMeans(read, len(array), **options, progress=bar)
    table, labels_Nk, cos_N = kmeans.fit(), np.empty((len(array), config.nearest), np.int32), np.empty(len(array))
    for block in kmeans.assigned(table, np.arange(len(array)), "Clusters of all records", config.nearest):
        part = slice(block.start, block.start + len(block.cos_n))
        labels_Nk[part], cos_N[part] = block.labels_nk, block.cos_n
    sizes = np.bincount(labels_Nk.ravel(), minlength=len(table))
    table = table[torch.from_numpy(sizes > 0).to(device)]  # centers without a record are left out
    labels_Nk = (np.cumsum(sizes > 0, dtype=np.int32) - 1)[labels_Nk]
    written = {labels: labels_Nk if config.nearest > 1 else labels_Nk[:, 0], target: table.cpu().numpy()}
    for file, content in written.items():
        write_array(file, content.dtype, content.shape, [content])
    report(sizes[sizes > 0], float(cos_N.mean()), len(sizes))
    console().print(f"{target}: {len(table):,} centers; {labels.name}: the clusters of {len(array):,} records")


def check_options(config: DictConfig) -> tuple[Path, Path]:
    """Return the paths of centers and labels. Raise ValueError for options that do not fit; replace 1e5 by 100000."""
    needed(config, "source", "target", *(["labels"] if config.labels is not None else []))
    for name, least in (("num_clusters", 2), ("iterations", 1), ("points", 1), ("nearest", 1), ("seed", 0)):
        if config[name] is None:
            raise ValueError(f"{name}=null must be a whole number of at least {least}")
        config[name] = whole(name, config[name], least)
    if config.search not in SEARCHES:
        raise ValueError(f"search={config.search} must be one of {', '.join(SEARCHES)}")
    if config.nearest > config.num_clusters:
        raise ValueError(f"nearest={config.nearest} must be at most num_clusters={config.num_clusters}")
    target = Path(absolute(config.target))
    labels = Path(absolute(config.labels or beside(str(target), ".labels.npy")))
    for name, path in (("target", target), ("labels", labels)):
        if path.suffix != ".npy":
            raise ValueError(f"{name}={path} must end in .npy")
        if path.exists():
            raise ValueError(f"{name}={path} exists already; remove it or give another name")
        if not path.parent.is_dir():
            raise ValueError(f"{name}={path} cannot be written: the folder {path.parent} does not exist")
    return target, labels


def directions(array: NDArray[Any], records: Indices, path: str) -> NDArray[np.float32]:
    """Return records at unit length, (n, D). Raise ValueError for one of length 0, which has no direction."""
    rows = floats(array, records, path)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not lengths.all():
        record = int(records[np.flatnonzero(lengths[:, 0] == 0)[0]])
        raise ValueError(
            f"source={path} cannot be clustered by cosine: record {record:,}, counted from 0, has length 0; remove it"
        )
    return (rows / lengths).astype(np.float32)


def report(sizes: NDArray[np.int64], cosine: float, wanted: int) -> None:
    """Print a table of the clusters that have records."""
    table = Table(show_header=False)
    table.add_row("clusters", f"{len(sizes):,}")
    if len(sizes) < wanted:
        table.add_row("left out, without a record", f"{wanted - len(sizes):,}")
    table.add_row("records of a cluster: least", f"{sizes.min():,}")
    table.add_row("median", f"{np.median(sizes):,.0f}")
    table.add_row("most", f"{sizes.max():,}")
    table.add_row("clusters of one record", f"{(sizes == 1).sum():,}")
    table.add_row("mean cosine of a record and its center", f"{cosine:.4f}")
    console().print(table)


def bar(blocks: range, label: str) -> Iterable[Any]:
    """Show a progress bar on a terminal."""
    return shown(blocks, label, len(blocks))


if __name__ == "__main__":
    command("centers", centers)
