"""A write whose answer is lost on the way is repeated by the client and executed once."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from needle.base.errors import OutcomeUnknown
from needle.client import Client
from needle.client.finding import find_cluster
from needle.connecting import cluster_client, system_caller
from needle.local.link_proxy import LinkProxy
from needle.local.process_cluster import ProcessCluster, wait_for
from proof.chaos.clients import Through

VECTOR = np.ones(8, dtype=np.float32)


async def through(address: str) -> Client:
    """A client that reaches its cluster by this address only, wherever the nodes are."""
    caller = Through(system_caller("needle"), lambda _: address)
    return cluster_client(caller, [address], await find_cluster(caller, [address], 5.0))


async def test_a_write_whose_answer_is_lost_is_not_executed_twice(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster, cluster.connect() as observer:
        proxy = LinkProxy(cluster.addresses["node-1"])
        async with await through(await proxy.start()) as client:
            first = await client.insert_if_absent("first", VECTOR)
            proxy.silence("back")
            writes = [asyncio.create_task(client.insert_if_absent(f"lost-{n}", VECTOR, timeout=120)) for n in range(20)]
            counted = asyncio.create_task(client.delete(["first"], timeout=120))

            async def all_executed() -> bool:
                return await observer.count() == 20

            await wait_for(all_executed, 60, "20 writes and a delete executed")
            applied = (await observer.status()).last_applied
            assert not any(task.done() for task in [*writes, counted])
            proxy.drop_held()
            proxy.heal()
            results = await asyncio.gather(*writes)
            # Executed twice, the second insert would have been AlreadyExists, and the second delete count 0.
            assert (await counted).count == 1
            assert all(first.version < result.version and result.index <= applied for result in results)
            # They were sent again, and recognised: the log grew, the documents did not.
            assert (await observer.status()).last_applied >= applied + 20
            assert await observer.count() == 20
        await proxy.stop()


async def test_a_write_that_is_never_answered_has_an_unknown_outcome(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster:
        proxy = LinkProxy(cluster.addresses["node-1"])
        async with await through(await proxy.start()) as client:
            await client.insert("a", VECTOR)
            proxy.silence("back")
            with pytest.raises(OutcomeUnknown, match="may or may not"):
                await client.insert("b", VECTOR, timeout=3.0)
            proxy.heal()
            await client.insert("c", VECTOR)
        await proxy.stop()
