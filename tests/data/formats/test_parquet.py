"""Parquet tables of images: columns, names of classes, row groups, and damage."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.formats import parquet
from tests.data.made_sets import write_parquet
from tests.data.test_catalog import ITEMS, content, opened


def write(path, columns, metadata=None):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    return path


BYTES = [encoded for _, encoded in ITEMS]
LABELS = [label for label, _ in ITEMS]


def test_tables_of_a_folder_have_common_classes(tmp_path):
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", ITEMS[:4])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", ITEMS[4:])
    whole = opened(folder, "parquet")
    assert content(whole) == ITEMS and whole.key(5) == "1.jpg"
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", ITEMS[:3])
    with pytest.raises(
        ValueError, match=r"several parts: test, train; name those of one, such as .*/\*\*/test\*\.parquet"
    ):
        opened(folder, "parquet")
    assert content(opened(folder / "**" / "train*.parquet", "parquet")) == ITEMS


def test_names_of_classes_in_the_metadata(tmp_path):
    features = {"label": {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path = write(tmp_path / "a.parquet", {"image": BYTES, "label": LABELS}, metadata)
    found = opened(path, "parquet")
    assert content(found) == ITEMS and list(found.class_names) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("encoded", [False, True])
def test_texts_are_names_of_classes(encoded, tmp_path):
    names = pa.array([["cat", "dog", "ant", "bee"][label] for label in LABELS])
    path = write(tmp_path / "a.parquet", {"img": BYTES, "label": names.dictionary_encode() if encoded else names})
    found = opened(path, "parquet")
    assert list(found.class_names) == ["ant", "bee", "cat", "dog"]
    assert [label for label, _ in content(found)] == [[2, 3, 0, 1][label] for label in LABELS]


def test_given_columns_and_images_in_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(BYTES[0])
    path = write(tmp_path / "a.parquet", {"file": ["a.jpg", "a.jpg"], "id": [4, 5], "label": [0, 0]})
    assert content(opened(path, "parquet", columns=("file", "id"))) == [(4, BYTES[0]), (5, BYTES[0])]
    with pytest.raises(
        ValueError, match=r"no column image or img or jpg; set data.image_column to one of file, id, label"
    ):
        opened(path, "parquet")
    with pytest.raises(ValueError, match=r"no column nope; set data.label_column to one of"):
        opened(path, "parquet", columns=("file", "nope"))


def test_rows_that_cannot_be_used_are_named(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": [BYTES[0], None], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"a-1: the table has no image there"):
        opened(path, "parquet").read(1)
    path = write(tmp_path / "b.parquet", {"image": BYTES[:2], "label": [0, -1]})
    with pytest.raises(ValueError, match=r"row 1 of .*b\.parquet: '-1' is not a class id"):
        opened(path, "parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"c\.parquet cannot be read as a Parquet table"):
        opened(tmp_path / "c.parquet", "parquet")


def test_row_groups_are_read_once_while_they_are_near(tmp_path, monkeypatch):
    found = opened(write_parquet(tmp_path / "a.parquet", ITEMS, row_group_size=3), "parquet")
    parquet._row_group.cache_clear()
    content(found)
    assert parquet._row_group.cache_info().misses == 3


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", ITEMS)
    parquet.opened.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"data=parquet needs pyarrow; pip install -e '\.\[parquet\]'"):
        opened(path, "parquet")
