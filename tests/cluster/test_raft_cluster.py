"""The guide's RaftCluster: three nodes in this process, over real sockets and disks."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from harness.calm import CALM
from needle.base.config import ShardingConfig
from needle.base.errors import ConfigError, StorageError, Unavailable
from needle.client import Client
from needle.distributed import Filter, RaftCluster, RaftConfig, RebalanceCoordinator, load_config
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for

STATES = {"Leader", "Follower", "Candidate", "PreCandidate", "Learner"}


def configs(directory: Path, nodes: int = 3) -> list[RaftConfig]:
    ports = free_ports(nodes)
    names = [f"node-{n + 1}" for n in range(nodes)]
    return [
        RaftConfig(
            node_id=name,
            cluster_nodes=[f"{peer}=127.0.0.1:{port}" for peer, port in zip(names, ports, strict=True)],
            data_dir=str(directory / name),
            election_timeout=timedelta(seconds=CALM["election_timeout"]),
            heartbeat_interval=CALM["heartbeat_interval"],
            dimensions=4,
        )
        for name in names
    ]


@asynccontextmanager
async def three_nodes(directory: Path) -> AsyncIterator[list[RaftCluster]]:
    async with AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(RaftCluster(config)) for config in configs(directory)]
        await asyncio.gather(*(cluster.wait_ready() for cluster in clusters))
        yield clusters


async def test_a_node_is_not_ready_before_its_shards_are_open(tmp_path: Path) -> None:
    """It knows of its shards before it has opened them, and of their leaders after that."""
    async with AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(RaftCluster(config)) for config in configs(tmp_path)]

        async def leader_when_ready(cluster: RaftCluster) -> str | None:
            await cluster.wait_ready(60)
            assert (await cluster.status()).voters == ["node-1", "node-2", "node-3"]
            return await cluster.leader()

        assert None not in await asyncio.gather(*map(leader_when_ready, clusters))


async def test_one_node_of_three_has_no_leader_before_the_cluster_is_founded(tmp_path: Path) -> None:
    async with RaftCluster(configs(tmp_path)[0]) as cluster:
        assert await cluster.leader() is None and not cluster.is_leader()
        assert await cluster.client.leader() is None and await cluster.client.catalog_leader() is None
        with pytest.raises(Unavailable, match="no shards yet: start a majority of its cluster_nodes, or"):
            await cluster.client.status()


async def test_a_node_that_joins_is_ready_when_it_can_be_given_a_shard(tmp_path: Path) -> None:
    (config,) = configs(tmp_path, 1)
    async with RaftCluster(config) as first:
        await first.wait_ready(60)
        assert list((await RebalanceCoordinator(first).get_stats()).shard_sizes) == [0]
        seed, mine = config.cluster_nodes[0].partition("=")[2], f"127.0.0.1:{free_ports(1)[0]}"
        joining = RaftConfig(
            node_id="node-2", listen=mine, data_dir=str(tmp_path / "node-2"), sharding=ShardingConfig(join=[seed])
        )
        async with RaftCluster(joining) as second:
            await second.wait_ready(60)
            await first.change_membership(["node-1", "node-2"])
            assert (await second.status()).state in STATES


async def test_the_guides_example(tmp_path: Path) -> None:
    async with three_nodes(tmp_path) as clusters:
        for n, cluster in enumerate(clusters):
            result = await cluster.insert(f"doc-{n}", [1.0, n, 0, 0], {"lang": "en" if n else "de"})
            assert result.index > 0
        for cluster in clusters:
            for search in (cluster.search_strong, cluster.search_leased):
                hits = await search(np.array([1, 0, 0, 0]), 10)
                assert [hit.id for hit in hits] == ["doc-0", "doc-1", "doc-2"]
                assert hits[0].metadata == {"lang": "de"}
            english = await cluster.search_strong([1, 0, 0, 0], 10, Filter.eq("lang", "en"))
            assert [hit.id for hit in english] == ["doc-1", "doc-2"]
            near = await cluster.search_eventual([1, 0, 0, 0], 1, session=True, with_metadata=False)
            assert [(hit.id, hit.metadata) for hit in near] == [("doc-0", None)]
            status = await cluster.status()
            assert status.state in STATES
            assert status.last_applied <= status.commit_index
        leading = [cluster for cluster in clusters if cluster.is_leader()]
        assert len(leading) == 1
        assert {await cluster.leader() for cluster in clusters} == {leading[0].config.node_id}
        assert (await leading[0].status()).state == "Leader"
        assert (await leading[0].status()).lease_remaining > 0
        await leading[0].enter_maintenance_mode()
        assert not leading[0].is_leader()
        await leading[0].exit_maintenance_mode()
        to = leading[0].config.node_id
        other = next(cluster for cluster in clusters if not cluster.is_leader() and cluster is not leading[0])
        await wait_for(other.leader, 60, "a leader")
        assert await other.step_down(to) == to
        await wait_for(leading[0].is_leader, 60, "the old leader leading again")
        await other.force_new_election()
        await other.wait_ready()
        assert await other.count() == 3


async def test_an_eventual_read_is_answered_here_without_the_others(tmp_path: Path) -> None:
    async with three_nodes(tmp_path) as clusters:
        await clusters[0].insert("a", [1, 0, 0, 0])
        last = clusters[2]
        assert await wait_for(lambda: last.search_eventual([1, 0, 0, 0], 1), 60, "the document on node 3")
        await asyncio.gather(*(cluster.stop() for cluster in clusters[:2]))
        assert [hit.id for hit in await last.search_eventual([1, 0, 0, 0], 1)] == ["a"]
        with pytest.raises(Unavailable):
            await last.search_strong([1, 0, 0, 0], 1, timeout=0.5)


async def test_stop_frees_the_directory_and_the_data_stays(tmp_path: Path) -> None:
    (config,) = configs(tmp_path, 1)
    async with RaftCluster(config) as cluster:
        await cluster.insert("a", [1, 0, 0, 0])
        with pytest.raises(StorageError, match="in use"):
            await RaftCluster(config).start()
    with pytest.raises(Unavailable, match="not started"):
        await cluster.insert("b", [1, 0, 0, 0])
    async with RaftCluster(config) as again:
        document = await again.get("a")
        assert document is not None


def test_a_configuration_is_read_from_toml_and_refused_by_field(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('node_id = "a"\ncluster_nodes = ["a:5000"]\ndata_dir = "d"\n[segments]\nseal_rows = 7\n')
    config = load_config(path)
    assert (config.node_id, config.segments.seal_rows) == ("a", 7)
    path.write_text('node_id = "a"\ncluster_nodes = ["a:5000"]\ndata_dir = "d"\nelection_timout = 1\n')
    with pytest.raises(ConfigError, match="election_timout"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_config(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    "name",
    ["insert", "insert_batch", "insert_if_absent", "compare_and_set", "delete", "count", "create_collection"],
)
def test_the_cluster_takes_what_the_client_takes(name: str) -> None:
    mine = inspect.signature(getattr(RaftCluster, name)).parameters
    theirs = inspect.signature(getattr(Client, name)).parameters
    assert list(mine.values()) == list(theirs.values())
