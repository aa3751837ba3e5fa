"""LMDB with limited address space (`ulimit -v`): maps are no larger than needed, and errors name the limit."""

import os
import re
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.conversion.options import parse
from data.convert import convert
from data.formats import lmdb_growing
from data.formats.lmdb_growing import GrowingLmdb
from data.records import opened
from data.sets.glyphs import glyphs
from tests.data.made_sets import images, read_lmdb, write_lmdb, write_rec


def limited(work: Callable[[], object], spare: int, folder: Path) -> str:
    """Return the result or the error of work that may use `spare` more bytes of address space."""
    output = folder / "output"
    if (child := os.fork()) == 0:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + spare
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            output.write_text(repr(work()))
        except BaseException as error:
            output.write_text(f"{type(error).__name__}: {error}")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return output.read_text()


def test_writing_needs_little_address_space(tmp_path):
    source = write_rec(tmp_path / "set.rec", items := images(range(9)))
    words = [f"source={source}", f"target={tmp_path / 'a.lmdb'}", "num_workers=0", f"cache_dir={tmp_path / 'cache'}"]
    assert limited(lambda: convert(parse(words)).images, 2**30, tmp_path) == "9"
    assert read_lmdb(tmp_path / "a.lmdb") == items
    count = limited(lambda: len(glyphs(cache_dir=str(tmp_path / "cache")).train), 2**30, tmp_path)
    assert int(count) > 10_000, count


def test_a_limit_that_is_too_low_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_growing, "STEP", 2**22)  # uncommitted values need memory

    def write() -> None:
        database = GrowingLmdb(tmp_path / "large.lmdb")
        try:
            for number in range(3000):
                database.put(b"%d" % number, bytes(2**16))
        finally:
            database.close()

    refused = r"ValueError: .*large\.lmdb: LMDB maps all [\d,]+ bytes of data\.mdb into the address space, and this "
    assert re.match(
        refused + r"process may use [\d,]+ \(ulimit -v\); raise the limit$", limited(write, 2**27, tmp_path)
    )
    path = write_lmdb(tmp_path / "set.lmdb", images(range(3)))
    os.truncate(path / "data.mdb", 2**31)  # larger than all pages
    refusal = limited(lambda: opened(str(path), 0), 2**20, tmp_path)
    assert re.match(r"ValueError: .*set\.lmdb: LMDB maps all 2,147,483,648 bytes .*\(ulimit -v\)", refusal)


def test_a_map_grows_with_its_content(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_growing, "STEP", 2**20)
    values = [np.random.default_rng(number).bytes(10 ** (number % 7)) for number in range(40)]  # up to 1 MB
    database = GrowingLmdb(tmp_path / "set.lmdb")
    for number, value in enumerate(values):
        assert database.put(b"%09d" % number, value)
    assert not database.put(b"%09d" % 0, b"", overwrite=False)
    assert database.commit() == 40
    used = (tmp_path / "set.lmdb" / "data.mdb").stat().st_size
    assert used < database.environment.info()["map_size"] <= used + 2**22
    database.close()
    again = GrowingLmdb(tmp_path / "set.lmdb")
    assert [again.get(b"%09d" % number) for number in range(40)] == values
    assert again.put(b"more", values[6])
    again.close()
