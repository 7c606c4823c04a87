"""Any node as a proxy: calls of clients that know nothing of shards are routed by the node that gets them.

Such a client sends the calls of `protocol.calls` as if there were one group; each is answered as the whole cluster.
Invariant: a numbered write is executed at most once through this node. One whose answer is forgotten, because its
client acknowledged it or too many are kept, is refused. Sessions live in this process, so a write
repeated at another node is answered SessionExpired, which its client reports as unknown, never as done or not done.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Protocol

from needle.base.config import RaftConfig
from needle.base.errors import (
    Internal,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    SessionExpired,
    StaleEpoch,
    UnsupportedFormat,
    invalid,
)
from needle.base.model import HitBatch, ReadMode, WriteResult
from needle.base.runtime import Rng
from needle.client.router.router import Router
from needle.protocol import commands
from needle.protocol.calls import (
    CollectionsAnswer,
    CollectionsCall,
    CountAnswer,
    CountCall,
    DocumentBatch,
    Freshness,
    GetCall,
    ScanAnswer,
    ScanCall,
    SearchCall,
    SearchManyAnswer,
    SearchManyCall,
    WriteCall,
)
from needle.protocol.move_commands import MoveCommand
from needle.routing.topology import Topology
from needle.server.service.served import call_timeout
from needle.shard.apply.sessions import ANSWERS_MAX, SESSIONS_MAX
from needle.shard.apply.validation import check_spec

KEPT_MAX = 65_536
"""Writes of all sessions, of some 1 KiB each: sessions that were not used for longest forget their oldest ones."""
ROWS_KEPT = 16
"""Documents written of a batch that did not get through whole, or ids of an answer, that weigh as much as a write."""
LEFT = "documents_left"
"""Detail of the error for a batch that can be repeated for its rest."""
Judge = Callable[..., Awaitable[Any]]
SHARE = 0.9
"""Of a call's time for the shards, so that what they say still reaches the client."""


class ProxyNode(Protocol):
    """The node that routes."""

    config: RaftConfig
    router: Router
    topology: Topology


class _Write:
    """A numbered write. task: while it runs. outcome: once that is all there will be. written: what is written of a
    batch that did not get through whole, and may be repeated for its rest. weight: what it counts of KEPT_MAX."""

    __slots__ = ("outcome", "task", "weight", "written")

    def __init__(self) -> None:
        self.task: asyncio.Task[WriteResult] | None = None
        self.outcome: WriteResult | NeedleError | None = None
        self.written: dict[int, WriteResult] = {}
        self.weight = 1


class _Session:
    """acked: the writes below are forgotten. writes: the others, by number. weight: of all of them."""

    __slots__ = ("acked", "weight", "writes")

    def __init__(self) -> None:
        self.acked = 0
        self.weight = 0
        self.writes: dict[int, _Write] = {}

    def forget(self, acked: int) -> int:
        """Nobody will repeat writes below `acked`. What they weighed."""
        before = self.acked
        if acked <= before:
            return 0
        self.acked = acked
        numbers: Iterable[int] = range(before, acked)
        if acked - before > len(self.writes):
            numbers = [seq for seq in self.writes if seq < acked]
        return sum(write.weight for seq in numbers if (write := self.writes.pop(seq, None)) is not None)


class Proxy:
    """See the module."""

    def __init__(self, node: ProxyNode, rng: Rng, judge: Judge) -> None:
        """judge: runs what takes long for a large command in a thread (served.judge)."""
        self._node = node
        self._judge = judge
        self._rng = rng
        self._sessions: dict[int, _Session] = {}
        self._kept = 0
        self._keeping: dict[int, None] = {}
        """Sessions with writes, those that were used last at the end, as in `_sessions`."""

    # --- writes ------------------------------------------------------------------------------------------------------
    async def write(self, call: WriteCall) -> WriteResult:
        """One command of a client that knows no map."""
        command = await self._judge(len(call.command), self._decoded, call.command)
        if isinstance(command, commands.OpenSession):
            return self._open()
        if isinstance(command, commands.PublishSegment | MoveCommand):
            raise InvalidArgument("segments are published, and ranges moved, by leaders only", field="command")
        session, timeout = command.session, call_timeout(call.timeout)
        if session.id == 0:
            return await self._run(command, timeout, {})
        known = self._used(session)
        write = known.writes.get(session.seq)
        if write is None:
            write = known.writes[session.seq] = _Write()
            self._keeping[session.id] = None
            self._weigh(session.id, known, write.weight)
            if len(known.writes) > ANSWERS_MAX:
                self._forget_oldest(session.id)
            self._bound()
        if write.outcome is not None:
            return _told(write.outcome)
        if write.task is None:
            write.task = asyncio.get_running_loop().create_task(self._run(command, SHARE * timeout, write.written))
            write.task.add_done_callback(partial(self._settled, session, known, write))
        task = write.task
        done, _ = await asyncio.wait((task,), timeout=timeout)
        if not done:
            raise OutcomeUnknown(f"the write was not answered within {timeout:g} s; it may take effect")
        return task.result()

    def _settled(
        self, session: commands.Session, known: _Session, write: _Write, task: asyncio.Task[WriteResult]
    ) -> None:
        """A write is over, whether or not its client still waits. The task is not kept: what failed holds its command
        in the frames of its traceback."""
        write.task = None
        outcome = _outcome(task)
        again = isinstance(outcome, NeedleError) and (outcome.retryable or LEFT in outcome.details)
        if not again:
            write.outcome, write.written = outcome, {}
        if known.writes.get(session.seq) is not write:
            return  # forgotten meanwhile
        weight = 1 + len(write.written) // ROWS_KEPT
        if isinstance(write.outcome, WriteResult):
            weight += len(write.outcome.ids) // ROWS_KEPT
        if again and not write.written:
            del known.writes[session.seq]  # nothing happened: the client may send it again
            weight = 0
        before, write.weight = write.weight, weight
        self._weigh(session.id, known, weight - before)
        self._bound()

    def _used(self, session: commands.Session) -> _Session:
        """The session of a write that may be executed, or was. Raises SessionExpired."""
        known = self._sessions.pop(session.id, None)
        if known is None:
            raise SessionExpired("this node does not know the session: it was opened through another node")
        self._sessions[session.id] = known  # the ones used last stay longest
        if session.id in self._keeping:
            del self._keeping[session.id]
            self._keeping[session.id] = None
        self._weigh(session.id, known, -known.forget(session.acked))
        if session.seq < known.acked:  # a copy that was late
            raise SessionExpired(
                f"write {session.seq} of session {session.id} was answered before and its answer is forgotten; "
                "it was not executed again"
            )
        return known

    def _forget_oldest(self, session: int) -> None:
        known = self._sessions[session]
        oldest = known.acked if known.acked in known.writes else min(known.writes)
        self._weigh(session, known, -known.forget(oldest + 1))

    def _bound(self) -> None:
        while self._kept > KEPT_MAX:
            self._forget_oldest(next(iter(self._keeping)))

    def _weigh(self, session: int, known: _Session, more: int) -> None:
        """The writes of a session weigh so much more, or less."""
        known.weight += more
        if self._sessions.get(session) is not known:
            return  # the session is forgotten
        self._kept += more
        if not known.writes:
            self._keeping.pop(session, None)

    def _decoded(self, data: bytes) -> commands.Command:
        """May run in any thread. Raises InvalidArgument."""
        try:
            command = commands.decode(data)
        except UnsupportedFormat as error:
            raise InvalidArgument(error.message, field="command") from error
        if not isinstance(command, commands.Insert):
            return command
        count, limit = len(command.ids), self._node.config.limits.batch_documents_max
        if count != len(command.metadata) or not count or len(command.vectors) % count:
            raise InvalidArgument("ids, vectors and metadata have different lengths", field="ids")
        if command.expires and len(command.expires) != count:
            raise InvalidArgument("ids and expires_at have different lengths", field="expires_at")
        if count > limit:
            raise invalid("ids", f"{count} documents", f"1 to {limit} in a batch")
        return commands.without_repeats(command)

    def _open(self) -> WriteResult:
        while len(self._sessions) >= SESSIONS_MAX:
            oldest = next(iter(self._sessions))
            self._kept -= self._sessions.pop(oldest).weight
            self._keeping.pop(oldest, None)
        made = self._rng.getrandbits(52) + 1
        self._sessions[made] = _Session()
        return WriteResult(version=0, index=made)

    async def _run(self, command: commands.Command, timeout: float, written: dict[int, WriteResult]) -> WriteResult:
        router = self._node.router
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
                command.expires,
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
            return await router.change_where(command, timeout)
        if isinstance(command, commands.CreateCollection):
            check_spec(command.spec, self._node.config.limits)
            return await router.create_collection(command.spec, command.if_absent, timeout)
        if isinstance(command, commands.DropCollection):
            return await router.drop_collection(command.name, timeout)
        raise InvalidArgument(f"{type(command).__name__} is not for clients", field="command")

    async def _insert(self, command: commands.Insert, timeout: float, written: dict[int, WriteResult]) -> WriteResult:
        count = len(command.ids)
        if count == 1:
            return await self._node.router.insert(
                command.collection,
                command.ids[0],
                command.vectors,
                command.metadata[0],
                command.expected,
                timeout,
                command.matches,
                command.expires[0] if command.expires else commands.AS_IT_IS,
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
        parts = await self._node.router.insert_batch(
            command.collection,
            [command.ids[at] for at in left],
            rows,
            [command.metadata[at] for at in left],
            timeout,
            [command.expires[at] for at in left] if command.expires else [],
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
        found = await self._node.router.search(
            call.request, self._mode(fresh), call_timeout(fresh.timeout), max_staleness=fresh.max_staleness
        )
        return found.batch

    async def search_many(self, call: SearchManyCall) -> SearchManyAnswer:
        """The nearest of all shards, for each."""
        fresh = call.freshness
        timeout, mode = call_timeout(fresh.timeout), self._mode(fresh)
        return SearchManyAnswer(
            await self._node.router.search_many(
                call.request, call.count, mode, timeout, max_staleness=fresh.max_staleness
            )
        )

    async def get(self, call: GetCall) -> DocumentBatch:
        """From whichever shards hold them."""
        fresh = call.freshness
        return await self._node.router.get(
            call.collection,
            call.ids,
            call.with_vectors,
            self._mode(fresh),
            call_timeout(fresh.timeout),
            max_staleness=fresh.max_staleness,
            fields=call.fields,
        )

    async def count(self, call: CountCall) -> CountAnswer:
        """Of all shards."""
        fresh = call.freshness
        timeout = call_timeout(fresh.timeout)
        return CountAnswer(await self._node.router.count(call.collection, call.filter, self._mode(fresh), timeout), 0)

    async def scan(self, call: ScanCall) -> ScanAnswer:
        """Of all shards."""
        fresh = call.freshness
        return await self._node.router.scan(
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
        )

    async def collections(self, call: CollectionsCall) -> CollectionsAnswer:
        """Of the catalog, with the counts of all shards."""
        fresh = call.freshness
        counts = await self._node.router.counts(self._mode(fresh), call_timeout(fresh.timeout))
        specs = [info.spec for info in self._node.topology.collections]
        return CollectionsAnswer(specs, [sum(counts.get(spec.name, {}).values()) for spec in specs], 0)


def _repeatable(error: NeedleError) -> int:
    """Which error tells the fate of a batch: one of unknown fate must not be repeated, whatever the others say."""
    return 0 if isinstance(error, OutcomeUnknown) else 1 + error.retryable


def _outcome(task: asyncio.Task[WriteResult]) -> WriteResult | NeedleError:
    """What came of a write, without anything that it was made of; so a failure counts as seen."""
    if task.cancelled():
        return OutcomeUnknown("the node stopped while it executed the write")
    failure = task.exception()
    if failure is None:
        return task.result()
    return copy.copy(failure) if isinstance(failure, NeedleError) else Internal(f"{type(failure).__name__}: {failure}")


def _told(outcome: WriteResult | NeedleError) -> WriteResult:
    if isinstance(outcome, NeedleError):
        raise copy.copy(outcome)  # a copy: what is raised holds the frames that it passes
    return outcome
