import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.workers import WorkerGroup, sizes_kept

gc.disable()  # while pytest imports tests; see experiments/imports.py. With -n, the process that prints keeps it off
LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--system", action="store_true", help="also run the tests that need more than pip installs: chromium"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.get_closest_marker("system") and not config.getoption("--system")]
    config.stash[LEFT_OUT] = [item.nodeid for item in left_out]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the tests that were left out to the process that prints; with -n, workers collect the tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    if not error:  # a worker that died has no output
        node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash.get(LEFT_OUT, []):
        terminalreporter.section("left out; these tests need Debian's chromium and --system")
        for name in left_out:
            terminalreporter.line(name)


@pytest.fixture(autouse=True)
def usual_sizes() -> Iterator[None]:
    with sizes_kept():
        yield


@pytest.fixture(scope="session")
def workers() -> Iterator[Callable[[int], WorkerGroup]]:
    """Yield a function from a world size to its group of processes, which starts at the first call."""
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
    """Set a cache of rendered glyphs for this session and the commands that it starts."""
    folder = str(tmp_path_factory.mktemp("cache"))
    before = os.environ.get("HEADCOUNT_CACHE")
    os.environ["HEADCOUNT_CACHE"] = folder
    yield folder
    if before is None:
        del os.environ["HEADCOUNT_CACHE"]
    else:
        os.environ["HEADCOUNT_CACHE"] = before
