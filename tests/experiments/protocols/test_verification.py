"""Verification of pairs: every metric against a slow and obvious one, with and without ties, and invalid pairs."""

import numpy as np
import pytest

from data.formats.pairs import Pairs, read_pairs
from experiments.protocols.folds import Folds, assign_folds
from experiments.protocols.rates import Ranking, check_pairs
from experiments.protocols.verification import Verification
from tests.experiments.protocols.files import written_for
from tests.experiments.protocols.models import of_pixels


def drawn(seed: int, count: int = 103, ties: bool = False, shift: float = 1.0):
    generator = np.random.default_rng(seed)
    same = generator.random(count) < 0.5
    scores = generator.normal(size=count) + shift * same
    return np.round(scores) if ties else scores, same


def in_order(same, number: int = 10):
    """Return folds in file order, as of a .bin file."""
    nobody = np.arange(0)
    return assign_folds(Pairs("set", (), nobody, nobody, np.asarray(same), in_order=True), number).numbers


CASES = [(0, False), (1, False), (2, True), (3, True)]


@pytest.mark.parametrize(("seed", "ties"), CASES)
def test_rates(seed, ties):
    scores, same = drawn(seed, ties=ties)
    thresholds = [np.inf, *sorted(set(scores), reverse=True)]
    tar = np.array([np.mean(scores[same] >= t) for t in thresholds])
    far = np.array([np.mean(scores[~same] >= t) for t in thresholds])
    rates = Ranking(scores, same).unweighted
    assert np.array_equal(rates.thresholds, thresholds)
    assert np.allclose(rates.tar, tar, atol=1e-15) and np.allclose(rates.far, far, atol=1e-15)
    for limit in (1e-6, 1 / 50, 0.1, 0.5, 0.999):
        assert rates.tar_at(limit) == max(t for t, f in zip(rates.tar, rates.far, strict=True) if f <= limit)
    wins = [float(a > b) + 0.5 * float(a == b) for a in scores[same] for b in scores[~same]]
    assert rates.auc == pytest.approx(np.mean(wins), abs=1e-12)
    errors = [(abs(f - (1 - t)), (f + 1 - t) / 2) for t, f in zip(tar, far, strict=True)]
    assert rates.eer in [pytest.approx(mean) for gap, mean in errors if gap <= min(errors)[0] + 1e-12]


def slow_folds(scores, same, folds, far):
    """Return the accuracy of each fold and the validation rate over all folds."""
    accuracies, accepted, genuine = [], 0, 0
    for fold in range(folds.max() + 1):
        train, test = folds != fold, folds == fold
        thresholds = [np.inf, *sorted(set(scores[train]), reverse=True)]
        right = [np.sum((scores[train] >= t) == same[train]) for t in thresholds]
        place = right.index(max(right))
        below = thresholds[place + 1] if place + 1 < len(thresholds) else -np.inf
        best = (thresholds[place] + below) / 2 if place else np.inf
        accuracies.append(np.mean((scores[test] >= best) == same[test]))
        fine = [t for t in [np.inf, *sorted(set(scores), reverse=True)] if np.mean(scores[train & ~same] >= t) <= far]
        accepted += np.sum(scores[test & same] >= fine[-1])
        genuine += np.sum(test & same)
    return accuracies, accepted / genuine


@pytest.mark.parametrize(("seed", "ties"), CASES)
@pytest.mark.parametrize("far", [1e-3, 0.1])
def test_folds(seed, ties, far):
    scores, same = drawn(seed, ties=ties)
    folds = in_order(same)
    accuracies, validation = slow_folds(scores, same, folds, far)
    folds_of_pairs = Folds(scores, same, folds)
    of_folds, (share,) = folds_of_pairs.evaluate([far])
    assert of_folds.tolist() == pytest.approx(accuracies, abs=1e-12)
    assert share == pytest.approx(validation, abs=1e-12)
    # A weight of two has the effect of a pair that occurs twice.
    twice = np.random.default_rng(seed).integers(1, 3, len(scores))
    repeated = [np.repeat(each, twice) for each in (scores, same, folds)]
    accuracies, validation = slow_folds(*repeated, far)
    of_folds, (share,) = folds_of_pairs.evaluate([far], twice.astype(float))
    assert of_folds.tolist() == pytest.approx(accuracies, abs=1e-12)
    assert share == pytest.approx(validation, abs=1e-12)


def test_folds_are_contiguous_and_as_those_of_sklearn():
    from sklearn.model_selection import KFold

    for count in (10, 103, 6000):
        expected = np.empty(count, int)
        for fold, (_, test) in enumerate(KFold(10).split(np.zeros(count))):
            expected[test] = fold
        assert np.array_equal(in_order(np.arange(count) % 3 == 0), expected)


def evaluate(scores, same, **options):
    protocol = object.__new__(Verification)  # without files
    protocol.__dict__.update({"threshold_step": None, "far": (1e-3,), "resamples": 0, **options})
    scores, same = np.asarray(scores, float), np.asarray(same)
    check_pairs(scores, same)
    return protocol.evaluate("set", scores, same, in_order(same))


def test_thresholds_of_a_grid_are_those_of_insightface():
    """Compare with its accuracy as coded there: squared distances below 0, 0.01, ... 3.99."""
    scores, same = drawn(5, 400, shift=0.3)
    scores = np.tanh(scores)
    distances = 2 - 2 * scores
    accuracies = []
    for fold in range(10):
        train, test = in_order(same) != fold, in_order(same) == fold
        grid = np.arange(0, 4, 0.01)
        best = grid[np.argmax([np.mean((distances[train] < t) == same[train]) for t in grid])]
        accuracies.append(np.mean((distances[test] < best) == same[test]))
    metrics = evaluate(scores, same, threshold_step=0.01).metrics
    assert metrics["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert metrics["accuracy_se"] == pytest.approx(np.std(accuracies, ddof=1) / 10**0.5)


def test_perfect_and_useless_scores():
    """Perfect scores without ties are perfect too: the lowest of one class stays above the threshold."""
    same = np.arange(40) % 2 == 0
    apart = evaluate(same + np.random.default_rng(0).uniform(-0.4, 0.4, 40), same).metrics
    assert apart["accuracy"] == 1 and apart["auc"] == pytest.approx(1, abs=1e-12)
    perfect = evaluate(same * 1.0, same).metrics
    assert (perfect["accuracy"], perfect["val_at_far_1e-3"], perfect["eer"]) == (1, 1, 0)
    assert perfect["auc"] == pytest.approx(1, abs=1e-12)
    useless = evaluate(np.zeros(40), same).metrics
    assert (useless["accuracy"], useless["val_at_far_1e-3"]) == (0.5, 0)
    assert useless["auc"] == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "same", "words"),
    [
        (np.ones(20), np.ones(20, bool), "has no pair of two classes"),
        (np.ones(20), np.zeros(20, bool), "has no pair of one class"),
        ([np.nan] * 2 + [0.5] * 18, np.arange(20) < 9, "has NaN in 2 of 20 scores"),
        (np.ones(9), np.arange(9) < 4, "has 9 pairs for 10 folds"),
        (np.ones(40), np.arange(40) < 37, "has pairs of two classes in one of 10 folds only"),
    ],
)
def test_invalid_pairs_are_refused(scores, same, words):
    with pytest.raises(ValueError, match=words):
        evaluate(scores, same)


def test_scores_and_labels_must_be_as_many():
    with pytest.raises(ValueError, match=r"\[3\] scores and \[4\] labels"):
        check_pairs(np.ones(3), np.ones(4, bool))


def test_intervals_cover_repetitions():
    """Most intervals of new draws contain the true area under the curve."""
    scores, same = drawn(0, 20_000)
    truth = evaluate(scores, same).metrics
    hits = 0
    for part in range(20):
        chosen = slice(1000 * part, 1000 * (part + 1))
        low, high = evaluate(scores[chosen], same[chosen], resamples=100).intervals["auc"]
        hits += low <= truth["auc"] <= high
    assert hits >= 16
    assert evaluate(scores[:99], same[:99]).intervals == {}


def listed(folder, same, header: str = "") -> Pairs:
    """Write a list of pairs, whose images need not exist, and read it."""
    lines = [f"a{n}.jpg\tb{n}.jpg\t{int(each)}\n" for n, each in enumerate(same)]
    (folder / "pairs.txt").write_text(header + "".join(lines))
    return read_pairs(folder / "pairs.txt")


@pytest.mark.parametrize("shift", [0.6, 2.0])
def test_a_list_sorted_by_kind_is_evaluated_as_the_same_pairs_in_turn(shift, tmp_path):
    """pairsDevTest.txt of LFW has 500 pairs of one person, then 500 of two. In file order, each fold has pairs of one
    kind and would be evaluated at a threshold that suits the other kind."""
    generator = np.random.default_rng(0)
    same = np.repeat([True, False], 500)
    scores = generator.normal(size=1000) + shift * same
    turn = np.arange(1000).reshape(2, 500).T.ravel()  # one of one person, one of two
    accuracies = {}
    for name, order, header in (("sorted", np.arange(1000), "500\n"), ("in turn", turn, ""), ("plain", turn[::-1], "")):
        numbers, notes = assign_folds(listed(tmp_path, same[order], header))
        assert notes == []
        of_folds = Folds(scores[order], same[order], numbers).evaluate([])[0]
        accuracies[name] = of_folds.mean()
        assert all((same[order][numbers == fold]).sum() == 50 for fold in range(10))
    assert accuracies["sorted"] == accuracies["in turn"]  # the same folds
    assert accuracies["plain"] == pytest.approx(accuracies["in turn"], abs=of_folds.std())
    cut = Folds(scores, same, in_order(same)).evaluate([])[0].mean()
    assert cut < accuracies["sorted"]


def test_the_folds_of_a_header_are_those_of_the_file(tmp_path):
    same = np.tile(np.repeat([True, False], 3), 4)
    pairs = listed(tmp_path, same, "4\t3\n")
    assert pairs.folds == 4 and assign_folds(pairs).numbers.tolist() == np.repeat(np.arange(4), 6).tolist()
    numbers, notes = assign_folds(pairs, 3)
    assert np.bincount(numbers[same]).tolist() == np.bincount(numbers[~same]).tolist() == [4, 4, 4]
    assert notes == ["the header announces 4 folds, and protocol.lfw.folds=3 replaces them"]
    assert assign_folds(listed(tmp_path, same)).numbers.max() == 9  # without a header


@pytest.mark.parametrize("header", ["4\t4\n", "12\n13\n", "2\t12\n", "0\t3\n"])
def test_a_header_that_announces_other_pairs_is_refused(header, tmp_path):
    same = np.tile(np.repeat([True, False], 3), 4)
    if header.startswith("2"):
        same = np.sort(same)
    with pytest.raises(ValueError, match=r"pairs.txt: the first line announces .*; delete that line"):
        listed(tmp_path, same, header)


@pytest.mark.parametrize(
    ("same", "in_order", "words"),
    [
        (np.arange(60) < 30, True, "10 of 10 folds have pairs of one kind only (in the order of the file)"),
        (np.arange(60) % 20 < 10, True, "6 of 10 folds have pairs of one kind only (in the order of the file)"),
        (np.arange(60) < 4, False, "6 of 10 folds have pairs of one kind only (too few for each fold)"),
        (np.arange(60) % 2 == 0, True, None),
    ],
)
def test_folds_that_lack_a_kind_are_reported(same, in_order, words):
    nobody = np.arange(0)
    notes = assign_folds(Pairs("set", (), nobody, nobody, same, in_order=in_order)).notes
    assert words is None if not notes else notes[0].startswith(words)
    protocol = object.__new__(Verification)
    protocol.__dict__.update({"threshold_step": None, "far": (0.5,), "resamples": 0})
    folding = assign_folds(Pairs("set", (), nobody, nobody, same, in_order=in_order))
    assert list(protocol.evaluate("set", same * 1.0, same, *folding).notes) == notes


def results_in_a_process(folder, words):
    options = dict(word.removeprefix("protocol.lfw.").split("=") for word in words)
    protocol = Verification(options["source"], folds=3, resamples=20)
    results = protocol(of_pixels())
    return [(each.name, each.metrics, each.intervals, each.counts) for each in results]


def test_images_on_any_number_of_processes(workers, tmp_path):
    words = written_for("lfw", tmp_path)
    one = results_in_a_process(tmp_path, words)
    assert one[0][0] == "pairs" and one[0][1]["auc"] == 1  # the same image twice, and others
    assert one[0][3] == {"pairs": 24, "of one class": 12}
    for world_size in (2, 3):
        first, *others = workers(world_size).run(results_in_a_process, tmp_path, words)
        assert first == one and others == [[]] * (world_size - 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": None}, "protocol.lfw.source=null"),
        ({"folds": 1}, "protocol.lfw.folds=1"),
        ({"folds": 2.5}, "protocol.lfw.folds=2.5 must be a whole number"),
        ({"folds": 25}, "has 24 pairs for 25 folds"),
        ({"far": None}, "protocol.lfw.far=None"),
        ({"far": [0.0]}, r"protocol.lfw.far=\[0.0\] must have at least one rate, each in"),
        ({"resamples": -1}, "protocol.lfw.resamples=-1"),
        ({"threshold_step": 5}, "protocol.lfw.threshold_step=5"),
        ({"threshold_step": True}, "protocol.lfw.threshold_step=True"),
        ({"mirrored": "no"}, "protocol.lfw.mirrored=no must be true or false"),
        ({"root": ["a"]}, "protocol.lfw.root=.* must be one path"),
        ({"source": 5}, "5 does not exist; a list of pairs is expected"),
        ({"source": ["{}/pairs.txt", "{}/pairs.txt"]}, "names a file twice"),
    ],
)
def test_wrong_options(options, words, tmp_path):
    written_for("lfw", tmp_path)
    source = options.pop("source", str(tmp_path / "pairs.txt"))
    source = [each.format(tmp_path) for each in source] if isinstance(source, list) else source
    with pytest.raises(ValueError, match=words):
        Verification(source, **options)


def test_unreadable_images_are_reported(tmp_path):
    written_for("lfw", tmp_path)
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3\.jpg: it is not an image"):
        Verification(str(tmp_path / "pairs.txt"), folds=3)(of_pixels())


def test_missing_images_are_reported_before_a_training(tmp_path):
    written_for("lfw", tmp_path)
    with pytest.raises(ValueError, match=r"nowhere/0\.jpg: No such file"):
        Verification(str(tmp_path / "pairs.txt"), str(tmp_path / "nowhere"), folds=3).check(of_pixels())
