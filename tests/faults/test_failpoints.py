"""A real process killed by itself at a step of persistence, then restarted: nothing acknowledged is lost."""

import signal
from pathlib import Path

import pytest

from needle.base.errors import NeedleError
from needle.local.process_cluster import ProcessCluster, wait_for

pytestmark = pytest.mark.campaign

VECTOR = [1.0] * 8
PLACES = ["log.before_commit", "log.after_commit", "apply.before", "apply.after", "compact.after_checkpoint"]


@pytest.mark.parametrize("place", PLACES)
async def test_killed_at(place: str, tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1, snapshot_threshold=20) as cluster, cluster.connect() as client:
        node = cluster.nodes["node-1"]
        assert cluster.terminate("node-1") == 0
        cluster.restart("node-1", f"{place}:{2 if place.startswith('compact') else 30}")
        acknowledged: list[str] = []
        tried = 0
        while node.running():
            id = f"d{tried}"
            tried += 1
            try:
                await client.insert_if_absent(id, VECTOR, timeout=1.0)
                acknowledged.append(id)
            except NeedleError:
                continue  # it is starting, or has just died: the loop's condition tells
        assert node.wait() == -signal.SIGKILL
        cluster.restart("node-1")
        await cluster.ready()
        found = {document.id for document in await client.get(acknowledged, with_vectors=False)}
        assert set(acknowledged) - found == set()
        assert len(acknowledged) <= await client.count() <= tried

        async def writes() -> object:
            return await client.insert("again", VECTOR)

        await wait_for(writes, 60, "a write after the restart")
