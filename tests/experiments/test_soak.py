"""The checks of the soak test, on artificial figures. The soak test itself is run by hand."""

from dataclasses import replace

import pytest

from tests.experiments.commands import config
from tests.soak import CASES, SMALL, Usage, check_flat

FLAT = Usage(memory=400 * 2**20, descriptors=30, threads=9, children=1, files=0)


def test_flat_figures_pass():
    noisy = [replace(FLAT, memory=FLAT.memory + 2**20 * (number % 5), children=number % 3) for number in range(100)]
    assert check_flat(noisy) == "memory +0.0 MiB of 402, 30 descriptors, 9 threads"


@pytest.mark.parametrize(
    ("what", "growth", "words"),
    [
        ("memory", 2**18, "memory grew by 12.5 MiB"),
        ("descriptors", 1, "descriptors: 129 at the end, 79 before"),
        ("threads", 1, "threads: 108 at the end"),
        ("children", 1, "children: 100 at the end"),
        ("files", 1, "files: 99 at the end"),
    ],
)
def test_growing_resources_are_reported(what, growth, words):
    measured = [replace(FLAT, **{what: getattr(FLAT, what) + number * growth}) for number in range(100)]
    with pytest.raises(AssertionError, match=words):
        check_flat(measured)


def test_too_few_measurements_are_reported():
    with pytest.raises(AssertionError, match="only 15 measurements"):
        check_flat([FLAT] * 15)


@pytest.mark.parametrize("name", CASES)
def test_the_configs_of_its_trainings_compose(name):
    assert config(*SMALL, *CASES[name]).batch_size == 16
