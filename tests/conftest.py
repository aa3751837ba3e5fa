import os
from collections.abc import Callable, Iterator

import pytest

from tests.workers import WorkerGroup


@pytest.fixture(scope="session")
def workers() -> Iterator[Callable[[int], WorkerGroup]]:
    """world size -> its group of processes, started when first asked for."""
    groups: dict[int, WorkerGroup] = {}

    def group(world_size: int) -> WorkerGroup:
        if world_size not in groups:
            groups[world_size] = WorkerGroup(world_size)
        return groups[world_size]

    yield group
    for started in groups.values():
        started.close()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Rendered glyphs of this session, also for the commands it starts."""
    folder = str(tmp_path_factory.mktemp("cache"))
    before = os.environ.get("HEADCOUNT_CACHE")
    os.environ["HEADCOUNT_CACHE"] = folder
    yield folder
    if before is None:
        del os.environ["HEADCOUNT_CACHE"]
    else:
        os.environ["HEADCOUNT_CACHE"] = before
