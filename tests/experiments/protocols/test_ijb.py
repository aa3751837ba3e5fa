"""Templates against a slow and obvious way, and the usual files."""

import numpy as np
import pytest
import torch

from experiments.protocols.ijb import Ijb
from experiments.protocols.templates import pool_templates
from tests.experiments.protocols.files import IMAGES, written_for
from tests.experiments.protocols.models import of_nothing, of_pixels


def options_in(words) -> dict:
    options = dict(word.removeprefix("protocol.ijb.").split("=") for word in words)
    options["galleries"] = options["galleries"].strip("[]").split(",")
    return {**options, "resamples": int(options["resamples"])}


def slow_templates(features, weights):
    """Template -> its direction, of the files of `written_for`."""
    templates = {}
    for template in range(12):
        media = {}
        for n in (template, template + 12):
            media.setdefault(n if n % 2 else n % 12, []).append(features[n] * weights[n])
        total = sum(np.mean(each, axis=0) for each in media.values())
        templates[template] = total / np.linalg.norm(total)
    return templates


@pytest.mark.parametrize("weighted", [True, False])
def test_features_against_the_slow_way(weighted, tmp_path):
    options = options_in(written_for("ijb", tmp_path))
    features = np.random.default_rng(0).normal(size=(IMAGES, 6)).astype(np.float32)
    features += 1.2 * np.random.default_rng(1).normal(size=(4, 6))[np.arange(IMAGES) % 12 % 4].astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    weights = np.array([float(f"0.9{n}") for n in range(IMAGES)]) if weighted else np.ones(IMAGES)
    options |= {"images": None, "features": str(tmp_path / "features.npy"), "fpir": [0.3, 0.6]}
    if not weighted:
        options["scores"] = None
    one, many = Ijb(**options, far=[1e-6, 0.1, 0.5])(of_nothing())

    template = slow_templates(features.astype(np.float64), weights)
    scores = [(float(template[a] @ template[b]), a % 4 == b % 4) for a in range(12) for b in range(a)]
    assert one.counts == {"templates": 12, "pairs": 66, "of one subject": 12}
    genuine, impostor = (np.array([s for s, same in scores if same is wanted]) for wanted in (True, False))
    for far, name in ((1e-6, "1e-6"), (0.1, "1e-1"), (0.5, "5e-1")):
        tar = max(np.mean(genuine >= t) for t in [np.inf, *genuine, *impostor] if np.mean(impostor >= t) <= far)
        assert one.metrics[f"tar_at_far_{name}"] == pytest.approx(tar), far

    expected = {name: [] for name in ("rank1", "0.3", "0.6")}
    for gallery in ((0, 1), (2, 3)):
        enrolled = [p for p in range(4, 12) if p % 4 in gallery]
        best = [max(template[p] @ template[g] for g in gallery) for p in range(4, 12) if p % 4 not in gallery]
        right = [(template[p] @ template[p % 4], max(template[p] @ template[g] for g in gallery)) for p in enrolled]
        expected["rank1"].append(np.mean([own == top for own, top in right]))
        for fpir in (0.3, 0.6):
            allowed = sorted(best, reverse=True)[int(fpir * len(best))]  # the first stranger who may not be found
            expected[str(fpir)].append(np.mean([own == top and own > allowed for own, top in right]))
    assert many.metrics["rank1"] == pytest.approx(np.mean(expected["rank1"]))
    assert many.metrics["tpir_at_fpir_3e-1"] == pytest.approx(np.mean(expected["0.3"]))
    assert many.metrics["tpir_at_fpir_6e-1"] == pytest.approx(np.mean(expected["0.6"]))
    assert set(many.intervals) == set(many.metrics) and set(one.intervals) == set(one.metrics)
    assert one.notes == ["tar_at_far_1e-6: none of 54 negatives may be accepted; such low rates need more of them"]
    points, share = many.curves["cmc"]
    assert points[0] == 1 and share[0] == pytest.approx(many.metrics["rank1"])


def test_galleries_in_any_csv(tmp_path):
    """Columns by name, quoted or not, two files of one name; or no header at all."""
    options = options_in(written_for("ijb", tmp_path))
    expected = Ijb(**options)(of_pixels())[1].metrics
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "G1.csv").write_text('"SUBJECT_ID","FILENAME","TEMPLATE_ID"\n2,"a, b",102\n3,,103\n')
    (tmp_path / "probes.csv").write_text("".join(f"{t + 100},{t % 4}\n" for t in range(4, 12)))
    options["galleries"][1] = str(tmp_path / "other" / "G1.csv")
    assert Ijb(**options)(of_pixels())[1].metrics == expected


def test_a_medium_counts_once():
    """Two frames of one video weigh as much as one image."""
    rows = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [5.0, 5.0]])
    templates = pool_templates(rows, np.array([7, 7, 7, 9]), np.array([1, 1, 2, 1]))
    assert torch.allclose(templates, torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64) / 2**0.5)


def results_of_images(words):
    return [(each.name, each.metrics, each.intervals) for each in Ijb(**options_in(words))(of_pixels())]


def test_images_on_any_number_of_processes(workers, tmp_path):
    words = written_for("ijb", tmp_path)
    one = results_of_images(words)
    assert [name for name, *_ in one] == ["ijb_1_1", "ijb_1_n"]
    for world_size in (2, 3):
        first, *others = workers(world_size).run(results_of_images, words)
        assert first == one and others == [[]] * (world_size - 1)


@pytest.mark.parametrize(
    ("change", "file", "content", "words"),
    [
        ({"templates": None}, None, "", "protocol.ijb.templates=null"),
        ({"pairs": None, "galleries": None, "probes": None}, None, "", "leave nothing to evaluate; give one of them"),
        ({"probes": None}, None, "", "galleries=.* and protocol.ijb.probes=None must be given together for 1:N"),
        ({"features": "x.npy"}, None, "", "must name a path, but not both"),
        ({}, "tid_mid.txt", "a.jpg 1\n", "line 1 must be `image template medium`"),
        ({}, "pair_label.txt", "100 101 2\n", "third column must be 1 .one subject. or 0"),
        ({}, "pair_label.txt", "100 999 1\n", "has template 999, which has no image in protocol.ijb.templates"),
        ({}, "pair_label.txt", "100 101 1\n", "has no pair of two classes"),
        ({}, "pair_label.txt", "100 101 0\n", "has no pair of one class"),
        ({}, "G1.csv", "TEMPLATE_ID,SUBJECT_ID\n100,0\n104,0\n", "two templates of one subject"),
        ({}, "G1.csv", "TEMPLATE_ID,SUBJECT_ID\n100,9\n", "galleries has no subject of the probes"),
        ({}, "probes.csv", "TEMPLATE_ID,SUBJECT_ID\n104,0\n105,1\n", "galleries has every subject of the probes"),
        ({}, "pair_label.txt", "100 101 1 7\n", "but contains 4 columns"),
        ({}, "pair_label.txt", "100 101 x\n", "'x' to int64 at row 0, column 3"),
        ({}, "pair_label.txt", "\n", "contains no line"),
        ({}, "G1.csv", "TEMPLATE,SUBJECT_ID\n100,0\n", "no column TEMPLATE_ID"),
        ({}, "G1.csv", "TEMPLATE_ID,SUBJECT_ID\n100,0\n100,1\n", "template 100 has two subjects, 0 and 1"),
        ({}, "G1.csv", "TEMPLATE_ID,SUBJECT_ID\n100,a\n", "line 2 must have whole numbers as template and subject"),
        ({}, "G1.csv", "TEMPLATE_ID,SUBJECT_ID\n100,--1\n", "line 2 must have whole numbers as template and subject"),
        ({}, "G1.csv", "\udcff\udcfe\0" + "a" * 200_000, "is not a CSV file"),
        ({"mirrored": "no"}, None, "", "protocol.ijb.mirrored=no"),
        ({"templates": ["a"]}, None, "", "protocol.ijb.templates=.* must be one path"),
        ({}, "scores.txt", "".join(f"{n}.png 1\n" for n in range(24)), "line 1 must begin with b'0.jpg'"),
        ({}, "scores.txt", "a 1\n", "a finite number for each of 24 images"),
        ({}, "scores.txt", "a b\n", "each line must end in a number"),
    ],
)
def test_invalid_files_and_options_are_refused(change, file, content, words, tmp_path):
    options = options_in(written_for("ijb", tmp_path))
    if file:
        (tmp_path / file).write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=words):
        Ijb(**{**options, **change})(of_pixels())
