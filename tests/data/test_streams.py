"""Batch streams: epochs, processes, resuming and workers."""

import numpy as np
import pytest
import torch

from data import streams
from data.counter_rng import permute, uniforms
from data.grouping import group
from data.loading import InOrder
from data.sets.noise import with_noise
from data.sets.sphere import sphere
from data.streams import BatchLoader, IdentityStream, InstanceStream, within_classes
from data.weights import with_weights

DATA = sphere(23, size=6, images_per_class=3, num_heldout=5)  # 69 records


def records(stream: InstanceStream, number: int) -> list[tuple[float, ...]]:
    return [tuple(vector) for vector in stream.batch(number)[0].tolist()]


def test_an_epoch_contains_every_record_at_most_once():
    stream = InstanceStream(DATA, 8)
    assert stream.batches_per_epoch == 8
    epochs = [[r for number in range(8 * e, 8 * e + 8) for r in records(stream, number)] for e in range(2)]
    for epoch in epochs:
        assert len(set(epoch)) == 64
    assert epochs[0] != epochs[1]


def test_labels_belong_to_their_records():
    examples, labels, _ = InstanceStream(DATA, 69).batch(0)
    directions = torch.from_numpy(DATA.train.source.directions(np.arange(23)))
    assert torch.equal(torch.bincount(labels), torch.full((23,), 3))
    cosines = (examples * directions[labels]).sum(1)
    assert cosines.mean() > 0.5 > (examples @ directions.T).mean()


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_share_the_batch_of_one(world_size):
    whole = InstanceStream(DATA, 8, seed=4)
    parts = [InstanceStream(DATA, 8, seed=4, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number in (0, 7, 8, 30):
        assert [r for part in parts for r in records(part, number)] == records(whole, number)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_continues_with_the_next_batch(num_workers):
    def loader() -> BatchLoader:
        return BatchLoader({"instance": InstanceStream(DATA, 8)}, 20, 8, num_workers)

    whole = [batch["instance"][0] for batch in loader()]
    assert len(whole) == 20
    interrupted = loader()
    for _, _ in zip(range(7), interrupted, strict=False):
        pass
    state = interrupted.state_dict()
    assert state == {"samples": 56}  # although workers have prepared more
    resumed = loader()
    resumed.load_state_dict(state)
    rest = [batch["instance"][0] for batch in resumed]
    assert len(rest) == 13
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[7:], strict=True))


def test_resuming_with_another_batch_size():
    loader = BatchLoader({"instance": InstanceStream(DATA, 4)}, 20, 4)
    loader.load_state_dict({"samples": 56})
    assert loader.handed_out == 14
    with pytest.raises(ValueError, match="batch_size=4"):
        loader.load_state_dict({"samples": 57})


@pytest.mark.parametrize("batch_size", [0, 70])
def test_impossible_batch_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        InstanceStream(DATA, batch_size)


def test_blocks_of_an_order_are_parts_of_the_permutation(monkeypatch):
    monkeypatch.setattr(streams, "BLOCK", 8)
    streams._block.cache_clear()
    whole = permute(np.arange(69), 69, 5, 2)
    for start, stop in ((0, 5), (0, 69), (6, 10), (8, 16), (60, 69), (3, 40)):
        assert np.array_equal(streams.shuffled(start, stop, 69, 5, 2), whole[start:stop])
    streams._block.cache_clear()


def test_heldout_examples_are_complete_and_in_order():
    source = DATA.heldout.source
    blocks = list(InOrder(source, np.arange(40), block=7))
    assert [len(examples) for examples in blocks] == [7] * 5 + [5]
    assert torch.equal(torch.cat(blocks), source.read(np.arange(40)))


def test_an_identity_epoch_contains_every_class_once_with_two_records():
    stream = IdentityStream(DATA, 8)
    assert stream.batches_per_epoch == 5  # 23 classes, 4 a batch
    epochs = []
    for epoch in range(3):
        classes = []
        for number in range(5 * epoch, 5 * epoch + 5):
            examples, labels, _ = stream.batch(number)
            assert torch.equal(labels[:4], labels[4:])
            directions = torch.from_numpy(DATA.train.source.directions(labels.numpy()))
            assert (examples * directions).sum(1).mean() > 0.4
            assert not (examples[:4] == examples[4:]).all(dim=1).any()  # two different records
            classes += labels[:4].tolist()
        assert len(set(classes)) == 20
        epochs.append(classes)
    assert epochs[0] != epochs[1] != epochs[2]


def test_identity_pairs_are_chosen_uniformly():
    stream = IdentityStream(DATA, 46)
    seen: dict[int, int] = {}
    for number in range(600):
        examples, labels, _ = stream.batch(number)
        (index,) = (labels[:23] == 7).nonzero()[0]
        pair = frozenset(round(float(examples[i, 0]), 6) for i in (index, index + 23))
        seen[pair] = seen.get(pair, 0) + 1
    assert len(seen) == 3 and all(160 < count < 240 for count in seen.values())  # 3 records make 3 pairs


@pytest.mark.parametrize("images_per_class", [2, 3, 5])
def test_several_records_of_a_class_are_different_ones_in_blocks(images_per_class):
    data = sphere(23, size=6, images_per_class=5, num_heldout=5)
    stream = IdentityStream(data, 4 * images_per_class, images_per_class=images_per_class)
    assert stream.batches_per_epoch == 5
    seen: list[int] = []
    for number in range(5):
        examples, labels, _ = stream.batch(number)
        blocks = labels.view(images_per_class, 4)
        assert (blocks == blocks[0]).all()
        assert len(torch.unique(examples, dim=0)) == len(examples)
        directions = torch.from_numpy(data.train.source.directions(labels.numpy()))
        assert (examples * directions).sum(1).mean() > 0.4
        seen += blocks[0].tolist()
    assert len(set(seen)) == 20


def test_records_of_a_class_are_chosen_uniformly_without_replacement():
    counts = np.array([1, 2, 4, 5]).repeat(6000)
    draws = [uniforms("test", which, np.arange(len(counts))) for which in range(3)]
    chosen = within_classes(counts, draws)
    assert (chosen >= 0).all() and (chosen < counts).all()
    assert (chosen[:, :6000] == 0).all()  # one record, three times
    of_two = chosen[:, 6000:12000]
    assert (of_two[0] != of_two[1]).all() and (of_two[2] == of_two[0]).all()  # both, and the first again
    for count, begin in ((4, 12000), (5, 18000)):
        triples, numbers = np.unique(chosen[:, begin : begin + 6000], axis=1, return_counts=True)
        possible = count * (count - 1) * (count - 2)
        assert triples.shape[1] == possible and all(len(set(triple)) == 3 for triple in triples.T.tolist())
        expected = 6000 / possible
        assert abs(numbers - expected).max() < 5 * expected**0.5


def test_a_pair_is_drawn_as_it_always_was():
    """The order and the draws of pairs belong to resumed trainings."""
    counts = np.array([1, 2, 3, 7, 100, 3])
    u, v = (uniforms("test", which, np.arange(6)) for which in (0, 1))
    first = (u * counts).astype(np.int64)
    second = (first + 1 + (v * (counts - 1)).astype(np.int64)) % counts
    assert np.array_equal(within_classes(counts, [u, v]), [first, second])
    assert IdentityStream(DATA, 8, seed=5).batch(7)[1].tolist() == [20, 0, 15, 8, 20, 0, 15, 8]


@pytest.mark.parametrize(
    ("batch_size", "images_per_class", "words"),
    [
        (8, 3, "batch_size=8 .* multiple of images_per_class=3, from 6, a class for each process, to 69,"),
        (3, 3, "from 6,"),
        (72, 3, "to 69,"),
        (8, 1, "images_per_class=1 must be a whole number of at least 2"),
    ],
)
def test_impossible_numbers_of_images_a_class_are_refused(batch_size, images_per_class, words):
    with pytest.raises(ValueError, match=words):
        IdentityStream(DATA, batch_size, images_per_class=images_per_class, world_size=2)


def test_the_records_of_computed_classes_are_those_of_grouping():
    computed, grouped = DATA.train.by_class, group(DATA.train.labels, 23)
    assert computed is not None and sphere(23, tail=1.0).train.by_class is None
    assert np.array_equal(computed.order[np.arange(69)], grouped.order)
    assert np.array_equal(computed.starts[np.arange(24)], grouped.starts)
    assert (len(computed.order), len(computed.starts)) == (69, 24)


def test_a_class_of_one_record_returns_it_twice():
    single = sphere(10, size=6, images_per_class=1, num_heldout=5)
    examples, labels, _ = IdentityStream(single, 20).batch(0)
    assert torch.equal(examples[:10], examples[10:]) and len(set(labels.tolist())) == 10


def test_classes_without_records_are_skipped():
    tail = sphere(200, size=6, images_per_class=1, tail=1.5, num_heldout=5)
    present = set(tail.train.labels[np.arange(200)].tolist())
    stream = IdentityStream(tail, 2)
    assert {int(stream.batch(number)[1][0]) for number in range(stream.batches_per_epoch)} == present
    with pytest.raises(ValueError, match=rf"batch_size=400 .* to {2 * len(present)}, all training classes"):
        IdentityStream(tail, 400)


@pytest.mark.parametrize("images_per_class", [2, 3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_identities_of_one(world_size, images_per_class):
    k = images_per_class
    whole = IdentityStream(DATA, 7 * k, images_per_class=k, seed=4)
    parts = [
        IdentityStream(DATA, 7 * k, images_per_class=k, seed=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for number in (0, 3, 11):
        examples, *_ = whole.batch(number)
        of_ranks = [part.batch(number)[0].unflatten(0, (k, -1)) for part in parts]
        assert torch.equal(torch.cat(of_ranks, dim=1).flatten(0, 1), examples)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_streams_run_in_parallel_and_the_shorter_repeats(num_workers):
    streams = {"instance": InstanceStream(DATA, 8), "identity": IdentityStream(DATA, 8)}
    batches = list(BatchLoader(streams, 12, 16, num_workers))
    assert len(batches) == 12
    for number, batch in enumerate(batches):
        for name, stream in streams.items():
            assert torch.equal(batch[name][0], stream.batch(number)[0])
            assert torch.equal(batch[name][1], stream.batch(number)[1])


@pytest.mark.parametrize("kind", [InstanceStream, IdentityStream])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("by", [None, "inverse"])
def test_record_numbers_are_positions_among_the_training_records(kind, num_workers, by):
    """Wrong labels change no number, and a batch without numbers is the same otherwise."""
    data = with_weights(with_noise(DATA, flip=0.5), by=by)
    plain = list(BatchLoader({"a": kind(data, 8, seed=4)}, 12, 8))
    numbered = list(BatchLoader({"a": kind(data, 8, seed=4, records=True)}, 12, 8, num_workers))
    for without, batch in zip(plain, numbered, strict=True):
        *items, weight, records = batch["a"]
        assert records.dtype == torch.int64
        assert torch.equal(items[0], DATA.train.source.read(records.numpy()))
        assert torch.equal(items[1], torch.from_numpy(data.train.labels[records.numpy()]))
        expected = (*items,) if by is None else (*items, weight)
        assert len(without["a"]) == len(expected) and all(map(torch.equal, without["a"], expected))
        assert (weight is None) == (by is None)


@pytest.mark.parametrize("kind", [InstanceStream, IdentityStream])
def test_record_numbers_do_not_depend_on_the_processes(kind):
    whole = kind(DATA, 8, seed=4, records=True)
    parts = [kind(DATA, 8, seed=4, rank=rank, world_size=2, records=True) for rank in range(2)]
    for number in (0, 5, 30):
        of_ranks = [part.batch(number)[-1] for part in parts]
        assert sorted(torch.cat(of_ranks).tolist()) == sorted(whole.batch(number)[-1].tolist())
