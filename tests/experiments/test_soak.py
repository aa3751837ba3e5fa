"""What the soak finds, on figures made up; the soak itself is run by hand."""

from dataclasses import replace

import pytest

from tests.experiments.commands import config
from tests.soak import CASES, SMALL, Look, check_flat

FLAT = Look(memory=400 * 2**20, descriptors=30, threads=9, children=1, files=0)


def test_flat_figures_pass():
    noisy = [replace(FLAT, memory=FLAT.memory + 2**20 * (number % 5), children=number % 3) for number in range(100)]
    assert check_flat(noisy) == "memory +0.0 MiB of 402, 30 descriptors, 9 threads"


@pytest.mark.parametrize(
    ("what", "a_look", "words"),
    [
        ("memory", 2**18, "memory grew by 12.5 MiB"),
        ("descriptors", 1, "descriptors: 129 at the end, 79 before"),
        ("threads", 1, "threads: 108 at the end"),
        ("children", 1, "children: 100 at the end"),
        ("files", 1, "files: 99 at the end"),
    ],
)
def test_what_grows_is_told(what, a_look, words):
    looks = [replace(FLAT, **{what: getattr(FLAT, what) + number * a_look}) for number in range(100)]
    with pytest.raises(AssertionError, match=words):
        check_flat(looks)


def test_too_few_looks_are_told():
    with pytest.raises(AssertionError, match="only 15 looks"):
        check_flat([FLAT] * 15)


@pytest.mark.parametrize("name", CASES)
def test_its_trainings_compose(name):
    assert config(*SMALL, *CASES[name]).batch_size == 16
