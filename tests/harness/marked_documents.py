"""Documents and Raft entries as the damage tests write them: known content, so that loss and change both show."""

from __future__ import annotations

import random

from needle.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for

DOCUMENTS = 60


def vector(n: int) -> list[float]:
    rng = random.Random(n)
    return [rng.random() for _ in range(8)]


def marker(n: int) -> str:
    return f"marker-of-document-{n:04d}"


async def fill(client: Client, first: int = 0, count: int = DOCUMENTS) -> None:
    for n in range(first, first + count):
        await client.insert(f"d{n}", vector(n), {"m": marker(n)})


async def complete(cluster: ProcessCluster, count: int = DOCUMENTS) -> None:
    """Every document is on every replica, as it was written."""
    await cluster.ready()
    await cluster.equal_digests()
    async with cluster.connect() as client:
        found = await client.get([f"d{n}" for n in range(count)], with_vectors=False)
        assert [(d.id, d.metadata["m"]) for d in found] == [(f"d{n}", marker(n)) for n in range(count)]


async def follower_of(cluster: ProcessCluster) -> str:
    leader = await cluster.leader()
    return next(name for name in cluster.nodes if name != leader)


async def ended(cluster: ProcessCluster, name: str) -> int:
    """The exit code of a node that is expected to give up."""
    node = cluster.nodes[name]
    await wait_for(lambda: not node.running(), 60, f"{name} giving up")
    return node.wait()
