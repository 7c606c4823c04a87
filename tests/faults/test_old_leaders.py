"""Leaders that do not know yet that they are deposed: deaf while they hand over, or asleep past their lease."""

from __future__ import annotations

import asyncio
from pathlib import Path

from faults.test_partitions import Writer, majority, reading
from harness.calm import CALM
from harness.pinned import Pinned
from needle.local.process_cluster import ProcessCluster, wait_for


async def test_a_deaf_leader_that_hands_over_serves_nothing_old(tmp_path: Path) -> None:
    """Its lease still runs when the other side, told to campaign at once, commits: it must have given it up before."""
    async with ProcessCluster(tmp_path, linked=True, **CALM) as cluster:
        old = await cluster.leader()
        others = [name for name in cluster.nodes if name != old]
        async with (
            cluster.connect(old) as operator,
            cluster.connect(*others) as client,
            Pinned(cluster.nodes[old].address) as pinned,
        ):
            writer = Writer(client)
            await writer.write()
            async with reading(pinned) as readers:
                await wait_for(lambda: all(len(reader.answers) > 10 for reader in readers), 60, "reads before it")
                for (_, to), proxy in cluster.links.items():
                    if to == old:
                        proxy.silence("forward")
                leaving = asyncio.create_task(operator.step_down(others[0], timeout=2.0))
                new = await majority(cluster, old)
                async with cluster.connect(new) as near:
                    writer_there = Writer(near)
                    writer_there.acknowledged = writer.acknowledged
                    for _ in range(5):
                        await writer_there.write()
                await wait_for(lambda: readers[0].refusals, 60, "the old leader refusing leased reads")
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
                writer.check(readers)


async def test_a_leader_that_slept_past_its_lease_serves_nothing_old(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, linked=True, **CALM) as cluster, cluster.connect() as client:
        writer = Writer(client)
        await writer.write()
        old = await cluster.leader()
        async with Pinned(cluster.nodes[old].address) as pinned, reading(pinned) as readers:
            await wait_for(lambda: all(len(reader.answers) > 10 for reader in readers), 60, "reads before it")
            cluster.pause(old)
            new = await majority(cluster, old)
            async with cluster.connect(new) as near:
                there = Writer(near)
                there.acknowledged = writer.acknowledged
                await there.write()
                known = [len(reader.refusals) for reader in readers]
                # Every reader has asked again since then; those questions wait in the sleeping node's socket.
                await wait_for(
                    lambda: all(len(r.refusals) > n for r, n in zip(readers, known, strict=True)), 60, "later questions"
                )
                cluster.resume(old)
                known = [len(reader.refusals) + len(reader.answers) for reader in readers]
                await wait_for(
                    lambda: all(len(r.refusals) + len(r.answers) > n + 5 for r, n in zip(readers, known, strict=True)),
                    60,
                    "answers after it woke",
                )
            writer.check(readers)
        await cluster.equal_digests()
