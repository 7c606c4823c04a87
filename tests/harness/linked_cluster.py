"""Real node processes that reach each other through a proxy for each directed link, and a client of one node only.

    async with linked(tmp_path) as cluster:
        cluster.isolate("node-1")

`Pinned` never follows a leader hint: it shows what one node itself answers. A client reaches the nodes whose addresses
it was given directly; those it learns of from them it reaches over their links.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from needle.base.model import HitBatch, ReadMode, SearchRequest
from needle.local.free_ports import free_ports
from needle.local.link_proxy import LinkProxy
from needle.local.process_cluster import ProcessCluster
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch, Freshness, GetCall, SearchCall
from needle.rpc.transport import RpcClient
from needle.server.replica import SEGMENT_BUILDING
from needle.system import SystemClock

GROUP = 1


class LinkedCluster(ProcessCluster):
    """A ProcessCluster whose links can be cut, silenced and slowed. links: {(from, to): proxy}."""

    links: dict[tuple[str, str], LinkProxy]

    def links_of(self, name: str) -> Iterator[LinkProxy]:
        """Every link to or from a node."""
        return (proxy for link, proxy in self.links.items() if name in link)

    def isolate(self, name: str) -> None:
        """Cut a node off from all others."""
        for proxy in self.links_of(name):
            proxy.cut()

    def heal(self) -> None:
        """Let everything through again."""
        for proxy in self.links.values():
            proxy.heal()


@asynccontextmanager
async def linked(directory: Path, nodes: int = 3, **settings: Any) -> AsyncIterator[LinkedCluster]:
    """A ready cluster of `nodes` processes, each link through a proxy of its own."""
    ports = free_ports(2 * nodes)
    names = [f"node-{n + 1}" for n in range(nodes)]
    links = {
        (frm, to): LinkProxy(f"127.0.0.1:{ports[at]}") for frm in names for at, to in enumerate(names) if to != frm
    }
    try:
        through = {link: await proxy.start() for link, proxy in links.items()}
        cluster = LinkedCluster(directory, nodes, peers_through=through, ports=ports, **settings)
        cluster.links = links
        async with cluster:
            yield cluster
    finally:
        for proxy in links.values():
            await proxy.stop()


class Pinned:
    """Asks one node, whoever leads, and hands out its answer or its error."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._rpc = RpcClient(cluster_id="needle", rng=random.Random(1), clock=SystemClock())

    async def __aenter__(self) -> Pinned:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._rpc.close()

    async def version(self, id: str, mode: ReadMode, timeout: float = 1.0) -> int:
        """The version of a document as this node reads it, 0 if it has none. Raises what the node answers."""
        call = GetCall(GROUP, "default", [id], False, Freshness(mode, 0, 0.0, timeout))
        answer = await self._rpc.call(self._address, calls.GET, calls.encode(call), timeout + 1)
        found = calls.decode(answer, DocumentBatch)
        return found.versions[0] if found.ids else 0

    async def building(self, collection_id: int = 1) -> bool:
        """Whether this node builds an index file of a collection."""
        body = calls.encode((GROUP, collection_id))
        return bool(calls.decode(await self._rpc.call(self._address, SEGMENT_BUILDING, body, 5.0), list))

    async def search(self, request: SearchRequest, mode: ReadMode = ReadMode.EVENTUAL) -> HitBatch:
        """This node's hits."""
        call = SearchCall(GROUP, request, Freshness(mode, 0, 0.0, 5.0))
        return calls.decode(await self._rpc.call(self._address, calls.SEARCH, calls.encode(call), 6), HitBatch)
