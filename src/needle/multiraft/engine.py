"""The engine of the multi-Raft host: loop turns, one transaction for all groups, one frame per peer, timers.

A loop turn takes the Ready of every dirty group, sends what may go at once (a leader's appends travel in parallel
with its own fsync) and hands everything that must be durable to the log pool as one transaction. While that is in
flight, further turns take messages and committed entries only; what waits is gathered into the next transaction.
Invariant: after the first error of the disk nothing is sent, acknowledged or answered with success any more, for any
group. It must not know what a state machine stores, nor how messages travel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from needle.base.errors import Internal, LostState, NeedleError, Unavailable, invalid
from needle.base.events import REPLICA_CLOSED, tell
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.news import News
from needle.base.parts import Payload
from needle.base.runtime import Clock, Pool, Rng
from needle.multiraft.alarm import Alarm
from needle.multiraft.background import Background
from needle.multiraft.beating import beat_along
from needle.multiraft.codec import Addressed, frame_body, in_frames
from needle.multiraft.config import HostConfig
from needle.multiraft.counters import Counters
from needle.multiraft.failpoints import Failpoint, no_failpoint
from needle.multiraft.files import Files
from needle.multiraft.gathering import Gathering
from needle.multiraft.group import Group, Turn, Work, lost_state
from needle.multiraft.inbound import Inbound
from needle.multiraft.lives import Lives
from needle.multiraft.log.group_log import LogWrite
from needle.multiraft.log.log_store import LivesWrite, LogStore
from needle.multiraft.log_writer import LogWriter
from needle.multiraft.ports import Applied, StateMachine, Transport
from needle.multiraft.repair import Opener
from needle.multiraft.retention import Bounds
from needle.multiraft.snapshots.pacing import Pace, at_once
from needle.multiraft.snapshots.receiver import SnapshotFetcher
from needle.multiraft.snapshots.sender import SnapshotShelf
from needle.multiraft.timers import Timers
from needle.multiraft.upkeep import Upkeep
from needle.raft.messages import Message
from needle.raft.raft import Raft
from needle.raft.state import LEADER

_log = logging.getLogger("needle.multiraft")
_QUANTA_PER_HEARTBEAT = 10


class Engine:
    """Runs the groups; servers ask host.py. On the event loop. groups: the open ones. on_fatal: called once at most."""

    def __init__(
        self,
        node_id: NodeId,
        config: HostConfig,
        *,
        transport: Transport,
        store: LogStore,
        log_pool: Pool,
        apply_pool: Pool,
        clock: Clock,
        rng: Rng,
        on_fatal: Callable[[NeedleError], None],
        snapshot_dir: str,
        files: Files,
        failpoint: Failpoint = no_failpoint,
        pace: Pace = at_once,
        long_pool: Pool | None = None,
    ) -> None:
        self.node_id = node_id
        self.config = config
        self.bounds = Bounds.of(config.log_bytes_max)
        self.clock = clock
        self.apply_pool, self.long_pool = apply_pool, long_pool or apply_pool
        self.failpoint = failpoint
        self.maintenance = self.stopped = False
        self.failure: NeedleError | None = None
        self.counters = Counters()
        self._said = News()
        self._files = files
        self._snapshot_dir = snapshot_dir
        self.transport = transport
        self.store = store
        self._rng = rng
        self._on_fatal = on_fatal
        self.shelf = SnapshotShelf(
            snapshot_dir, files, apply_pool, rng, config.snapshot_exports_max, config.snapshot_chunk_bytes, failpoint
        )
        self.fetcher = SnapshotFetcher(snapshot_dir, files, apply_pool, transport, config, failpoint, pace)
        self.groups: dict[GroupId, Group] = {}
        self._opened: dict[GroupId, tuple[int, int]] = {}
        self.lives = Lives(self, store, transport, lambda: self._opened)
        self._inbound = Inbound(self, self.groups, self.find)
        self._writer = LogWriter(self, store, log_pool)
        self._upkeep = Upkeep(self.groups, store, self.shelf, self.bounds, clock)
        self._dirty: dict[GroupId, Group] = {}
        self._waiting: dict[GroupId, Group] = {}
        self._turn = Turn()
        self._held: list[tuple[Group, list[Applied]]] = []
        self._scheduled = False
        self._in_turn = self._again = False
        self._timers = Timers(config.heartbeat_interval / _QUANTA_PER_HEARTBEAT)
        self._alarm = Alarm(self._on_alarm)
        self.gathering = Gathering(self._run_turn)
        self._background = Background(self.background_failed)
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life -------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Begin to run the groups, those opened already and later ones."""
        self._loop = asyncio.get_running_loop()
        if self.lost:  # it may have no replica that would say so
            _log.critical("node %s does not go on: %s", self.node_id, self.lost)
        await self.apply_pool.run(self._files.make_directory, self._snapshot_dir)
        await self.apply_pool.run(self.shelf.clean)
        for group in self.groups.values():
            self.wake(group)
        self.spawn(self._upkeep.sweep(self.config.snapshot_keep / 4))
        self.spawn(self._writer.probe(self.groups))

    async def stop(self) -> None:
        """Stop at once, without handing leadership over (see set_maintenance). Waiting callers are answered
        OutcomeUnknown (writes) or Unavailable. Idempotent."""
        self._halt(Unavailable("this node is stopping"))
        await self._background.end()

    def _halt(self, error: NeedleError) -> None:
        if self.stopped:
            return
        self.stopped = True
        self._alarm.cancel()
        for group in self.groups.values():
            group.fail_all(error)

    def fail(self, error: NeedleError) -> None:
        """The node can no longer keep its promises: every group stops now."""
        if self.failure is None and not self.stopped:
            self.failure = error
            self._halt(Unavailable(f"this node has stopped: {error.message}"))
            self._on_fatal(error)

    def open_group(self, group: GroupId, machine: StateMachine, *, voters: Sequence[NodeId]) -> None:
        """Run a replica of `group` on `machine`. One that is on disk continues; a new one is bootstrapped with
        `voters` (the same on each of them), or, with none, waits until a leader contacts it.
        Blocking (disk). Raises CorruptLog, StorageError; InvalidArgument if the group is open.
        """
        self._check_running()
        if group in self.groups:
            raise invalid("group", group, "a group that is not open on this node yet")
        found = Opener(self.store, group, machine, self.node_id, self._files, self.failpoint).open(tuple(voters))
        log = self.store.group(group)
        raft = Raft(
            self.config.core(self.node_id), log, hard_state=found.hard_state, conf=found.conf, applied=found.applied,
            now=self.clock.monotonic(), random_timeout=self._rng.random, disk_waits_since=self._writer.waits_since,
        )  # fmt: skip
        replica = self.groups[group] = Group(self, group, raft, log, machine)
        self._opened[group] = (found.hard_state.term, log.last_index())
        replica.set_quiesced()
        if replica.lost:
            replica.retire(self.clock.monotonic())
        if self._loop is not None:
            self.wake(replica)

    async def close_group(self, group: GroupId) -> None:
        """Stop this replica; its log stays, so that it can be opened again. The state machine is idle on return."""
        replica = self.find(group)
        del self.groups[group]
        self._timers.forget(group)
        replica.fail_all(Unavailable(f"{group_name(group)} is closed on node {self.node_id}", group=group))
        while replica.busy:  # noqa: ASYNC110 - closing is rare; an event would cost every write
            await asyncio.sleep(self.config.heartbeat_interval)
        await self.shelf.drop(group)
        tell(REPLICA_CLOSED, group=group_name(group))

    # --- loop turns -------------------------------------------------------------------------------------------------
    def wake(self, group: Group) -> None:
        """Take the group's Ready in the next loop turn."""
        self._dirty[group.id] = group
        self._schedule()

    def _schedule(self) -> None:
        if self._in_turn:
            self._again = True
        elif not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self.gathering.due, self._loop)

    def post(self, group: GroupId, messages: tuple[Message, ...]) -> None:
        """Send these with the next loop turn."""
        self._turn.post(group, messages)

    def _run_turn(self) -> None:
        """One turn, and what its own disk writes and applies bring if they were quick enough to be done within it."""
        self._scheduled = False
        if self.stopped or self._in_turn:
            return
        self._in_turn = True
        try:
            self._take_all()
            while self._again and not self.stopped:
                self._again = False
                self._take_all()
        except NeedleError as error:
            self.fail(error)
        except Exception as error:  # after a bug nothing of this node's state can be relied on: it stops
            self.fail(Internal(f"a loop turn failed: {error!r}"))
            raise
        finally:
            self._in_turn = False

    def _take_all(self) -> None:
        self.counters.turns += 1
        now = self.clock.monotonic()
        turn, self._turn = self._turn, Turn()
        dirty, self._dirty = self._dirty, {}
        may_persist = not self._writer.busy
        for group in dirty.values():
            if group.id not in self.groups:
                continue  # closed meanwhile
            if group.take(turn, now, may_persist):
                self._waiting[group.id] = group
            self._timers.arm(group.id, group.next_deadline())
        for to, messages in turn.outbox.items():
            self._send(to, messages)
        if may_persist and (extra := self._writer.begin(turn.work)) is not None:
            if turn.outbox:
                self._after_sending(self._writer.persist, turn.work, extra)
            else:
                self._writer.persist(turn.work, extra)
        for group, batch in turn.applies:
            if self._writer.busy and group.raft.role is not LEADER and self.config.is_quick(batch):
                self._held.append((group, batch))  # what is written now is waited for; what is applied is not
            else:
                self._after_sending(group.apply, batch)
        self._alarm.set(self._loop, now, self._timers.next_fire())

    def _after_sending(self, work: Callable[..., None], *arguments: object) -> None:
        """Frames are joined at the end of this turn of the event loop and leave at the end of the next: what may block
        it for an fsync comes behind them, so that nobody waits for it. Between the turns the sockets are read."""
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self.guarded, work, arguments)

    def guarded(self, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
        """Run work that nobody awaits; its failure stops the node."""
        if self.stopped:
            return
        try:
            work(*arguments)
        except Exception as error:  # nobody awaits it, so nobody else would know
            self.background_failed(error)
            raise

    def _send(self, to: NodeId, messages: list[Addressed]) -> None:
        """One frame, unless it would be too large."""
        self.counters.messages_out += len(messages)
        for some in in_frames(messages, self.config.frame_bytes_max):
            self.counters.frames_out += 1
            if not self.transport.send(to, frame_body(self.lives.nonce, self.lives.news, some)):
                self._unreachable(to, some)

    def _unreachable(self, to: NodeId, messages: list[Addressed]) -> None:
        now = self.clock.monotonic()
        for group_id, _ in messages:
            if (group := self.groups.get(group_id)) is not None:
                group.raft.report_unreachable(to, now)

    async def durable(self, write: LogWrite | LivesWrite) -> None:
        """Put a write into the next transaction; returns once it is durable and noted."""
        future = self._writer.add(write)
        self._schedule()
        await future

    def persisted(self, work: list[Work]) -> None:
        """The transaction in flight is durable and noted; go on with what waited for it."""
        for item in work:
            item.group.persisted(self._turn, item)
            self._dirty[item.group.id] = item.group
        self._dirty.update(self._waiting)
        self._waiting = {}
        self._upkeep.relieve()
        held, self._held = self._held, []
        for group, batch in held:
            self._after_sending(group.apply, batch)
        if self._in_turn:
            self._again = True
        elif not self._scheduled:  # else that turn takes this, too
            self._run_turn()

    def is_news(self, *what: object) -> bool:
        """See Surroundings."""
        return self._said.is_news(what, self.clock.monotonic())

    def bytes_used(self) -> int:
        """Bytes that the logs of this node take on its disk."""
        return self.store.bytes_used()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in the background; a failure is fatal for the node."""
        return self._background.spawn(work)

    def background_failed(self, error: BaseException) -> None:
        """Work that nobody awaits failed: the node stops."""
        if isinstance(error, NeedleError):
            self.fail(error)
        elif isinstance(error, Exception):
            self.fail(Internal(f"background work of the Raft host failed: {error!r}"))

    # --- timers -----------------------------------------------------------------------------------------------------
    def _on_alarm(self) -> None:
        self._alarm.rang()
        if self.stopped:
            return
        self._tick(self._timers.due(self.clock.monotonic()), read=False)

    def _tick(self, due: list[GroupId], *, read: bool = True) -> None:
        """Drive the groups whose deadline has passed. read: whether the sockets were read since it did. Timers come
        before sockets in a turn of the loop; after a pause of this process the leader's heartbeats lie there."""
        now, unheard, ticked = self.clock.monotonic(), [], dict[Group, bool]()
        for group_id in due:
            if (group := self.groups.get(group_id)) is None:
                continue
            deadline = group.next_deadline()
            if deadline > now:
                self._timers.arm(group_id, deadline)
            elif read or group.raft.role is LEADER:
                ticked[group] = group.raft.heartbeat_due <= now
                group.tick(now)
                self._dirty[group_id] = group
            else:
                unheard.append(group_id)
        for group in beat_along(self.groups, ticked, now, self.config.heartbeat_interval):
            self._dirty[group.id] = group
        if unheard:
            self._after_sending(self._tick, unheard)
        if self._dirty:
            self._schedule()  # behind requests that wait to be begun
        else:
            self._alarm.set(self._loop, now, self._timers.next_fire())

    # --- from other nodes -------------------------------------------------------------------------------------------
    def on_raft(self, frm: NodeId, body: Payload) -> None:
        """One frame of a peer. Messages for groups that are not open here are dropped. Raises ProtocolError."""
        if not self.stopped and self._loop is not None:
            self._inbound.on_frame(frm, body)

    def hear(self, frm: NodeId, messages: list[Addressed]) -> None:
        """Handle the messages of a peer that is known by now."""
        self._inbound.hear(frm, messages)

    async def on_call(self, frm: NodeId, method: str, body: bytes) -> bytes:
        """A peer's question, one of inbound.CALL_METHODS. Raises InvalidArgument for any other method."""
        self._check_running()
        return await self._inbound.on_call(frm, method, body)

    # --- what was lost ------------------------------------------------------------------------------------------------
    @property
    def lost(self) -> str:
        """Why no replica of this node may go on; "" if they may."""
        return self.store.identity.lost

    def lose(self, reason: str) -> None:
        """This node lost what others count on: none of its replicas goes on, now or after a restart."""
        if not self.lost:
            _log.critical("node %s does not go on: %s", self.node_id, reason)
            identity = msgspec.structs.replace(self.lives.identity, lost=reason)
            self.store.note([LivesWrite(identity=identity)])  # at once; nothing is said before it is durable, either
            for group in self.groups.values():
                group.retire(self.clock.monotonic())
            self.spawn(self.durable(LivesWrite(identity=identity)))

    # --- looking groups up ----------------------------------------------------------------------------------------
    def _check_running(self) -> None:
        if self.stopped:
            why = self.failure.message if self.failure is not None else "it is stopping"
            raise Unavailable(f"this node has stopped: {why}")

    def find(self, group: GroupId) -> Group:
        """The replica. Raises Unavailable if it is not open here, or this stops; LostState."""
        if self.stopped:
            self._check_running()
        found = self.groups.get(group)
        if found is None:
            if self.lost:  # it may have had one before
                raise LostState(f"node {self.node_id} does not go on: {self.lost}", group=group)
            raise Unavailable(f"{group_name(group)} has no replica on node {self.node_id}", group=group)
        return found

    def serving(self, group: GroupId) -> Group:
        """The replica, to serve with it. Raises LostState in addition to what `find` raises."""
        found = self.find(group)
        if found.lost:
            raise lost_state(found)
        return found
