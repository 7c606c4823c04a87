"""Creating, dropping and listing collections; and how reads reach a replica of the right freshness.

`Client` inherits this, too.
"""

from __future__ import annotations

from typing import Any

from needle.base.errors import CollectionNotFound, InvalidArgument
from needle.base.ids import shard_group
from needle.base.model import CollectionSpec, IndexParams, Metric, ReadMode, WriteResult
from needle.client import values
from needle.client.operations import TIMEOUT, AdminCalls
from needle.protocol import calls
from needle.protocol.calls import CollectionsAnswer, CollectionsCall, Freshness
from needle.protocol.commands import CreateCollection, DropCollection

DEFAULT_COLLECTION = "default"


class CollectionCalls(AdminCalls):
    """The part of `Client` that concerns collections."""

    async def create_collection(
        self,
        name: str,
        *,
        dimensions: int,
        metric: Metric | str = Metric.COSINE,
        index: IndexParams | None = None,
        if_absent: bool = False,
        timeout: float = TIMEOUT,
    ) -> WriteResult:
        """Create a collection. Raises CollectionExists, unless if_absent and the one there is equal."""
        spec = CollectionSpec(
            name=values.check_name(name, "name"),
            dimensions=values.check_count(dimensions, "dimensions"),
            metric=values.choose(metric, Metric, "metric"),
            index=values.check_index(index),
        )
        absent = values.check_flag(if_absent, "if_absent")
        return await self._data().write(
            lambda session: CreateCollection(spec, absent, session), values.check_timeout(timeout)
        )

    async def drop_collection(self, name: str, *, timeout: float = TIMEOUT) -> WriteResult:
        """Delete a collection and all its documents. Raises CollectionNotFound."""
        checked = values.check_name(name, "name")
        return await self._data().write(lambda session: DropCollection(checked, session), values.check_timeout(timeout))

    async def collections(
        self, *, mode: ReadMode | str = ReadMode.STRONG, timeout: float = TIMEOUT
    ) -> list[CollectionSpec]:
        """All collections, by name."""
        return (await self._collections(mode, timeout)).collections

    async def count(
        self, *, collection: str = DEFAULT_COLLECTION, mode: ReadMode | str = ReadMode.STRONG, timeout: float = TIMEOUT
    ) -> int:
        """How many documents a collection holds. Raises CollectionNotFound."""
        values.check_name(collection)
        answer = await self._collections(mode, timeout)
        for spec, count in zip(answer.collections, answer.counts, strict=True):
            if spec.name == collection:
                return count
        raise CollectionNotFound(f"there is no collection {collection!r}", collection=collection)

    async def _collections(self, mode: ReadMode | str, timeout: float) -> CollectionsAnswer:
        freshness = self._freshness(mode, False, None)
        answer = await self._read(
            calls.COLLECTIONS, freshness, lambda fresh: CollectionsCall(shard_group(0), fresh), timeout
        )
        return calls.decode(answer, CollectionsAnswer)

    # --- reads of any kind -------------------------------------------------------------------------------------------
    def _freshness(self, mode: ReadMode | str, session: bool, max_staleness: float | None) -> Freshness:
        wanted = values.choose(mode, ReadMode, "mode")
        session = values.check_flag(session, "session")
        if wanted is not ReadMode.EVENTUAL and (session or max_staleness is not None):
            name = "session" if session else "max_staleness"
            raise InvalidArgument(f"{name} is for eventual reads; {wanted.value} reads are fresh anyway", field=name)
        stale = 0.0 if max_staleness is None else values.check_timeout(max_staleness, "max_staleness")
        return Freshness(wanted, self._data().last_index if session else 0, stale, 0.0)

    async def _read(self, method: str, fresh: Freshness, make: Any, timeout: float) -> bytes:
        seconds = values.check_timeout(timeout)
        encode = calls.encode

        def body(left: float) -> bytes:
            return encode(make(Freshness(fresh.mode, fresh.min_index, fresh.max_staleness, left)))

        group = self._data()
        if fresh.mode is ReadMode.EVENTUAL:
            return await group.ask_any(method, body, seconds)
        return await group.ask_leader(method, body, seconds)
