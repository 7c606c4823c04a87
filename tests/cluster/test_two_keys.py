"""One id under two shard keys, on real processes: a move that would bring both documents into one shard waits, says so,
and goes on once the id was deleted."""

from __future__ import annotations

from pathlib import Path

from cluster.processes import ShardedProcesses, healthy
from needle.client.client import Client
from needle.local.process_cluster import wait_for
from needle.protocol.catalog_commands import StartMove
from needle.routing.strategy import ShardStrategy, routing_key

CUSTOM = ShardStrategy.custom("tenant")
VECTOR = [1.0, 2.0, 3.0]


async def test_no_document_is_lost_and_a_delete_lets_the_move_go_on(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=2) as processes:
        await processes.create(2, 1, CUSTOM)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=3, metric="l2")
            shard_map = client.topology().map
            assert shard_map is not None
            owners = {n: shard_map.owner(routing_key(CUSTOM, 2, "", {"tenant": n})) for n in range(50)}
            goes, stays = (next(n for n in owners if owners[n] == shard) for shard in (0, 1))
            for name in ("a", "b", "x", "y", "z"):
                await client.insert(name, VECTOR, {"tenant": goes})
            for name in ("x", "y", "other"):
                await client.insert(name, VECTOR, {"tenant": stays})
            before = await _found(client)
            assert before == sorted([*("abxyz"), "x", "y", "other"])

            await client.change_catalog(StartMove(1, shard_map.epoch, shard_map.ranges(0), 0, 1), timeout=5.0)

            async def told() -> list[str] | None:
                health = await client.health_check()
                return health.shards[0].problems or None

            problems = await wait_for(told, 30, "the move saying why it waits")
            assert len(problems) == 1
            assert "collection 'default'" in problems[0]
            assert "the ids 'x', 'y'," in problems[0]
            assert await _found(client) == before
            for tenant in (goes, stays):
                hits = await client.search(VECTOR, 10, {"tenant": tenant}, exact=True)
                assert {"x", "y"} <= {hit.id for hit in hits}

            assert (await client.delete(["a", "x", "y"], timeout=20)).count == 5
            await client.insert("x", VECTOR, {"tenant": stays}, timeout=20)

            async def over() -> bool:
                now = await client.refresh_topology(timeout=0.2)
                return not now.moves

            await wait_for(over, 60, "the end of the move")
            assert client.topology().map.owners in ((1,), (1, 1))  # type: ignore[union-attr]
            assert await _found(client) == ["b", "other", "x", "z"]
            assert await client.counts() == {1: 4}
            await healthy(client)
            output = "".join(node.output() for node in processes.nodes.values())
            assert output.count("shard 0: move") == 1


async def _found(client: Client) -> list[str]:
    return sorted(hit.id for hit in await client.search(VECTOR, 100, exact=True, timeout=20))
