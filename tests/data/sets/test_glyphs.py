"""Glyphs: rendering, cache and augmentation."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data.augment import RandomAffine
from data.sets import glyphs as module
from data.sets import rendered
from data.sets.glyphs import glyphs


@pytest.fixture(scope="module")
def folder(cache):
    glyphs()
    (path,) = (path for path in Path(cache, "glyphs").iterdir() if path.is_dir())
    return path


def test_classes_and_images(folder):
    data = glyphs()
    assert 2200 < data.train.num_classes < 2500 and len(data.class_names) == data.train.num_classes
    assert data.heldout.num_classes == round(0.25 * data.train.num_classes)
    for part in (data.train, data.heldout):
        labels = np.asarray(part.labels)
        counts = np.bincount(labels, minlength=part.num_classes)
        assert counts.min() >= 4 and counts.max() <= 16 and len(counts) == part.num_classes
        images = part.source.read(np.arange(len(part)))
        assert images.shape[1:] == (1, 32, 32) and images.dtype == torch.uint8
        assert (images.flatten(1).amax(1) > 0).all()
        for label in range(0, part.num_classes, 50):
            of_class = images[labels == label].flatten(1)
            assert len(torch.unique(of_class, dim=0)) == len(of_class), "a class has equal images"


def test_train_and_heldout_share_no_class(folder):
    half = glyphs(heldout=0.5)
    whole = glyphs()
    assert whole.class_names[: half.train.num_classes] == half.class_names
    assert len(set(whole.class_names)) == len(whole.class_names)


def test_all_characters_include_symbols(tmp_path):
    data = glyphs(characters="all", min_images=8, cache_dir=str(tmp_path))
    assert any(name in data.class_names for name in "+<=>&%")


@pytest.mark.parametrize("name", ["data.mdb", "labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_cache_is_rendered_again(folder, name, damage, monkeypatch):
    monkeypatch.setattr(module, "FACES", module.FACES[:5])
    monkeypatch.setattr(module, "VERSION", f"{name}{damage}")

    def cache_path() -> Path:
        return Path(glyphs(cache_dir=str(folder.parents[1])).train.source.path)

    path = cache_path()
    before = {file: (path / file).read_bytes() for file in ("data.mdb", "labels.npy", "manifest.json")}
    broken = path / name
    if damage == "truncated":
        os.truncate(broken, broken.stat().st_size // 2)
    elif damage == "changed":
        content = bytearray(broken.read_bytes())
        content[len(content) // 2] ^= 255
        broken.write_bytes(content)
    else:
        broken.unlink()
    assert cache_path() == path
    assert {file: (path / file).read_bytes() for file in before} == before


def test_an_intact_cache_is_not_rewritten(folder):
    before = (folder / "data.mdb").stat().st_mtime_ns
    glyphs()
    assert (folder / "data.mdb").stat().st_mtime_ns == before


def test_an_interrupted_rendering_leaves_no_cache(tmp_path, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(rendered, "file_digest", stopped)
    with pytest.raises(KeyboardInterrupt):
        glyphs(min_images=16, cache_dir=str(tmp_path))
    monkeypatch.undo()
    assert not any(rendered.intact(path) for path in (tmp_path / "glyphs").iterdir())
    assert rendered.intact(Path(glyphs(min_images=16, cache_dir=str(tmp_path)).train.source.path))


def test_sources_survive_pickling(folder):
    source = glyphs().train.source
    again = pickle.loads(pickle.dumps(source))
    indices = np.array([5, 0, 77])
    assert torch.equal(again.read(indices), source.read(indices))


@pytest.mark.parametrize("options", [{"characters": "runes"}, {"min_images": 1}, {"min_images": 17}, {"heldout": 1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"data.{next(iter(options))}=.* must be "):
        glyphs(**options)


def test_augmentation_depends_on_the_key_alone():
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    keys = np.array([1, 2, 3], dtype=np.uint64)
    augment = RandomAffine()
    draws = augment.draws(keys)
    together = augment(images, draws)
    assert not torch.equal(together, images)
    for i in range(3):
        torch.testing.assert_close(augment(images[i : i + 1], augment.draws(keys[i : i + 1]))[0], together[i])
    assert not torch.equal(augment(images[:1], draws[1:2]), together[:1])


def test_augmentation_without_strength_is_the_identity_and_fills_with_background():
    images = torch.full((2, 1, 32, 32), 0.5)
    keys = np.array([1, 2], dtype=np.uint64)
    draws = RandomAffine().draws(keys)
    torch.testing.assert_close(RandomAffine(0, 0, 0, 0)(images, draws), images)
    moved = RandomAffine(0, 0, 0, shift=0.5)(images, draws)
    assert moved.min() == -1 and moved.max() == pytest.approx(0.5)
