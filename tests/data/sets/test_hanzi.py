"""Chinese characters by typeface: rendering, merged and dropped characters, and splits."""

import unicodedata

import numpy as np
import pytest
import torch

from data.sets.fonts import installed
from data.sets.hanzi import conflicts, hanzi, rendering
from data.sets.hanzi.__main__ import main
from data.sets.hanzi.characters import PROBES
from data.sets.noise import with_noise
from tests.data.fonts import COMPATIBLE, COUNT, FIRST, UNIFIED, installed_for_tests, write_config


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    installed_for_tests(tmp_path / "fonts", monkeypatch)
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path / "cache"))
    # Starting other processes takes longer than rendering.
    monkeypatch.setattr(rendering, "ProcessPoolExecutor", InProcess)
    return tmp_path / "fonts"


class InProcess:
    def __init__(self, count, context, initializer, initargs):
        initializer(*initargs)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    map = staticmethod(map)


def test_fontconfig_finds_the_typefaces(fonts):
    faces = installed(PROBES)
    assert sorted({face.family for face in faces}) == [
        "AR PL UMing CN",
        "Noto Sans CJK SC",
        "Source Han Sans SC",
        "WenQuanYi Zen Hei",
    ]
    designs = {face.family: face.design for face in faces}
    assert designs["Noto Sans CJK SC"] == designs["Source Han Sans SC"] != designs["AR PL UMing CN"]
    assert len(faces) == 7 and all(FIRST in face.glyphs() for face in faces)


def test_classes_are_characters_with_enough_different_images(fonts):
    data = hanzi(heldout=0.1)
    # The equivalent pair is one class. A character that three of its six typefaces leave blank is dropped.
    assert data.train.num_classes + data.heldout.num_classes == COUNT
    names = data.class_names
    assert all(unicodedata.normalize("NFC", name) == name for name in names)
    labels = np.asarray(data.train.labels)
    images = data.train.source.read(np.arange(len(labels)))
    assert images.shape[1:] == (1, 32, 32) and images.flatten(1).amax(1).min() > 0
    for label in range(len(names)):
        of_class = images[labels == label].flatten(1)
        assert len(torch.unique(of_class, dim=0)) == len(of_class) >= 4
    # The twin typeface adds no image, and blank images are dropped.
    assert np.bincount(labels).max() == 6
    more = hanzi(heldout=0.1, num_faces=3)
    assert len(more.train) + len(more.heldout) == len(data.train) + len(data.heldout) + 3


def test_equivalent_characters_are_merged_or_kept_apart(fonts):
    merged, kept = (hanzi(conflict=way, heldout=0.02) for way in ("merge", "keep"))
    assert kept.train.num_classes + kept.heldout.num_classes == COUNT + 1
    assert len(conflicts(merged.class_names)) == 0
    names = [chr(FIRST), chr(COMPATIBLE), chr(UNIFIED), chr(FIRST + 1)]
    assert conflicts(names).tolist() == [[2, 1]] and conflicts(kept.class_names).shape[1] == 2
    if {chr(COMPATIBLE), chr(UNIFIED)} <= set(kept.class_names):
        ((one, other),) = conflicts(kept.class_names)
        images = [kept.train.source.read(np.flatnonzero(np.asarray(kept.train.labels) == k)) for k in (one, other)]
        assert torch.equal(*images)


def test_whole_designs_are_held_out(fonts):
    data = hanzi(split="typefaces", heldout=0.3, num_faces=4)
    train, heldout = (
        {
            tuple(image.flatten().tolist()): int(label)
            for image, label in zip(part.source.read(np.arange(len(part))), part.labels[:], strict=True)
        }
        for part in (data.train, data.heldout)
    )
    assert not train.keys() & heldout.keys()
    assert np.bincount(data.train.labels[:]).tolist() == [4] * data.train.num_classes  # two of three families
    assert np.bincount(data.heldout.labels[:]).min() >= 2
    assert data.train.num_classes >= COUNT - 1 <= data.heldout.num_classes
    for seed in range(6):  # any order of the designs leaves enough to evaluate
        assert len(hanzi(split="typefaces", heldout=0.05, num_faces=4, seed=seed).heldout) > 0.05 * 900
    other = hanzi(split="typefaces", heldout=0.3, num_faces=4, seed=1)
    assert len(other.train) + len(other.heldout) == pytest.approx(len(data.train) + len(data.heldout), abs=10)
    with pytest.raises(
        ValueError, match=r"heldout=0.99 leaves fewer than two classes .* whole designs, and there are 3; hold"
    ):
        hanzi(split="typefaces", heldout=0.99)


def test_a_long_tail(fonts):
    counts = np.bincount(with_noise(hanzi(), tail=1.0).train.labels)
    assert counts.min() == 2 and counts.max() == 6 and (counts == 2).sum() > 0.2 * len(counts)


def test_characters_and_typefaces_are_held_out_together(fonts):
    both, designs = (hanzi(split=split, heldout=0.3, num_faces=4) for split in ("both", "typefaces"))
    train, heldout = (
        {bytes(part.source.read(np.arange(len(part))).numpy()[i]) for i in range(len(part))}
        for part in (both.train, both.heldout)
    )
    assert not train & heldout
    evaluated = {bytes(image) for image in designs.heldout.source.read(np.arange(len(designs.heldout))).numpy()}
    assert heldout < evaluated  # other designs, and of these some characters only
    assert both.train.num_classes + both.heldout.num_classes <= COUNT
    assert 0.2 * COUNT < both.heldout.num_classes <= 0.3 * COUNT + 1
    assert len(both.class_names) == both.train.num_classes and np.bincount(both.heldout.labels[:]).min() >= 2


def test_images_are_rendered_once_and_again_for_other_typefaces(fonts, monkeypatch, tmp_path):
    hanzi()
    monkeypatch.setattr(rendering, "render_chunk", None)
    hanzi(heldout=0.2)
    monkeypatch.undo()
    installed_for_tests(tmp_path / "fonts", monkeypatch, families=4)
    monkeypatch.setattr(rendering, "ProcessPoolExecutor", InProcess)
    assert np.bincount(hanzi(cache_dir=str(tmp_path / "cache")).train.labels).max() == 8


def test_missing_typefaces_are_reported_with_the_packages(tmp_path, monkeypatch, capsys):
    write_config(tmp_path / "fonts", monkeypatch)
    with pytest.raises(ValueError, match=r"the 0 installed typefaces .*: apt install fonts-noto-cjk fonts-arphic"):
        hanzi()
    main(["--list"])
    assert "fonts-babelstone-han" in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"apt install fontconfig"):
        hanzi()
    with pytest.raises(SystemExit, match="fontconfig"):
        main(["--list"])


def test_the_list_prints_the_numbers_of_classes(fonts, capsys, tmp_path):
    main(["--list", "--picture", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    assert "AR PL UMing CN" in printed and "│         6 │     151 │" in printed
    assert (tmp_path / "sheet.png").stat().st_size > 100


@pytest.mark.parametrize(
    "wrong", [{"num_faces": 1}, {"size": 8}, {"split": "random"}, {"heldout": 0}, {"conflict": "drop"}]
)
def test_options_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"data.{name}=.* must be "):
        hanzi(**wrong)
