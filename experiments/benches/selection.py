"""`bench=selection`: time and recall of each index on trained centers.

An MLP with `head=forest index=ivf` trains on `data=sphere`. Then each index is built from the centers and queried for
the classes nearest to a batch of embeddings. `uniform` is PartialFC's draw of as many classes as all answers hold.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from heads import CosFace, HashingForest
from heads.core import counter_rng
from heads.indexes import IVF, Annoy, Exact, Index
from heads.indexes.vectors import CenterVectors
from heads.selection.sampling import filled

from .measure import median_and_spread, ratio, timed
from .training import SphereTraining


def selection(
    num_classes: list[int],
    embedding_size: list[int],
    num_trees: list[int],
    search_k: list[int | None],
    nprobe: list[int],
    k: int,
    batch: int,
    changed: int,
    s: float,
    steps: int,
    lr: float,
    warmup: int,
    repeats: int,
    picture: str,
) -> list[dict[str, Any]]:
    """Return a line for each index with its options, for each C and D, and plot recall against time.

    `recall_share` is the share of an embedding's k nearest classes in the index's answer. `mass_share` is the share of
    an embedding's negative softmax that the `active` classes hold: the answers for the batch together.

    Args:
        search_k: candidates of a query; None for trees x k.
        k: classes per query.
        batch: number of embeddings.
        changed: rows that a refresh updates, for indexes that can be refreshed.
        s: scale of the logits, in training and for the softmax mass.
        steps: number of training steps.
        lr: learning rate of the training.
    """
    lines = []
    for C, D in product(map(int, num_classes), embedding_size):
        head, x_ND, labels = trained(C, D, batch, s, steps, lr)
        kinds: dict[str, tuple[dict[str, Any], Index]] = {"exact": ({}, Exact())}
        for trees, search in product(num_trees, search_k):
            kinds[f"annoy {trees} {search}"] = ({"num_trees": trees, "search_k": search}, Annoy(trees, search))
        for probe in nprobe:
            kinds[f"ivf {probe}"] = ({"nprobe": probe}, IVF(nprobe=probe))
        for line in _compare(kinds, head, x_ND, labels, k, changed, warmup, repeats):
            lines.append({"index": line.pop("index"), "num_classes": C, "embedding_size": D, **line})
    plot(lines, k, Path(picture))
    return lines


def _compare(
    kinds: Mapping[str, tuple[dict[str, Any], Index]],
    head: HashingForest,
    x_ND: Tensor,
    labels: Tensor,
    k: int,
    changed: int,
    warmup: int,
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """Yield the figures of each index, and of a uniform draw, on one batch."""
    C, batch, vectors = head.centers.shard.num_classes, len(x_ND), CenterVectors(head.centers)
    built = {name: timed(partial(index.build, vectors))[0] / 1e3 for name, (_, index) in kinds.items()}
    queries = {name: partial(index.query, x_ND, k) for name, (_, index) in kinds.items()}
    queries["uniform"] = partial(_uniform, C, batch * k)
    times = _in_turns(queries, warmup, repeats)
    mass_NC, nearest_Nk = _truth(head, x_ND, labels, k)
    for name, query in queries.items():
        answer = query()
        answers = answer.expand(batch, -1) if name == "uniform" else answer
        active = torch.unique(answer[answer >= 0])
        options, index = kinds.get(name, ({}, None))
        milliseconds, spread = median_and_spread(times[name])
        line: dict[str, Any] = {"index": name.split()[0], **options}
        if index is not None:
            line["build_seconds"] = built[name]
            if index.refreshable:
                rows = torch.randperm(C)[:changed]
                line["refresh_ms"] = timed(partial(index.refresh, vectors, rows))[0]
        yield {
            **line,
            "query_ms": milliseconds,
            "spread_ms": spread,
            "speedup": ratio(times["exact"], times[name]),
            "recall_share": _recall(answers, nearest_Nk),
            "active": len(active),
            "mass_share": float(mass_NC[:, active].sum(1).mean()),
        }


def trained(C: int, D: int, batch: int, s: float, steps: int, lr: float) -> tuple[HashingForest, Tensor, Tensor]:
    """Return a trained head, and a batch of unit embeddings with their labels."""
    num_active = min(C, max(C // 100, 4 * batch))
    head = HashingForest(C, D, num_active=num_active, index=IVF(), build="blocking", margin=CosFace(s=s, m=0.2))
    training = SphereTraining(head, batch, lr, steps)
    for number, images, labels in training.batches():
        if number == steps:
            with torch.no_grad():
                return head, torch.nn.functional.normalize(training.backbone(images)), labels
        training.step(number, images, labels)
    raise AssertionError("the last batch has no step")


def plot(lines: list[dict[str, Any]], k: int, path: Path) -> None:
    """Plot recall against milliseconds, with a line for each index and an option at each point."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    sizes = list(dict.fromkeys((line["num_classes"], line["embedding_size"]) for line in lines))
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(1.5 + 5 * len(sizes), 4.5), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (C, D) in zip(panels[0], sizes, strict=True):
        series: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            if (line["num_classes"], line["embedding_size"]) == (C, D):
                trees = f", {line['num_trees']} trees" if "num_trees" in line else ""
                series.setdefault(line["index"] + trees, []).append(line)
        for name, members in series.items():
            members = sorted(members, key=lambda line: line["query_ms"])
            x, y = ([line[key] for line in members] for key in ("query_ms", "recall_share"))
            panel.plot(x, y, marker="o", markersize=9 if len(members) == 1 else 5, label=name)
            for line, *point in zip(members, x, y, strict=True):
                panel.annotate(
                    searched(line), point, (0, 6), textcoords="offset points", ha="right", fontsize="x-small"
                )
        panel.set(
            xscale="log", ylim=(-0.03, 1.08), xlabel="milliseconds of a batch", title=f"{C:,} classes of {D} numbers"
        )
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"recall of the {k} nearest classes")
    panels[0][-1].legend(fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def searched(line: dict[str, Any]) -> str:
    """Return the option that sets how much an index searches, with its value."""
    if "nprobe" in line:
        return f"nprobe {line['nprobe']}"
    return f"search_k {line['search_k'] or 'default'}" if "search_k" in line else ""


def _uniform(C: int, count: int) -> Tensor:
    none = torch.empty(0, dtype=torch.int64)
    ids = filled(none, C, min(count, C), counter_rng.generator("benchmark", 0), log_q=None).ids
    assert ids is not None
    return ids


def _in_turns(queries: Mapping[str, Callable[[], Tensor]], warmup: int, repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in queries}
    for repeat in range(warmup + repeats):
        for name, query in queries.items():
            query()  # fills the caches, which hold the data of the query before
            milliseconds = timed(query)[0]
            if repeat >= warmup:
                times[name].append(milliseconds)
    return times


def _truth(head: HashingForest, x_ND: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the softmax over all negatives (N, C), and the k nearest classes (N, k)."""
    rows_CD = head.centers.read(slice(0, head.centers.shard.size))
    cos_NC = x_ND @ torch.nn.functional.normalize(rows_CD).T
    nearest_Nk = cos_NC.topk(k).indices
    cos_NC[torch.arange(len(labels)), labels] = -torch.inf
    return (head.margin.s * cos_NC).softmax(1), nearest_Nk


def _recall(answers: Tensor, nearest_Nk: Tensor) -> float:
    hits = [float(torch.isin(near, answer).float().mean()) for answer, near in zip(answers, nearest_Nk, strict=True)]
    return sum(hits) / len(hits)
