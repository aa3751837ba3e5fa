"""Tar files of WebDataset: samples, labels, shards, and damage."""

import io
import tarfile

import pytest

from tests.data.made_sets import image, tar_member, write_tar
from tests.data.test_catalog import ITEMS, content, opened


def written(path, **files):
    """Write a tar of files in this order."""
    path.write_bytes(b"".join(tar_member(name.replace("__", "."), body) for name, body in files.items()) + bytes(1024))
    return path


def test_shards_of_a_folder_or_a_pattern_have_common_classes(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(folder / "part-000.tar", ITEMS[:4])
    write_tar(folder / "part-001.tar", ITEMS[4:])
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    whole = opened(folder, "wds")
    assert content(whole) == ITEMS and list(whole.class_names) == ["a", "b", "c", "d"]
    assert whole.key(5) == "00001.jpg"
    some = opened(folder / "part-00*.tar", "wds")
    assert content(some) == ITEMS and list(some.class_names) == ["a", "b", "c", "d"]
    assert content(opened(folder / "part-001.tar", "wds")) == ITEMS[4:]


def test_labels_in_files_of_their_own_or_in_json(tmp_path):
    encoded = image(0)
    sets = {
        None: written(tmp_path / "a.tar", a__jpg=encoded, a__cls=b"3\n", b__json=b'{"label": 5}', b__png=encoded),
        "person": written(tmp_path / "b.tar", a__jpg=encoded, a__person=b"3", b__jpg=encoded, b__json=b'{"person": 5}'),
    }
    for label, path in sets.items():
        assert [label for label, _ in content(opened(path, "wds", columns=(None, label)))] == [3, 5]


def test_long_names_folders_and_other_files(tmp_path):
    long = "folder/" + "x" * 150
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, body in (
            ("folder", None),
            (f"{long}.jpg", image(1)),
            (f"{long}.cls", b"1"),
            (".hidden", b""),
            (f"{long}.seg.png", image(2)),
            ("folder/b.jpeg", image(3)),
            ("folder/b.cls", b"0"),
            ("README", b""),
        ):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if body is None else tarfile.REGTYPE
            member.size = len(body or b"")
            tar.addfile(member, io.BytesIO(body or b""))
    assert content(opened(tmp_path / "a.tar", "wds")) == [(1, image(1)), (0, image(3))]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a__cls": b"1"}, "a: it has no image, only cls"),
        ({"a__jpg": b"x"}, r"a: it has neither \.cls nor \.json with its class id"),
        ({"a__jpg": b"x", "a__json": b"{}"}, r"a: its \.json has no label; set data.label_column"),
        ({"a__jpg": b"x", "a__json": b"{"}, "a: Expecting property name"),
        ({"a__jpg": b"x", "a__cls": b"cat"}, "a: 'cat' is not a class id"),
        ({"a__jpg": b"x", "a__cls": b"1" * 70_000}, r"a\.cls has 70,000 bytes, which are too many for a label"),
    ],
)
def test_samples_that_cannot_be_used_are_named(files, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        opened(written(tmp_path / "a.tar", **files), "wds")


def test_compressed_and_truncated_files(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.add(__file__, "a.jpg")
    with pytest.raises(ValueError, match=r"a\.tar is an archive; unpack|a\.tar is not an uncompressed tar file"):
        opened(tmp_path / "a.tar", "wds")
    path = write_tar(tmp_path / "b.tar", ITEMS)
    whole = opened(path, "wds")
    path.write_bytes(path.read_bytes()[:1700])
    with pytest.raises(ValueError, match=r"the file ends within it"):
        whole.read(0)


def test_parts_of_a_set_are_not_mixed(tmp_path):
    for name in ("train-0.tar", "train-1.tar", "validation-0.tar"):
        write_tar(tmp_path / name, ITEMS)
    with pytest.raises(
        ValueError, match=r"several parts: train, validation; name those of one, such as .*/train\*\.tar"
    ):
        opened(tmp_path, "wds")
    assert len(opened(tmp_path / "train*.tar", "wds")) == 2 * len(ITEMS)
    with pytest.raises(ValueError, match=r"no file matches"):
        opened(tmp_path / "test*.tar", "wds")
