"""Loading by worker processes: items come in order, and all of them if workers are killed."""

import os
import re
import signal

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data.loading import loaded
from data.streams import BatchLoader


class Deadly(Dataset[torch.Tensor]):
    """Dataset whose item 5 kills the worker a number of times."""

    def __init__(self, folder, times: int):
        self.folder, self.times = folder, times

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == 5 and (deaths := len(list(self.folder.iterdir()))) < self.times:
            (self.folder / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(10 * number)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Shorten the time after which torch searches for dead workers."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_items_come_in_order(num_workers, tmp_path):
    assert list(loaded(Deadly(tmp_path, 0), range(2, 9), num_workers)) == [20, 30, 40, 50, 60, 70, 80]
    assert list(loaded(Deadly(tmp_path, 0), range(0), num_workers)) == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_workers_are_replaced(num_workers, tmp_path):
    message = f"num_workers={num_workers}: a process that prepares batches died; new workers continue at item [0-5]$"
    with pytest.warns(RuntimeWarning) as warned:
        assert list(loaded(Deadly(tmp_path, 2), range(12), num_workers)) == list(range(0, 120, 10))
    assert len(warned) == 2 and all(re.match(message, str(warning.message)) for warning in warned)


def test_an_item_that_kills_every_worker_is_reported(tmp_path):
    items = loaded(Deadly(tmp_path, 99), range(12), 1)
    with pytest.warns(RuntimeWarning):
        assert [next(items) for _ in range(5)] == [0, 10, 20, 30, 40]
        with pytest.raises(ValueError, match="num_workers=1: a process that prepares batches died 3 times at item 5"):
            next(items)


@pytest.mark.parametrize("kind", [RuntimeError, FileNotFoundError, ConnectionResetError])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_a_dataset_are_not_deaths(kind, num_workers):
    class Broken(Dataset[int]):
        def __getitem__(self, number: int) -> int:
            raise kind("a bug")

    with pytest.raises(kind, match="a bug"):
        list(loaded(Broken(), range(3), num_workers))


class Stream:
    """Stream of batches of one number; batch 4 cannot be read."""

    def batch(self, number: int) -> tuple[torch.Tensor, ...]:
        if number == 4:
            raise ValueError("record 4 is damaged")
        return (torch.tensor([number]),) * 3


@pytest.mark.parametrize(("ahead", "known_at"), [(0, None), (1, 3), (2, 2)])
def test_an_unreadable_batch_is_known_before_it_is_due(ahead, known_at):
    loader = BatchLoader({"instance": Stream()}, 8, 1, ahead=ahead)
    seen, known = [], []
    with pytest.raises(ValueError, match=re.escape("record 4 is damaged")):
        for batch in loader:
            seen.append(int(batch["instance"][0]))
            assert loader.handed_out == len(seen)
            known += [seen[-1]] * (loader.failure is not None)
    assert seen == [0, 1, 2, 3] and known == ([] if known_at is None else list(range(known_at, 4)))
