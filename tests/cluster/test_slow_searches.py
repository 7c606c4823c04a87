"""Searches that take long, over real sockets and threads: each is done once, and none for a caller that is late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import needle
from needle.base.errors import ClientClosed, DeadlineExceeded, NeedleError
from needle.base.model import HitBatch, SearchRequest
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.shard.fields.builders import Builders
from needle.shard.reads import Reads

QUERY = [1.0, 0.0, 0.0, 0.0]


class SlowSearches:
    """The searches that a replica begins; each takes until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.begun: list[int] = []
        """k of each."""
        real = Reads.search_many

        def search_many(
            reads: Reads,
            requests: list[SearchRequest],
            wanted: Callable[[int], bool],
            builders: Builders,
            clock: Callable[[], float],
            figures: bool,
        ) -> list[HitBatch | NeedleError]:
            self.begun += [asked.k for at, asked in enumerate(requests) if wanted(at)]
            assert self.go.wait(60)
            return real(reads, requests, wanted, builders, clock, figures)

        monkeypatch.setattr(Reads, "search_many", search_many)


async def test_a_slow_search_is_done_once_and_a_late_one_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowSearches(monkeypatch)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = RaftConfig(
        node_id="node-1", cluster_nodes=[f"node-1={address}"], data_dir=str(tmp_path / "node-1"), dimensions=4
    )
    async with RaftCluster(config) as node, needle.connect(address) as client:
        await node.wait_ready()
        await client.insert("a", QUERY)
        calls: list[str] = []
        real = client._caller.call

        async def call(address: str, method: str, body: bytes, timeout: float) -> bytes:
            calls.append(method)
            return await real(address, method, body, timeout)

        monkeypatch.setattr(client._caller, "call", call)
        searches = [asyncio.create_task(client.search(QUERY, k, timeout=60)) for k in range(1, 65)]
        await wait_for(lambda: "shard_leader" in calls, 30, "the client looks after its searches")
        begun = len(slow.begun)
        late = [client.search(QUERY, 100 + n, timeout=2.0) for n in range(20)]  # all are sent before it is over
        for outcome in await asyncio.gather(*late, return_exceptions=True):
            assert isinstance(outcome, DeadlineExceeded)
        slow.go.set()
        assert [[hit.id for hit in await search] for search in searches] == [["a"]] * 64
        assert 0 < begun <= 64
        assert sorted(slow.begun) == list(range(1, 65))
        assert calls.count("search") == 84


async def test_closing_a_client_ends_its_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowSearches(monkeypatch)
    ports = free_ports(4)
    alone = RaftConfig(
        node_id="node-1", cluster_nodes=[f"node-1=127.0.0.1:{ports[0]}"], data_dir=str(tmp_path / "alone"), dimensions=4
    )
    voters = [f"node-{n}=127.0.0.1:{ports[n]}" for n in (1, 2, 3)]
    lost = RaftConfig(node_id="node-1", cluster_nodes=voters, data_dir=str(tmp_path / "lost"), dimensions=4)
    async with RaftCluster(alone) as node, RaftCluster(lost):
        await node.wait_ready()
        served = await needle.connect(f"127.0.0.1:{ports[0]}")
        leaderless = await needle.connect(f"127.0.0.1:{ports[1]}")
        calls = [
            asyncio.create_task(call)
            for call in (
                served.search(QUERY, 1, timeout=600),
                served.search_eventual(QUERY, 2, timeout=600),
                leaderless.search(QUERY, 1, timeout=600),
                leaderless.insert("a", QUERY, timeout=600),
            )
        ]
        await wait_for(lambda: sorted(slow.begun) == [1, 2], 30, "both searches begin")
        await served.close()
        await leaderless.close()
        for call in calls:
            with pytest.raises(ClientClosed):
                await asyncio.wait_for(call, 30)
        with pytest.raises(ClientClosed):
            await served.get("a")
        slow.go.set()
