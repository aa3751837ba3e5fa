"""Ranks and their metrics against slow and obvious ones, on one and several processes."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_precision,
    retrieval_r_precision,
    retrieval_recall,
)

from experiments.models import model
from experiments.protocols import image_sets, ranks, search
from experiments.protocols.identification import Identification
from experiments.protocols.ranks import Ranks, mate_pairs
from experiments.protocols.search import KnownPairs, count_strangers_above
from tests.data.made_sets import image, images, write_folder
from tests.experiments.protocols.models import of_nothing, of_pixels


def in_blocks(rows, size):
    def blocks(wanted):
        for start in range(0, len(rows), size):
            if wanted is None or wanted.within(start, start + size):
                yield start, rows[start : start + size]

    return blocks


@pytest.mark.parametrize("seed", range(12))
def test_strangers_are_counted_as_by_the_slow_way(seed, monkeypatch):
    """Rows are whole numbers, so that scores are exact and many are equal, some of them -0.0."""
    monkeypatch.setattr(search, "PROBES", 7)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 25, (4,), generator=generator).tolist()
    probes, gallery, others = (
        torch.randint(-2, 3, (size, sizes[3]), generator=generator).float() for size in sizes[:3]
    )
    count = int(torch.randint(1, len(probes) * len(gallery) + 1, (1,), generator=generator))
    chosen = torch.randperm(len(probes) * len(gallery), generator=generator)[:count]
    if seed % 2:  # two of each probe, which are counted in another way where many scores reach them
        chosen = (torch.arange(len(probes))[:, None] * len(gallery) + torch.arange(2) % len(gallery)).flatten().unique()
        count = len(chosen)
    known = KnownPairs(chosen // len(gallery), chosen % len(gallery), torch.rand(count, generator=generator) < 0.7)
    scores, above = count_strangers_above(probes, known, in_blocks(gallery, 5), [in_blocks(others, 4)])
    everyone = probes @ torch.cat([gallery, others]).T
    stranger = torch.ones_like(everyone, dtype=torch.bool)
    stranger[known.probe_M, known.item_M] = False
    for pair, (probe, item) in enumerate(zip(known.probe_M, known.item_M, strict=True)):
        assert scores[pair] == everyone[probe, item]
        if known.is_mate_M[pair]:
            assert above[pair] == ((everyone[probe] >= everyone[probe, item]) & stranger[probe]).sum()


def test_scores_of_any_sign_and_size_are_ordered():
    values = torch.tensor([-torch.inf, -3e38, -1.0, -1e-30, -1e-45, -0.0, 0.0, 1e-45, 1e-30, 1.0, 3e38, torch.inf])
    keys = search._keys(torch.zeros(12, dtype=torch.int64), values)
    assert torch.equal(keys.sort().values, keys) and len(keys.unique()) == 11 and keys[5] == keys[6]
    assert search._keys(torch.tensor([1]), values[:1]) > keys[-1]


def slow(scores_PN, probe_classes, item_classes, alone, mates):
    """Return ranks and average precisions, computed one probe after the other."""
    ranks, precisions = [], []
    for p, scores in enumerate(scores_PN.tolist()):
        others = [(s, c == probe_classes[p]) for j, (s, c) in enumerate(zip(scores, item_classes, strict=True))
                  if not (alone and j == p)]  # fmt: skip
        wanted = sorted((s for s, mate in others if mate), reverse=True)
        if not wanted:
            continue
        before = [sum(s >= each and not mate for s, mate in others) for each in wanted]
        if mates == "each":
            ranks += [1 + each for each in before]
        else:
            ranks.append(1 + before[0])
            precisions.append(np.mean([(k + 1) / (k + 1 + each) for k, each in enumerate(before)]))
    return ranks, precisions


@pytest.mark.parametrize("mates", ["best", "each"])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_and_precision(seed, alone, mates):
    generator = torch.Generator().manual_seed(seed)
    gallery, others = (torch.randint(-2, 3, (n, 4), generator=generator).float() for n in (40, 30))
    gallery_classes = torch.randint(12, (40,), generator=generator).numpy()
    probes = gallery if alone else torch.randint(-2, 3, (25, 4), generator=generator).float()
    probe_classes = gallery_classes if alone else torch.randint(15, (25,), generator=generator).numpy()
    known = mate_pairs(probe_classes, gallery_classes, alone)
    _, above = count_strangers_above(probes, known, in_blocks(gallery, 7), [in_blocks(others, 7)])
    scores = probes @ torch.cat([gallery, others]).T
    strangers = [-1] * len(others)
    expected, precisions = slow(scores, probe_classes, [*gallery_classes, *strangers], alone, mates)
    if mates == "each":  # as in MegaFace: alone among the distractors
        _, apart = count_strangers_above(probes, known, in_blocks(gallery, 7), [in_blocks(others, 7)], False)
        for probe, item, count in zip(
            *(each[known.is_mate_M] for each in (known.probe_M, known.item_M, apart)), strict=True
        ):
            assert count == (probes[probe] @ others.T >= probes[probe] @ gallery[item]).sum()
    ranks = Ranks(known, above, probe_classes, mates)
    assert sorted(ranks.ranks.tolist()) == sorted(expected)
    metrics = ranks.metrics((1, 5))
    assert metrics["rank1"] == pytest.approx(np.mean(np.array(expected) <= 1))
    assert metrics["rank5"] == pytest.approx(np.mean(np.array(expected) <= 5))
    if mates == "best":
        assert metrics["map"] == pytest.approx(np.mean(precisions))
    points, share = ranks.cmc(70)
    assert share.tolist() == [pytest.approx(np.mean(np.array(expected) <= k)) for k in points]
    # Of classes that are drawn twice, or not at all.
    weights = torch.randint(3, (ranks.num_classes,), generator=generator).double().numpy()
    repeated = np.repeat(ranks.ranks, weights[ranks.unit].astype(int))
    assert ranks.metrics((5,), weights)["rank5"] == pytest.approx(np.mean(repeated <= 5))


def slow_retrieval(relevant, k):
    """Return the metrics of one probe whose list has mates where `relevant` is true."""
    total = sum(relevant)
    precisions = [sum(relevant[: at + 1]) / (at + 1) for at, is_mate in enumerate(relevant) if is_mate]
    return {
        "map": sum(precisions) / total,
        "map_at_r": sum(precisions[: sum(relevant[:total])]) / total,
        "r_precision": sum(relevant[:total]) / total,
        f"precision{k}": sum(relevant[:k]) / k,
        f"recall{k}": sum(relevant[:k]) / total,
    }


@pytest.mark.parametrize("k", [1, 3, 10])
def test_metrics_of_retrieval_equal_the_slow_ones_and_those_of_torchmetrics(k):
    generator = torch.Generator().manual_seed(k)
    rows = normalize(torch.randn(60, 4, generator=generator))
    classes = torch.randint(9, (60,), generator=generator)
    known = mate_pairs(classes.numpy(), classes.numpy(), True)
    _, above = count_strangers_above(rows, known, in_blocks(rows, 7))
    found = Ranks(known, above, classes.numpy(), "best").metrics((k,))
    scores = rows @ rows.T
    expected, theirs = [], []
    for number in range(60):
        others = torch.arange(60) != number
        order = scores[number, others].argsort(descending=True)
        mates = (classes == classes[number])[others]
        if mates.any():
            expected.append(slow_retrieval(mates[order].tolist(), k))
            one = (scores[number, others] + 2, mates)  # torchmetrics ignores mates with negative scores
            theirs.append({
                "map": float(retrieval_average_precision(*one)),
                "r_precision": float(retrieval_r_precision(*one)),
                f"precision{k}": float(retrieval_precision(*one, top_k=k)),
                f"recall{k}": float(retrieval_recall(*one, top_k=k)),
                f"rank{k}": float(retrieval_hit_rate(*one, top_k=k)),
            })  # fmt: skip
    for reference in (expected, theirs):
        for name in reference[0]:
            assert found[name] == pytest.approx(np.mean([each[name] for each in reference])), name


@pytest.fixture
def features(tmp_path):
    """gallery.npy, probes.npy and strangers.npy, with classes of the first two."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(30, 8))
    for name, count in (("gallery", 50), ("probes", 37), ("strangers", 90)):
        labels = generator.integers(0, 30, count)
        rows = generator.normal(size=(count, 8)) + (1.5 * directions[labels] if name != "strangers" else 0)
        np.save(tmp_path / f"{name}.npy", rows.astype(np.float32))
        if name != "strangers":
            lines = [f"image {number}\tperson {label}\n" for number, label in enumerate(labels)]
            (tmp_path / f"{name}.txt").write_text("".join(lines))
    return tmp_path


def results_of_features(folder, mates, block=16):
    image_sets.BLOCK = block
    try:
        paths = {name: str(folder / f"{name}.npy") for name in ("gallery", "probes")}
        protocol = Identification(**paths, distractors=str(folder / "strangers.npy"), mates=mates, resamples=20)
        return [(each.metrics, each.intervals, each.counts) for each in protocol(of_nothing())]
    finally:
        image_sets.BLOCK = model.BLOCK


@pytest.mark.parametrize("mates", ["best", "each"])
def test_features_on_any_number_of_processes(mates, features, workers):
    ((metrics, intervals, counts),) = one = results_of_features(features, mates)
    unit = {name: normalize(torch.from_numpy(np.load(features / f"{name}.npy")))
            for name in ("gallery", "probes", "strangers")}  # fmt: skip
    classes = {name: [line.split("\t")[1] for line in (features / f"{name}.txt").read_text().splitlines()]
               for name in ("gallery", "probes")}  # fmt: skip
    scores = unit["probes"] @ torch.cat([unit["gallery"], unit["strangers"]]).T
    ranks, precisions = slow(scores, classes["probes"], classes["gallery"] + [None] * 90, False, mates)
    if mates == "each":  # each mate alone among the distractors
        mates_of = [[s for s, c in zip(row[:50], classes["gallery"], strict=True) if c == own]
                    for row, own in zip(scores, classes["probes"], strict=True)]  # fmt: skip
        ranks = [1 + int((row[50:] >= s).sum()) for row, mates in zip(scores, mates_of, strict=True) for s in mates]
    assert metrics["rank1"] == pytest.approx(np.mean(np.array(ranks) <= 1))
    assert mates == "each" or metrics["map"] == pytest.approx(np.mean(precisions))
    assert intervals["rank1"][0] <= metrics["rank1"] <= intervals["rank1"][1]
    assert (counts["probes"], counts["gallery"], counts["distractors"]) == (37, 50, 90)
    for world_size in (2, 3):
        first, *others = workers(world_size).run(results_of_features, features, mates)
        assert first == one and others == [[]] * (world_size - 1)


def metrics_of_images(folder):
    image_sets.BLOCK = 4
    try:
        return [each.metrics for each in Identification(str(folder), resamples=0)(of_pixels())]
    finally:
        image_sets.BLOCK = model.BLOCK


def test_images_are_searched_among_all_others(tmp_path, workers):
    """Three classes have two equal images, which find each other. One class has two different images."""
    held = images([0, 0, 1, 1, 2, 2, 3, 3])
    held = [(label, image(label if number < 6 else 50 + number)) for number, (label, _) in enumerate(held)]
    write_folder(tmp_path / "set", held)
    (one,) = metrics_of_images(tmp_path / "set")
    assert one["rank1"] >= 0.75 and one["rank10"] == 1
    for world_size in (2, 3):
        assert workers(world_size).run(metrics_of_images, tmp_path / "set")[0] == [one]


def test_too_many_pairs_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "MAX_PAIRS", 11)
    path = write(tmp_path, "set", np.eye(8), "aaaabbcd")
    with pytest.raises(ValueError, match="22 pairs of a probe and an image of its class"):
        Identification(path)(of_nothing())


def test_features_are_matched_with_images_by_name(tmp_path):
    """Class names may contain white space, and `ranks` may be one number."""
    write_folder(tmp_path / "set", images([0, 0, 1, 1]))
    rows = np.random.default_rng(0).normal(size=(4, 18)).astype(np.float32)
    path = write(tmp_path, "probes", rows, ["class 000"] * 2 + ["class 001"] * 2)
    (result,) = Identification(str(tmp_path / "set"), path, ranks=4, resamples=0)(of_pixels())
    assert result.counts["with a mate"] == 4 and result.metrics["rank4"] == 1
    (tmp_path / "probes.txt").write_text((tmp_path / "probes.txt").read_text().removesuffix("\n"))
    Identification(str(tmp_path / "set"), path)


def test_equal_embeddings_identify_no_image(tmp_path):
    """A stranger of the same score comes first, so a collapsed network identifies no image."""
    np.save(tmp_path / "all.npy", np.ones((6, 4), np.float32))
    (tmp_path / "all.txt").write_text("".join(f"{n}\t{n // 2}\n" for n in range(6)))
    (result,) = Identification(str(tmp_path / "all.npy"), ranks=(1, 5), resamples=0)(of_nothing())
    expected = {"rank1": 0, "rank5": 1, "map": 1 / 5, "map_at_r": 0, "r_precision": 0}
    expected |= {"precision1": 0, "precision5": 1 / 5, "recall1": 0, "recall5": 1}
    assert result.metrics == pytest.approx(expected)


def write(folder, name, rows, classes=None):
    np.save(folder / f"{name}.npy", rows)
    if classes is not None:
        (folder / f"{name}.txt").write_text("".join(f"x\t{each}\n" for each in classes))
    return str(folder / f"{name}.npy")


@pytest.mark.parametrize(
    ("rows", "classes", "options", "words"),
    [
        (np.ones((4, 2)), "aaaa", {}, "compares each probe with its own class only"),
        (np.ones((4, 2)), "abcd", {}, "no probe whose class is in the gallery"),
        (np.full((4, 2), np.nan), "aabb", {}, "hold NaN or Inf"),
        (np.ones((4, 2)), None, {}, "has no classes"),
        (np.ones((4, 2)), "aab", {}, "has 3 lines and .*set.npy 4 rows"),
        (np.ones((4, 2), int), "aabb", {}, r"must contain real numbers of shape \(n, D\), not int64 \[4, 2\]"),
        (np.ones((4, 2)), "aabb", {"mates": "all"}, "mates=all"),
        (np.ones((4, 2)), "aabb", {"ranks": [0]}, "ranks=0 must be a whole number of at least 1"),
        (np.ones((4, 2)), "aabb", {"ranks": "all"}, "ranks=all"),
        (np.ones((4, 2)), "aabb", {"mirrored": True}, "mirrored=True applies to images only and no images are named"),
        (np.ones((4, 2)), "aabb", {"root": "x"}, "root=.*x applies to images only and no images are named"),
        (
            np.ones((4, 2)),
            "aabb",
            {"gallery": None, "format": "rec"},
            "format=rec applies to images only and no images are named",
        ),
        (
            np.ones((4, 2)),
            "aabb",
            {"distractors": "wide"},
            "features of the gallery have 3 numbers and those of the probes 2",
        ),
        (np.empty((0, 2)), "", {}, r"must contain real numbers of shape \(n, D\), not float64 \[0, 2\]"),
        (
            np.ones((4, 2)),
            "aabb",
            {"probes": "empty"},
            r"must contain real numbers of shape \(n, D\), not float64 \[0, 2\]",
        ),
        (np.ones((4, 2)), "aabb", {"probes": "set"}, "probes=.* is the gallery itself"),
        (np.ones((4, 2)), "aaaa", {"probes": "other"}, "compares each probe with its own class only"),
        (np.ones((4, 2)), "aabb", {"gallery": ["x", "y"]}, "gallery=.* must be one path"),
        (np.ones((4, 2)), "aabb", {"mirrored": "no"}, "mirrored=no must be true or false"),
        (np.ones((4, 2)), "aabb", {"distractors": "/nowhere"}, "distractors=/nowhere does not exist"),
        (np.ones((4, 2)), "aabb", {"gallery": None, "probes": "wide"}, "gallery=null cannot be combined with probes"),
    ],
)
def test_invalid_sets_and_options_are_refused(rows, classes, options, words, tmp_path):
    wide = write(tmp_path, "wide", np.ones((3, 3)))
    written = {
        "wide": wide,
        "empty": write(tmp_path, "empty", np.empty((0, 2))),
        "set": write(tmp_path, "set", rows, classes),
        "other": write(tmp_path, "other", np.ones((2, 2)), "za"),
    }
    options = {name: written.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    options = {"gallery": written["set"], **options}
    with pytest.raises(ValueError, match=words):
        Identification(**options, resamples=0)(of_nothing())


def test_sets_that_do_not_fit_are_refused_before_a_training(tmp_path):
    gallery, wide = write(tmp_path, "set", np.ones((4, 2)), "aabb"), write(tmp_path, "wide", np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"distractors=.*wide.npy has features of 3 numbers and .*set.npy of 2"):
        Identification(gallery, distractors=wide).check(of_nothing())


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e-15, 1e15, 1e25, 1e38])
def test_lengths_of_any_size(scale):
    rows = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    scaled = (rows.astype(np.float64) * scale).astype(np.float32)
    rows_of_unit_length = model.unit(torch.from_numpy(np.stack([*scaled, np.zeros(7, np.float32)])), "rows")
    expected = torch.from_numpy(scaled.astype(np.float64))
    expected /= expected.norm(dim=1, keepdim=True)
    assert torch.allclose(rows_of_unit_length[:3].double(), expected, atol=1e-6) and not rows_of_unit_length[3].any()
