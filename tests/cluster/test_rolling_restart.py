"""All nodes are restarted one after the other, under a mixed load, and no call of a client fails.

`make rolling` does it with 6 processes that hold 4 shards of 3 replicas each, and prints how long it took.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import DeadlineExceeded, InvalidArgument, Unavailable
from needle.client import restarting
from needle.client.client import Client
from needle.local.process_cluster import wait_for

NODES, SHARDS, LOADED = (int(n) for n in os.environ.get("NEEDLE_ROLLING", "3,1,500").split(","))
ROWS = np.random.default_rng(1).normal(size=(500, 8)).astype(np.float32)


class Load:
    """Writes, batches, reads and searches of all kinds, one after the other each; any error fails the test."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.there: dict[str, int] = {}
        self.calls = 0
        self.ending = False

    async def run(self) -> None:
        await asyncio.gather(self._write(), self._batch(), self._search(), self._near())

    async def _write(self) -> None:
        for n in count():
            if self.ending:
                return
            await self._client.insert(f"live-{n}", ROWS[n % 500], {"even": n % 2 == 0}, timeout=20)
            self.there[f"live-{n}"] = n % 500
            found = await self._client.get(f"live-{n}", timeout=20)
            assert found is not None
            self.calls += 2

    async def _batch(self) -> None:
        for n in count():
            if self.ending:
                return
            names = [f"batch-{n % 20}-{at}" for at in range(20)]
            await self._client.insert_batch(ids=names, vectors=ROWS[:20], timeout=20)
            self.there.update({name: at for at, name in enumerate(names)})
            self.calls += 1

    async def _search(self) -> None:
        while not self.ending:
            name, row = next(reversed(self.there.items()), ("", 0))
            hits = await self._client.search(ROWS[row], 9999, exact=True, timeout=20)
            assert not name or name in {hit.id for hit in hits}
            some = await self._client.search(ROWS[row], 5, {"even": True}, timeout=20)
            assert all(hit.metadata == {"even": True} for hit in some)
            self.calls += 2

    async def _near(self) -> None:
        while not self.ending:
            await self._client.search_leased(ROWS[0], 5, timeout=20)
            await self._client.search_eventual(ROWS[0], 5, session=True, timeout=20)
            self.calls += 2


async def _loaded(client: Client) -> None:
    await healthy(client)
    await client.create_collection("default", dimensions=8, metric="l2")
    for first in range(0, LOADED, 500):
        names = [f"doc-{n}" for n in range(first, first + 500)]
        await client.insert_batch(ids=names, vectors=ROWS, timeout=30)


async def _all_restarted(processes: ShardedProcesses, client: Client, operator: Client) -> None:
    await _loaded(client)
    load, before = Load(client), processes.pids()
    work = asyncio.create_task(load.run())
    planned = await operator.plan_rolling_restart()
    leader = await operator.catalog_leader()
    assert [one.why_not for one in planned] == [""] * NODES
    led_then: list[str] = []

    def restart(node: str, address: str) -> None:
        assert processes.nodes[node].address == address
        led_then.append(node)
        processes.terminate(node)
        processes.restart(node)

    begun, done = time.monotonic(), []

    async def restarted(node: str, address: str) -> None:
        await asyncio.to_thread(restart, node, address)

    def asked(node: str, address: str) -> Awaitable[None]:
        """A plain function that gives a coroutine, as a lambda does."""
        return restarted(node, address)

    restarting = asyncio.create_task(operator.rolling_restart(asked, timeout=120))
    await asyncio.wait([work, restarting], return_when=asyncio.FIRST_COMPLETED)
    assert not work.done(), work.exception()
    done = await restarting
    took, load.ending = time.monotonic() - begun, True
    await work
    assert sorted(led_then) == sorted(processes.nodes) and led_then == [one.node for one in done]
    assert planned[-1].node == leader and "the catalog" in planned[-1].leads
    assert not any(before[name] == pid for name, pid in processes.pids().items())
    await healthy(client)
    found = {hit.id for hit in await client.search(ROWS[0], 9999, exact=True, timeout=20)}
    assert found == set(load.there) | {f"doc-{n}" for n in range(LOADED)}
    sys.stdout.write(f"{NODES} processes, {SHARDS} x 3 replicas: {took:.1f} s, {load.calls} calls, none failed\n")


@pytest.mark.alone
async def test_no_call_fails_while_all_nodes_are_restarted(tmp_path: Path) -> None:
    processes = ShardedProcesses(tmp_path, nodes=NODES)
    async with processes:
        await processes.create(SHARDS, 3)  # waits for nodes that start slowly
        async with processes.connect() as client, processes.connect() as operator:
            await _all_restarted(processes, client, operator)


@pytest.mark.alone
async def test_what_would_cost_a_majority_is_refused_and_a_node_that_does_not_come_back_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes, processes.connect() as client:
        await processes.create(1, 3)
        await healthy(client)
        await _one_of_three_at_once(processes, client)
        restarted: list[str] = []

        async def nothing(node: str, address: str) -> None:
            restarted.append(node)

        with pytest.raises(InvalidArgument, match="node-9"):
            await client.rolling_restart(nothing, nodes=["node-9"])
        with pytest.raises(DeadlineExceeded, match="same process"):
            await client.rolling_restart(nothing, timeout=3)
        assert len(restarted) == 1
        (stuck,) = restarted
        assert (await client.node_status(stuck)).maintenance
        with pytest.raises(InvalidArgument, match=f"{stuck} is in maintenance"):
            await client.rolling_restart(nothing, timeout=3)
        with monkeypatch.context() as at_once:  # another restart that began when the node was not in maintenance yet

            async def may_go(*_: object) -> None:
                pass

            at_once.setattr(restarting._Rolling, "_may_go", may_go)
            with pytest.raises(InvalidArgument, match=f"another command has {stuck} in maintenance"):
                await client.rolling_restart(nothing, nodes=[stuck], timeout=3)
        assert len(restarted) == 1
        await client.exit_maintenance_mode(stuck)
        processes.kill(stuck)

        async def refused() -> bool:
            planned = await client.plan_rolling_restart()
            return all(one.why_not for one in planned)

        await wait_for(refused, 30, "the leaders missing their follower")
        others = [name for name in processes.nodes if name != stuck]
        with pytest.raises(Unavailable, match="no majority"):
            await client.rolling_restart(nothing, nodes=others, timeout=3)
        assert restarted == [stuck]


async def _one_of_three_at_once(processes: ShardedProcesses, client: Client) -> None:
    """Three operators begin at the same time, each with another node: one goes on, the others hear of whom."""
    restarted: list[str] = []

    def restart(node: str, address: str) -> None:
        processes.terminate(node)
        processes.restart(node)
        restarted.append(node)

    rolls = [client.rolling_restart(restart, nodes=[node], timeout=60) for node in processes.nodes]
    found = await asyncio.gather(*rolls, return_exceptions=True)
    assert len([one for one in found if isinstance(one, list)]) == 1 and len(restarted) == 1, found
    refused = [one for one in found if not isinstance(one, list)]
    assert all(isinstance(one, InvalidArgument) and restarted[0] in str(one) for one in refused), found
    now = await client.refresh_topology(confirmed=True)
    assert not any(info.maintenance for info in now.nodes)
    await healthy(client)
