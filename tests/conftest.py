"""What every test gets: the log levels it found, ports that no other worker of this run hands out, and patience."""

import gc
import importlib
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from harness.certificates import Authority
from harness.forks import start_by_fork

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

# A slow machine is no failure.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slice 2/5` runs each fifth of the tests that were meant, by their names: the second such slice."""
    parser.addoption("--slice", default="1/1", help="N/M: the N-th of M slices of the tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps a slice: which tests are in it does not depend on the others."""
    number, of = map(int, config.getoption("--slice").split("/"))
    kept = [zlib.crc32(item.nodeid.encode()) % of == number - 1 for item in items]
    config.hook.pytest_deselected(items=[item for item, keep in zip(items, kept, strict=True) if not keep])
    items[:] = [item for item, keep in zip(items, kept, strict=True) if keep]


def pytest_collection_finish() -> None:
    """Thousands of tests and all modules stay until the end: a collection that walks them takes 0.3 s, and each run of
    the simulation has two."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before all fixtures: clusters that tests share are started by these."""
    start_by_fork()


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Simulation and chaos silence the product's logs for their process."""
    log = logging.getLogger("needle")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture(autouse=True, scope="session")
def own_ports() -> Iterator[None]:
    """Each worker takes ports from a range of its own: a port is free until the node that it is for listens on it."""
    ports = importlib.import_module("needle.local.free_ports")
    low, high = ports.LOW, ports._ephemeral()
    number, size = int(WORKER.removeprefix("gw") or 0), (high - low) // WORKERS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ports, "LOW", low + number * size)
        patch.setattr(ports, "_ephemeral", lambda: low + (number + 1) * size)
        yield


@pytest.fixture(scope="module")
def module_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for what all tests of a module share; pytest itself would keep it until the last test of all."""
    directory: Path = tmp_path_factory.mktemp("module")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> "Authority":
    """Certificates: made once, for a key takes its time."""
    return Authority(tmp_path_factory.mktemp("certificates"))
