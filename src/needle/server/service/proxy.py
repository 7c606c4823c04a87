"""Any node as a proxy: calls of clients that know nothing of shards are routed by the node that gets them.

Such a client sends the calls of `protocol.calls` as if there were one group; each is answered as the whole cluster.
A numbered write is executed at most once through this node (numbered_writes.py).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, Self

import msgspec

from needle.base.access import Identity
from needle.base.config import RaftConfig
from needle.base.dtypes import DType
from needle.base.errors import (
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    StaleEpoch,
    UnsupportedFormat,
    in_seconds,
    invalid,
)
from needle.base.model import HitBatch, ReadMode, WriteResult
from needle.base.runtime import Rng
from needle.client.asking import asked_by
from needle.client.router.router import Router
from needle.client.where import TOLD_BYTES_MAX
from needle.protocol import commands
from needle.protocol.bounds import command_in
from needle.protocol.calls import (
    CollectionsAnswer,
    CollectionsCall,
    CountAnswer,
    CountCall,
    DocumentBatch,
    FacetAnswer,
    FacetCall,
    Freshness,
    GetCall,
    ScanAnswer,
    ScanCall,
    SearchCall,
    SearchManyAnswer,
    SearchManyCall,
    WriteCall,
)
from needle.protocol.named import taken_of
from needle.routing.topology import Topology
from needle.server.service.numbered_writes import LEFT, NumberedWrites, told
from needle.server.service.reads import check_ids
from needle.server.service.served import call_timeout, check_for_callers
from needle.shard.apply.spec_validation import check_spec

Judge = Callable[..., Awaitable[Any]]
SHARE = 0.9
"""Of a call's time for the shards, so that what they say still reaches the client."""


class ProxyNode(Protocol):
    """The node that routes."""

    config: RaftConfig
    router: Router
    topology: Topology


class Proxy:
    """See the module."""

    def __init__(self, node: ProxyNode, rng: Rng, judge: Judge) -> None:
        """judge: runs what takes long for a large command in a thread (served.judge)."""
        self._node = node
        self._judge = judge
        self._caller: Identity | None = None
        self.numbered = NumberedWrites(rng)

    def bound_to(self, caller: Identity) -> Self:
        """For a caller whose key is for some documents only: a copy."""
        other = copy.copy(self)
        other._caller = caller
        return other

    @property
    def _router(self) -> Router:
        router, caller = self._node.router, self._caller
        return router if caller is None else router.bound_to(caller.filter)

    @property
    def _owner(self) -> int:
        """Of the sessions by which writes are numbered."""
        return 0 if self._caller is None else self._caller.since

    # --- writes ------------------------------------------------------------------------------------------------------
    async def write(self, call: WriteCall) -> WriteResult:
        """One command of a client that knows no map."""
        command = await self._judge(len(call.command), self._decoded, call)
        if isinstance(command, commands.OpenSession):
            return self.numbered.open(self._owner)
        check_for_callers(command)
        session, timeout = command.session, call_timeout(call.timeout)
        if session.id == 0:
            with asked_by(call.asked):
                return await self._run(command, timeout, {})
        known, write = self.numbered.find(session, self._owner)
        if write.outcome is not None:
            return told(write.outcome)
        if write.task is None:
            with asked_by(call.asked):
                write.task = asyncio.get_running_loop().create_task(self._run(command, SHARE * timeout, write.written))
            write.task.add_done_callback(partial(self.numbered.settled, session, known, write))
        task = write.task
        done, _ = await asyncio.wait((task,), timeout=timeout)
        if not done:
            raise OutcomeUnknown(f"the write was not answered within {in_seconds(timeout)}; it may take effect")
        return task.result()

    def _decoded(self, call: WriteCall) -> commands.Command:
        """May run in any thread. Raises InvalidArgument."""
        try:
            command = command_in(call)
        except UnsupportedFormat as error:
            raise InvalidArgument(error.message, field="command") from error
        limit = self._node.config.limits.batch_documents_max
        if isinstance(command, commands.Delete | commands.UpdateVectors | commands.Patch) and len(command.ids) > limit:
            # Any shard would refuse them; whose they are is found out on the event loop.
            raise invalid("ids", f"{len(command.ids)} documents", f"1 to {limit} in a batch")
        if isinstance(command, commands.UpdateVectors) and command.dtype is not DType.FLOAT32:
            raise invalid("dtype", command.dtype, "float32 in a call that is not for a shard")
        if not isinstance(command, commands.Insert):
            return command
        count = len(command.ids)
        if command.dtype is not DType.FLOAT32:
            raise invalid("dtype", command.dtype, "float32 in a call that is not for a shard")
        if count != len(command.metadata) or not count or len(command.vectors) % count:
            raise InvalidArgument("ids, vectors and metadata have different lengths", field="ids")
        if command.expires and len(command.expires) != count:
            raise InvalidArgument("ids and expires_at have different lengths", field="expires_at")
        if count > limit:
            raise invalid("ids", f"{count} documents", f"1 to {limit} in a batch")
        return commands.without_repeats(command)

    async def _run(self, command: commands.Command, timeout: float, written: dict[int, WriteResult]) -> WriteResult:
        router = self._router
        if isinstance(command, commands.Insert):
            return await self._insert(command, timeout, written)
        if isinstance(command, commands.Delete):
            if command.expected is not None:
                raise InvalidArgument("conditional deletes need a client that knows the map", field="expected")
            return await router.delete(command.collection, command.ids, timeout, command.matches)
        if isinstance(command, commands.UpdateVectors):
            if command.expected is not None and len(command.ids) > 1:
                raise InvalidArgument(
                    "a condition on several documents needs a client that knows the map", field="expected"
                )
            if not command.ids or len(command.vectors) % len(command.ids):
                raise InvalidArgument("ids and vectors have different lengths", field="ids")
            return await router.update_vectors(
                command.collection, command.ids, command.vectors, command.expected, command.matches, timeout,
                command.expires, command.name, command.gone,
            )  # fmt: skip
        if isinstance(command, commands.Patch):
            if command.expected is not None and len(command.ids) > 1:
                raise InvalidArgument(
                    "a condition on several documents needs a client that knows the map", field="expected"
                )
            return await router.patch(
                command.collection, command.ids, command.change, command.expected, command.matches, timeout
            )
        if isinstance(command, commands.ChangeWhere):
            if command.owned or command.within:  # one shard's part, by a map from before there was any here
                version = self._node.topology.version
                raise StaleEpoch("a part of a change by a filter is asked of its shard", version=version, epoch=0)
            if command.after >= 0 or command.upto >= 0:
                raise InvalidArgument("a change by a filter is done as a whole here", field="after")
            # What the caller may touch is the router's to say.
            command = msgspec.structs.replace(command, bound=None)
            return await router.change_where(command, timeout, told_bytes_max=TOLD_BYTES_MAX)
        if isinstance(command, commands.CreateCollection):
            check_spec(command.spec, self._node.config.limits)
            return await router.create_collection(command.spec, command.if_absent, timeout)
        if isinstance(command, commands.DropCollection):
            return await router.drop_collection(command.name, timeout)
        raise InvalidArgument(f"{type(command).__name__} is not for clients", field="command")

    async def _insert(self, command: commands.Insert, timeout: float, written: dict[int, WriteResult]) -> WriteResult:
        count = len(command.ids)
        if count == 1:
            return await self._router.insert(
                command.collection,
                command.ids[0],
                command.vectors,
                command.metadata[0],
                command.expected,
                timeout,
                command.matches,
                command.expires[0] if command.expires else commands.AS_IT_IS,
                command.named,
            )
        if command.expected is not None or command.matches:
            raise InvalidArgument(
                "a condition on several documents needs a client that knows the map", field="expected"
            )
        await self._insert_batch(command, timeout, written)
        return WriteResult(
            version=max(result.version for result in written.values()),
            index=max(result.index for result in written.values()),
            existed=any(result.existed for result in written.values()),
            count=count,
        )

    async def _insert_batch(self, command: commands.Insert, timeout: float, written: dict[int, WriteResult]) -> None:
        """Write what is not `written` yet: what was written before this call is not written again. Raises what did not
        get through."""
        rows, size = memoryview(command.vectors), len(command.vectors) // len(command.ids)
        left = [at for at in range(len(command.ids)) if at not in written]
        if written:
            rows = memoryview(b"".join(rows[at * size : (at + 1) * size] for at in left))
        parts = await self._router.insert_batch(
            command.collection,
            [command.ids[at] for at in left],
            rows,
            [command.metadata[at] for at in left],
            timeout,
            [command.expires[at] for at in left] if command.expires else [],
            whole=True,
            named=taken_of(command.named, left),
        )
        failures: list[NeedleError] = []
        for part in parts:
            if isinstance(part.outcome, NeedleError):
                failures.append(part.outcome)
            else:
                written.update(dict.fromkeys([left[at] for at in part.rows], part.outcome))
        if not failures:
            return
        failure = min(failures, key=_repeatable)
        if failure.retryable and written:
            # Here the rest is written when it is repeated; another node would begin again, so it must not be told that
            # nothing happened.
            text = f"{len(written)} of {len(command.ids)} documents are written; others not: {failure.message}"
            failure = OutcomeUnknown(text, **{LEFT: len(command.ids) - len(written)})
        failure.details["documents_written"] = len(written)
        raise failure

    # --- reads -------------------------------------------------------------------------------------------------------
    @staticmethod
    def _mode(fresh: Freshness) -> ReadMode:
        """A session's index means nothing across shards: its reads are answered by the leaders instead."""
        return ReadMode.LEASED if fresh.mode is ReadMode.EVENTUAL and fresh.min_index else fresh.mode

    async def search(self, call: SearchCall) -> HitBatch:
        """The nearest of all shards."""
        fresh = call.freshness
        found = await self._router.search(
            call.request, self._mode(fresh), call_timeout(fresh.timeout), max_staleness=fresh.max_staleness
        )
        return found.batch

    async def search_many(self, call: SearchManyCall) -> SearchManyAnswer:
        """The nearest of all shards, for each."""
        fresh = call.freshness
        timeout, mode = call_timeout(fresh.timeout), self._mode(fresh)
        return SearchManyAnswer(
            await self._router.search_many(call.request, call.count, mode, timeout, max_staleness=fresh.max_staleness)
        )

    async def get(self, call: GetCall) -> DocumentBatch:
        """From whichever shards hold them."""
        check_ids(call)
        fresh = call.freshness
        return await self._router.get(
            call.collection,
            call.ids,
            call.with_vectors,
            self._mode(fresh),
            call_timeout(fresh.timeout),
            max_staleness=fresh.max_staleness,
            fields=call.fields,
            named=call.named,
        )

    async def count(self, call: CountCall) -> CountAnswer:
        """Of all shards."""
        fresh = call.freshness
        timeout = call_timeout(fresh.timeout)
        return CountAnswer(await self._router.count(call.collection, call.filter, self._mode(fresh), timeout), 0)

    async def facet(self, call: FacetCall) -> FacetAnswer:
        """Of all shards."""
        fresh = call.freshness
        timeout = call_timeout(fresh.timeout)
        return await self._router.facet(
            call.collection, call.field, call.filter, call.limit, self._mode(fresh), timeout
        )

    async def scan(self, call: ScanCall) -> ScanAnswer:
        """Of all shards."""
        fresh = call.freshness
        return await self._router.scan(
            call.collection,
            call.filter,
            call.after,
            call.limit,
            call.with_vectors,
            call.slice,
            self._mode(fresh),
            call_timeout(fresh.timeout),
            call.fields,
            call.only,
            call.pin,
            call.order,
            named=call.named,
        )

    async def collections(self, call: CollectionsCall) -> CollectionsAnswer:
        """Of the catalog, with the counts of all shards."""
        fresh = call.freshness
        counts = await self._router.counts(self._mode(fresh), call_timeout(fresh.timeout))
        specs = [info.spec for info in self._node.topology.collections]
        return CollectionsAnswer(specs, [sum(counts.get(spec.name, {}).values()) for spec in specs], 0)


def _repeatable(error: NeedleError) -> int:
    """Which error tells the fate of a batch: one of unknown fate must not be repeated, whatever the others say."""
    return 0 if isinstance(error, OutcomeUnknown) else 1 + error.retryable
