"""Conversion: bytes and labels are kept, killed conversions resume, and unreadable images are reported."""

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from PIL import Image
from rich.console import Console

from data.catalogs.catalog import catalog
from data.catalogs.origin import Origin
from data.conversion import images as module
from data.conversion import writing
from data.conversion.options import parse
from data.conversion.report import Report
from data.conversion.writers import plain, plain_name
from data.convert import convert
from tests.data.made_sets import (
    SIDE,
    bomb,
    datum,
    image,
    images,
    read_lmdb,
    read_parquet,
    read_rec,
    read_tar,
    write_base64,
    write_folder,
    write_list,
    write_lmdb,
    write_rec,
)

LABELS = [0, 0, 1, 2, 1, 2, 2, 0, 3]
ITEMS = images(LABELS)


def run(*words: object) -> Report:
    return convert(parse([*map(str, words)]), Console(file=io.StringIO(), width=100))


def folder_content(path: Path) -> list[tuple[int, bytes]]:
    lines = [line.split("\t") for name in ("train.txt", "val.txt") for line in (path / name).read_text().splitlines()]
    return sorted((int(label), (path / file).read_bytes()) for file, label in lines)


READ = {
    "lmdb": read_lmdb,
    "rec": read_rec,
    "folder": folder_content,
    "wds": read_tar,
    "parquet": read_parquet,
}


def test_round_trip_over_shards(tmp_path):
    """Conversion folder -> tar -> Parquet -> rec. Class names are kept."""
    source = write_folder(tmp_path / "set", ITEMS)
    first, second, last = tmp_path / "a", tmp_path / "b", tmp_path / "c.rec"
    run(f"source={source}", f"target={first}", "format=wds")
    run(f"source={first}", f"target={second}", "format=parquet", "verify=true")
    run(f"source={second}", f"target={last}")
    assert sorted(read_tar(first)) == sorted(read_parquet(second)) == sorted(read_rec(last)) == sorted(ITEMS)
    names = ["class 000", "class 001", "class 002", "class 003"]
    assert (first / "classes.txt").read_text().splitlines() == names
    assert last.with_suffix(".classes.txt").read_text().splitlines() == names
    about = json.loads(pq.read_schema(second / "part-00000.parquet").metadata[b"huggingface"])
    assert about["info"]["features"]["label"] == {"names": names, "_type": "ClassLabel"}


def test_round_trip_over_all_formats(tmp_path):
    """Conversion folder -> lmdb -> rec -> lmdb -> folder, read back by the readers of the tests."""
    source = write_folder(tmp_path / "set", ITEMS)
    first, second, third, last = (tmp_path / name for name in ("a.lmdb", "b.rec", "c.lmdb", "d"))
    report = run(f"source={source}", f"target={first}")
    assert (report.classes, report.images, report.unreadable) == (4, 9, [])
    assert report.bytes == sum(len(encoded) for _, encoded in ITEMS)
    run(f"source={first}", f"target={second}")
    run(f"source={second}", f"target={third}", "verify=true")
    run(f"source={third}", f"target={last}", "format=folder", "validation=0.4")
    assert sorted(read_lmdb(first)) == sorted(read_rec(second)) == sorted(read_lmdb(third)) == sorted(ITEMS)
    assert folder_content(last) == sorted(ITEMS)
    assert (tmp_path / "property").read_text() == f"4,{SIDE},{SIDE}\n"
    names = ["class 000", "class 001", "class 002", "class 003"]
    assert (first / "classes.txt").read_text().splitlines() == names
    assert second.with_suffix(".classes.txt").read_text().splitlines() == names
    train, val = ((last / name).read_text().splitlines() for name in ("train.txt", "val.txt"))
    assert 0 < len(val) < len(train)
    again = catalog(Origin("folder", (str(last),)), tmp_path / "cache")
    assert sorted((again.label(i), again.read(i)) for i in range(9)) == sorted(ITEMS)
    assert {path.name for path in tmp_path.iterdir()} >= {"set", "a.lmdb", "b.rec", "b.idx", "c.lmdb", "d"}
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    assert sorted(path.name for path in first.iterdir()) == ["a_kv.txt", "classes.txt", "data.mdb"]


@pytest.mark.parametrize("write", [write_list, write_base64, write_rec])
def test_other_sources_keep_bytes_labels_and_order(write, tmp_path):
    items = images([5, 70_000, 5, 9])  # labels with gaps are kept
    source = write(tmp_path / ("set.rec" if write is write_rec else "set.txt"), items)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    keys = "number" if write is write_base64 else "source"
    run(f"source={source}", f"target={tmp_path / 'out' / 'a.lmdb'}", f"keys={keys}")
    assert read_lmdb(tmp_path / "out" / "a.lmdb") == items
    run(f"source={source}", f"target={tmp_path / 'out' / 'b.rec'}", "renumber=true")
    assert read_rec(tmp_path / "out" / "b.rec") == [
        (new, encoded) for new, (_, encoded) in zip((0, 2, 0, 1), items, strict=True)
    ]
    assert (tmp_path / "out" / "b.classes.txt").read_text() == "5\n9\n70000\n"
    assert {path: path.read_bytes() for path in before} == before


def test_shuffled_and_with_workers(tmp_path):
    source = write_rec(tmp_path / "set.rec", images(range(40)))
    run(f"source={source}", f"target={tmp_path / 'a.rec'}", "shuffle=true", "num_workers=1")
    run(f"source={source}", f"target={tmp_path / 'b.rec'}", "shuffle=true", "seed=1")
    first, second = read_rec(tmp_path / "a.rec"), read_rec(tmp_path / "b.rec")
    assert first != second != images(range(40)) and sorted(first) == sorted(second) == images(range(40))


def test_several_sources_into_one(tmp_path):
    sources = [write_rec(tmp_path / f"{name}.rec", images(labels)) for name, labels in (("x", [0, 1]), ("y", [1, 3]))]
    both = f"source=[{sources[0]},{sources[1]}]"
    run(both, f"target={tmp_path / 'apart.lmdb'}", "keys=number")
    assert [label for label, _ in read_lmdb(tmp_path / "apart.lmdb")] == [0, 1, 2, 3]
    run(both, f"target={tmp_path / 'one.lmdb'}", "keys=number", "shared=true")
    assert [label for label, _ in read_lmdb(tmp_path / "one.lmdb")] == [0, 1, 1, 3]
    with pytest.raises(ValueError, match="key '0' is not unique, as LMDB requires; set keys=number"):
        run(both, f"target={tmp_path / 'twice.lmdb'}")


def test_images_are_encoded_again_only_on_request(tmp_path):
    source = write_folder(
        tmp_path / "set", [(0, image(0, side=50)), (1, image(1, kind="PNG")), (1, image(2, mode="L"))]
    )
    run(f"source={source}", f"target={tmp_path / 'a.rec'}", "encode=jpeg", "size=32", "quality=90")
    for _, encoded in read_rec(tmp_path / "a.rec"):
        opened = Image.open(io.BytesIO(encoded))
        assert (opened.format, opened.size, opened.mode) == ("JPEG", (32, 32), "RGB")
    assert (tmp_path / "property").read_text() == "2,32,32\n"
    run(f"source={source}", f"target={tmp_path / 'b.rec'}", "encode=jpeg")
    (pixels,) = [np.asarray(Image.open(io.BytesIO(e))) for label, e in read_rec(tmp_path / "b.rec") if label == 0]
    expected = np.asarray(Image.open(io.BytesIO(image(0, side=50))))
    assert pixels.shape == (50, 50, 3) and np.abs(pixels.astype(int) - expected).mean() < 3


BROKEN = [
    (0, image(0)),
    (1, b""),
    (1, image(1)),
    (2, image(2, side=100)[:-300]),
    (2, bomb()),
    (2, b"no image"),
    (3, bomb("PNG")),
]


def test_unreadable_images_stop_a_conversion_or_are_skipped_or_listed(tmp_path):
    source = write_lmdb(tmp_path / "set.lmdb", BROKEN)
    with pytest.raises(ValueError, match=r"00001.jpg: .*it contains no image; on_corrupt=skip"):
        run(f"source={source}", f"target={tmp_path / 'a.rec'}")
    report = run(f"source={source}", f"target={tmp_path / 'a.rec'}", "on_corrupt=skip", "verify=true")
    assert [bad.key for bad in report.unreadable] == [f"0000{k}.jpg" for k in (1, 3, 4, 5, 6)]
    reasons = [bad.reason for bad in report.unreadable]
    for reason, expected in zip(
        reasons,
        ("contains no image", "decoded", "more than", "not an image in a known format", "more than"),
        strict=True,
    ):
        assert expected in reason
    assert read_rec(tmp_path / "a.rec") == [BROKEN[0], BROKEN[2]]
    listed = run(f"source={source}", "on_corrupt=list")
    assert listed.unreadable == report.unreadable and listed.images == 2


def test_entries_without_images_are_reported(tmp_path):
    source = write_rec(tmp_path / "set.rec", ITEMS)
    with source.with_suffix(".idx").open("a") as file:
        file.write("77\t4\n")
    with pytest.raises(ValueError, match="77: no record begins at byte 4"):
        run(f"source={source}", f"target={tmp_path / 'a.lmdb'}")
    report = run(f"source={source}", f"target={tmp_path / 'a.lmdb'}", "on_corrupt=skip")
    assert [bad.key for bad in report.unreadable] == ["77"] and report.images == 9
    command = [sys.executable, "-m", "data.convert", f"source={source}", "on_corrupt=list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert listed.returncode == 1 and "unreadable: 77: no record begins at byte 4" in listed.stdout


@pytest.mark.parametrize(
    ("name", "format"),
    [("out.lmdb", "lmdb"), ("out.rec", "rec"), ("out", "folder"), ("out", "wds"), ("out", "parquet")],
)
def test_an_interrupted_conversion_resumes(name, format, tmp_path, monkeypatch):
    """A conversion interrupted at any image, also between two saved states, gives the same result."""
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(writing, "FLUSH", 2)
    items = images([0, 1, 2] * 5)
    source = write_rec(tmp_path / "set.rec", items)
    undisturbed = tmp_path / "undisturbed" / name
    run(f"source={source}", f"target={undisturbed}", f"format={format}", "shuffle=true")
    encoded = module.ImageConverter.encoded
    for number in range(0, 15, 3):
        calls = itertools.count()
        target = tmp_path / str(number) / name

        def killed(self, index, calls=calls, number=number):
            if next(calls) == number:
                raise KeyboardInterrupt
            return encoded(self, index)

        monkeypatch.setattr(module.ImageConverter, "encoded", killed)
        with pytest.raises(KeyboardInterrupt):
            run(f"source={source}", f"target={target}", f"format={format}", "shuffle=true")
        assert not target.exists()
        seen: list[int] = []
        monkeypatch.setattr(
            module.ImageConverter, "encoded", lambda self, index, seen=seen: seen.append(index) or encoded(self, index)
        )
        run(f"source={source}", f"target={target}", f"format={format}", "shuffle=true", "num_workers=0")
        assert len(seen) == 2 * 15 - number // 4 * 4  # writes the missing images and compares all
        monkeypatch.setattr(module.ImageConverter, "encoded", encoded)
        read = READ[format]
        assert read(target) == read(undisturbed)


def test_classes_in_folders_are_named_by_a_pattern(tmp_path):
    for alphabet in "ab":
        write_folder(tmp_path / "set" / alphabet, images([0, 0, 1, 1]))
    assert run(f"source={tmp_path}/set/*/*", f"target={tmp_path}/out", "format=folder").images == 8
    copy = catalog(Origin("folder", (str(tmp_path / "out"),)), tmp_path / "cache")
    assert copy.num_classes == 4 and sorted({name.replace("/", "_") for name in copy.class_names}) == list(
        copy.class_names
    )


def test_a_killed_process_resumes(tmp_path):
    """The process is killed by SIGKILL."""
    source = write_rec(tmp_path / "set.rec", images([0, 1, 2] * 1000))
    words = [f"source={source}", f"target={tmp_path / 'out.lmdb'}", "encode=jpeg", "num_workers=0", "size=400"]
    process = subprocess.Popen([sys.executable, "-m", "data.convert", *words], stdout=subprocess.DEVNULL)
    journal = tmp_path / "out.lmdb.partial" / "journal.json"
    while not journal.exists():
        assert process.poll() is None
    process.kill()
    assert process.wait() == -9
    position = json.loads(journal.read_text())["state"]["position"]
    assert 0 < position < 3000 and not (tmp_path / "out.lmdb").exists()
    with pytest.raises(ValueError, match=r"out.lmdb.partial holds another unfinished conversion"):
        run(*words[:2])
    journal.unlink()
    assert run(*words[:2]).images == 3000 and read_lmdb(tmp_path / "out.lmdb") == images([0, 1, 2] * 1000)


def test_a_wrong_target_is_detected(tmp_path, monkeypatch):
    source = write_list(tmp_path / "set.txt", ITEMS)
    from data.conversion import writers

    monkeypatch.setattr(writers, "value_of", lambda encoded, datum: b"\x0a\x02\xff\xd8")
    with pytest.raises(ValueError, match=r"made differs from its source: 0.jpg has other bytes than its source"):
        run(f"source={source}", f"target={tmp_path / 'a.lmdb'}")
    assert not (tmp_path / "a.lmdb").exists()


def test_keys_that_lmdb_cannot_store(tmp_path):
    keys = [b"a b", b"tab\tx", "猫".encode(), b"\xff", b"x" * 505 + b"     "]
    source = write_lmdb(tmp_path / "set.lmdb", ITEMS[:4], keys[:4])
    run(f"source={source}", f"target={tmp_path / 'a.lmdb'}")
    lines = (tmp_path / "a.lmdb" / "a_kv.txt").read_text().splitlines()
    assert lines == ["a%20b 0", "tab%09x 0", "猫 1", "\\xff 2"] and read_lmdb(tmp_path / "a.lmdb") == ITEMS[:4]
    source = write_lmdb(tmp_path / "long.lmdb", ITEMS[:1], keys[4:])
    with pytest.raises(ValueError, match=r"has 520 bytes, but LMDB stores at most 511; set keys=number"):
        run(f"source={source}", f"target={tmp_path / 'b.lmdb'}")
    assert plain_name("../../etc/passwd") == "_.._etc_passwd" and plain("\udcff") == "%FF"


def test_values_of_caffe(tmp_path):
    """Datum with the data in field 4, as FFC's training code reads it, and integers in other fields."""
    source = write_rec(tmp_path / "set.rec", ITEMS[:2])
    run(f"source={source}", f"target={tmp_path / 'a.lmdb'}", "datum=caffe")
    with (
        lmdb.open(str(tmp_path / "a.lmdb"), map_size=2**26) as environment,
        environment.begin(write=True) as transaction,
    ):
        value = transaction.get(b"0")
        assert value == b"\x22" + datum(ITEMS[0][1])[1:]
        transaction.put(b"0", b"\x08\x03\x10\x18\x18\x18" + value + b"\x28\x07\x38\x01")
    run(f"source={tmp_path / 'a.lmdb'}", f"target={tmp_path / 'b.rec'}")
    assert read_rec(tmp_path / "b.rec") == ITEMS[:2]


def test_a_label_that_a_rec_file_cannot_store(tmp_path):
    source = write_list(tmp_path / "set.txt", [(2**24 + 1, image(0)), (3, image(1))])
    with pytest.raises(ValueError, match=r"label 16,777,217 is too large: .*renumber=true"):
        run(f"source={source}", f"target={tmp_path / 'a.rec'}")
    (tmp_path / "a.rec.partial" / "journal.json").unlink(missing_ok=True)
    run(f"source={source}", f"target={tmp_path / 'a.rec'}", "renumber=true")
    assert read_rec(tmp_path / "a.rec") == [(1, image(0)), (0, image(1))]


def test_a_url_as_target(tmp_path):
    import fsspec

    source = write_rec(tmp_path / "set.rec", ITEMS)
    report = run(f"source={source}", "target=memory://bucket/sets/a.lmdb", f"cache_dir={tmp_path / 'cache'}")
    run(f"source={source}", "target=memory://bucket/sets/b.rec", f"cache_dir={tmp_path / 'cache'}")
    assert report.images == 9
    fsspec.filesystem("memory").get("/bucket/sets", str(tmp_path / "back"), recursive=True)
    assert read_lmdb(tmp_path / "back" / "a.lmdb") == read_rec(tmp_path / "back" / "b.rec") == ITEMS
    with pytest.raises(ValueError, match=r"/bucket/sets/a.lmdb already exists"):
        run(f"source={source}", "target=memory://bucket/sets/a.lmdb", f"cache_dir={tmp_path / 'cache'}")
    assert not list((tmp_path / "cache" / "uploads").iterdir())
    with pytest.raises(ValueError, match=r"target=nosuch://a.lmdb"):
        run(f"source={source}", "target=nosuch://a.lmdb")


def test_only_the_same_command_repeats_a_failed_upload(tmp_path, monkeypatch):
    import fsspec

    source = write_folder(tmp_path / "set", ITEMS)
    words = [f"source={source}", "target=memory://again/a.lmdb", f"cache_dir={tmp_path / 'cache'}"]
    files = type(fsspec.filesystem("memory"))
    put, calls = files.put_file, itertools.count()

    def failing(self, *arguments, **options):
        if next(calls) == 1:
            raise RuntimeError("no connection")
        put(self, *arguments, **options)

    monkeypatch.setattr(files, "put_file", failing)
    with pytest.raises(ValueError, match=r"again/a.lmdb: the upload failed: no connection; run the same command to"):
        run(*words)
    with pytest.raises(ValueError, match=r"/again/a.lmdb already exists"):
        run(*words, "encode=jpeg")
    assert run(*words).images == 9
    fsspec.filesystem("memory").get("/again", str(tmp_path / "back"), recursive=True)
    assert sorted(read_lmdb(tmp_path / "back" / "a.lmdb")) == sorted(ITEMS)


def test_files_next_to_the_target_are_kept(tmp_path):
    source = write_list(tmp_path / "faces.txt", images([0, 2]))
    names = tmp_path / "faces.classes.txt"
    names.write_text("ann\nbob\ncid\n")
    with pytest.raises(ValueError, match=r"faces.rec cannot be written: faces.classes.txt already exists"):
        run(f"source={source}", f"target={tmp_path / 'faces.rec'}")
    (tmp_path / "property").write_text("93431,112,112\n")
    run(f"source={source}", f"target={tmp_path / 'other.rec'}")
    assert names.read_text() == "ann\nbob\ncid\n" and (tmp_path / "property").read_text() == "93431,112,112\n"
    assert (tmp_path / "other.classes.txt").read_text() == "ann\ncid\n"


@pytest.mark.parametrize("renamed", [1, 2])
def test_an_interruption_between_the_last_renames_resumes(renamed, tmp_path, monkeypatch):
    source = write_rec(tmp_path / "set.rec", ITEMS)
    words = [f"source={source}", f"target={tmp_path / 'out' / 'a.rec'}"]
    rename = Path.rename

    def killed(self, target):
        if self.parent.name == "made" and len([*self.parent.iterdir()]) == 3 - renamed:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*words)
    monkeypatch.undo()
    assert (tmp_path / "out" / "a.rec.partial").exists()
    assert run(*words).images == 9 and read_rec(tmp_path / "out" / "a.rec") == ITEMS
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.idx", "a.rec", "property"]


def test_a_partially_written_file_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(writing, "FLUSH", 1)
    source = write_rec(tmp_path / "set.rec", ITEMS)
    words = [f"source={source}", f"target={tmp_path / 'out'}", "format=folder"]
    write, calls = Path.write_bytes, itertools.count()

    def killed(self, content):
        if next(calls) == 5:
            write(self, content[:10])
            raise KeyboardInterrupt
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*words)
    monkeypatch.setattr(Path, "write_bytes", write)
    run(*words)
    assert folder_content(tmp_path / "out") == sorted(ITEMS)


def test_two_conversions_into_one_target_are_refused(tmp_path):
    source = write_rec(tmp_path / "set.rec", ITEMS)
    (tmp_path / "a.rec.partial").mkdir()
    with (
        FileLock(tmp_path / "a.rec.partial" / "lock"),
        pytest.raises(ValueError, match="another conversion"),
    ):
        run(f"source={source}", f"target={tmp_path / 'a.rec'}")


def test_a_class_without_readable_images(tmp_path):
    source = write_folder(tmp_path / "set", [(0, image(0)), (1, b"broken"), (2, image(2))])
    for target, format in (("a.lmdb", "lmdb"), ("a.rec", "rec"), ("a", "folder")):
        report = run(f"source={source}", f"target={tmp_path / target}", f"format={format}", "on_corrupt=skip")
        assert report.images == 2 and len(report.unreadable) == 1
    assert read_rec(tmp_path / "a.rec") == [(0, image(0)), (2, image(2))]
    assert (tmp_path / "property").read_text() == f"3,{SIDE},{SIDE}\n"


def test_names_without_an_ending_get_one(tmp_path):
    keys = [b"m.0107_f/0-FaceId-0", b"x.y"]
    source = write_lmdb(tmp_path / "set.lmdb", [(0, image(0)), (1, image(1, kind="PNG"))], keys)
    run(f"source={source}", f"target={tmp_path / 'out'}", "format=folder")
    assert {path.name for path in (tmp_path / "out").rglob("*.*g")} == {"m.0107_f_0-FaceId-0.jpg", "x.y.png"}
    assert len(catalog(Origin("folder", (str(tmp_path / "out"),)), tmp_path / "cache")) == 2
    long = write_lmdb(tmp_path / "long.lmdb", [(0, image(0))], [b"k" * 300])
    with pytest.raises(ValueError, match="too long for a file name"):
        run(f"source={long}", f"target={tmp_path / 'longer'}", "format=folder")


def test_paths_are_not_parsed_as_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rec(tmp_path / "sp: 1.rec", ITEMS)
    run("source=sp: 1.rec", "target=a: b.rec")
    assert read_rec(tmp_path / "a: b.rec") == ITEMS


@pytest.mark.parametrize("format", ["lmdb", "rec"])
def test_an_interruption_at_any_rename_or_removal_resumes(format, tmp_path, monkeypatch):
    source = write_rec(tmp_path / "set.rec", ITEMS)
    done = False
    for number in range(100):
        words = [f"source={source}", f"target={tmp_path / str(number) / f'out.{format}'}"]
        calls = itertools.count()
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "rename"), (Path, "unlink"), (os, "replace"), (os, "unlink"), (os, "rmdir")):
                patch.setattr(owner, name, killed_at(number, calls, getattr(owner, name)))
            try:
                run(*words)
                done = True
            except KeyboardInterrupt:
                pass
        if done:
            break
        if not (tmp_path / str(number) / f"out.{format}.partial").exists():
            continue  # the conversion was complete
        try:
            assert run(*words).images == 9
        except ValueError as error:  # the target was complete
            assert f"out.{format} already exists" in str(error)
        read = {"lmdb": read_lmdb, "rec": read_rec}[format]
        assert read(tmp_path / str(number) / f"out.{format}") == ITEMS
        assert not (tmp_path / str(number) / f"out.{format}.partial").exists()
    assert done and number > 8


def killed_at(number, calls, function):
    def killed(*arguments, **options):
        if next(calls) == number:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return killed


def test_a_rec_target_must_end_in_rec(tmp_path):
    source = write_rec(tmp_path / "faces.rec", ITEMS)
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"faces.new must end in .rec with format=rec"):
        run(f"source={source}", f"target={tmp_path / 'faces.new'}", "format=rec")
    assert source.read_bytes() == before


def test_images_that_cannot_be_encoded_are_reported(tmp_path):
    wide = io.BytesIO()
    Image.new("L", (70_000, 4)).save(wide, "PNG")
    source = write_folder(tmp_path / "set", [(0, image(0)), (1, wide.getvalue())])
    report = run(f"source={source}", f"target={tmp_path / 'a.rec'}", "encode=jpeg", "on_corrupt=skip")
    assert report.images == 1 and "it cannot be encoded" in report.unreadable[0].reason


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source=null"),
        (["source="], "source= must be one path"),
        (["source=[a"], "expected|parsing"),
        (["source=[1,2]", "target=a.rec"], "source=.*1 does not exist"),
        (["source=~nobodyx/a", "target=a.rec"], "nobodyx/a does not exist"),
        (["source=/nowhere", "target=a.lmdb"], "source=/nowhere does not exist"),
        (["source={}"], "target=null"),
        (
            ["source={}", "target=a.zip"],
            "target=a.zip with format=None has no known format; format must be lmdb, rec, ",
        ),
        (["source={}", "target={}"], "lies in the source"),
        (["source={}", "target=tests", "format=folder"], "target=.*tests cannot be written: tests already exists"),
        (["source={}", "target=a.rec", "on_corrupt=ask"], "on_corrupt=ask"),
        (["source={}", "target=a.rec", "encode=webp"], "encode=webp"),
        (["source={}", "target=a.rec", "size=10"], "size=10"),
        (["source={}", "target=a.rec", "encode=jpeg", "quality=0"], "quality=0"),
        (["source={}", "target=a.lmdb", "keys=mine"], "keys=mine"),
        (["source={}", "target=a.lmdb", "datum=mine"], "datum=mine"),
        (
            ["source={}", "target=a.rec", "keys=number"],
            "keys=number applies to LMDB and folder targets only; remove",
        ),
        (["source={}", "target=a.rec", "datum=ffc"], "datum=ffc applies to LMDB targets only; remove it"),
        (["source={}", "target=a.rec", "labels=x"], "labels=x applies to LMDB sources only; remove it"),
        (["source={}", "target=a.rec", "root=x"], "root=x applies to sources that are lists only; remove it"),
        (["source={}", "target=a.rec", "quality=9"], "quality=9 applies with encode=jpeg only; remove it"),
        (["source={}", "target=README.md/a.rec"], "README.md/a.rec.partial: Not a directory"),
        (["source={}", "target=a", "format=folder", "validation=1"], "validation=1"),
        (["source={}", "target=a.rec", "num_workers=-1"], "num_workers=-1"),
        (["source={}", "target=a.rec", "source_format=zip"], "source_format=zip"),
        (["source={}", "target=a.rec", "quality=high"], "quality|Integer"),
        (["sorce=x"], "sorce=x is not an option NAME=VALUE; did you mean source"),
        (["source"], "source is not an option NAME=VALUE"),
    ],
)
def test_wrong_options_are_refused(words, message, tmp_path):
    source = write_rec(tmp_path / "set.rec", ITEMS)
    with pytest.raises(ValueError, match=message):
        run(*(word.format(source) for word in words))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.idx", "set.rec"]
