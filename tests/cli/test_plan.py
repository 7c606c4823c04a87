"""`needle plan` against a small real cluster: what it says of disk and memory is what is there, to a factor of 1.3."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from harness.commands import Run
from needle.local.node_process import NodeProcess
from needle.local.process_cluster import ProcessCluster, wait_for

VECTORS, DIMENSIONS, METADATA = 20_000, 256, 300
FACTOR = 1.3
SMALL = 600
"""Vectors that wait for their index file at most."""
WAL_BYTES = 1 << 20
"""Of documents that are not in their file yet, at most."""


def covered(node: NodeProcess) -> int:
    bounds = [path.name.split("-") for path in node.index_files()]
    return sum(int(last) - int(first) + 1 for _, first, last, _ in bounds)


def disk(node: NodeProcess, pattern: str) -> int:
    return sum(
        path.stat().st_size for path in node.data_dir.rglob(pattern) if path.is_file() and path.name != "reserve"
    )


async def quiet(cluster: ProcessCluster) -> None:
    """All nodes have the same index files of nearly all vectors, for two seconds."""
    seen: list[list[str]] = []
    since = time.monotonic()

    def holds() -> bool:
        nonlocal seen, since
        cluster.check_alive()
        found = [[path.name for path in node.index_files()] for node in cluster.nodes.values()]
        if found != seen:
            seen, since = found, time.monotonic()
        whole = all(covered(node) > VECTORS - SMALL for node in cluster.nodes.values())
        return whole and found[1:] == found[:-1] and time.monotonic() - since > 2

    await wait_for(holds, 120, "all vectors in index files")


@pytest.mark.timeout(400)
async def test_what_is_planned_is_what_a_cluster_takes(tmp_path: Path, run: Run) -> None:
    said = json.loads(
        run("plan", "--vectors", "20k", "-d", str(DIMENSIONS), "--metadata-bytes", str(METADATA), "--json")
    )
    rng = np.random.default_rng(1)
    async with ProcessCluster(tmp_path, dimensions=DIMENSIONS) as cluster, cluster.connect() as client:
        for first in range(0, VECTORS, 1000):
            rows = rng.standard_normal((1000, DIMENSIONS), np.float32)
            ids = [f"document-{first + n:011d}" for n in range(1000)]
            await client.insert_batch(ids=ids, vectors=rows, metadatas=[{"t": "x" * (METADATA - 8)}] * 1000, timeout=60)
        await quiet(cluster)
        nodes = list(cluster.nodes.values())
        await wait_for(lambda: all(disk(node, "documents.db-wal") < WAL_BYTES for node in nodes), 120, "checkpoints")
        for query in rng.standard_normal((100, DIMENSIONS), np.float32):
            for mode in ("strong", "eventual"):
                await client.search(query, 10, mode=mode)
        assert (said["shards"], said["nodes"]) == (1, len(nodes))
        for node in nodes:
            for what, found in (("index", disk(node, "*.seg")), ("documents", disk(node, "documents.db"))):
                assert said[what] / FACTOR < found < said[what] * FACTOR, (node.name, what, said[what], found)
            assert disk(node, "*") < FACTOR * said["used_disk"]
        resident = sorted(node.memory_mb() * 1e6 for node in nodes)
        assert said["used_memory"] / FACTOR < resident[0], (said["used_memory"], resident)
        most = said["used_memory"] + said["building_memory"]
        assert most / FACTOR < resident[-1] < FACTOR * most, (most, resident)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--vectors", "50M", "-d", "768"), "rebuild"),
        (("--vectors", "1_000", "-d", "8", "--qps", "10"), "cores"),
        (("--vectors", "1,000,000", "-d", "8"), "1,000,000 vectors"),
        (("--vectors", "1.5B", "-d", "96", "--memory-per-node", "32 GB"), "more, so that one fits into 29.8 GiB"),
        (
            ("--vectors", "1.5B", "-d", "96", "--memory-per-node", "32 GB", "--shards", "30"),
            "one of so many does not fit",
        ),
    ],
)
def test_it_is_told_in_words(run: Run, argv: tuple[str, ...], told: str) -> None:
    text = run("plan", *argv)
    assert told in text and "memory a node" in text


def test_shards_that_were_given_are_not_said_to_follow_from_the_memory(run: Run) -> None:
    text = run("plan", "--vectors", "1M", "-d", "96", "--memory-per-node", "32 GB", "--shards", "8")
    assert "the guide has 1 for 1,000,000 vectors" in text and "so that one fits" not in text


@pytest.mark.parametrize(
    "argv",
    [
        ("--vectors", "many"),
        ("--vectors", "-5"),
        ("--vectors", "1e9"),
        ("--vectors", "5", "--memory-per-node", "5 q"),
        ("--vectors", "1,5M"),
        ("--vectors", "5", "--memory-per-node", "10,5GiB"),
    ],
)
def test_what_is_no_number_is_refused(run: Run, argv: tuple[str, ...]) -> None:
    assert "is not allowed" in run("plan", "-d", "8", *argv, expect=None)


@pytest.mark.parametrize("network", ["0", "nan", "1e5"])
def test_a_network_is_refused_in_the_unit_in_which_it_was_given(run: Run, network: str) -> None:
    text = run("plan", "-d", "8", "--vectors", "5", "--network", network, expect=None)
    assert "--network = " in text and "from 0.001 to 10000" in text
