"""The cache folder: a readable one is used, and an error names one that cannot be written."""

from pathlib import Path

import pytest

from data import cache
from data.sets.glyphs import glyphs
from data.sets.hanzi import hanzi
from data.sets.images import images as build
from tests.data.fonts import installed_for_tests
from tests.data.made_sets import SIDE, images, write_folder

DENIED = Path("/proc/headcount")  # not even root can write there


@pytest.mark.parametrize("kind", ["file", "below a file", "denied"])
@pytest.mark.parametrize("data", ["glyphs", "hanzi", "folder"])
def test_a_cache_folder_that_cannot_be_written_is_named(data, kind, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    path = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "cache", "denied": DENIED}[kind]
    source = write_folder(tmp_path / "set", images([0, 1]))
    with pytest.raises(ValueError, match=rf"^{path if kind != 'below a file' else tmp_path / 'file'}.*HEADCOUNT_CACHE"):
        if data == "glyphs":
            glyphs(cache_dir=str(path))
        elif data == "hanzi":
            installed_for_tests(tmp_path / "fonts", monkeypatch)
            hanzi(cache_dir=str(path))
        else:
            build(format="folder", source=str(source), size=SIDE, cache_dir=str(path))


def test_a_read_only_cache_is_used(tmp_path, monkeypatch):
    options = {"format": "folder", "source": str(write_folder(tmp_path / "set", images([0, 1]))), "size": SIDE}
    options["cache_dir"] = str(tmp_path / "cache")
    assert len(build(**options).train) == 2

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(cache, "FileLock", denied)
    assert len(build(**options).train) == 2
    write_folder(tmp_path / "set", images([0, 1, 2]))
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'cache'}.*\.lock: Permission denied; set data\.cache_dir or"):
        build(**options)
