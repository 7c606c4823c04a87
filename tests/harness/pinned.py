"""A client of one node only: it never follows a leader hint, and shows what that node itself answers."""

from __future__ import annotations

import random

import msgspec

from needle.base.model import HitBatch, ReadMode, SearchRequest
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch, Freshness, GetCall, SearchCall
from needle.protocol.peer_calls import TOPOLOGY, ReceivedAnswer, TopologyAnswer, TopologyCall
from needle.routing.topology import Topology
from needle.rpc.transport import RpcClient
from needle.server.replica import SEGMENT_BUILDING
from needle.system import SystemClock

GROUP = 1


class Pinned:
    """Asks one node, whoever leads, and hands out its answer or its error."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._known: Topology | None = None
        self._rpc = RpcClient(cluster_id="needle", rng=random.Random(1), clock=SystemClock())

    async def __aenter__(self) -> Pinned:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._rpc.close()

    async def version(self, id: str, mode: ReadMode, timeout: float = 1.0) -> int:
        """The version of a document as this node reads it, 0 if it has none. Raises what the node answers."""
        epoch, stored = await self._names("default")
        call = GetCall(GROUP, stored, [id], False, Freshness(mode, 0, 0.0, timeout), epoch)
        answer = await self._rpc.call(self._address, calls.GET, calls.encode(call), timeout + 1)
        found = calls.decode(calls.decode(answer, ReceivedAnswer).body, DocumentBatch)
        return found.versions[0] if found.ids else 0

    async def building(self, collection_id: int = 1) -> bool:
        """Whether this node builds an index file of a collection."""
        body = calls.encode((GROUP, collection_id))
        return bool(calls.decode(await self._rpc.call(self._address, SEGMENT_BUILDING, body, 5.0), list))

    async def search(self, request: SearchRequest, mode: ReadMode = ReadMode.EVENTUAL) -> HitBatch:
        """This node's hits."""
        epoch, stored = await self._names(request.collection)
        request = msgspec.structs.replace(request, collection=stored)
        call = SearchCall(GROUP, request, Freshness(mode, 0, 0.0, 5.0), epoch)
        answer = await self._rpc.call(self._address, calls.SEARCH, calls.encode(call), 6)
        return calls.decode(calls.decode(answer, ReceivedAnswer).body, HitBatch)

    async def _names(self, collection: str) -> tuple[int, str]:
        """The epoch of the node's map, and a collection's name in its shards."""
        if self._known is None or self._known.collection(collection) is None:
            answer = await self._rpc.call(self._address, TOPOLOGY, calls.encode(TopologyCall(-1)), 5.0)
            self._known = calls.decode(answer, TopologyAnswer).topology
        assert self._known is not None and self._known.map is not None
        found = self._known.collection(collection)
        assert found is not None, f"no collection {collection}"
        return self._known.map.epoch, found.stored_name
