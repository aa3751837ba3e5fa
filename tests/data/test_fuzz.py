"""Readers of anything: what hypothesis thinks of, and files of every format with damage (`python -m tests.fuzz`)."""

import base64
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.catalogs.catalog import catalog
from data.catalogs.origin import Origin
from data.formats.encoded import UnreadableError
from data.formats.image_lists import ImageList
from data.formats.lmdb_images import encoded_in, value_of
from data.formats.recordio import MAGIC_BYTES, RecordFile, framed, unpack
from tests import fuzz
from tests.data.made_sets import datum, rec_payload

settings.register_profile("here", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")
PIECES = st.lists(st.one_of(st.binary(max_size=9), st.just(MAGIC_BYTES)), max_size=8).map(b"".join)


@given(st.lists(PIECES, min_size=1, max_size=4))
@example([MAGIC_BYTES * 3])
def test_whatever_is_framed_comes_back(payloads):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.rec")
        payloads = [rec_payload(number, b"\xff\xd8" + each) for number, each in enumerate(payloads)]
        path.write_bytes(b"".join(map(framed, payloads)))
        file = RecordFile(str(path))
        found = list(file.scan())
        assert [each.label for each in found] == list(range(len(payloads)))
        assert [file.read(each.place) for each in found] == [payload[24:] for payload in payloads]


@given(PIECES)
def test_a_record_file_of_anything(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.rec")
        path.write_bytes(b"x" + content)
        assert all(each.reason for each in RecordFile(str(path)).scan())


@given(st.binary(max_size=80))
def test_payloads_and_values_of_anything(content):
    for read in (unpack, encoded_in):
        try:
            read(content)
        except UnreadableError as error:
            assert str(error)


@given(st.binary(min_size=1, max_size=70_000))
def test_values_are_what_protocol_buffers_are(content):
    assert value_of(content) == datum(content) and encoded_in(value_of(content)) == content


@given(st.lists(st.tuples(st.integers(0, 10**18 - 1), st.binary(max_size=20)), min_size=1, max_size=5), st.booleans())
def test_base64_lists_of_any_images(items, label_first):
    items = [(label, b"\xff\xd8\xff" + encoded) for label, encoded in items]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.txt")
        columns = [(b"%d" % label, base64.b64encode(encoded)) for label, encoded in items]
        path.write_bytes(b"\n".join(b"\t".join(each if label_first else each[::-1]) for each in columns))
        found = catalog(Origin("list", (str(path),)), Path(folder, "cache"))
        assert [(found.label(index), found.read(index)) for index in range(len(found))] == items


@given(st.binary(max_size=100))
def test_a_list_of_anything(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.txt")
        path.write_bytes(content)
        for each in ImageList(str(path)).scan():
            assert each.label >= 0 if hasattr(each, "label") else each.reason


@pytest.mark.parametrize("kind", fuzz.FORMATS)
def test_files_with_damage(kind, tmp_path):
    came = set()
    for seed in range(25):
        folder = tmp_path / str(seed)
        folder.mkdir()
        came.add(fuzz.in_a_process(seed, kind) if kind == "lmdb" else fuzz.attempt(seed, kind, folder))
    assert len(came) > 1 or kind == "pairs"
