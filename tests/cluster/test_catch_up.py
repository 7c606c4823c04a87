"""Real processes: a follower that was away while the log was compacted gets a snapshot, index files included.

Nothing is built twice: a replica that was away takes the files that the leader built (design/architecture.md §5).
"""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from harness.calm import CALM
from harness.pinned import Pinned
from needle.base.errors import NeedleError
from needle.base.model import SearchRequest
from needle.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.local.published import of_one_cluster
from needle.routing.jobs import RebalanceConfig

pytestmark = pytest.mark.campaign

DIMENSIONS = 128
ROWS = 3000
SETTINGS = {
    "dimensions": DIMENSIONS,
    "snapshot_threshold": 20,
    "log_bytes_max": 1 << 20,
    "segments": {"seal_rows": 500, "ship_timeout": 600.0},
    **CALM,
}
RNG = np.random.default_rng(7)
VECTORS = RNG.standard_normal((2 * ROWS, DIMENSIONS)).astype(np.float32)
QUERIES = RNG.standard_normal((10, DIMENSIONS)).astype(np.float32)


async def load(client: Client, first: int, rows: int) -> None:
    """Insert documents [first, first + rows), 100 a log entry."""
    for at in range(first, first + rows, 100):
        await client.insert_batch(ids=[f"d{n}" for n in range(at, at + 100)], vectors=VECTORS[at : at + 100])


async def metric(cluster: ProcessCluster, name: str, sample: str) -> float:
    """A sample of a node's metrics, named with its labels."""
    _, text = await cluster.http(name, "/metrics")
    text = of_one_cluster(text)
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"{name} has no metric {sample}"
    return float(found[1])


async def events(cluster: ProcessCluster, name: str) -> dict[str, float]:
    return {
        event: await metric(cluster, name, f'needle_segment_events_total{{event="{event}",shard="0"}}')
        for event in ("built", "rebuilt", "shipped", "corrupt")
    }


async def indexed(cluster: ProcessCluster, *names: str) -> None:
    """Wait until these replicas hold the same number of index segments, and nothing large waits for one."""

    async def same() -> bool:
        sample = 'needle_segments{collection="default",shard="0"}'
        held = {await metric(cluster, name, sample) for name in names}
        return len(held) == 1 and held.pop() >= 1

    await wait_for(same, 60, f"index segments on {names}")


async def same_hits(cluster: ProcessCluster) -> None:
    """Every replica gives the same hits, in the default mode of search, not the exact one: at the latest when the last
    index file has arrived everywhere (until then a replica reads those rows exactly)."""
    answers: list[list[tuple[list[str], list[float]]]] = []

    async def agree() -> bool:
        answers.clear()
        for node in cluster.nodes.values():
            async with Pinned(node.address) as pinned:
                hits = [
                    await pinned.search(SearchRequest(collection="default", vector=query.tobytes(), k=10))
                    for query in QUERIES
                ]
                answers.append([(list(batch.ids), list(batch.distances)) for batch in hits])
        return answers[0] == answers[1] == answers[2]

    await wait_for(agree, 60, "the same hits from every replica")
    assert all(len(ids) == 10 for ids, _ in answers[0])


async def settled(cluster: ProcessCluster, away: str) -> None:
    """The node that was away has everything, and built nothing."""
    await cluster.ready(away)
    await cluster.equal_digests()
    await indexed(cluster, *cluster.nodes)
    found = await events(cluster, away)
    assert (found["built"], found["rebuilt"], found["corrupt"]) == (0, 0, 0), found
    await same_hits(cluster)


async def follower_of(cluster: ProcessCluster) -> str:
    leader = await cluster.leader()
    return next(name for name in cluster.nodes if name != leader)


async def start_of_log(cluster: ProcessCluster, name: str) -> int:
    """What a node has applied."""
    async with cluster.connect(name) as client:
        return (await client.node_status(cluster.nodes[name].address)).last_applied


@pytest.mark.parametrize("how", ["killed", "cut off"])
async def test_a_follower_that_was_away_gets_a_snapshot_with_its_index_files(how: str, tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, linked=True, **SETTINGS) as cluster, cluster.connect() as client:
        await load(client, 0, 300)
        away = await follower_of(cluster)
        others = [name for name in cluster.nodes if name != away]
        if how == "killed":
            cluster.kill(away)
        else:
            cluster.isolate(away)
        async with cluster.connect(*others) as near:
            await load(near, 300, ROWS - 300)
            await near.delete([f"d{n}" for n in range(0, 200, 3)])
        await indexed(cluster, *others)
        if how == "killed":
            cluster.restart(away)
        else:
            cluster.heal()
        await settled(cluster, away)
        state = [path.name for path in (cluster.nodes[away].data_dir / "shards" / "0").glob("state-*")]
        assert state != ["state-1"], "it was caught up by the log, not by a snapshot"
        assert list((cluster.nodes[away].data_dir / "snapshots").glob("in-*")) == []


async def writes(client: Client, written: list[int]) -> None:
    """New documents, and those of before again, until it is cancelled; `written`: batches that were acknowledged."""
    while True:
        at = len(written) * 10 % ROWS
        ids = [f"d{n}" if len(written) % 2 else f"w{len(written)}-{n}" for n in range(at, at + 10)]
        await client.insert_batch(ids=ids, vectors=VECTORS[at : at + 10], timeout=30)
        written.append(at)
        await asyncio.sleep(0.01)


async def caught_up(cluster: ProcessCluster, leader: str, name: str) -> bool:
    """Whether a node has applied what the leader had a moment ago."""
    there = await start_of_log(cluster, leader)
    return await start_of_log(cluster, name) >= there


async def test_a_follower_that_was_away_catches_up_while_writes_go_on(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **SETTINGS) as cluster, cluster.connect() as client:
        await load(client, 0, 300)
        away, leader = await follower_of(cluster), await cluster.leader()
        cluster.kill(away)
        await load(client, 300, ROWS - 300)
        written: list[int] = []
        writing = asyncio.create_task(writes(client, written))
        await wait_for(lambda: len(written) > 50, 60, "writes without it")
        cluster.restart(away)
        begun = len(written)
        await wait_for(lambda: caught_up(cluster, leader, away), 90, "the follower to have what is written")
        assert not writing.done() and len(written) > begun, "nothing was written while it caught up"
        for _ in range(5):  # and it keeps up
            more = len(written) + 5
            await wait_for(lambda more=more: len(written) > more, 30, "more writes")  # type: ignore[misc]
            await wait_for(lambda: caught_up(cluster, leader, away), 10, "the follower to keep up")
        assert not writing.done()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await settled(cluster, away)
        assert await metric(cluster, away, 'needle_snapshot_events_total{event="installed"}') >= 1


async def test_a_replica_that_moves_brings_its_index_files_while_writes_go_on(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **SETTINGS) as cluster, cluster.connect() as client:
        await load(client, 0, ROWS)
        await indexed(cluster, *cluster.nodes)
        source = await follower_of(cluster)
        fresh = cluster.add(sharding={"join": [cluster.addresses[source]]}, cluster_nodes=None)
        cluster.restart(fresh)

        async def joined() -> bool:
            return fresh in (await client.refresh_topology(confirmed=True)).addresses()

        await wait_for(joined, 60, "the fourth node")
        written: list[int] = []
        writing = asyncio.create_task(writes(client, written))
        id_ = await client.move_replica(0, source, fresh, RebalanceConfig(throttle_rate=0.0), timeout=30)

        async def over() -> bool:
            found = await client.rebalance_progress()
            return found is not None and found.id == id_ and found.is_complete

        await wait_for(over, 90, "the move of the replica")
        assert not writing.done() and len(written) > 10
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        held = (await client.refresh_topology(confirmed=True)).shards[0].replicas
        assert fresh in held and source not in held
        await indexed(cluster, *held)
        found = await events(cluster, fresh)
        assert (found["built"], found["rebuilt"], found["corrupt"]) == (0, 0, 0) and found["shipped"] >= 1, found


def staged_bytes(cluster: ProcessCluster, name: str) -> int:
    staged = (cluster.nodes[name].data_dir / "snapshots").glob("in-*/*")
    return sum(path.stat().st_size for path in staged)


async def test_a_transfer_that_was_killed_in_the_middle_is_continued(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, linked=True, **SETTINGS) as cluster, cluster.connect() as client:
        away = await follower_of(cluster)
        cluster.kill(away)
        await load(client, 0, ROWS)
        leader = await cluster.leader()
        await indexed(cluster, *(name for name in cluster.nodes if name != away))
        cluster.restart(away, "snapshot.after_chunk:3")
        await wait_for(lambda: not cluster.nodes[away].running(), 60, "its death at the third chunk")
        assert cluster.nodes[away].wait() == -signal.SIGKILL
        there = staged_bytes(cluster, away)
        assert there >= 1 << 20
        exported = (cluster.nodes[leader].data_dir / "snapshots").glob("out-*/*")
        whole = sum(path.stat().st_size for path in exported)
        assert whole > there
        link = cluster.links[away, leader]
        before = link.forwarded_bytes
        cluster.restart(away)
        installed = cluster.nodes[away].data_dir / "shards" / "0"
        await wait_for(lambda: not (installed / "state-1").exists(), 60, "the snapshot to be installed")
        carried = link.forwarded_bytes - before  # later on, new index files are carried, too
        await settled(cluster, away)
        assert await cluster.leader() == leader
        assert carried < whole - there + (1 << 19), "it began again"


async def test_of_the_documents_only_what_changed_travels(tmp_path: Path) -> None:
    """The second snapshot that a member gets, and the first, as it holds what it applied by itself."""
    quiet = {**SETTINGS, "segments": {"seal_rows": 1_000_000}}
    async with ProcessCluster(tmp_path, linked=True, **quiet) as cluster, cluster.connect() as client:
        await load(client, 0, 2 * ROWS)
        away = await follower_of(cluster)
        others = [name for name in cluster.nodes if name != away]
        installed = cluster.nodes[away].data_dir / "shards" / "0"
        for round in (1, 2):
            await cluster.ready(away)
            await cluster.equal_digests()
            cluster.kill(away)
            leader = await cluster.leader()
            async with cluster.connect(*others) as near:
                for _ in range(7):  # what is written fills the log, which is compacted
                    await load(near, 1000 * round, 100)
            link = cluster.links[away, leader]
            before = link.forwarded_bytes
            cluster.restart(away)
            state = installed / f"state-{round + 1}"  # there and empty for a while before it counts
            wanted = lambda: (installed / "CURRENT").read_text() == state.name  # noqa: E731, B023
            await wait_for(wanted, 60, "the snapshot to be installed")
            carried = link.forwarded_bytes - before
            whole = (state / "documents.db").stat().st_size
            assert whole > 3 << 20
            assert carried < whole // 3, f"{carried} of {whole} bytes travelled"
        await cluster.ready(away)
        await cluster.equal_digests()


async def test_the_leader_is_killed_in_the_middle_of_a_transfer(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, linked=True, **SETTINGS) as cluster, cluster.connect() as client:
        away = await follower_of(cluster)
        cluster.kill(away)
        await load(client, 0, ROWS)
        leader = await cluster.leader()
        await indexed(cluster, *(name for name in cluster.nodes if name != away))
        cluster.links[away, leader].delay = 0.05  # slow enough to be met in the middle
        cluster.restart(away)
        await wait_for(lambda: staged_bytes(cluster, away) >= 1 << 20, 60, "some of the snapshot")
        cluster.kill(leader)
        assert staged_bytes(cluster, away) > 0

        async def writes() -> object:
            return await client.insert("after", VECTORS[0])

        await wait_for(writes, 60, "a write without the old leader")
        cluster.restart(leader)
        cluster.heal()
        await cluster.ready()
        await settled(cluster, away)
        with pytest.raises(NeedleError):
            await client.insert_if_absent("after", VECTORS[0])
