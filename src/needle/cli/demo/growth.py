"""The second half of the demo: the same cluster gets more nodes and more shards, while it is written to.

Every claim it prints is checked first; a step that does not hold raises Internal. Knows the cluster only through the
client and the supervisor.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

import needle
from needle.base.errors import DeadlineExceeded, Internal, NeedleError
from needle.cli.demo.outcome import Growth
from needle.cli.demo.write_stream import WriteStream, missing_of
from needle.cli.status import look, status_table
from needle.client.embedding import WORDLLAMA
from needle.local.process_cluster import ProcessCluster
from needle.routing.jobs import JobState
from needle.routing.plans import Wish

HITS = 10
LOOK_SECONDS = 0.2
JOIN_SECONDS = 60.0
GROW_SECONDS = 600.0


async def grow(
    cluster: ProcessCluster,
    client: needle.Client,
    questions: tuple[str, ...],
    vectors: NDArray[np.float32],
    told: Console,
    *,
    nodes: int,
    shards: int,
) -> Growth:
    """From the nodes and the one shard that there are to so many. vectors: what searches find in one of them they must
    find in all, and what is written meanwhile is made of."""
    await _join(cluster, client, nodes, told)
    asked = [WORDLLAMA.embed([question])[0] for question in questions]
    before = [await _exact(client, vector) for vector in asked]
    stream = WriteStream(client, vectors, "growing")
    started = time.perf_counter()
    async with stream.running():
        moved = await _rebalance(cluster, client, shards, told)
    seconds = time.perf_counter() - started
    if [await _exact(client, vector) for vector in asked] != before:
        raise Internal("exact searches find something else than before the documents moved")
    missing = await missing_of(client, list(stream.acknowledged))
    if missing:
        raise Internal(f"{len(missing)} acknowledged writes are gone, such as {missing[0]}")
    spread = await client.counts()
    if len(spread) != shards or min(spread.values()) == 0:
        raise Internal(f"documents by shard are {spread}, expected some in each of {shards} shards")
    slowest = max((done - sent for sent, done in stream.acknowledged.values()), default=0.0)
    by_shard = ", ".join(f"{shard}: {count}" for shard, count in sorted(spread.items()))
    told.print(
        f"[green]{shards} shards on {nodes} nodes[/] in {seconds:.1f} s, {moved / 1e6:.1f} MB moved; documents by "
        f"shard: {by_shard}",
        soft_wrap=True,
    )
    told.print(
        f"meanwhile [bold]{len(stream.acknowledged)} writes[/] were acknowledged, the slowest after "
        f"{slowest * 1000:.0f} ms; all are there, and exact searches give the same hits as before",
        soft_wrap=True,
    )
    told.print(status_table(await look(client, [])))
    return Growth(
        nodes=nodes,
        shards=shards,
        seconds=seconds,
        moved_bytes=moved,
        acknowledged=len(stream.acknowledged),
        unknown=len(stream.unknown),
        slowest_write_ms=slowest * 1000,
        documents={str(shard): count for shard, count in sorted(spread.items())},
    )


async def _exact(client: needle.Client, vector: NDArray[np.float32]) -> list[tuple[str, float]]:
    return [(hit.id, hit.distance) for hit in await client.search(vector, HITS, exact=True)]


async def _join(cluster: ProcessCluster, client: needle.Client, nodes: int, told: Console) -> None:
    """Start nodes that join until there are so many."""
    seed = next(iter(cluster.addresses.values()))
    new = [cluster.add(sharding={"join": [seed]}) for _ in range(nodes - len(cluster.addresses))]
    for name in new:
        cluster.restart(name)
    deadline = time.monotonic() + JOIN_SECONDS
    while not set(new) <= (await client.refresh_topology()).addresses().keys():
        cluster.check_alive()
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{', '.join(new)} did not join within {JOIN_SECONDS:.0f} s")
        await asyncio.sleep(LOOK_SECONDS)
    if new:
        told.print(f"[green]{', '.join(new)}[/] joined", soft_wrap=True)


async def _rebalance(cluster: ProcessCluster, client: needle.Client, shards: int, told: Console) -> int:
    """Have the cluster serve so many shards, evenly; the bytes moved."""
    rebalance = await client.start_rebalance(wish=Wish(shards=shards))
    deadline, said = time.monotonic() + GROW_SECONDS, -1
    while True:
        cluster.check_alive()
        found = None
        with suppress(NeedleError):  # the catalog's leader changes: it goes on all the same
            found = await client.rebalance_progress()
        if found is not None and found.id == rebalance:
            if found.is_complete:
                break
            if (step := int(found.percent_complete // 25)) > said:
                said = step
                told.print(f"  {found.percent_complete:3.0f} % moved", highlight=False)
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"the cluster does not grow within {GROW_SECONDS:.0f} s")
        await asyncio.sleep(LOOK_SECONDS)
    if found.state is not JobState.DONE:
        raise Internal(f"the rebalance is {found.state}: {found.why}")
    return found.moved_bytes
