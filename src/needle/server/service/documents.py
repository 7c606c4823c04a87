"""Calls about the documents of a shard that this node holds: writes to its log, reads of its replica.

Invariants: a write is answered only after quorum commit and apply; a read's answer names epoch and ranges, and the map
did not change while it ran. A collection that the catalog has and the shard not yet is made for who asks for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from needle.base.errors import (
    CollectionNotFound,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    StaleEpoch,
    Unavailable,
    invalid,
)
from needle.base.ids import GroupId
from needle.base.model import Claim, WriteResult
from needle.base.parts import Body
from needle.base.rates import Meter
from needle.base.request import Stopwatch, current
from needle.base.runtime import micros_of
from needle.base.tracebacks import release
from needle.protocol import calls, commands
from needle.protocol.calls import ScanCall, ScanPin, WriteCall
from needle.protocol.change_calls import ANY_EPOCH, ChangesCall
from needle.protocol.move_commands import MOVE_COMMANDS
from needle.protocol.peer_calls import MoveAnswer, MoveCall
from needle.routing.topology import Ownership
from needle.rpc.promise import Promise
from needle.server.chores.expiry import timed
from needle.server.replica import HostedReplica
from needle.server.service.bulk_turns import BulkTurns
from needle.server.service.checks import BEHIND_SECONDS, Ownerships, agrees, lists, named_in, takes
from needle.server.service.feeding import Feeding
from needle.server.service.reads import Reads
from needle.server.service.served import (
    JUDGED_BYTES_MAX,
    Deadline,
    ServedNode,
    add_address,
    call_timeout,
    check_for_callers,
    decoded_command,
    encoded,
    is_plain,
    judge,
    not_leader,
)
from needle.server.service.shares import Work
from needle.server.service.sparse_writes import check_sparse_of
from needle.server.service.watched import Watch, Watched
from needle.shard.apply.once import HASH_BYTES

Run = Callable[[Any], Awaitable[Any]]
_SMALL_WRITE = Work.SMALL_WRITE  # by a name of its own: see raft.state.LEADER


class ShardDocuments:
    """See the module. `methods`: what answers the calls that name the epoch of a map, by name."""

    def __init__(self, node: ServedNode, reads: Reads) -> None:
        self._node = node
        self._host = node.host
        self._reads = reads
        self._owners = Ownerships(node)
        self.watch = Watch(node, 0.0, None)
        self.bulk = BulkTurns(node.now)
        self.methods: dict[str, Run] = {
            calls.WRITE: self._shard_write,
            calls.SEARCH: lambda call: self._shard_read(reads.search, call),
            calls.SEARCH_MANY: lambda call: self._shard_read(reads.search_many, call),
            calls.GET: lambda call: self._shard_read(reads.get, call),
            calls.COLLECTIONS: lambda call: self._shard_read(reads.collections, call),
            calls.COUNT: lambda call: self._shard_read(reads.count, call),
            calls.FACET: lambda call: self._shard_read(reads.facet, call),
            calls.SCAN: self._scan,
        }
        self._feeding = Feeding(node, reads)

    # --- writes ------------------------------------------------------------------------------------------------------
    def at_once(self, call: WriteCall, key: str = "", meter: Meter | None = None) -> Promise[bytes] | None:
        """A shard's write without a task: most of what a small write costs here would be the event loop's work. None if
        something has to be waited for before it can be proposed, or somebody else to answer. The caller must have
        routed by this node's map, and the shard's log own what that says. key: its API key's name; meter: its own."""
        owned = self._node.ownership
        if owned is None or owned.epoch != call.epoch or len(call.command) > JUDGED_BYTES_MAX:
            return None
        self.bulk.called(_SMALL_WRITE)
        hosted = self._node.groups.get(call.group)
        if hosted is None or not hosted.may_judge:
            return None
        view = hosted.replica.view
        fence = view.fence
        if self._owners.lacks_of(view) or (fence is not None and not agrees(fence, owned, call.group)):
            return None
        now = self._node.now()
        answer = WriteAnswer(self._node, "shard_write", now, meter)
        try:
            command = self._owners.checked(owned, call, by_log=fence is not None)
            if call.asked is not None and (done := known(hosted, call.asked, command)) is not None:
                answer.set_result(done)
                return answer
            data = judged(self._node, hosted, command, call.asked)
            if (watched := self.watch.begin("shard_write", call, key, command)) is not None:
                answer.watched = watched
                watched.leave()
            self._host.submit(call.group, data, call_timeout(call.timeout), answer)
            hosted.calls.wrote(now, owned.map, command)
        except CollectionNotFound:
            return None  # the catalog may have it: it has to be asked
        except NeedleError as error:
            answer.set_exception(error)
        return answer

    async def _shard_write(self, call: WriteCall) -> object:
        deadline = Deadline(self._node, call.timeout)
        if len(call.command) <= JUDGED_BYTES_MAX:
            self.bulk.called(_SMALL_WRITE)
            return await self._execute(call, deadline)
        async with self.bulk.turn(deadline.left()):
            return await self._execute(call, deadline)

    async def _execute(self, call: WriteCall, deadline: Deadline) -> object:
        owned = await self._owners.of(call.epoch, deadline.left())
        command = await judge(self._node, len(call.command), self._owners.checked, owned, call)
        if (request := current.get()) is not None:
            request.command = command
        await self._hold(owned, call, command, deadline)
        try:
            answer = await self._write(call, command, deadline)
        except CollectionNotFound:
            collection = getattr(command, "collection", "")
            await self._catch_up(call.group, collection, deadline)
            answer = await self._write(call, command, deadline)
        if (hosted := self._node.groups.get(call.group)) is not None:
            hosted.calls.wrote(self._node.now(), owned.map, command)
        return answer

    async def _write(self, call: WriteCall, command: commands.Command, deadline: Deadline) -> object:
        hosted, host, group = self._node.hosted(call.group), self._host, call.group
        if not host.is_leader(group):
            raise not_leader(self._node, group)
        await hosted.be_up_to_date(deadline.left())
        if self._owners.lacks(group):
            await self._owners.learn(group, deadline.left())
            await self._owners.of(call.epoch, deadline.left())
        if call.asked is not None:
            done = await judge(self._node, len(call.command), known, hosted, call.asked, command)
            if done is not None:
                return done
        data = await judge(self._node, len(call.command), judged, self._node, hosted, command, call.asked)
        return await host.propose(group, data, deadline.left())

    async def _hold(self, owned: Ownership, call: WriteCall, command: commands.Command, deadline: Deadline) -> None:
        """A write that the shard's log would refuse waits here until the map changes, and is denied then: its range is
        moving. What gets past this is judged by the log."""
        hosted = self._node.groups.get(call.group)
        fence = hosted.replica.fence if hosted is not None and self._host.is_leader(call.group) else None
        if fence is None or agrees(fence, owned, call.group):
            return  # the log owns what the map says, and that is checked already
        if not await judge(self._node, len(call.command), takes, fence, command):
            await self._owners.moving(owned, deadline.left())
            text = f"shard {call.group - 1} does not take this write while its key moves"
            raise self._owners.stale(text, self._node.ownership or owned, owned=False)

    async def move(self, call: MoveCall) -> MoveAnswer:
        """One step of a move's driver."""
        if not self._host.is_leader(call.group):
            raise not_leader(self._node, call.group)
        timeout, hosted = call_timeout(call.timeout), self._node.hosted(call.group)
        if call.command:
            command = await judge(self._node, len(call.command), decoded_command, call.command)
            if not isinstance(command, MOVE_COMMANDS) or command.move != call.move:
                raise InvalidArgument(f"{type(command).__name__} is no step of move {call.move}", field="command")
            move = self._node.topology.move(call.move)
            self._node.space.check_import(command, move.state if move is not None else None)
            now, instant = self._node.topology, micros_of(self._node.ports.clock)
            data = await judge(self._node, len(call.command), commands.entry, command, now, instant)  # as in `judged`
            await self._host.propose(call.group, data, timeout)
        else:
            await self._host.read_index(call.group, timeout)
        fence = hosted.replica.fence
        found = fence.holdings.transfer(call.move) if fence is not None else None
        if found is None:
            return MoveAnswer("", 0, 0, {})
        return MoveAnswer(found.phase, found.step, found.at, found.cursors)

    # --- reads -------------------------------------------------------------------------------------------------------
    def lacks(self, *groups: GroupId) -> bool:
        """Whether the log of one of these shards says that this node must know a newer catalog before it answers."""
        return self._owners.lacks(*groups)

    def _count(self, owned: Ownership, call: Any) -> None:
        hosted = self._node.groups.get(call.group)
        if hosted is None:
            return
        if isinstance(call, calls.GetCall):
            hosted.calls.read(self._node.now(), owned.map, call.ids)
        elif isinstance(call, calls.SearchManyCall):
            hosted.calls.searched(self._node.now(), call.count)
        else:
            hosted.calls.searched(self._node.now())

    async def _shard_read(self, run: Callable[[Any, Claim], Awaitable[Any]], call: Any) -> Body:
        owned, answer = await self.read(run, call)
        encoding = Stopwatch(self._node.now)
        body = await encoded(self._node, answer)
        encoding.stop("encode")
        return calls.encode_body((owned.epoch, owned.fingerprint(call.group - 1), body), body)  # a ShardAnswer

    async def read(self, run: Callable[[Any, Claim], Awaitable[Any]], call: Any) -> tuple[Ownership, Any]:
        """What `run` answers to a call that names the epoch of a map; and the map, which did not change meanwhile.
        Raises StaleEpoch for another one, and what `run` does."""
        if not isinstance(call, ScanCall):  # who reads everything is in no hurry
            self.bulk.called(Work.SEARCH)
        owned = self._node.ownership
        if owned is None or owned.epoch != call.epoch:
            owned = await self._owners.of(call.epoch)
        claim = owned.claim(call.group - 1)
        fresh = call.freshness
        if fresh.min_index < claim.since:  # a replica that lags behind must not answer for what it does not have yet
            fresh = msgspec.structs.replace(fresh, min_index=claim.since)
            call = msgspec.structs.replace(call, freshness=fresh)
        self._count(owned, call)
        try:
            try:
                answer = await run(call, claim)
            except CollectionNotFound:
                await self._catch_up(call.group, named_in(call), Deadline(self._node, fresh.timeout))
                answer = await run(call, claim)
        except StaleEpoch as stale:
            await self._owners.moving(owned, call_timeout(fresh.timeout))
            raise self._owners.stale(stale.message, self._node.ownership or owned) from stale
        if self._owners.lacks(call.group):
            await self._owners.learn(call.group, call_timeout(fresh.timeout))
        if type(call) is calls.SearchCall and call.request.sparse is not None:
            await self._owners.check_sparse(call, call_timeout(fresh.timeout))
        after = self._node.ownership
        if after is not owned and (after is None or after.map != owned.map):
            raise self._owners.stale("the shard map changed during the read", after or owned)
        return owned, answer

    # --- consistent scans --------------------------------------------------------------------------------------------
    async def _scan(self, call: ScanCall) -> Body:
        """Of what there is now, or of what an open pin sees, whichever map its reader knows; or it opens one."""
        pin = call.pin
        if pin is None:
            return await self._shard_read(self._reads.scan, call)
        if pin.ends:
            await self._end_pin(call, pin)
            return calls.encode((call.epoch, 0, b""))
        if pin.open:
            answer = await self._reads.scan(call)
            return calls.encode_body((call.epoch, 0, body := await encoded(self._node, answer)), body)
        deadline = Deadline(self._node, call.freshness.timeout)
        owned = await self._owners.of(call.epoch, deadline.left())
        try:
            try:
                index = await self._open_pin(owned, call, pin, deadline)
            except CollectionNotFound:
                await self._catch_up(call.group, call.collection, deadline)
                index = await self._open_pin(owned, call, pin, deadline)
        except StaleEpoch as stale:
            await self._owners.moving(owned, deadline.left())
            raise self._owners.stale(stale.message, self._node.ownership or owned) from stale
        opened = msgspec.structs.replace(call, pin=ScanPin(pin.token, [(call.group - 1, index)]))
        body = await encoded(self._node, await self._reads.scan(opened))
        return calls.encode_body((owned.epoch, owned.fingerprint(call.group - 1), body), body)

    async def _open_pin(self, owned: Ownership, call: ScanCall, pin: ScanPin, deadline: Deadline) -> int:
        """The index at which the shard's log has the pin."""
        limits, group = self._node.config.limits, call.group
        until = micros_of(self._node.ports.clock) + int(limits.pinned_scan_seconds * 1_000_000)
        fingerprint = owned.fingerprint(group - 1)
        command = commands.PinScan(call.collection, pin.token, fingerprint, until, limits.pinned_scans_max)
        result = await self._by_log(group, command, deadline, call.epoch)
        return result.version

    async def _end_pin(self, call: ScanCall, pin: ScanPin) -> None:
        here = {index for shard, index in pin.open if shard == call.group - 1}
        open_ = [one.index for one in self._node.hosted(call.group).replica.view.pins.open if one.token == pin.token]
        if found := [index for index in open_ if index in here or calls.ANY_INDEX in here]:
            deadline = Deadline(self._node, call.freshness.timeout)
            await self._by_log(call.group, commands.EndPins(found), deadline, 0)

    async def _by_log(self, group: GroupId, command: commands.Command, deadline: Deadline, epoch: int) -> WriteResult:
        """Propose what a read needs. epoch: of the map by which it was routed, 0 if it does not matter."""
        hosted = self._node.hosted(group)
        if not self._host.is_leader(group):
            raise not_leader(self._node, group)
        await hosted.be_up_to_date(deadline.left())
        if epoch and self._owners.lacks(group):
            await self._owners.learn(group, deadline.left())
            await self._owners.of(epoch, deadline.left())
        hosted.space.check(command)
        data = commands.entry(command, self._node.topology, micros_of(self._node.ports.clock))
        try:
            result: WriteResult = await self._host.propose(group, data, deadline.left())
        except OutcomeUnknown as error:  # to repeat it is harmless: it is known by its token
            raise Unavailable(f"whether the consistent scan was opened, or ended, is not known: {error}") from error
        return result

    # --- change feeds ------------------------------------------------------------------------------------------------
    async def changes(self, call: ChangesCall) -> Body:
        """See protocol.change_calls. Raises InvalidArgument for a call that is not a shard's."""
        if not call.epoch:
            raise invalid("epoch", 0, "that of a shard map: changes are asked of a shard, not of a cluster")
        if call.epoch != ANY_EPOCH:
            return await self._shard_read(self._feeding.end, call)
        try:
            answer = await self._feeding.changes(call)
        except CollectionNotFound:
            await self._catch_up(call.group, call.collection, Deadline(self._node, call.freshness.timeout))
            answer = await self._feeding.changes(call)
        body = await encoded(self._node, answer)
        return calls.encode_body((call.epoch, 0, body), body)

    async def _catch_up(self, group: GroupId, collection: str, deadline: Deadline) -> None:
        """A collection that the catalog has but this shard has not yet: make it. Raises CollectionNotFound if the
        catalog confirms that it does not have it, Unavailable on a replica that does not lead."""
        node = self._node
        if not lists(node.topology, collection):
            newest = await node.confirmed(min(deadline.left(), BEHIND_SECONDS))
            if not lists(newest, collection):
                raise CollectionNotFound(f"there is no collection {collection[:80]!r}", collection=collection[:80])
            if not await node.wait_topology(newest.version, min(deadline.left(), BEHIND_SECONDS)):
                raise Unavailable(f"node {node.node_id} does not know version {newest.version} of the catalog yet")
        if not self._host.is_leader(group):
            raise Unavailable(f"this replica of shard {group - 1} does not have collection {collection[:80]!r} yet")
        await node.reconciler.reconcile(group, deadline.left())


class WriteAnswer(Promise[bytes]):
    """The answer of one write, settled by the Raft host: encoded, and reported to the node's observer as `observed`."""

    __slots__ = ("_meter", "_node", "_observed", "_start", "watched")

    def __init__(self, node: ServedNode, observed: str, start: float, meter: Meter | None) -> None:
        """start: by the node's clock. meter: its caller's."""
        super().__init__()
        self._node, self._observed, self._start, self._meter = node, observed, start, meter
        self.watched: Watched | None = None

    def set_result(self, result: object) -> None:
        """result: a WriteResult, or None of a command that has none."""
        body, count = calls.encode(result), result.count if isinstance(result, WriteResult) else 0
        if self._meter is not None:
            self._meter.pay(count, len(body))
        super().set_result(body)
        self._node.observe(self._observed, self._node.now() - self._start, None)
        if self.watched is not None:
            self.watched.end()

    def set_exception(self, error: BaseException) -> None:
        """error: a NeedleError."""
        if isinstance(error, NeedleError):
            release(error)  # its frames hold this answer, and a view of all vectors
            add_address(error, self._node)
            self._node.observe(self._observed, self._node.now() - self._start, error)
        if self.watched is not None:
            self.watched.end(error)
        super().set_exception(error)


def known(hosted: HostedReplica, asked: commands.Asked, command: commands.Command) -> WriteResult | None:
    """What a write of a request with an idempotency key came to, if it was executed. Asked before the write is judged:
    by now the disk may be full, or an instant in it have passed, or a field of it be a sparse vector. Raises what it
    was refused with, or why it is now."""
    done = hosted.replica.sessions.once.find(asked, command)
    if isinstance(done, NeedleError):
        raise done
    return done


def judged(
    node: ServedNode, hosted: HostedReplica, command: commands.Command, asked: commands.Asked | None = None
) -> bytes:
    """The command to propose, encoded again: what a caller put behind the fields that this release knows must not get
    into the log, for whether it can be skipped depends on how deep the call is that applies it, on each replica.
    asked: by a request with an idempotency key. Raises InvalidArgument, CollectionNotFound, ClusterTooOld."""
    check_for_callers(command)
    hosted.space.check(command)
    known, plain = hosted.collections, is_plain(command, node.topology, hosted.collections)
    command = hosted.replica.validate(command if plain else timed(command, node.topology, node.ports.clock, known))
    if not plain:
        check_sparse_of(command, node.topology, known)
    if asked is not None:
        if not isinstance(command, commands.DOCUMENT_WRITES) or {len(asked.key), len(asked.request)} != {HASH_BYTES}:
            raise invalid("asked", type(command).__name__, f"a write of documents, with two hashes of {HASH_BYTES}")
        command = commands.Once(asked, micros_of(node.ports.clock), command)
    return commands.entry(command, node.topology, micros_of(node.ports.clock))
