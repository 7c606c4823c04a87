"""Three real processes that are killed, paused and restarted: no acknowledged write is lost, none is applied twice."""

import asyncio
from pathlib import Path
from time import monotonic

import pytest

import needle
from harness.calm import CALM
from needle.base.errors import AlreadyExists, NeedleError, NoQuorum, Unavailable
from needle.local.process_cluster import ProcessCluster, wait_for

VECTOR = [1.0] * 8
IN_TIME = 9.0
"""Seconds for calls with a timeout of 5 s, on a busy machine; without it they would take the default of 10 s."""


class Writers:
    """Callers that insert fresh ids with a condition, and remember what was acknowledged."""

    def __init__(self, client: needle.Client) -> None:
        self._client = client
        self._stop = False
        self.acknowledged: list[str] = []
        self.failed: list[NeedleError] = []

    async def run(self, name: str) -> None:
        n = 0
        while not self._stop:
            id = f"{name}-{n}"
            n += 1
            try:
                # Fails with AlreadyExists if a repeated write were executed twice.
                await self._client.insert_if_absent(id, VECTOR, {"by": name})
                self.acknowledged.append(id)
            except NeedleError as error:
                self.failed.append(error)

    def stop(self) -> None:
        self._stop = True


async def check_all_there(cluster: ProcessCluster, acknowledged: list[str]) -> None:
    await cluster.equal_digests()
    async with cluster.connect() as client:
        pages = [acknowledged[at : at + 5000] for at in range(0, len(acknowledged), 5000)]
        found = {document.id for page in pages for document in await client.get(page, with_vectors=False)}
        assert set(acknowledged) - found == set()


async def test_killing_the_leader_mid_write_loses_nothing_acknowledged(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path) as cluster, cluster.connect() as client:
        writers = Writers(client)
        tasks = [asyncio.create_task(writers.run(f"w{n}")) for n in range(8)]
        for _ in range(2):
            before = len(writers.acknowledged)
            await wait_for(lambda before=before: len(writers.acknowledged) > before + 50, 60, "50 writes")
            leader = await cluster.leader()
            cluster.kill(leader)
            before = len(writers.acknowledged)
            await wait_for(lambda before=before: len(writers.acknowledged) > before + 20, 60, "writes after the kill")
            cluster.restart(leader)
            await cluster.ready(leader)
        writers.stop()
        await asyncio.gather(*tasks)
        assert not [error for error in writers.failed if isinstance(error, AlreadyExists)], "a write was executed twice"
        assert not writers.failed
        await check_all_there(cluster, writers.acknowledged)


async def test_all_nodes_killed_at_once_and_restarted(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path) as cluster:
        async with cluster.connect() as client:
            writers = Writers(client)
            tasks = [asyncio.create_task(writers.run(f"w{n}")) for n in range(4)]
            await wait_for(lambda: len(writers.acknowledged) > 100, 60, "100 writes")
            for node in cluster.nodes.values():
                node.signal(9)
            writers.stop()
            for name in cluster.nodes:
                cluster.nodes[name].wait()
                cluster.restart(name)
            await asyncio.gather(*tasks)
        await cluster.ready()
        await check_all_there(cluster, writers.acknowledged)
        async with cluster.connect() as client:
            await client.insert("afterwards", VECTOR)


async def test_a_paused_leader_is_replaced_and_comes_back(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path) as cluster, cluster.connect() as client:
        await client.insert("before", VECTOR)
        leader = await cluster.leader()
        cluster.pause(leader)
        start = monotonic()
        await client.insert("during", VECTOR, timeout=120)  # a client that waited for its answer would take them all
        assert monotonic() - start < 60
        assert {hit.id for hit in await client.search(VECTOR, 5)} == {"before", "during"}
        assert {hit.id for hit in await client.search_eventual(VECTOR, 5, session=True)} == {"before", "during"}
        cluster.resume(leader)
        await cluster.equal_digests()


async def test_without_a_quorum_calls_end_in_time_and_say_who_is_missing(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        alive = await cluster.leader()
        for name in cluster.nodes:
            if name != alive:
                cluster.kill(name)
        calls = (  # the leader has known for a while that it leads nobody when they are over
            client.search(VECTOR, 1, timeout=5.0),
            client.get("a", timeout=5.0),
            client.insert("b", VECTOR, timeout=5.0),
        )
        start = monotonic()
        *reads, write = await asyncio.gather(*calls, return_exceptions=True)
        assert monotonic() - start < IN_TIME
        assert isinstance(write, NeedleError)
        for missing in reads:
            assert isinstance(missing, Unavailable)
            text = str(missing)
            assert all(name in text for name in sorted(set(cluster.nodes) - {alive})), text
        hits = await client.search_eventual(VECTOR, 1)
        assert [hit.id for hit in hits] == ["a"]
        with pytest.raises(Unavailable):
            await client.search_eventual(VECTOR, 1, max_staleness=0.1, timeout=1.0)
        await wait_for(lambda: _status(cluster, alive, 503), 60, "the survivor not being ready")
        assert (await cluster.http(alive, "/livez"))[0] == 200
        for name in cluster.nodes:
            if name != alive:
                cluster.restart(name)
        await cluster.ready()
        await client.insert("c", VECTOR)


async def _status(cluster: ProcessCluster, name: str, wanted: int) -> bool:
    return (await cluster.http(name, "/readyz"))[0] == wanted


async def test_no_node_at_all(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster:
        cluster.kill("node-1")
        with pytest.raises(NoQuorum, match=cluster.addresses["node-1"]):
            async with cluster.connect() as client:
                await client.insert("a", VECTOR, timeout=1.0)


async def test_a_directory_is_refused_to_a_second_process_and_to_another_node(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster:
        (tmp_path / "second").mkdir()
        second = ProcessCluster(tmp_path / "second", nodes=1, data_dir=cluster.nodes["node-1"].settings["data_dir"])
        second.nodes["node-1"].start()
        assert second.nodes["node-1"].wait() == 1
        assert "in use by process" in second.nodes["node-1"].output()
        cluster.kill("node-1")
        other = second.nodes["node-1"]
        other.settings |= {"node_id": "other", "cluster_nodes": [f"other={other.address}"]}
        other.start()
        assert other.wait() == 1
        assert "belongs to a node with node_id 'node-1'; this node has 'other'" in other.output()
