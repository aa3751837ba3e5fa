"""Memory that a run measures, on different systems."""

import resource
import types

import pytest

from experiments.training import recorder


@pytest.mark.parametrize(("platform", "expected"), [("linux", 3 * 2**20), ("darwin", 3 * 2**10)])
def test_peak_memory_is_in_bytes_on_every_system(platform, expected, monkeypatch):
    """Linux reports KiB, macOS reports bytes."""
    monkeypatch.setattr(recorder.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(recorder.sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=3 * 2**10))
    assert recorder.peak_bytes() == expected
