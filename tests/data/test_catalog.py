"""Catalogs of all formats: images and labels, and the handling of damaged files."""

import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from data import grouping
from data.catalogs.catalog import Catalog, catalog
from data.catalogs.origin import Origin
from data.formats.encoded import UnreadableError
from data.formats.recordio import RecordFile
from tests.data.made_sets import (
    FORMATS,
    MAGIC,
    datum,
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

LABELS = [0, 0, 1, 2, 1, 2, 2, 0, 3]
ITEMS = images(LABELS)


def opened(path: Path, format: str, **options: object) -> Catalog:
    paths = path if isinstance(path, list) else [path]
    on_corrupt = options.pop("on_corrupt", "stop")
    return catalog(Origin(format, tuple(map(str, paths)), **options), paths[0].parent / "cache", on_corrupt)


def content(catalog: Catalog) -> list[tuple[int, bytes]]:
    return [(catalog.label(index), catalog.read(index)) for index in range(len(catalog))]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_returns_all_images_and_labels(format, tmp_path):
    write, name = FORMATS[format]
    path = write(tmp_path / name, ITEMS)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")} | {path: path.stat().st_mtime_ns}
    result = opened(path, format)
    assert sorted(content(result)) == sorted(ITEMS) and result.num_classes == 4
    if format != "folder":
        assert content(result) == ITEMS  # in the order of the file
    assert len({result.key(index) for index in range(len(result))}) == len(ITEMS)
    again = pickle.loads(pickle.dumps(result))
    assert content(again) == content(result)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for class_id in range(4):
        start, end = result.by_class.starts[class_id : class_id + 2]
        assert result.by_class.order[start:end].tolist() == np.flatnonzero(result.labels == class_id).tolist()


@pytest.mark.parametrize("label_first", [True, False])
def test_base64_lists_in_either_order(label_first, tmp_path):
    assert content(opened(write_base64(tmp_path / "set.txt", ITEMS, label_first), "list")) == ITEMS


def test_class_names_of_folders_and_files(tmp_path):
    result = opened(write_folder(tmp_path / "set", ITEMS), "folder")
    assert list(result.class_names) == ["class 000", "class 001", "class 002", "class 003"]
    assert result.class_names[1:3] == ["class 001", "class 002"]
    path = write_lmdb(tmp_path / "set.lmdb", ITEMS)
    assert not len(opened(path, "lmdb").class_names)  # classes are called by their ids
    (path / "classes.txt").write_text("a\nb\nc\nd\n")
    assert list(opened(path, "lmdb").class_names) == ["a", "b", "c", "d"]
    (path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="has label 3, but only 2 class names"):
        opened(path, "lmdb")


def test_a_file_defines_the_order_of_folders(tmp_path):
    path = write_folder(tmp_path / "set", ITEMS)
    (path / "classes.txt").write_text("class 003\nclass 000\nclass 001\nclass 002\n")
    assert list(opened(path, "folder").class_names) == ["class 003", "class 000", "class 001", "class 002"]
    (path / "classes.txt").write_text("class 003\nclass 000\n")
    with pytest.raises(ValueError, match=r"classes.txt does not list class 'class 001' of "):
        opened(path, "folder")


def test_labels_with_gaps_become_class_ids_and_names(tmp_path):
    items = images([70, 7, 70, 1_000_000])
    result = opened(write_rec(tmp_path / "set.rec", items), "rec")
    assert result.labels.tolist() == [1, 0, 1, 2] and list(result.class_names) == ["7", "70", "1000000"]
    assert content(result) == items


def test_several_sources_have_separate_or_shared_classes(tmp_path):
    """Offsets count distinct labels, so gaps and sources of one class do not matter."""
    first = write_lmdb(tmp_path / "a.lmdb", images([5, 5]))
    second = write_lmdb(tmp_path / "b.lmdb", images([0, 9, 5]))
    apart = opened([first, second], "lmdb")
    assert apart.labels.tolist() == [0, 0, 1, 3, 2] and list(apart.class_names) == ["0/5", "1/0", "1/5", "1/9"]
    assert [apart.read(index) for index in range(5)] == [encoded for _, encoded in images([5, 5]) + images([0, 9, 5])]
    together = opened([first, second], "lmdb", shared=True)
    assert together.labels.tolist() == [1, 1, 0, 2, 1] and list(together.class_names) == ["0", "5", "9"]
    folders = [write_folder(tmp_path / "x", images([1, 2])), write_folder(tmp_path / "y", images([2, 3]))]
    assert opened(folders, "folder", shared=True).labels.tolist() == [0, 1, 1, 2]
    with pytest.raises(ValueError, match="1 key-label files for 2 sources"):
        opened([first, second], "lmdb", labels=("one",))


def test_a_catalog_is_built_once_and_again_when_its_source_changes(tmp_path):
    path = write_list(tmp_path / "set.txt", ITEMS)
    folder = opened(path, "list").folder
    assert opened(path, "list").folder == folder
    (folder / "labels.bin").write_bytes(b"")
    assert content(opened(path, "list")) == ITEMS
    path.write_text("0.jpg\t0\n1.jpg\t1\n")
    assert len(opened(path, "list")) == 2 and opened(path, "list").folder != folder


# RecordIO


def test_a_header_record_states_the_images(tmp_path):
    for index in (True, False):
        path = write_rec(tmp_path / f"{index}.rec", ITEMS, header=True, index=index)
        assert content(opened(path, "rec")) == ITEMS
    missing = write_rec(tmp_path / "set.rec", ITEMS, header=True)
    lines = missing.with_suffix(".idx").read_text().splitlines(keepends=True)
    missing.with_suffix(".idx").write_text("".join(line for line in lines if not line.startswith("4\t")))
    with pytest.raises(ValueError, match=r"states 9 images, but set.idx contains 8"):
        opened(missing, "rec")


@pytest.mark.parametrize("before", [0, 1, 4, 8, 9])
def test_records_of_several_parts_are_joined(before, tmp_path):
    """A record is split at magic numbers at multiples of 4 only."""
    encoded = image(0) + bytes(-len(image(0)) % 4) + bytes(before) + MAGIC + b"tail" + MAGIC
    payload = rec_payload(3, encoded)
    cuts = [at for at in range(0, len(payload), 4) if payload[at : at + 4] == MAGIC]
    parts = [
        payload[start:end] for start, end in zip([0, *(at + 4 for at in cuts)], [*cuts, len(payload)], strict=True)
    ]
    flags = [1, *[2] * (len(parts) - 2), 3] if len(parts) > 1 else [0]
    path = tmp_path / "set.rec"
    whole = b"".join(record(part, flag) for part, flag in zip(parts, flags, strict=True))
    path.write_bytes(whole + record(rec_payload(4, image(1), 1)))
    assert content(opened(path, "rec")) == [(3, encoded), (4, image(1))]


def test_the_first_of_several_labels_counts(tmp_path):
    path = tmp_path / "set.rec"
    path.write_bytes(record(struct.pack("<IfQQ3f", 3, 0, 0, 0, 8, 0.5, 1.5) + image(0)))
    assert content(opened(path, "rec")) == [(8, image(0))]


GOOD = record(rec_payload(0, image(0), 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + record(b""), "1: it is empty"),
        (GOOD + record(b"short"), "1: its 5 bytes are too few for a header"),
        (GOOD + record(rec_payload(1, b"")), "1: it contains no image"),
        (GOOD + record(rec_payload(0.5, image(1))), "1: label 0.5 is not a class id"),
        (GOOD + record(rec_payload(-1, image(1))), "1: label -1.0 is not a class id"),
        (GOOD + record(rec_payload(float("nan"), image(1))), "1: label nan is not a class id"),
        (GOOD + record(struct.pack("<IfQQ", 2**31, 0, 0, 0)), "1: it is too short for its 2147483648 labels"),
        (GOOD + GOOD[:-40], "1: the file ends within it"),
        (GOOD + b"\0" * 40, "1: no record begins at byte"),
        (GOOD + record(b"", 2), "1: flag 2 at byte"),
        (GOOD + record(rec_payload(0, image(1)), 1), "1: the file ends within it"),
        (GOOD + b"\x0a\x23", "1: the file ends before it"),
    ],
)
def test_damaged_records_are_named_and_can_be_skipped(content, message, tmp_path):
    path = tmp_path / "set.rec"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"1 of 2 entries cannot be read: {message}"):
        opened(path, "rec")
    rest = opened(path, "rec", on_corrupt="skip")
    assert len(rest) == 1 and rest.read(0) == image(0) and rest.bad == 1


def test_a_damaged_record_does_not_hide_the_next_ones(tmp_path):
    """The reader searches the next magic number if there is no index."""
    path = write_rec(tmp_path / "set.rec", ITEMS, index=False)
    stored = bytearray(path.read_bytes())
    second = stored.index(MAGIC, 4)
    for place, bits in ((second, 255), (second + 5, 64)):  # the magic number; the length
        damaged = bytearray(stored)
        damaged[place] ^= bits
        path.write_bytes(damaged)
        assert content(opened(path, "rec", on_corrupt="skip")) == [ITEMS[0], *ITEMS[2:]]


def test_a_header_rounded_to_float32(tmp_path, monkeypatch):
    """A header may state a few images more or fewer above 2^24, here above 4."""
    from data.formats import recordio

    monkeypatch.setattr(recordio, "EXACT", 4)
    monkeypatch.setattr(recordio.np, "spacing", lambda number: 2)
    for index in (True, False):
        for off in (-2, 0, 2):
            path = write_rec(tmp_path / f"{index}{off}.rec", ITEMS, header=True, index=index)
            stored = bytearray(path.read_bytes())
            stored[32:36] = struct.pack("<f", len(ITEMS) + 1 + off)
            path.write_bytes(stored)
            assert content(opened(path, "rec")) == ITEMS


def test_files_next_to_a_link_are_found(tmp_path):
    from data.sets.images import images as build

    path = write_list(tmp_path / "set.txt", ITEMS)
    (tmp_path / "blobs").mkdir()
    path.rename(tmp_path / "blobs" / "x123")
    path.symlink_to(tmp_path / "blobs" / "x123")
    data = build(format="list", source=str(path), size=24, cache_dir=str(tmp_path / "cache"), num_heldout=0)
    assert data.train.source.read(np.arange(9)).shape == (9, 24, 24, 3)


def test_circular_links_are_refused(tmp_path):
    path = write_folder(tmp_path / "set", ITEMS)
    (path / "class 000" / "again").symlink_to(path / "class 000")
    with pytest.raises(ValueError, match=r"cannot be listed \(Too many levels"):
        opened(path, "folder")


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = write_list(tmp_path / "set.txt", ITEMS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (tmp_path / "set.classes.txt").write_bytes(b"\xef\xbb\xbfa\nb\nc\nd\n")
    result = opened(path, "list")
    assert content(result) == ITEMS and list(result.class_names) == ["a", "b", "c", "d"]


def test_an_index_with_wrong_offsets(tmp_path):
    path = write_rec(tmp_path / "set.rec", ITEMS)
    lines = path.with_suffix(".idx").read_text()
    path.with_suffix(".idx").write_text(lines + f"9\t{path.stat().st_size}\n10\t{10**12}\n11\t4\n")
    with pytest.raises(
        ValueError, match=r"3 of 12 entries.*11: no record begins at byte 4.*9: the file ends before it"
    ):
        opened(path, "rec")
    assert content(opened(path, "rec", on_corrupt="skip")) == ITEMS


@pytest.mark.parametrize(
    ("line", "message"),
    [("3\t0\n", "key 3 is listed twice"), ("x\t0\n", "every line"), ("12\n", "every line"), ("12\t-4\n", "every line")],
)
def test_invalid_index_files_are_refused(line, message, tmp_path):
    path = write_rec(tmp_path / "set.rec", ITEMS)
    with path.with_suffix(".idx").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=f"set.idx: {message}"):
        opened(path, "rec")


def test_a_record_file_that_shrinks_after_its_catalog(tmp_path):
    path = write_rec(tmp_path / "set.rec", ITEMS)
    result = opened(path, "rec")
    os.truncate(path, 100)
    with pytest.raises(UnreadableError, match=r"set.rec: the record at byte \d+: the file ends before it"):
        result.read(8)
    assert result.key(8).startswith("the record at byte")


def test_handles_are_not_pickled(tmp_path):
    file = RecordFile(str(write_rec(tmp_path / "set.rec", ITEMS)))
    assert len(list(file.scan())) == 9
    assert pickle.loads(pickle.dumps(file)).read(0) == ITEMS[0][1]


# LMDB


def test_keys_of_any_bytes(tmp_path):
    keys = [b"with space", "猫".encode(), b"\xff\xfe", b"a/b.jpg", b"5", b"x" * 500, b"tab\t", b"k", b" lead"]
    path = write_lmdb(tmp_path / "set.lmdb", ITEMS, keys)
    result = opened(path, "lmdb")
    assert content(result) == ITEMS
    assert [result.key(index) for index in range(4)] == ["with space", "猫", "\\xff\\xfe", "a/b.jpg"]


def test_a_key_listed_twice(tmp_path):
    path = write_lmdb(tmp_path / "set.lmdb", ITEMS)
    with (path / "set_kv.txt").open("a") as file:
        file.write("00003.jpg 1\n")
    with pytest.raises(ValueError, match=r"key '00003.jpg' is listed twice"):
        opened(path, "lmdb")


@pytest.mark.parametrize(
    "line", [b"nolabel\n", b"key -1\n", b"key 1.5\n", b" 4\n", b"key \xff\n", b"key 9999999999999999999\n"]
)
def test_lines_without_a_key_and_a_label(line, tmp_path):
    path = write_lmdb(tmp_path / "set.lmdb", ITEMS)
    with (path / "set_kv.txt").open("ab") as file:
        file.write(b"\n" + line)
    with pytest.raises(ValueError, match=r"1 of 10 entries cannot be read: line 11: "):
        opened(path, "lmdb")
    assert content(opened(path, "lmdb", on_corrupt="skip")) == ITEMS


def test_values_without_an_image(tmp_path):
    items = [*ITEMS[:2], (0, b"")]
    path = write_lmdb(tmp_path / "set.lmdb", items)
    (path / "set_kv.txt").write_text("00000.jpg 0\nelsewhere 0\n00002.jpg 0\nbroken 0\nraw 0\n")
    import lmdb

    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"broken", datum(image(1))[:-5])
        transaction.put(b"raw", image(5))
    result = opened(path, "lmdb")
    assert result.read(0) == image(0) and result.read(4) == image(5)
    for index, message in ((1, "elsewhere: the database does not contain it"), (2, "no image"), (3, "not a Datum")):
        with pytest.raises(UnreadableError, match=message):
            result.read(index)


def test_a_truncated_lmdb_is_refused(tmp_path):
    """Reading past the end of a mapped file ends the process, so the size is checked before."""
    path = write_lmdb(tmp_path / "set.lmdb", ITEMS)
    os.truncate(path / "data.mdb", 4096 * 4)
    with pytest.raises(ValueError, match=r"set.lmdb: .*truncated"):
        opened(path, "lmdb").read(0)


def damage_page(what: str, page: np.ndarray, another: np.ndarray) -> None:
    if what == "zeros":
        page[:16] = page[512:] = 0
    elif what == "garbage":
        page[:] = np.random.default_rng(0).integers(0, 256, len(page))
    elif what == "lengths":  # of keys and values
        for place in page[16:26].view("<u2"):
            page[place : place + 8] = 255
    elif what == "another page":
        page[:] = another
    else:  # the number of the page
        page[3] += 1


@pytest.mark.parametrize("what", ["zeros", "garbage", "lengths", "another page", "number"])
def test_damaged_pages_of_an_lmdb(what, tmp_path):
    """Reading a damaged page may end the process. The keys below it are reported, and the others are readable."""
    keys = [b"%06d/%064d" % (7919 * number % 3000, number) for number in range(3000)]
    path = write_lmdb(tmp_path / "set.lmdb", [(number % 9, b"\xff\xd8%d" % number) for number in range(3000)], keys)
    whole = np.fromfile(path / "data.mdb", np.uint8).reshape(-1, 4096)
    headers = [struct.unpack_from("<Q2xH", page.tobytes()) for page in whole]  # number and kind
    branches = [number for number in range(2, len(whole)) if headers[number] == (number, 1)]
    leaves = [number for number in range(2, len(whole)) if headers[number] == (number, 2)]
    assert len(branches) > 2  # one of them is the root
    lost = set()
    for number in (*branches, leaves[0], leaves[len(leaves) // 2], leaves[-1]):
        damaged = whole.copy()
        damage_page(what, damaged[number], whole[leaves[1]])
        damaged.tofile(path / "data.mdb")
        with pytest.raises(ValueError, match=rf"of 3,000 entries.*: page {number} of data\.mdb is damaged") as error:
            opened(path, "lmdb")
        bad = int(re.search(r"([\d,]+) of", str(error.value))[1].replace(",", ""))
        lost.add("some" if bad < 100 else "many" if bad < 3000 else "all")
        if bad < 3000:
            result = opened(path, "lmdb", on_corrupt="skip")
            assert len(result) == 3000 - bad
            for index in range(len(result)):
                assert result.read(index) == b"\xff\xd8%d" % int(result.key(index).rpartition("/")[2])
    assert lost == {"some", "many", "all"}


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "data.mdb is empty"), (b"no database" * 1000, "LMDB cannot open data.mdb")]
)
def test_files_that_are_not_an_lmdb(content, message, tmp_path):
    path = write_lmdb(tmp_path / "set.lmdb", ITEMS)
    (path / "data.mdb").write_bytes(content)
    with pytest.raises(ValueError, match=rf"set.lmdb: {message}"):
        opened(path, "lmdb").read(0)


def test_a_single_key_label_file_is_needed(tmp_path):
    path = write_lmdb(tmp_path / "set.lmdb", ITEMS)
    other = tmp_path / "labels.txt"
    other.write_text("00001.jpg 3\n")
    assert content(opened(path, "lmdb", labels=(str(other),))) == [(3, ITEMS[1][1])]
    (path / "more_kv.txt").write_text("")
    with pytest.raises(ValueError, match="2 files"):
        opened(path, "lmdb")
    with pytest.raises(ValueError, match=r"/nowhere does not exist; a key-label file is expected there"):
        opened(path, "lmdb", labels=("/nowhere",))


# Lists and folders


def test_a_list_with_a_missing_file(tmp_path):
    path = write_list(tmp_path / "set.txt", ITEMS)
    (tmp_path / "3.jpg").unlink()
    result = opened(path, "list")
    with pytest.raises(UnreadableError, match=r"set.txt: 3.jpg: No such file"):
        result.read(3)


def test_invalid_lines_of_a_list(tmp_path):
    path = write_list(tmp_path / "set.txt", ITEMS)
    with path.open("a") as file:
        file.write("one column\n\t5\nx.jpg\tname\n\n")
    with pytest.raises(
        ValueError, match=r"3 of 12 entries cannot be read: line 10: .*line 11: .*line 12: 'name' is not a class id"
    ):
        opened(path, "list")


def test_invalid_base64(tmp_path):
    path = write_base64(tmp_path / "set.txt", ITEMS)
    path.write_text("0\t/9j/A\n0\t/9j/====A\n")
    result = opened(path, "list")
    for index in range(2):
        with pytest.raises(UnreadableError, match=r"set.txt: byte-\d+: "):
            result.read(index)


def test_a_file_of_another_format(tmp_path):
    path = write_rec(tmp_path / "set.rec", ITEMS)
    with pytest.raises(ValueError, match=r"(\d+) of \1 entries cannot be read: line 2: .*; check .* format=list"):
        opened(path, "list")


def test_windows_line_ends_and_long_lines(tmp_path):
    path = tmp_path / "set.txt"
    large = image(0, side=200)
    path.write_bytes(write_base64(path, [(1, large), (2, large)]).read_bytes().replace(b"\n", b"\r\n"))
    assert content(opened(path, "list")) == [(1, large), (2, large)]


def test_folders_of_any_names_and_depth(tmp_path):
    for name in ("a b/x.jpg", "猫/deep/er/y.PNG", "tab\there/z.jpeg", "empty"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_bytes(image(0))
        else:
            path.mkdir()
    (tmp_path / "set" / "a b" / "notes.txt").write_text("")
    result = opened(tmp_path / "set", "folder")
    assert list(result.class_names) == ["a b", "tab\there", "猫"]  # folders without images are not classes
    assert [result.read(index) for index in range(3)] == [image(0)] * 3


@pytest.mark.parametrize("format", FORMATS)
def test_missing_and_empty_sources_are_refused(format, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        opened(tmp_path / "nowhere", format)
    write, name = FORMATS[format]
    path = write(tmp_path / name, ITEMS)
    if format == "lmdb":
        (path / "set_kv.txt").write_text("")
    elif format == "folder":
        path = tmp_path / "cache"
        path.mkdir()
    else:
        path.write_bytes(b"")
        path.with_suffix(".idx").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"contains no image|is empty|empty file|cannot be read as a Parquet"):
        opened(path, format)


def test_grouping_out_of_core(tmp_path, monkeypatch):
    """Small blocks give the same result as one sort."""
    labels = np.random.default_rng(0).integers(0, 50, 1000).astype(np.int32)
    labels[labels == 7] = 8
    whole = grouping.group(labels, 51)
    monkeypatch.setattr(grouping, "CHUNK", 64)
    monkeypatch.setattr(grouping, "BLOCK", 100)
    parts = grouping.group(labels, 51, tmp_path)
    assert np.array_equal(whole.order, np.argsort(labels, kind="stable"))
    assert np.array_equal(parts.order, whole.order) and np.array_equal(parts.starts, whole.starts)
    assert parts.present.tolist() == [c for c in range(51) if c not in (7, 50)]
    assert whole.starts.tolist() == np.searchsorted(np.sort(labels), np.arange(52)).tolist()
