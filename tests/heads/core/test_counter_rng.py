"""Random draws by key: their dependence on the key, and their uniform distribution."""

import torch

from heads.core.counter_rng import generator, uniform16


def test_a_row_depends_on_its_id_and_key_only():
    ids = torch.tensor([3, 99, 10**10])
    draws = uniform16(ids, 7, "test", 1, 2)
    assert draws.shape == (3, 7) and draws.dtype == torch.int16
    assert torch.equal(draws[1], uniform16(ids[1:2], 7, "test", 1, 2)[0])
    assert torch.equal(draws[:, :5], uniform16(ids, 5, "test", 1, 2))
    for other in (
        uniform16(ids, 7, "other", 1, 2),
        uniform16(ids, 7, "test", 2, 1),
        uniform16(ids + 1, 7, "test", 1, 2),
    ):
        assert (draws == other).float().mean() < 0.2


def test_draws_are_uniform_and_uncorrelated():
    for ids in (torch.arange(20_000), torch.arange(20_000) * 4096 + 2**33):
        draws = uniform16(ids, 256, "test")
        counts = torch.bincount(draws.flatten().long() + 2**15, minlength=2**16).double()
        mean = counts.mean()
        # Chi-square over 65,535 degrees of freedom: its mean is 1 per degree, its standard deviation 0.0055.
        assert abs(float(((counts - mean) ** 2 / mean).mean()) - 1) < 0.03
        unit = draws.float() / 2**15 * 3**0.5
        assert abs(float(unit.mean())) < 2e-3 and abs(float(unit.square().mean()) - 1) < 2e-3
        for product in (unit[1:] * unit[:-1], unit[:, 1:] * unit[:, :-1], unit[:, 2:] * unit[:, :-2]):
            assert abs(float(product.mean())) < 3e-3
        gram = unit[:1000] @ unit[:1000].T / 256**0.5
        gram.fill_diagonal_(0)
        assert abs(float(gram.std()) - 1) < 0.02 and float(gram.abs().max()) < 7


def test_generators_differ_by_key():
    draws = [torch.rand(4, generator=generator(*key)) for key in (("a", 1), ("a", 2), ("b", 1), ("a", 1))]
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
