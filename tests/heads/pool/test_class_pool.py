"""ClassPool compared with an OrderedDict that processes one key after another."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest

from heads.pool.class_pool import ClassPool
from heads.pool.slot_table import SlotTable


class OneAtATime:
    """A plain LRU cache."""

    def __init__(self, capacity: int):
        self.capacity, self.slots = capacity, OrderedDict()

    def touch(self, keys):
        slots, hits, evicted = [], [], []
        for key in keys:
            hits.append(key in self.slots)
            if key in self.slots:
                self.slots.move_to_end(key)
            elif len(self.slots) < self.capacity:
                self.slots[key] = len(self.slots)
            else:
                victim, slot = self.slots.popitem(last=False)
                evicted.append(victim)
                self.slots[key] = slot
            slots.append(self.slots[key])
        return slots, hits, evicted


def random_batch(random: np.random.Generator, num_classes: int, longest: int) -> np.ndarray:
    size = int(random.integers(0, longest + 1))
    if random.random() < 0.3:  # few classes, often repeated
        return random.integers(0, max(1, num_classes // 4), size)
    return random.integers(0, num_classes, size)


def test_slots_and_evictions_equal_those_of_one_key_at_a_time():
    """Run 1,500 random sequences of batches: repeats, overflow of a nearly full pool, more classes than slots."""
    random = np.random.default_rng(0)
    seen = {"hit": 0, "evicted": 0, "brought back": 0, "parts": 0}
    for _ in range(1500):
        capacity = int(random.integers(1, 12))
        num_classes = int(random.integers(1, 30))
        pool, plain = ClassPool(capacity), OneAtATime(capacity)
        for _ in range(int(random.integers(1, 12))):
            keys = random_batch(random, num_classes, 2 * capacity)
            before = dict(plain.slots)
            plan = pool.plan(keys)
            assert pool.lookup(np.arange(num_classes)).tolist() == [before.get(c, -1) for c in range(num_classes)]
            slots, hits, evicted = plain.touch(keys.tolist())
            expected = [plain.slots.get(c, -1) for c in range(num_classes)]
            assert plan.slots.tolist() == slots and plan.hit.tolist() == hits and plan.evicted.tolist() == evicted
            assert pool.lookup(np.arange(num_classes), plan).tolist() == expected
            pool.commit(plan)
            assert pool.lookup(np.arange(num_classes)).tolist() == expected
            state = pool.state_dict()
            assert state["classes"].tolist() == list(plain.slots)
            assert state["slots"].tolist() == list(plain.slots.values())
            assert pool.used == len(plain.slots)
            seen["hit"] += sum(hits)
            seen["evicted"] += len(evicted)
            seen["brought back"] += len(set(evicted) & set(keys.tolist()) & set(before))
            seen["parts"] += len(set(keys.tolist())) > capacity
    assert min(seen.values()) > 500, seen


def test_large_pools_over_many_batches():
    random = np.random.default_rng(1)
    pool, plain = ClassPool(2000), OneAtATime(2000)
    for step in range(300):
        keys = (random.pareto(0.6, 300) * 50).astype(np.int64) % 10**12 if step % 3 else random.integers(0, 10**12, 300)
        plan = pool.plan(keys)
        slots, hits, evicted = plain.touch(keys.tolist())
        assert plan.slots.tolist() == slots and plan.hit.tolist() == hits and plan.evicted.tolist() == evicted
        pool.commit(plan)
    assert pool.used == 2000


def test_a_plan_changes_nothing_and_lasts_until_the_next_commit():
    pool = ClassPool(3)
    pool.commit(pool.plan([1, 2, 3]))
    before = pickle.dumps(pool.state_dict())
    outdated, committed = pool.plan([4, 1]), pool.plan([5])
    assert pickle.dumps(pool.state_dict()) == before
    assert pool.lookup([1, 2, 3, 4], outdated).tolist() == [1, -1, 2, 0]
    pool.commit(committed)
    with pytest.raises(AssertionError, match="has changed"):
        pool.commit(outdated)
    with pytest.raises(AssertionError, match="has changed"):
        pool.lookup([1], outdated)


def test_lookup_leaves_the_order_alone():
    pool = ClassPool(2)
    pool.commit(pool.plan([1, 2]))
    assert pool.lookup([1, 7]).tolist() == [0, -1]
    assert pool.plan([3]).evicted.tolist() == [1]


def test_state_round_trip_continues_alike():
    random = np.random.default_rng(2)
    pool, again = ClassPool(50), ClassPool(50)
    for _ in range(40):
        pool.commit(pool.plan(random.integers(0, 200, 30)))
    again.load_state_dict(pickle.loads(pickle.dumps(pool.state_dict())))
    for _ in range(20):
        keys = random.integers(0, 200, 30)
        plan, its_plan = pool.plan(keys), again.plan(keys)
        assert plan.slots.tolist() == its_plan.slots.tolist() and plan.evicted.tolist() == its_plan.evicted.tolist()
        pool.commit(plan)
        again.commit(its_plan)
    with pytest.raises(ValueError, match="capacity=49 cannot load a saved pool with 50"):
        ClassPool(49).load_state_dict(pool.state_dict())


def test_ages_count_later_touches():
    pool = ClassPool(4)
    pool.commit(pool.plan([1, 2, 3]))
    pool.commit(pool.plan([1]))
    assert pool.ages().tolist() == [0, 2, 1]


def test_the_table_grows_when_a_bucket_overflows():
    classes = np.arange(40) * 3
    table = SlotTable(classes)
    table.log2_places = 4  # two buckets for classes that need five
    table.clear()
    table.insert(classes, np.arange(40))
    assert table.find(classes).tolist() == list(range(40)) and table.log2_places > 4
    assert table.find(classes + 1).tolist() == [-1] * 40


def test_classes_with_equal_marks_are_distinguished():
    """A place holds fifteen bits of a class: 7 and 7 + 2^15 k may meet in a bucket with the same mark."""
    classes = 7 + (np.arange(4000) << 15)
    pool = ClassPool(4000)
    pool.commit(pool.plan(classes[:2000]))
    assert pool.lookup(classes).tolist() == [*range(2000), *[-1] * 2000]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="capacity=0"):
        ClassPool(0)
    with pytest.raises(AssertionError, match="negative"):
        ClassPool(3).plan([1, -1])
