from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from importing import Importing

from needle.local.process_cluster import ProcessCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The addresses of three nodes."""
    with ProcessCluster(Path(tmp_path_factory.mktemp("cluster")), 3, dimensions=2).running() as started:
        yield started.cluster


@pytest.fixture
def imported(
    cluster: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Importing:
    monkeypatch.chdir(tmp_path)
    return Importing(cluster, capsys)
