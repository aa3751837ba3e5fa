"""How much of the softmax a selection holds, against the dense float64 softmax."""

import pytest
import torch
from torch.nn.functional import normalize

import heads.softmax
from heads import CosFace, FullFC, Margin, Softmax, SVSoftmax
from heads.fidelity import coverage
from tests import reference
from tests.reference import Rule
from tests.workers import rank_and_world

MARGINS = {
    "cosface": (CosFace(s=16), Rule(reference.cosface, s=16)),
    "sv": (SVSoftmax(s=16), Rule(reference.sv_target, reference.sv_negative, s=16)),
    "filter": (CosFace(s=16, filter_above=0.3), Rule(reference.cosface, s=16, filter_above=0.3)),
    "softmax": (Softmax(), Rule(s=1.0, normalized=False)),
}


def covered(margin: Margin, k: int) -> tuple[torch.Tensor, ...]:
    """In a worker: every third class of all is active; the rows come along for the reference."""
    heads.softmax.CHUNK_ROWS = 8
    head = FullFC(50, 12, margin=margin)
    head.centers.rows *= 100
    shard = head.centers.shard
    x, labels = batch(head)
    active = torch.arange(0, 50, 3)
    ids = shard.local(active)
    found = coverage(x, labels, head.centers, margin, ids[ids >= 0], k=k, group=head.process_group)
    return found.mass_Q, found.perfect_Q, found.nearest_Qk, head.centers.rows


def batch(head: FullFC) -> tuple[torch.Tensor, torch.Tensor]:
    embeddings = torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    return head._to_rows_space(embeddings), torch.tensor([0, 3, 7, 7, 20, 49])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", MARGINS)
def test_mass_and_nearest_match_the_dense_softmax(name, world_size, workers):
    margin, rule = MARGINS[name]
    parts = workers(world_size).run(covered, margin, 4)
    rows = torch.cat([part[3] for part in parts]).double()
    x, labels = batch(FullFC(50, 12, margin=margin))
    x = x.double()
    cos = normalize(x) @ normalize(rows).T if rule.normalized else x @ rows.T
    own = torch.nn.functional.one_hot(labels, 50).bool()
    logits = rule.s * rule.negative(cos, cos[own][:, None])
    if rule.filter_above is not None:
        logits = torch.where(cos > rule.filter_above, -torch.inf, logits)
    p = torch.where(own, -torch.inf, logits).softmax(1)
    active = torch.zeros(50, dtype=torch.bool)
    active[::3] = True
    perfect = active.expand(6, -1).clone()
    start = 0
    for mass, _, nearest, shard_rows in parts:
        assert torch.allclose(mass.double(), p[:, active].sum(1), rtol=1e-5)
        of_shard = torch.where(own, -1.0, p)[:, start : start + len(shard_rows)]
        assert torch.equal(nearest.sort().values, of_shard.topk(4).indices.sort().values)
        perfect.scatter_(1, nearest + start, True)
        start += len(shard_rows)
    assert torch.allclose(parts[0][1].double(), (p * perfect).sum(1), rtol=1e-5)
    assert all(torch.equal(part[0], parts[0][0]) and torch.equal(part[1], parts[0][1]) for part in parts)


def everything(k: int) -> torch.Tensor:
    head = FullFC(7, 12)
    x, labels = torch.nn.functional.normalize(torch.randn(3, 12)), torch.tensor([0, 6, 6])
    ids = torch.arange(head.centers.shard.size)
    assert rank_and_world()[1] == (head.centers.shard.world_size)
    return coverage(x, labels, head.centers, head.margin, ids, k=k, group=head.process_group).mass_Q


@pytest.mark.parametrize("world_size", [1, 3])
def test_all_classes_hold_all(world_size, workers):
    """Also where a shard has one class, and no other to find."""
    for mass in workers(world_size).run(everything, 5):
        assert torch.allclose(mass, torch.ones(3))
