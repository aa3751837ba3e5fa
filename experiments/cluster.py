"""`python -m experiments.cluster checkpoint=RUN source=PHOTOS`: the images of a folder by identity, to be looked at.

Leaves groups.tsv and a contact sheet with a group a row. With `query=IMAGE` it searches instead: results.tsv, and the
images that are most like that one.
"""

if __name__ == "__main__":  # before torch is imported
    if not __package__:
        raise SystemExit("error: write python -m experiments.cluster")
    from .command_line.arguments import check_or_exit

    check_or_exit("cluster")


import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from data.conversion.writers import one_line
from data.files import write_whole
from data.formats.decode import opened
from data.formats.encoded import Labelled
from data.formats.unlabeled_images import ImageFiles
from data.options import absolute, whole
from data.sets.image_source import images_at

from .cli import command, model, needed
from .launching.processes import joined
from .tables import console

METHODS = ("hdbscan", "average")
THUMBNAIL, MARGIN, CAPTION = 96, 4, 150  # pixels
SIMILARITY = 0.4  # of method=average
SHOWN = 500  # groups, or images of one, on a sheet
MOST = 30_000  # images whose similarities to each other fit into memory


def cluster(config: DictConfig, folder: Path) -> None:
    """Raises ValueError for options and images that do not allow it."""
    needed(config, "checkpoint", "source")
    if config.method not in METHODS:
        raise ValueError(f"method={config.method}: must be one of {', '.join(METHODS)}")
    if config.similarity is not None:
        if config.method != "average":
            raise ValueError(f"similarity={config.similarity}: is an option of method=average")
        if not isinstance(config.similarity, int | float) or not -1 <= config.similarity <= 1:
            raise ValueError(f"similarity={config.similarity}: a cosine from -1 to 1 is needed")
    for name, least in (("min_size", 2), ("rows", 1), ("columns", 1), ("results", 1)):
        config[name] = whole(name, config[name], least)
    for name in ("rows", "columns", "results"):
        if config[name] > SHOWN:
            raise ValueError(f"{name}={config[name]}: a contact sheet takes {SHOWN} at most")
    source = images_at(config.source, config.format, root=config.root, mixed=True)
    if config.query is None and len(source) > MOST:
        raise ValueError(f"source={config.source}: of {len(source):,} images; up to {MOST:,} can be grouped")
    with joined(config) as processes:
        embedder = model(config, processes)
        found = embedder.embed_all(*embedder.view(source), "images", mirrored=config.mirrored).numpy()
        if config.query is not None:
            path = absolute(str(config.query))
            if not Path(path).is_file():
                raise ValueError(f"query={config.query}: there is no such image")
            query = ImageFiles([os.fsencode(path)])
            wanted = embedder.embed_all(*embedder.view(query), "query", mirrored=config.mirrored).numpy()[0]
        if not processes.is_rank_zero:
            return
        if config.query is not None:
            search(source, found @ wanted, query, config, folder)
        else:
            tell(source, grouped(found, config), config, folder)


def grouped(embeddings: NDArray[np.float32], config: DictConfig) -> NDArray[np.int64]:
    """The group of each image (n,), by falling size from 0; -1 for none.

    `hdbscan` (Campello et al. 2013) finds groups of any density by itself, and where there is one only, that one if its
    images are as similar as `average` asks. `average` joins groups as long as the mean similarity between them is at
    least `similarity`.
    """
    try:
        from sklearn.cluster import HDBSCAN, AgglomerativeClustering
    except ImportError:
        raise ValueError(f"method={config.method}: needs scikit-learn; pip install -e '.[cluster]'") from None
    if len(embeddings) < config.min_size:
        return np.full(len(embeddings), -1)
    if config.method == "hdbscan":
        groups = HDBSCAN(min_cluster_size=config.min_size, n_jobs=-1, copy=True)
        found = groups.fit_predict(embeddings)
        if (found < 0).all():  # of several groups; all may be one
            one = groups.set_params(allow_single_cluster=True).fit_predict(embeddings)
            count, total = int((one >= 0).sum()), embeddings[one >= 0].sum(0)
            if count > 1 and (total @ total - count) / (count * (count - 1)) >= SIMILARITY:  # mean of all pairs
                found = one
    else:
        distance = 1 - (SIMILARITY if config.similarity is None else config.similarity)
        method = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=distance)
        found = method.fit_predict(embeddings)
    names, sizes = np.unique(found[found >= 0], return_counts=True)
    names = names[np.argsort(-sizes, kind="stable")][: int((sizes >= config.min_size).sum())]
    number = {name: place for place, name in enumerate(names.tolist())}
    return np.array([number.get(name, -1) for name in found.tolist()], np.int64)


def tell(source: Labelled, groups: NDArray[np.int64], config: DictConfig, folder: Path) -> None:
    """groups.tsv, contact_sheet.png, and a table on the screen."""
    lines = [f"{one_line(source.key(index))}\t{group}\n" for index, group in enumerate(groups.tolist())]
    write_whole(folder / "groups.tsv", "".join(lines))
    count = int(groups.max()) + 1
    table = Table(show_header=False)
    table.add_row("images", f"{len(source):,}")
    table.add_row("groups", f"{count:,}")
    table.add_row("in no group", f"{int((groups < 0).sum()):,}")
    if len(source.names) > 1:
        from sklearn.metrics import homogeneity_completeness_v_measure

        # Who is in no group is a group alone.
        alone = np.where(groups < 0, -1 - np.arange(len(groups)), groups)
        pure, whole, both = homogeneity_completeness_v_measure(source.labels, alone)
        table.add_row("groups of one class (homogeneity)", f"{pure:.3f}")
        table.add_row("classes in one group (completeness)", f"{whole:.3f}")
        table.add_row("V-measure", f"{both:.3f}")
    console().print(table)
    rows = []
    for group in range(min(count, config.rows)):
        members = np.flatnonzero(groups == group)
        rows.append((f"{group}: {len(members):,} images", members[: config.columns]))
    if (groups < 0).any() and len(rows) < config.rows:
        members = np.flatnonzero(groups < 0)
        rows.append((f"none: {len(members):,} images", members[: config.columns]))
    sheet(source, rows, config.columns).save(folder / "contact_sheet.png")
    console().print(f"In {folder}: groups.tsv, contact_sheet.png", soft_wrap=True)


def search(source: Labelled, scores: NDArray[np.float32], query: ImageFiles, config: DictConfig, folder: Path) -> None:
    """results.tsv and contact_sheet.png, the most similar first."""
    best = np.argsort(-scores, kind="stable")[: config.results]
    lines = [f"{one_line(source.key(index))}\t{scores[index]:.4f}\n" for index in best.tolist()]
    write_whole(folder / "results.tsv", "".join(lines))
    rows = [
        (f"{scores[best[start]]:.3f} and below", best[start : start + config.columns])
        for start in range(0, len(best), config.columns)
    ]
    whole = sheet(source, rows, config.columns)
    asked = sheet(query, [("query", np.array([0]))], config.columns)
    both = Image.new("RGB", (whole.width, whole.height + asked.height), "white")
    both.paste(asked, (0, 0))
    both.paste(whole, (0, asked.height))
    both.save(folder / "contact_sheet.png")
    console().print(f"In {folder}: results.tsv, contact_sheet.png", soft_wrap=True)


def sheet(source: Labelled | ImageFiles, rows: Sequence[tuple[str, NDArray[np.int64]]], columns: int) -> Image.Image:
    """Rows of images with a caption before each."""
    step = THUMBNAIL + MARGIN
    height = max(1, len(rows)) * step + MARGIN
    picture = Image.new("RGB", (CAPTION + columns * step + MARGIN, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for number, (caption, members) in enumerate(rows):
        top = MARGIN + number * step
        draw.text((MARGIN, top + THUMBNAIL // 2 - 8), caption, fill="black", font=font)
        for column, encoded in enumerate(source.read_all(members)):
            image = opened(encoded).convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            if max(image.size) < THUMBNAIL:
                scale = THUMBNAIL // max(image.size)
                image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
            left = CAPTION + column * step
            picture.paste(image, (left + (THUMBNAIL - image.width) // 2, top + (THUMBNAIL - image.height) // 2))
    return picture


if __name__ == "__main__":
    command("cluster", cluster)
