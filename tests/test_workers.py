"""Processes that many tests use one after another."""

import pytest

import heads.objectives.softmax


def small_chunks() -> int:
    usual = heads.objectives.softmax.CHUNK_ROWS
    heads.objectives.softmax.CHUNK_ROWS = 2
    return usual


def test_a_test_leaves_the_usual_sizes_to_the_next(workers):
    usual = heads.objectives.softmax.CHUNK_ROWS
    assert [workers(2).run(small_chunks) for _ in range(2)] == [[usual] * 2] * 2


@pytest.mark.parametrize("again", [False, True])
def test_the_same_in_the_process_of_pytest(again):
    assert small_chunks() > 2
