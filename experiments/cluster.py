"""`python -m experiments.cluster checkpoint=RUN source=PHOTOS`: group the images of a folder by identity.

Writes groups.tsv and a contact sheet with one group per row. With `query=IMAGE` it searches instead, and writes
results.tsv and the images most similar to that one.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.cluster")
    from .command_line.arguments import check_or_exit

    check_or_exit("cluster")


import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.table import Table

from data.conversion.writers import one_line
from data.files import write_whole
from data.formats.encoded import Labelled
from data.formats.unlabeled_images import ImageFiles
from data.options import absolute, whole
from data.sets.image_source import images_at

from .cli import command, model, needed
from .contact_sheet import MAX_SIDE, contact_sheet, stacked
from .launching.processes import joined
from .tables import console

METHODS = ("hdbscan", "average")
SIMILARITY = 0.4  # default of method=average
MAX_IMAGES = 30_000  # whose similarities to each other fit into memory


def cluster(config: DictConfig, folder: Path) -> None:
    """Group images, or search for the most similar ones.

    Raises:
        ValueError: an option does not fit, or an image cannot be read.
    """
    check_options(config)
    source = images_at(config.source, config.format, root=config.root, mixed=True)
    if config.query is None and len(source) > MAX_IMAGES:
        raise ValueError(
            f"source={config.source} has {len(source):,} images, and at most {MAX_IMAGES:,} can be grouped; give a part"
        )
    with joined(config) as processes:
        embedder = model(config, processes)
        embeddings = embedder.embed_all(*embedder.view(source), "images", mirrored=config.mirrored).numpy()
        if config.query is not None:
            path = absolute(str(config.query))
            if not Path(path).is_file():
                raise ValueError(f"query={config.query} must be the path of an image")
            query = ImageFiles([os.fsencode(path)])
            wanted = embedder.embed_all(*embedder.view(query), "query", mirrored=config.mirrored).numpy()[0]
        if not processes.is_rank_zero:
            return
        if config.query is not None:
            write_results(source, embeddings @ wanted, query, config, folder)
        else:
            write_groups(source, grouped(embeddings, config), config, folder)


def check_options(config: DictConfig) -> None:
    """Raise ValueError for an option that does not fit; replace whole numbers written as 1e2."""
    needed(config, "checkpoint", "source")
    if config.method not in METHODS:
        raise ValueError(f"method={config.method} must be one of {', '.join(METHODS)}")
    if config.similarity is not None:
        if config.method != "average":
            raise ValueError(f"similarity={config.similarity} applies to method=average only; remove it")
        if not isinstance(config.similarity, int | float) or not -1 <= config.similarity <= 1:
            raise ValueError(f"similarity={config.similarity} must be a cosine from -1 to 1; {SIMILARITY} is common")
    for name, least in (("min_size", 2), ("rows", 1), ("columns", 1), ("results", 1)):
        config[name] = whole(name, config[name], least)
    for name in ("rows", "columns", "results"):
        if config[name] > MAX_SIDE:
            raise ValueError(f"{name}={config[name]} must be at most {MAX_SIDE}, which a contact sheet can show")


def grouped(embeddings: NDArray[np.float32], config: DictConfig) -> NDArray[np.int64]:
    """Return the group of each image (n,), from 0 by decreasing size; -1 for no group.

    `hdbscan` (Campello et al. 2013) finds groups of any density. A single group is kept if its images are as similar as
    `average` requires. `average` joins groups while the mean similarity between them is at least `similarity`.
    """
    try:
        from sklearn.cluster import HDBSCAN, AgglomerativeClustering
    except ImportError:
        raise ValueError(f"method={config.method} needs scikit-learn; pip install -e '.[cluster]'") from None
    if len(embeddings) < config.min_size:
        return np.full(len(embeddings), -1)
    if config.method == "hdbscan":
        hdbscan = HDBSCAN(min_cluster_size=config.min_size, n_jobs=-1, copy=True)
        labels = hdbscan.fit_predict(embeddings)
        if (labels < 0).all():  # there are not several groups, but all images may form one
            single = hdbscan.set_params(allow_single_cluster=True).fit_predict(embeddings)
            count, total = int((single >= 0).sum()), embeddings[single >= 0].sum(0)
            if count > 1 and (total @ total - count) / (count * (count - 1)) >= SIMILARITY:  # mean over all pairs
                labels = single
    else:
        distance = 1 - (SIMILARITY if config.similarity is None else config.similarity)
        method = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=distance)
        labels = method.fit_predict(embeddings)
    names, sizes = np.unique(labels[labels >= 0], return_counts=True)
    names = names[np.argsort(-sizes, kind="stable")][: int((sizes >= config.min_size).sum())]
    number = {name: rank for rank, name in enumerate(names.tolist())}
    return np.array([number.get(label, -1) for label in labels.tolist()], np.int64)


def write_groups(source: Labelled, groups: NDArray[np.int64], config: DictConfig, folder: Path) -> None:
    """Write groups.tsv and contact_sheet.png, and print a table."""
    lines = [f"{one_line(source.key(index))}\t{group}\n" for index, group in enumerate(groups.tolist())]
    write_whole(folder / "groups.tsv", "".join(lines))
    count = int(groups.max()) + 1
    table = Table(show_header=False)
    table.add_row("images", f"{len(source):,}")
    table.add_row("groups", f"{count:,}")
    table.add_row("in no group", f"{int((groups < 0).sum()):,}")
    if len(source.names) > 1:
        from sklearn.metrics import homogeneity_completeness_v_measure

        # An image in no group counts as a group of its own.
        alone = np.where(groups < 0, -1 - np.arange(len(groups)), groups)
        homogeneity, completeness, v_measure = homogeneity_completeness_v_measure(source.labels, alone)
        table.add_row("groups of one class (homogeneity)", f"{homogeneity:.3f}")
        table.add_row("classes in one group (completeness)", f"{completeness:.3f}")
        table.add_row("V-measure", f"{v_measure:.3f}")
    console().print(table)
    rows = []
    for group in range(min(count, config.rows)):
        members = np.flatnonzero(groups == group)
        rows.append((f"{group}: {len(members):,} images", members[: config.columns]))
    if (groups < 0).any() and len(rows) < config.rows:
        members = np.flatnonzero(groups < 0)
        rows.append((f"none: {len(members):,} images", members[: config.columns]))
    contact_sheet(source, rows, config.columns).save(folder / "contact_sheet.png")
    console().print(f"In {folder}: groups.tsv, contact_sheet.png", soft_wrap=True)


def write_results(
    source: Labelled, scores: NDArray[np.float32], query: ImageFiles, config: DictConfig, folder: Path
) -> None:
    """Write results.tsv and contact_sheet.png, the most similar images first."""
    best = np.argsort(-scores, kind="stable")[: config.results]
    lines = [f"{one_line(source.key(index))}\t{scores[index]:.4f}\n" for index in best.tolist()]
    write_whole(folder / "results.tsv", "".join(lines))
    rows = [
        (f"{scores[best[start]]:.3f} and below", best[start : start + config.columns])
        for start in range(0, len(best), config.columns)
    ]
    query_row = contact_sheet(query, [("query", np.array([0]))], config.columns)
    stacked(query_row, contact_sheet(source, rows, config.columns)).save(folder / "contact_sheet.png")
    console().print(f"In {folder}: results.tsv, contact_sheet.png", soft_wrap=True)


if __name__ == "__main__":
    command("cluster", cluster)
