import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.workers import WorkerGroup

LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--system", action="store_true", help="also tests that need more than pip brings: chromium")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.get_closest_marker("system") and not config.getoption("--system")]
    config.stash[LEFT_OUT] = [item.nodeid for item in left_out]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With -n the tests are collected by workers: what they left out goes to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    if not error:  # of a worker that died there is nothing to tell
        node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash.get(LEFT_OUT, []):
        terminalreporter.section("left out: these need Debian's chromium, and --system")
        for name in left_out:
            terminalreporter.line(name)


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
