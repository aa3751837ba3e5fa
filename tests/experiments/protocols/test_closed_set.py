"""Classification against class centers, by cosine or with a bias, on one and several processes."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from data.formats.unlabeled_images import ImageFiles
from experiments.models.model import Model
from experiments.protocols.closed_set import ClosedSet
from tests.data.made_sets import image, images, write_folder, write_list
from tests.experiments.protocols.models import of_pixels
from tests.workers import rank_and_world


@dataclass
class Held:
    """Centers in blocks of three, which are distributed over the processes."""

    rows: torch.Tensor
    normalize: bool
    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.rows)

    def slots(self, classes):
        return classes

    def blocks(self):
        rank, world_size = rank_and_world()
        for start in range(3 * rank, len(self.rows), 3 * world_size):
            yield start, self.rows[start : start + 3]


def centers(unit: bool) -> Held:
    generator = torch.Generator().manual_seed(1)
    names = tuple(f"class {number:03d}" for number in range(10))
    return Held(torch.randn(10, 18 + (not unit), generator=generator), unit, names)


def results_of(folder, unit) -> list:
    protocol = ClosedSet(str(folder), ranks=[1, 2, 5], resamples=20)
    return [(each.metrics, each.intervals) for each in protocol(of_pixels(centers=centers(unit)))]


@pytest.mark.parametrize("unit", [True, False])
def test_top_k(unit, workers, tmp_path):
    labels = [number % 6 for number in range(30)]
    write_folder(tmp_path / "set", images(labels))
    ((metrics, intervals),) = one = results_of(tmp_path / "set", unit)
    model: Model = of_pixels()
    held = sorted((tmp_path / "set").rglob("*.jpg"))
    source, prepare = model.view(ImageFiles([str(path).encode() for path in held]))
    x, rows = model.embed(source, prepare, np.arange(30)), centers(unit).rows
    scores = normalize(x) @ normalize(rows).T if unit else x @ rows[:, :-1].T + rows[:, -1]
    truth = torch.tensor([int(path.parent.name[6:]) for path in held])
    for k in (1, 2, 5):
        expected = (scores.topk(k).indices == truth[:, None]).any(1).double().mean()
        assert metrics[f"top{k}"] == pytest.approx(float(expected))
        assert intervals[f"top{k}"][0] <= metrics[f"top{k}"] <= intervals[f"top{k}"][1]
    for world_size in (2, 3):
        first, *others = workers(world_size).run(results_of, tmp_path / "set", unit)
        assert first == one and others == [[]] * (world_size - 1)


def test_several_labels(workers, tmp_path):
    """The first class of an image is ranked among the classes that the image does not have."""
    own = [list(dict.fromkeys([number % 10, *np.random.default_rng(number).choice(10, 4)])) for number in range(30)]
    write_list(tmp_path / "set.txt", [(",".join(map(str, classes)), image(k)) for k, classes in enumerate(own)])
    one = results_by_id(tmp_path / "set.txt")
    model = of_pixels()
    held = [str(tmp_path / f"{number}.jpg").encode() for number in range(30)]
    x = model.embed(*model.view(ImageFiles(held)), np.arange(30))
    scores = normalize(x) @ normalize(centers(True).rows).T
    for number, (_, *others) in enumerate(own):
        scores[number, others] = -torch.inf
    first = scores[torch.arange(30), [classes[0] for classes in own]]
    rank = (scores >= first[:, None]).sum(1)
    assert one == {f"top{k}": pytest.approx(float((rank <= k).double().mean())) for k in (1, 2, 5)}
    assert workers(2).run(results_by_id, tmp_path / "set.txt") == [one, None]


def results_by_id(path) -> dict[str, float] | None:
    found = ClosedSet(str(path), classes="id", ranks=[1, 2, 5], resamples=0)(of_pixels(centers=centers(True)))
    return found[0].metrics if found else None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": "number"}, "classes=number"),
        ({"records": 0}, "records=0"),
        ({"ranks": []}, r"ranks=\[\]"),
        ({}, "needs class names of the model, and 1 of 2 classes of .* have other names, such as 'class 099'"),
    ],
)
def test_wrong_options_and_classes_are_refused(options, words, tmp_path):
    write_folder(tmp_path / "set", images([0, 99]))
    with pytest.raises(ValueError, match=words):
        ClosedSet(str(tmp_path / "set"), **options)(of_pixels(centers=centers(True)))


def test_a_model_without_centers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs class centers, and there are none"):
        ClosedSet()(of_pixels())


def test_features_by_name_and_by_number(tmp_path):
    """Twelve classes, whose numbers are not in the order of their text. Each is its own center."""
    rows = np.random.default_rng(0).normal(size=(12, 18)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    (tmp_path / "x.txt").write_text("".join(f"key\t{number}\n" for number in range(12)))
    held = Held(torch.from_numpy(rows), True, tuple(map(str, range(12))))
    for classes in ("name", "id"):
        (result,) = ClosedSet(str(tmp_path / "x.npy"), classes=classes, resamples=0)(of_pixels(centers=held))
        assert result.metrics == {"top1": 1, "top5": 1}
    with pytest.raises(ValueError, match=r"found class 11 in .* and the model has 5 classes"):
        ClosedSet(str(tmp_path / "x.npy"), classes="id")(of_pixels(centers=Held(torch.ones(5, 18), True)))
    held.rows[3] = torch.nan
    with pytest.raises(ValueError, match="class centers hold NaN"):
        ClosedSet(str(tmp_path / "x.npy"))(of_pixels(centers=held))
