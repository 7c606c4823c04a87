"""Plans that are carried out on real processes, command by command: shards come and go, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import InvalidArgument
from needle.catalog.planning.commands import command_of
from needle.catalog.planning.planner import plan
from needle.client.client import Client
from needle.local.process_cluster import wait_for
from needle.routing.planned_moves import FoundShard, GiveUpShard, MoveRange
from needle.routing.plans import Plan, Wish
from needle.routing.stats import ClusterStats, NodeStats, ShardStats, summarize

DOCUMENTS = 300


async def _measured(client: Client) -> ClusterStats:
    """Each document counts as a MiB."""
    health = await healthy(client)
    return ClusterStats(
        shards=tuple(
            ShardStats(shard=shard, documents=one.documents, bytes=one.documents << 20)
            for shard, one in health.shards.items()
        ),
        nodes=tuple(NodeStats(node=node) for node in client.topology().addresses()),
    )


async def _carry_out(client: Client, wish: Wish, nonce: int) -> Plan:
    """Plan, have the catalog decide move by move, and plan again, which finds nothing."""
    made = plan(client.topology(), await _measured(client), wish)
    assert not made.unmet
    for number, move in enumerate(made.moves):
        if isinstance(move, MoveRange):
            known = client.topology().map
            assert known is not None
            await client.change_catalog(command_of(move, nonce + number, known.epoch))
        else:
            await client.change_catalog(command_of(move))
        await wait_for(lambda: _settled(client), 60, move.in_words())
    again = plan(client.topology(), await _measured(client), wish)
    assert again.moves == (), again.in_words()
    return made


async def _settled(client: Client) -> bool:
    now = await client.refresh_topology(timeout=0.2)
    return not now.moves and not any(info.leaving for info in now.shards)


async def _all_there(client: Client) -> None:
    hits = await client.search(np.ones(4, np.float32), DOCUMENTS + 1, exact=True)
    assert sorted(hit.id for hit in hits) == sorted(f"doc-{n}" for n in range(DOCUMENTS))


@pytest.mark.alone
async def test_a_shard_is_added_filled_emptied_and_retired(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            await client.create_collection("default", dimensions=4, metric="l2")
            vectors = np.random.default_rng(1).normal(size=(DOCUMENTS, 4)).astype(np.float32)
            await client.insert_batch(ids=[f"doc-{n}" for n in range(DOCUMENTS)], vectors=vectors)

            grown = await _carry_out(client, Wish(shards=3), 100)
            assert isinstance(grown.moves[0], FoundShard)
            stats = summarize(client.topology(), await _measured(client))
            assert sorted(stats.shard_sizes) == [0, 1, 2]
            assert stats.documents_imbalance < 0.2
            await _all_there(client)
            await _all_there(other)

            shrunk = await _carry_out(client, Wish(retire=(2,)), 200)
            assert isinstance(shrunk.moves[-1], GiveUpShard)
            health = await healthy(client)
            assert sorted(health.shards) == [0, 1]
            assert sum(shard.documents for shard in health.shards.values()) == DOCUMENTS
            await _all_there(client)
            await _all_there(other)
            with pytest.raises(InvalidArgument, match="number of a shard"):
                await client.leader(2)
            await client.drop_collection("default")  # every shard confirms it, and the retired one is not asked
            await client.create_collection("default", dimensions=4, metric="l2")
            await client.insert("doc-0", vectors[0])
            assert [hit.id for hit in await client.search(vectors[0], 5)] == ["doc-0"]
