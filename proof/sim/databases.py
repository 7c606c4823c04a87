"""The real clients, in the shape the workload uses, and the operator's.

They note what the real client keeps to itself: at which log index an answer was made. It must not know the servers.
"""

from __future__ import annotations

import random
from typing import Any

from needle.base.model import HitBatch, ReadMode, WriteResult
from needle.base.parts import Body, Payload
from needle.client.client import Client as RealClient
from needle.client.directory import Caller
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch
from proof.sim.network import SimEndpoint

CALL_TIMEOUT = 5.0


class Recorder:
    """Notes the applied index that answers carry, which the real client keeps to itself."""

    def __init__(self, endpoint: Caller) -> None:
        self._endpoint = endpoint
        self.batch: HitBatch | None = None
        self.applied_index = 0

    async def call(self, address: str, method: str, body: Body, timeout: float) -> Payload:
        answer = await self._endpoint.call(address, method, body, timeout)
        if method == calls.SEARCH:
            self.batch = calls.decode(answer, HitBatch)
        elif method == calls.GET:
            self.applied_index = calls.decode(answer, DocumentBatch).applied_index
        return answer

    def connected(self, address: str) -> bool:
        return self._endpoint.connected(address)

    async def connect(self, address: str, timeout: float) -> None:
        await self._endpoint.connect(address, timeout)

    async def close(self) -> None:
        await self._endpoint.close()


class RealDatabase:
    """The real client, in the shape the workload uses. timeout: seconds, of each call."""

    timeout = CALL_TIMEOUT
    by_filter = True

    def __init__(self, recorder: Recorder, client: RealClient) -> None:
        self._recorder = recorder
        self._client = client

    async def put(self, key: str, vector: Any, metadata: Any) -> WriteResult:
        return await self._client.insert(key, vector, metadata, timeout=self.timeout)

    async def insert_if_absent(self, key: str, vector: Any, metadata: Any) -> WriteResult:
        return await self._client.insert_if_absent(key, vector, metadata, timeout=self.timeout)

    async def compare_and_set(self, key: str, expected: int, vector: Any, metadata: Any) -> WriteResult:
        return await self._client.compare_and_set(key, expected, vector, metadata, timeout=self.timeout)

    async def delete(self, key: str) -> WriteResult:
        return await self._client.delete(key, timeout=self.timeout)

    async def delete_where(self, filter: dict[str, Any]) -> WriteResult:
        return await self._client.delete_where(filter, timeout=self.timeout)

    async def patch(self, key: str, added: dict[str, Any], expected: int) -> WriteResult:
        return await self._client.patch(key, set=added, if_version=expected or None, timeout=self.timeout)

    async def get(self, key: str, mode: ReadMode) -> tuple[int, Any, int]:
        session = mode is ReadMode.EVENTUAL
        found = await self._client.get(key, mode=mode, with_vectors=False, session=session, timeout=self.timeout)
        applied = self._recorder.applied_index
        return (found.version, found.metadata, applied) if found is not None else (0, None, applied)

    async def search(self, vector: Any, k: int, filter: Any, mode: ReadMode, exact: bool) -> HitBatch:
        session = mode is ReadMode.EVENTUAL
        await self._client.search(vector, k, filter, mode=mode, exact=exact, session=session, timeout=self.timeout)
        if self._recorder.batch is None:
            raise RuntimeError("the client answered a search that no node did")
        return self._recorder.batch

    def token(self, key: str) -> int:
        return self._client._shards.group(0).last_index


def connect(endpoint: Caller, addresses: list[str], rng: random.Random) -> RealDatabase:
    """A new client session."""
    recorder = Recorder(endpoint)
    return RealDatabase(recorder, RealClient(recorder, addresses, rng=rng))


def administrate(endpoint: SimEndpoint, addresses: list[str], rng: random.Random) -> RealClient:
    """An operator's client."""
    return RealClient(endpoint, addresses, rng=rng)
