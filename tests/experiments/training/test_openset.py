"""Open-set metrics compared with a slow and obvious implementation."""

import pytest
import torch
from torch.nn.functional import normalize

from experiments.protocols.ranks import Ranks, mate_pairs
from experiments.protocols.search import best_mate_ranks, count_strangers_above
from experiments.training import openset
from experiments.training.openset import open_set


def slow(embeddings: torch.Tensor, labels: torch.Tensor, far: float) -> dict[str, float]:
    unit = normalize(embeddings.double())
    genuine, impostor, found_first, queries = [], [], 0, 0
    for i in range(len(unit)):
        scores = [(float(unit[i] @ unit[j]), j) for j in range(len(unit)) if j != i]
        for score, j in scores:
            if j > i:
                (genuine if labels[i] == labels[j] else impostor).append(score)
        if any(labels[j] == labels[i] for _, j in scores):
            queries += 1
            mates, strangers = (
                [score for score, j in scores if (labels[j] == labels[i]) == same] for same in (True, False)
            )
            found_first += int(max(mates) > max(strangers))  # of equal scores, the other class comes first
    genuine, impostor = torch.tensor(genuine), torch.tensor(impostor)
    thresholds = torch.cat([genuine, impostor, torch.tensor([2.0])])
    accept = torch.stack([(genuine >= t).double().mean() for t in thresholds])
    false = torch.stack([(impostor >= t).double().mean() for t in thresholds])
    return {
        "verification_accuracy": float(((accept + 1 - false) / 2).max()),
        "tar": float(accept[false <= far].max()),
        "rank1": found_first / queries,
    }


@pytest.mark.parametrize("far", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_the_slow_implementation(far, seed, monkeypatch):
    monkeypatch.setattr(openset, "BLOCK", 17)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(12, (80,), generator=generator)
    labels[0] = 99  # a class of one image
    embeddings = torch.randn(100, 8, generator=generator)[labels] + torch.randn(80, 8, generator=generator)
    found, exact = open_set(embeddings, labels, far), slow(embeddings, labels, far)
    assert found["rank1"] == exact["rank1"]
    assert found["verification_accuracy"] == pytest.approx(exact["verification_accuracy"], abs=1e-3)
    assert found[f"tar_at_far_{far:.0e}".replace("e-0", "e-")] == pytest.approx(exact["tar"], abs=0.01)


def test_perfect_and_useless_embeddings():
    labels = torch.arange(10).repeat_interleave(3)
    assert set(open_set(torch.eye(10)[labels], labels).values()) == {1.0}
    useless = open_set(torch.ones(30, 4), labels)
    assert useless["verification_accuracy"] == 0.5 and useless["tar_at_far_1e-3"] == 0 and useless["rank1"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_rank1_is_that_of_the_identification_protocol(seed, monkeypatch):
    """Rows have one nonzero entry of 1 or -1, so that scores are exact and many are equal."""
    monkeypatch.setattr(openset, "BLOCK", 17)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(20, (60,), generator=generator)
    directions = torch.where(
        torch.rand(60, generator=generator) < 0.8, labels, torch.randint(20, (60,), generator=generator)
    )
    rows = torch.eye(20)[directions] * (torch.randint(4, (60, 1), generator=generator).clamp(max=1) * 2 - 1)
    known = mate_pairs(labels.numpy(), labels.numpy(), leave_one_out=True)
    _, above = count_strangers_above(rows, known, lambda wanted: [(0, rows)])
    ranks = Ranks(known, above, labels.numpy(), "best")
    rank1 = ranks.metrics((1,))["rank1"]
    assert 0 < rank1 < 1 and open_set(rows, labels)["rank1"] == rank1
    best = (rows @ rows.T).fill_diagonal_(-torch.inf)
    mates = (labels[:, None] == labels).fill_diagonal_(False)
    assert best_mate_ranks(best, mates)[mates.any(1)].tolist() == ranks.ranks.tolist()


@pytest.mark.parametrize(
    ("embeddings", "labels", "words"),
    [
        (torch.ones(3, 2), torch.tensor([0, 1, 2]), "one of them with two images"),
        (torch.ones(3, 2), torch.tensor([0, 0, 0]), "two classes"),
        (torch.full((3, 2), torch.nan), torch.tensor([0, 0, 1]), "NaN"),
    ],
)
def test_too_few_images_and_nan_are_refused(embeddings, labels, words):
    with pytest.raises(ValueError, match=words):
        open_set(embeddings, labels)
