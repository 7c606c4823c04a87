"""The real clients, in the shape the workload uses: those that know the map, and plain ones that a node routes for.

They note what the real clients keep to themselves: from which index of its log each shard answered. It must not know
faults.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from needle.base.errors import NeedleError
from needle.base.model import HitBatch, ReadMode, SearchRequest, WriteResult
from needle.base.parts import Body, Payload
from needle.client.batches import BatchMethods
from needle.client.client import Client
from needle.client.directory import Caller
from needle.client.document_calls import Found, Hits
from needle.client.known_topology import AskedTopology
from needle.client.router.fan_out import Answers, FanOut
from needle.client.router.router import Router
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch
from needle.routing.topology import Topology
from proof.checkers.shaping import Shaping
from proof.checkers.word_searches import Round
from proof.plain_client import PlainClient
from proof.sim.shards.profile import metadata_of
from proof.sim.workload import Answer, Database, Documents

CALL_TIMEOUT = 5.0
PARTIAL_TIMEOUT = 2.0


class _RecordingFanOut(FanOut):
    """Keeps the shards that answered last."""

    answered: tuple[int, ...] = ()
    """Those of the last read."""
    counted: Round | None = None
    """Of the last statistics of words."""

    async def read(self, method: str, *args: Any, **options: Any) -> Answers:
        answers = await super().read(method, *args, **options)
        self.answered = tuple(answers.by_shard)
        if method == calls.SEARCH:
            batches = {shard: calls.decode(body, HitBatch) for shard, body in answers.by_shard.items()}
            told = {shard: one.applied_index for shard, one in batches.items() if one.statistics is not None}
            self.counted = Round(told, answers.epoch) if told else self.counted
        return answers


class _RecordingRouter(Router):
    """Keeps the last answers. found, by_words: of searches by vectors, and by words."""

    found: Found | None = None
    by_words: Found | None = None
    applied_index = 0

    def __init__(self, shards: ClusterShards) -> None:
        super().__init__(shards)
        self._recorded = _RecordingFanOut(shards.group, shards.topology, shards.refresh)
        self._routes.fan_out = self._recorded

    @property
    def answered(self) -> tuple[int, ...]:
        """The shards that answered the last read."""
        return self._recorded.answered

    @property
    def counted(self) -> Round | None:
        """What shards told of words, last."""
        return self._recorded.counted

    async def search(self, request: SearchRequest, *args: Any, **options: Any) -> Found:
        if request.keywords:
            self._recorded.counted = None
        found = await super().search(request, *args, **options)
        if request.keywords:
            self.by_words = found
        else:
            self.found = found
        if len(found.applied) == 1:  # of one shard the fan-out may not know
            self._recorded.answered = tuple(found.applied)
        return found

    async def get(self, *args: Any, **options: Any) -> Any:
        batch = await super().get(*args, **options)
        self.applied_index = batch.applied_index
        return batch


class RealDatabase:
    """The real client, in the shape the workload uses. timeout: seconds, of each call."""

    timeout = CALL_TIMEOUT
    by_filter = True
    keyed = False

    def __init__(self, client: BatchMethods) -> None:
        self._client = client
        self._vector: Any = None

    @property
    def via(self) -> str:
        """The node that routes, where that is of interest."""
        return ""

    async def put(self, key: str, vector: Any, metadata: Any) -> WriteResult:
        return await self._client.insert(key, vector, metadata, timeout=self.timeout)

    async def put_expiring(self, key: str, vector: Any, metadata: Any, expires_at: str) -> WriteResult:
        return await self._client.insert(key, vector, metadata, expires_at=expires_at, timeout=self.timeout)

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

    async def update(self, key: str, vector: Any) -> WriteResult:
        return await self._client.update_vector(key, vector, timeout=self.timeout)

    def vector(self) -> Any:
        return self._vector

    async def delete_many(self, keys: list[str]) -> WriteResult:
        return await self._client.delete(keys, timeout=self.timeout)

    async def get(self, key: str, mode: ReadMode) -> tuple[int, Any, int]:
        session = mode is ReadMode.EVENTUAL
        found = await self._client.get(key, mode=mode, session=session, timeout=self.timeout)
        self._vector = None if found is None else found.vector
        applied = self.answered_at()
        return (found.version, found.metadata, applied) if found is not None else (0, None, applied)

    def answered_at(self) -> int:
        """At which index of its log the last get was answered."""
        raise NotImplementedError


def _explained(hits: Hits) -> Answer:
    """What a search of several was answered, and from which index of each shard if it says so."""
    applied = {one.shard: one.applied_index for one in hits.explained}
    batch = HitBatch(
        [hit.id for hit in hits],
        [hit.distance for hit in hits],
        [hit.version for hit in hits],
        [msgspec.json.encode(hit.metadata) for hit in hits],
        b"",
        max(applied.values(), default=0),
        groups=[hit.group for hit in hits if hit.group is not None],
    )
    return Answer(batch, applied or None)


class ShardAware(RealDatabase):
    """Straight to the shards' leaders."""

    keyed = True

    def __init__(self, caller: Caller, addresses: list[str], topology: Topology, rng: random.Random) -> None:
        self.known = AskedTopology(caller, addresses, topology)
        shards = ClusterShards(caller, self.known, rng=rng)
        self._router = _RecordingRouter(shards)
        self.client = client = Client(caller, shards, self._router)
        super().__init__(client)

    async def delete_where(self, filter: dict[str, Any]) -> WriteResult:
        result = await super().delete_where(filter)
        # The highest of all shards' logs says nothing of any one.
        return result if len(self.client.topology().shards) == 1 else msgspec.structs.replace(result, index=0)

    async def insert_many(self, documents: Documents) -> dict[str, WriteResult | NeedleError]:
        return await self._client.insert_each(documents, timeout=self.timeout)

    def answered_at(self) -> int:
        return self._router.applied_index

    async def find(
        self, vector: Any, k: int, filter: Any, mode: ReadMode, exact: bool, partial: bool, shaping: Shaping
    ) -> Answer:
        client, how = self.client, {"filter": filter, "mode": mode, "exact": exact, **shaping.options(k)}
        if partial:
            told = await client.search_partial(vector, timeout=PARTIAL_TIMEOUT, **how)
            found = self.last_found()
            return Answer(found.batch, found.applied, tuple(sorted(told.missing)), told.gaps, found.epoch)
        await client.search(vector, session=mode is ReadMode.EVENTUAL, timeout=self.timeout, **how)
        found = self.last_found()
        return Answer(found.batch, found.applied, tuple(found.missing), found.gaps, found.epoch)

    async def find_many(
        self, vectors: Any, k: int, filter: Any, mode: ReadMode, exact: bool, shaping: Shaping
    ) -> list[Answer]:
        how, session = shaping.options(k), mode is ReadMode.EVENTUAL
        found = await self.client.search_many(
            vectors, filter=filter, mode=mode, exact=exact, **how, explain=True, session=session, timeout=self.timeout
        )
        return [_explained(hits) for hits in found]

    def last_found(self) -> Found:
        """What the last search by a vector was answered by the router."""
        if self._router.found is None:
            raise RuntimeError("the client answered a search that the router did not")
        return self._router.found

    def last_words(self) -> tuple[Round, Found]:
        """The same of the last search by words, after the statistics that it went by."""
        found = self._router.by_words
        if found is None:
            raise RuntimeError("the client answered a search by words that the router did not")
        return self._router.counted or Round({}, found.epoch), found

    def tokens(self, latest: dict[int, int]) -> dict[int, int]:
        return {shard: self._router.seen.get(shard, 0) for shard in latest}

    def answered_by(self) -> int:
        return self._router.answered[0] if len(self._router.answered) == 1 else -1


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


class Proxied(RealDatabase):
    """A plain client: the node it asks is its router. After its first answer its eventual reads are as fresh as leased
    ones (server/service/proxy.py)."""

    def __init__(self, caller: Caller, addresses: list[str], rng: random.Random) -> None:
        self._recorder = Recorder(caller)
        self._plain = client = PlainClient(self._recorder, addresses, rng=rng)
        super().__init__(client)

    async def delete_where(self, filter: dict[str, Any]) -> WriteResult:
        return msgspec.structs.replace(await super().delete_where(filter), index=0)  # of whichever shard's log

    async def insert_many(self, documents: Documents) -> dict[str, WriteResult | NeedleError]:
        results = await self._client.insert_batch(documents, timeout=self.timeout)
        told = WriteResult(version=0, index=0, count=results[0].count)
        return {key: told for key, _, _ in documents}

    def answered_at(self) -> int:
        return self._recorder.applied_index

    async def find(
        self, vector: Any, k: int, filter: Any, mode: ReadMode, exact: bool, partial: bool, shaping: Shaping
    ) -> Answer:
        """Never in part: it cannot be asked of a node."""
        how = {"filter": filter, "mode": mode, "exact": exact, **shaping.options(k)}
        await self._client.search(vector, session=mode is ReadMode.EVENTUAL, timeout=self.timeout, **how)
        if self._recorder.batch is None:
            raise RuntimeError("the client answered a search that no node did")
        return Answer(self._recorder.batch)

    async def find_many(
        self, vectors: Any, k: int, filter: Any, mode: ReadMode, exact: bool, shaping: Shaping
    ) -> list[Answer]:
        how, session = shaping.options(k), mode is ReadMode.EVENTUAL
        found = await self._client.search_many(
            vectors, filter=filter, mode=mode, exact=exact, **how, session=session, timeout=self.timeout
        )
        return [_explained(hits) for hits in found]

    def tokens(self, latest: dict[int, int]) -> dict[int, int]:
        return dict(latest) if self._plain.last_index else dict.fromkeys(latest, 0)

    def answered_by(self) -> int:
        return -1


class Homed:
    """A database whose documents are routed by a field of their metadata. Its gets and deletes by id ask all shards, so
    the one index that the client is told is of no shard's log in particular: it is left out."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put(self, key: str, vector: Any, metadata: Any) -> WriteResult:
        return await self._inner.put(key, vector, metadata | metadata_of(key))

    async def put_expiring(self, key: str, vector: Any, metadata: Any, expires_at: str) -> WriteResult:
        return await self._inner.put_expiring(key, vector, metadata | metadata_of(key), expires_at)

    async def insert_if_absent(self, key: str, vector: Any, metadata: Any) -> WriteResult:
        return await self._inner.insert_if_absent(key, vector, metadata | metadata_of(key))

    async def compare_and_set(self, key: str, expected: int, vector: Any, metadata: Any) -> WriteResult:
        return await self._inner.compare_and_set(key, expected, vector, metadata | metadata_of(key))

    async def insert_many(self, documents: Documents) -> dict[str, WriteResult | NeedleError]:
        homed = [(key, vector, metadata | metadata_of(key)) for key, vector, metadata in documents]
        return await self._inner.insert_many(homed)

    async def delete(self, key: str) -> WriteResult:
        return msgspec.structs.replace(await self._inner.delete(key), index=0)

    async def delete_where(self, filter: dict[str, Any]) -> WriteResult:
        return msgspec.structs.replace(await self._inner.delete_where(filter), index=0)

    async def patch(self, key: str, added: dict[str, Any], expected: int) -> WriteResult:
        return msgspec.structs.replace(await self._inner.patch(key, added, expected), index=0)

    async def update(self, key: str, vector: Any) -> WriteResult:
        return msgspec.structs.replace(await self._inner.update(key, vector), index=0)

    async def get(self, key: str, mode: ReadMode) -> tuple[int, Any, int]:
        version, metadata, _ = await self._inner.get(key, mode)
        return version, metadata, 0
