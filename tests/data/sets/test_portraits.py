"""Drawn faces: a folder that a training reads, the same for the same seed, and people who look like themselves."""

import sys

import numpy as np
import pytest
from PIL import Image

from data.sets import portraits


def draw(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["portraits", *map(str, words)])
    portraits.main()


def pixels(folder):
    return {path.relative_to(folder): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.jpg"))}


def test_a_folder_has_a_long_tail_of_images_and_repeats(tmp_path, monkeypatch, capsys):
    for name in "ab":
        draw(monkeypatch, tmp_path / name, "--people", 9, "--fewest", 2, "--most", 8)
    first, second = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    counts = sorted(len(list(folder.iterdir())) for folder in (tmp_path / "a").iterdir())
    assert counts == [2, 2, 3, 3, 4, 5, 6, 7, 8] and f"{sum(counts)} images of 9 people" in capsys.readouterr().out
    assert first.keys() == second.keys() and all(np.array_equal(first[path], second[path]) for path in first)
    assert {image.shape for image in first.values()} == {(112, 112, 3)}
    draw(monkeypatch, tmp_path / "c", "--people", 9, "--most", 8, "--seed", 1)
    assert not any(np.array_equal(first.get(path), image) for path, image in pixels(tmp_path / "c").items())


def test_images_of_a_person_are_nearer_to_each_other_than_to_others(tmp_path):
    """Compare the middle of the faces, without light and contrast."""
    portraits.write(tmp_path / "x", 20, 12, 12, seed=0)
    people = []
    for folder in sorted((tmp_path / "x").iterdir()):
        images = np.stack([np.asarray(Image.open(path), np.float64) for path in sorted(folder.iterdir())])
        middle = images[:, 24:88, 32:80].reshape(len(images), -1)
        middle -= middle.mean(1, keepdims=True)
        people.append(middle / np.linalg.norm(middle, axis=1, keepdims=True))
    cosines = np.concatenate(people) @ np.concatenate(people).T
    same = np.kron(np.eye(20), np.ones((12, 12))).astype(bool)
    assert cosines[same & ~np.eye(240, dtype=bool)].mean() > cosines[~same].mean() + 0.1
    assert cosines[~same].max() > np.median(cosines[same])  # and it is no trivial set


@pytest.mark.parametrize("words", [["--people", 1], ["--fewest", 0], ["--fewest", 9, "--most", 8], ["--seed", -1]])
def test_wrong_numbers_are_refused(tmp_path, monkeypatch, words):
    with pytest.raises(SystemExit, match="--people must be at least 2, --seed at least 0, and 1 <= --fewest <= --most"):
        draw(monkeypatch, tmp_path / "x", *words)
    assert not (tmp_path / "x").exists()
    with pytest.raises(SystemExit, match=f"{tmp_path} exists; remove it or give another folder"):
        draw(monkeypatch, tmp_path)
