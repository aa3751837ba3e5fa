"""Invalid sources: special files, files of other kinds, and sets of one class."""

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.catalogs.catalog import catalog
from data.catalogs.origin import Origin
from data.conversion.options import parse
from data.convert import convert
from data.formats.encoded import UnreadableError
from data.formats.pairs import read_pairs
from data.formats.recordio import EXACT
from data.formats.unlabeled_images import ImageFiles
from data.sets.image_source import images_at
from data.sets.images import images as build
from tests.data.made_sets import (
    SIDE,
    image,
    images,
    rec_payload,
    record,
    write_base64,
    write_folder,
    write_list,
    write_lmdb,
    write_rec,
)

ITEMS = images([0, 0, 1, 1])


def opened(path: Path, format: str, on_corrupt: str = "stop"):
    return catalog(Origin(format, (str(path),)), path.parent / "cache", on_corrupt)


def trained_on(path: Path, format: str):
    return build(format=format, source=str(path), size=SIDE, cache_dir=str(path.parent / "cache"))


# Files that block or never end. A test hangs if one is opened, or read to its end.


def as_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


SPECIAL = pytest.mark.parametrize(("special", "kind"), [(as_pipe, "a named pipe"), (as_device, "a device")])


@SPECIAL
@pytest.mark.parametrize("format", ["folder", "list", "files"])
def test_an_image_that_is_not_a_regular_file(format, special, kind, tmp_path):
    if format == "folder":
        path = write_folder(tmp_path / "set", ITEMS) / "class 000" / "001.jpg"
        found = opened(tmp_path / "set", "folder")
    elif format == "list":
        found, path = opened(write_list(tmp_path / "set.txt", ITEMS), "list"), tmp_path / "1.jpg"
    else:
        found, path = ImageFiles([b"%b/%d.jpg" % (os.fsencode(tmp_path), k) for k in range(2)]), tmp_path / "1.jpg"
    special(path)
    with pytest.raises(UnreadableError, match=rf"1\.jpg: it is {kind}, not a regular file"):
        list(found.read_all(np.array([1])))


@SPECIAL
@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("set.rec", "rec"),
        ("set.idx", "rec"),
        ("set.classes.txt", "rec"),
        ("set.txt", "list"),
        ("set.lmdb/set_kv.txt", "lmdb"),
        ("set.lmdb/data.mdb", "lmdb"),
        ("set.lmdb/classes.txt", "lmdb"),
        ("set/classes.txt", "folder"),
        ("pairs.bin", "pairs"),
        ("pairs.txt", "pairs"),
    ],
)
def test_a_file_of_a_set_that_is_not_a_regular_file(name, format, special, kind, tmp_path):
    write_rec(tmp_path / "set.rec", ITEMS)
    write_folder(tmp_path / "set", ITEMS)
    write_lmdb(tmp_path / "set.lmdb", ITEMS)
    special(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{kind}|no data\.mdb"):
        if format == "pairs":
            read_pairs(tmp_path / name)
        else:
            opened(tmp_path / (name.partition("/")[0] if format != "rec" else "set.rec"), format)


def test_a_file_that_is_too_large_for_an_image(tmp_path):
    path = write_list(tmp_path / "set.txt", ITEMS)
    os.truncate(tmp_path / "1.jpg", 2**40)
    with pytest.raises(UnreadableError, match=r"1\.jpg: it has 1,099,511,627,776 bytes"):
        opened(path, "list").read(1)


# Files of other kinds


def archive(path: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.jpg", image(0))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as file:
            file.add(__file__, "a.jpg")


def content(raw: bytes):
    return lambda path: path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.bin", content(b"\x80\x04]."), "contains pairs of images, not classes; .*protocol.lfw.source"),
        ("x.zip", archive, "is an archive; unpack it"),
        ("x.tgz", archive, "is an archive; unpack it"),
        ("x", lambda path: archive(path.with_name("x.zip")) or path.with_name("x.zip").rename(path), "is an archive"),
        ("training.idx", content(b"0\t0\n1\t4212\n"), "index of a .rec file; pass the .rec file"),
        ("train.txt", content(b"7\t1.000000\ta b/c.jpg\n3\t0.0\td.jpg\n"), r"list of im2rec.*name it train\.lst$"),
        ("train.txt", content(b"7\t4\t5\t1.0\t0.1\td.jpg\n"), "list of im2rec"),
        ("data.mdb", content(b"\0" * 4096), "pass the folder that contains it"),
        ("a.jpg", content(image(0)), "is an image; pass the folder"),
    ],
)
def test_a_file_of_another_kind(name, write, message, tmp_path):
    path = tmp_path / name
    write(path)
    for attempt in (
        lambda: trained_on(path, "list"),
        lambda: trained_on(path, "folder"),
        lambda: images_at(str(path)),
        lambda: convert(parse([f"source={path}", f"target={tmp_path / 'out.lmdb'}"])),
    ):
        with pytest.raises(ValueError, match=rf"{name} .*{message}"):
            attempt()
    assert not (tmp_path / "out.lmdb").exists()


# Lists of im2rec, and parts of a set


def test_lists_of_im2rec_and_insightface(tmp_path):
    for number, (_, encoded) in enumerate(ITEMS):
        (tmp_path / f"{number} x.jpg").write_bytes(encoded)
    im2rec = "".join(f"{9 - number}\t{label}.000000\t{number} x.jpg\n" for number, (label, _) in enumerate(ITEMS))
    (tmp_path / "a.lst").write_text(im2rec)
    insightface = "".join(f"1\t{tmp_path}/{number} x.jpg\t{label}\n" for number, (label, _) in enumerate(ITEMS))
    (tmp_path / "b.lst").write_text(insightface)
    for name in ("a.lst", "b.lst"):
        found = opened(tmp_path / name, "list")
        assert [(found.label(i), found.read(i)) for i in range(len(found))] == ITEMS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("7\t4\t5\t1.0\td.jpg", "line 1: the line of a .lst file must be .*, and it has 5 columns"),
        ("7\t1.5\td.jpg", "line 1: '1.5' is not a class id"),
        ("7\t-1\td.jpg", "line 1: '-1' is not a class id"),
    ],
)
def test_lines_of_im2rec_that_cannot_be_used(line, reason, tmp_path):
    (tmp_path / "a.lst").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=reason):
        opened(tmp_path / "a.lst", "list")


def test_parts_of_a_set_are_not_classes(tmp_path):
    for part in ("train", "val"):
        write_folder(tmp_path / "set" / part, ITEMS)
    (tmp_path / "set" / ".thumbnails").mkdir()
    with pytest.raises(
        ValueError, match=r"the parts train, val of a set.* data\.source=.*/set/train, .*closed_set\.source=.*/set/val$"
    ):
        opened(tmp_path / "set", "folder")
    assert len(opened(tmp_path / "set" / "train", "folder")) == len(ITEMS)
    (tmp_path / "set" / "bus").mkdir()  # then they may be classes
    with pytest.raises(ValueError, match=r"for 2 classes, .* for 4"):
        opened(tmp_path / "set", "folder")
    assert opened(tmp_path / "set" / "*", "folder").num_classes == 2


# Classes in folders


def test_folders_in_folders_are_refused_until_a_pattern_says_which_are_classes(tmp_path):
    """The layout of Omniglot: a folder for each alphabet, with a folder for each character."""
    for alphabet in "ab":
        write_folder(tmp_path / "set" / alphabet, ITEMS)
    (tmp_path / "set" / "c").mkdir()
    for open_ in (lambda: opened(tmp_path / "set", "folder"), lambda: images_at(str(tmp_path / "set"))):
        with pytest.raises(
            ValueError, match=r"2 folders, whose images lie in 4 .*: '.*/set/\*' for 2 classes, '.*/set/\*/\*' for 4$"
        ):
            open_()
    alphabets, characters = opened(tmp_path / "set" / "*", "folder"), opened(tmp_path / "set" / "*" / "*", "folder")
    assert list(alphabets.class_names) == ["a", "b"] and alphabets.labels.tolist() == [0] * 4 + [1] * 4
    assert list(characters.class_names) == ["a/class 000", "a/class 001", "b/class 000", "b/class 001"]
    assert characters.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [*characters.read_all(range(8))] == 2 * [encoded for _, encoded in ITEMS]
    assert images_at(str(tmp_path / "set" / "*" / "*")).labels.tolist() == characters.labels.tolist()
    with pytest.raises(ValueError, match=r"no folder matches .*/set/x\*"):
        opened(tmp_path / "set" / "x*", "folder")


def test_further_folders_of_a_class(tmp_path):
    """Images of a class may lie deeper, if some lie in class folders or each class has one folder."""
    write_folder(tmp_path / "set", ITEMS)
    (tmp_path / "set" / "class 000" / "old").mkdir()
    (tmp_path / "set" / "class 000" / "old" / "5.jpg").write_bytes(image(5))
    assert opened(tmp_path / "set", "folder").labels.tolist() == [0, 0, 0, 1, 1]
    for name in ("dog", "cat"):
        (tmp_path / "one" / name / "images").mkdir(parents=True)
        (tmp_path / "one" / name / "images" / "5.jpg").write_bytes(image(5))
    assert list(opened(tmp_path / "one", "folder").class_names) == ["cat", "dog"]


# Sets of one class


def boxes(path: Path) -> None:
    """Write records of im2rec for detection: 2 numbers of header, and for each box its class and 4 coordinates."""
    labels = struct.pack("<7f", 2, 5, 1, 0.1, 0.2, 0.3, 0.4)
    path.write_bytes(b"".join(record(struct.pack("<IfQQ", 7, 0, k, 0) + labels + image(k)) for k in range(6)))


@pytest.mark.parametrize(
    ("format", "write", "message"),
    [
        ("rec", boxes, "all of its 6 images have the label 2, the first of 7 in a record .files for detection"),
        ("rec", lambda path: write_rec(path, images([3] * 6)), "all of its 6 images have the label 3; training"),
        ("list", lambda path: write_list(path, images([3] * 6)), "all of its 6 images have the label 3; training"),
        ("lmdb", lambda path: write_lmdb(path, images([3] * 6)), "all of its 6 images have the label 3; training"),
        (
            "folder",
            lambda path: write_folder(path / "faces", ITEMS),
            r"the only folder with images in it is 'faces', and a folder is a class; pass data\.source=/.*x/faces;",
        ),
        ("folder", lambda path: write_folder(path, images([1])), "the only folder with images in it is 'class 001'"),
    ],
)
def test_a_set_of_one_class_is_refused(format, write, message, tmp_path):
    write(tmp_path / "x")
    with pytest.raises(ValueError, match=rf"data\.source=/.*x has one class: {message}.*two classes or more"):
        trained_on(tmp_path / "x", format)


# Labels that float32 rounds


def test_labels_rounded_to_float32_are_refused(tmp_path):
    """The label 2^24 + 1 is stored as 2^24, so both are ambiguous."""
    path = tmp_path / "set.rec"
    labels = (5, EXACT, EXACT + 1, EXACT + 2, 2e7)
    path.write_bytes(b"".join(record(rec_payload(label, image(k), k)) for k, label in enumerate(labels)))
    with pytest.raises(ValueError, match=r"3 of 5 entries.*label 16,777,216 is too large: .rec stores labels as float"):
        opened(path, "rec")
    found = opened(path, "rec", "skip")
    assert [found.label(index) for index in range(len(found))] == [5, EXACT]
    source = write_list(tmp_path / "set.txt", [(EXACT, image(0)), (EXACT + 1, image(1))])
    with pytest.raises(ValueError, match=r"label 16,777,216 is too large: .*renumber=true"):
        convert(parse([f"source={source}", f"target={tmp_path / 'a.rec'}"]))


# Other kinds of images


def saved(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(image(0, kind="PNG"))).convert(mode).save(file, kind)
    return file.getvalue()


KINDS = [("a.pgm", saved("PPM", "L")), ("b.PPM", saved("PPM")), ("c.gif", saved("GIF")), ("d.pbm", saved("PPM", "1"))]


def test_rare_image_formats(tmp_path):
    for label, (name, encoded) in enumerate(KINDS):
        folder = tmp_path / "set" / f"class {label}"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(encoded)
    images_read = opened(tmp_path / "set", "folder")
    assert [images_read.read(k) for k in range(4)] == [encoded for _, encoded in KINDS]
    assert trained_on(tmp_path / "set", "folder").train.source.read(np.arange(4)).shape == (4, SIDE, SIDE, 3)
    listed = write_base64(tmp_path / "set.txt", [(k, encoded) for k, (_, encoded) in enumerate(KINDS)])
    assert [opened(listed, "list").read(k) for k in range(4)] == [encoded for _, encoded in KINDS]
    for source, target in ((tmp_path / "set", "a.lmdb"), (tmp_path / "a.lmdb", "b.rec"), (tmp_path / "b.rec", "out")):
        convert(parse([f"source={source}", f"target={tmp_path / target}", *["format=folder"] * (target == "out")]))
    files = sorted((tmp_path / "out").glob("*/*"))
    assert [path.suffix for path in files] == [".pgm", ".ppm", ".gif", ".pbm"]
    assert [path.read_bytes() for path in files] == [encoded for _, encoded in KINDS]
