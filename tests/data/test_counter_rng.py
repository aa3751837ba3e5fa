"""Counter-based random numbers: bijections, distributions and independence of order."""

import numpy as np
import pytest

from data.counter_rng import hash64, normals, permute, uniforms


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permutations_are_bijections(size):
    orders = [permute(np.arange(size), size, 5, epoch) for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(size))
    if size > 10:
        assert not np.array_equal(orders[0], orders[1])
        assert np.array_equal(permute(np.array([3, 1]), size, 5, 0), orders[0][[3, 1]])


def test_a_large_permutation_needs_no_storage():
    images = permute(np.arange(1000), 10**12, 1)
    assert len(np.unique(images)) == 1000 and images.max() > 5 * 10**11 and images.min() >= 0


def test_images_of_permutations_are_uniform():
    counts = np.zeros((20, 20))
    for key in range(2000):
        counts[np.arange(20), permute(np.arange(20), 20, key)] += 1
    assert abs(counts - 100).max() < 50  # five standard deviations of a count of 100


def test_uniform_and_normal():
    u = uniforms("test", 3, np.arange(200_000))
    assert u.min() > 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.001
    z = normals("test", 3, np.arange(200_000))
    assert np.isfinite(z).all() and abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.01


def test_every_part_of_the_key_changes_the_hash():
    assert len({int(hash64(*key)) for key in [("a", 1, 2), ("b", 1, 2), ("a", 2, 1), ("a", 1, 3), ("a", 1)]}) == 5
    grid = hash64("a", np.arange(50)[:, None], np.arange(50))
    assert len(np.unique(grid)) == 2500
