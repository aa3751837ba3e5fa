"""Verification sets: lists of pairs, LFW's pairs.txt, and InsightFace's .bin, read and written."""

import pickle

import numpy as np
import pytest

from data.conversion.options import parse
from data.convert import convert
from data.formats.pairs import names_of, read_pairs
from tests.data.made_sets import image


def names(pairs, which):
    return [pairs.images.name(index) for index in getattr(pairs, which)]


def encoded(pairs, which):
    return list(pairs.images.read_all(getattr(pairs, which)))


def test_pairs_of_a_list(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_bytes("a.jpg\tb c.jpg\t1\r\n\nd/猫.jpg\t/abs/e.jpg\t0\na.jpg\tg\ttrue\nx y 0\n".encode())
    pairs = read_pairs(path)
    assert len(pairs) == 4 and pairs.same.tolist() == [True, False, True, False]
    assert len(pairs.images) == 7  # a.jpg once
    assert names(pairs, "first") == [str(tmp_path / "a.jpg"), str(tmp_path / "d" / "猫.jpg")] + [
        str(tmp_path / name) for name in ("a.jpg", "x")
    ]
    assert names(pairs, "second")[:2] == [str(tmp_path / "b c.jpg"), "/abs/e.jpg"]
    assert names(read_pairs(path, root="/images"), "second")[2:] == ["/images/g", "/images/y"]


@pytest.fixture
def lfw(tmp_path):
    """A folder with three images of each of two people, and pairs.txt with two folds of two pairs."""
    for person, ending, first in (("Abel_P", "jpg", 0), ("Zoe", "png", 3)):
        (tmp_path / person).mkdir()
        for number in (1, 2, 3):
            file = tmp_path / person / f"{person}_{number:04d}.{ending}"
            file.write_bytes(image(first + number, kind="PNG" if ending == "png" else "JPEG"))
    lines = ("2\t1", "Abel_P\t1\t2", "Abel_P\t1\tZoe\t3", "Zoe\t1\t3", "Zoe\t2\tAbel_P\t2")
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    return tmp_path


def test_pairs_of_lfw(lfw):
    pairs = read_pairs(lfw / "pairs.txt")
    assert pairs.same.tolist() == [True, False, True, False]
    assert encoded(pairs, "first") == [image(1), image(1), image(4, kind="PNG"), image(5, kind="PNG")]
    assert encoded(pairs, "second") == [image(2), image(6, kind="PNG"), image(6, kind="PNG"), image(2)]


@pytest.mark.parametrize("shape", [None, (-1,), (-1, 1), (1, -1)])  # of arrays; older versions of OpenCV return columns
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pairs_of_a_bin(shape, protocol, tmp_path):
    images = [image(n) for n in (0, 1, 2, 0)]
    content = [np.frombuffer(encoded, np.uint8).reshape(shape) for encoded in images] if shape else images
    (tmp_path / "set.bin").write_bytes(pickle.dumps((content, [True, False]), protocol))
    pairs = read_pairs(tmp_path / "set.bin")
    assert pairs.same.tolist() == [True, False] and len(pairs.images) == 3
    assert encoded(pairs, "first") == [image(0), image(2)] and encoded(pairs, "second") == [image(1), image(0)]
    assert names(pairs, "first")[1].endswith("set.bin: image 2")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/lfw.bin"], ["lfw"]),
        (["/a/lfw.bin", "/a/cfp_fp.bin"], ["lfw", "cfp_fp"]),
        (["/a/lfw.bin", "/a/lfw.txt"], ["lfw.bin", "lfw.txt"]),
        (["/a/lfw.bin", "/b/lfw.bin", "/b/cfp.bin"], ["a_lfw", "b_lfw", "b_cfp"]),
        (["/a/v1/lfw.bin", "/b/v1/lfw.bin"], ["a_v1_lfw", "b_v1_lfw"]),
    ],
)
def test_lists_get_unique_names(paths, names):
    assert names_of("source", paths) == names
    with pytest.raises(ValueError, match=r"source=.*lfw\.bin names a file twice"):
        names_of("source", [*paths, paths[0]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "contains no pair"),
        ("10\t300\n", "contains no pair"),
        ("a\tb\t1\na b c d e\n", "line 2 must be two paths and 1 or 0"),
        ("a\tb\tmaybe\n", "line 1 must be .*'a\\\\tb\\\\tmaybe'"),
        ("a\tb\n", "line 1"),
        ("a\t1\tb\tx\n", "line 1"),
        ("a\t1\t2\t3\t4\n", "line 1"),
    ],
)
def test_invalid_lists_are_refused(content, message, tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        read_pairs(path)
    with pytest.raises(ValueError, match="does not exist; a list of pairs is expected there"):
        read_pairs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([b"a", b"b"], [True, False]), "two images for each boolean, but contains 2 and 2"),
        ([b"a", b"b"], "two images for each boolean|contains something else"),
        (([b"a", 3], [True]), "image 1 is of type int, not an encoded image"),
        (([b"a", np.zeros((4, 4, 3), np.uint8)], [True]), r"image 1 is of type uint8 array \[4, 4, 3\]"),
        (([b"a", b"b"], [2]), "must contain booleans as its second list, but contains other values"),
        (([], []), "contains no pair"),
        ({"a": 1}, "but contains something else"),
        (([], np.array(True)), "two images for each boolean"),
    ],
)
def test_pickles_without_pairs_are_refused(content, message, tmp_path):
    (tmp_path / "set.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"set.bin.* .*({message})"):
        read_pairs(tmp_path / "set.bin")


def test_pairs_are_converted_to_a_bin(lfw):
    convert(parse([f"source={lfw / 'pairs.txt'}", f"target={lfw / 'lfw.bin'}"]))
    images, same = pickle.loads((lfw / "lfw.bin").read_bytes())
    pairs = read_pairs(lfw / "pairs.txt")
    assert images[0::2] == encoded(pairs, "first") and images[1::2] == encoded(pairs, "second")
    assert same == [True, False, True, False] and all(type(flag) is bool for flag in same)
    again = read_pairs(lfw / "lfw.bin")
    assert np.array_equal(again.first, pairs.first) and np.array_equal(again.second, pairs.second)
    # A .bin as the source, encoded again.
    convert(parse([f"source={lfw / 'lfw.bin'}", f"target={lfw / 'small.bin'}", "encode=jpeg", "size=16"]))
    assert all(encoded[:2] == b"\xff\xd8" for encoded in pickle.loads((lfw / "small.bin").read_bytes())[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "lfw.bin already exists"),
        (["target={}/new.bin", "shuffle=true"], "shuffle=True does not apply to format=bin; remove it"),
        (["target={}/new.bin", "labels=x"], "labels=x does not apply to format=bin; remove it"),
        (["target={}/new.bin", "root=/nowhere"], "/nowhere/Abel_P/Abel_P_0001.*No such file"),
        (["target={}/new.bin", "source={}/bad.txt"], "pairs.txt: it is not an image in a known format"),
        (["target={}/new.zip", "format=bin"], "must end in .bin"),
        (["target=s3://bucket/new.bin"], "new.bin must be a local path"),
        (["target={}/none/new.bin"], "cannot be written: the folder .*/none does not exist"),
    ],
)
def test_a_bin_that_cannot_be_written(words, message, lfw):
    (lfw / "lfw.bin").write_bytes(b"there")
    (lfw / "bad.txt").write_text("pairs.txt\tpairs.txt\t1\n")
    words = [f"source={lfw / 'pairs.txt'}", f"target={lfw / 'lfw.bin'}", *(word.format(lfw) for word in words)]
    with pytest.raises(ValueError, match=message):
        convert(parse(words))
    with pytest.raises(ValueError, match=r"must be a single list of pairs; one list becomes one \.bin"):
        convert(parse(["source=[a,b]", f"target={lfw / 'new.bin'}"]))
    assert (lfw / "lfw.bin").read_bytes() == b"there" and not list(lfw.glob("*new*")) and not list(lfw.glob(".*"))
