"""Readers with arbitrary input: from hypothesis, and damaged files of every format (`python -m tests.fuzz`)."""

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
def test_framed_payloads_are_read_back(payloads):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.rec")
        payloads = [rec_payload(number, b"\xff\xd8" + payload) for number, payload in enumerate(payloads)]
        path.write_bytes(b"".join(map(framed, payloads)))
        file = RecordFile(str(path))
        entries = list(file.scan())
        assert [entry.label for entry in entries] == list(range(len(payloads)))
        assert [file.read(entry.place) for entry in entries] == [payload[24:] for payload in payloads]


@given(PIECES)
def test_arbitrary_record_files(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.rec")
        path.write_bytes(b"x" + content)
        assert all(entry.reason for entry in RecordFile(str(path)).scan())


@given(st.binary(max_size=80))
def test_arbitrary_payloads_and_values(content):
    for read in (unpack, encoded_in):
        try:
            read(content)
        except UnreadableError as error:
            assert str(error)


@given(st.binary(min_size=1, max_size=70_000))
def test_values_are_protocol_buffers(content):
    assert value_of(content) == datum(content) and encoded_in(value_of(content)) == content


@given(st.lists(st.tuples(st.integers(0, 10**18 - 1), st.binary(max_size=20)), min_size=1, max_size=5), st.booleans())
def test_base64_lists_of_any_images(items, label_first):
    items = [(label, b"\xff\xd8\xff" + encoded) for label, encoded in items]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.txt")
        columns = [(b"%d" % label, base64.b64encode(encoded)) for label, encoded in items]
        path.write_bytes(b"\n".join(b"\t".join(line if label_first else line[::-1]) for line in columns))
        images = catalog(Origin("list", (str(path),)), Path(folder, "cache"))
        assert [(images.label(index), images.read(index)) for index in range(len(images))] == items


@given(st.binary(max_size=100))
def test_arbitrary_lists(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.txt")
        path.write_bytes(content)
        for entry in ImageList(str(path)).scan():
            assert entry.label >= 0 if hasattr(entry, "label") else entry.reason


@pytest.mark.parametrize("kind", fuzz.FORMATS)
def test_damaged_files(kind, tmp_path):
    outcomes = set()
    for seed in range(25):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcomes.add(fuzz.in_a_process(seed, kind) if kind == "lmdb" else fuzz.attempt(seed, kind, folder))
    assert len(outcomes) > 1 or kind == "pairs"
