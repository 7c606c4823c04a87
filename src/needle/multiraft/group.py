"""One replica of one group: the Raft core, its log, its state machine and whoever waits for them.

Durability order of a Ready (messages.py has the contract): `messages` go out at once; entries and HardState go into
the host's next transaction, and only after it do `messages_after_persist` go out and the core count its own ack;
committed entries are applied by one batch at a time, in one transaction of the state machine, then `applied_to`, then
proposals are answered. A commit index alone is not written: the core hands it out with the next write.
Invariant: at most one Ready with something to persist is out per group; apply and install never run at the same time,
nor do checkpoint, export and install (a checkpoint or export may run beside applies, so that neither delays writes).
It must not know the other groups.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from needle.base.errors import LostState, NeedleError, NoQuorum, NotLeader
from needle.base.events import REPLICA_LOST, tell
from needle.base.file_errors import SHORTAGES
from needle.base.ids import GroupId, NodeId, group_name
from needle.multiraft.apply_steps import ApplySteps
from needle.multiraft.codec import Addressed, encode_conf
from needle.multiraft.conditions import Conditions
from needle.multiraft.group_compaction import Compaction
from needle.multiraft.group_news import GroupNews
from needle.multiraft.group_snapshots import NO_ROOM_SECONDS, SnapshotTraffic
from needle.multiraft.lag import AppendTimes
from needle.multiraft.log.group_log import GroupLog, LogWrite
from needle.multiraft.ports import Applied, StateMachine
from needle.multiraft.proposals import Proposals
from needle.multiraft.reads import ReadRounds, not_leader
from needle.multiraft.rebuild import Rebuild
from needle.multiraft.repair import repair_done, tell_repaired
from needle.multiraft.surroundings import Surroundings
from needle.multiraft.waiters import Waiters
from needle.raft.messages import Entry, EntryKind, Message, MessageType, Ready, SnapshotMeta
from needle.raft.raft import Raft
from needle.raft.state import FAR, LEADER

_log = logging.getLogger("needle.multiraft")
_NORMAL = int(EntryKind.NORMAL)
_VOTE_REQUESTS = (int(MessageType.VOTE), int(MessageType.PRE_VOTE))
_SNAPSHOT = int(MessageType.SNAPSHOT)


def lost_state(group: Group) -> LostState:
    """The refusal to serve."""
    return LostState(f"this replica of {group_name(group.id)} does not go on: {group.lost}", group=group.id)


class Work(msgspec.Struct):
    """What a group wants durable, and the Ready to advance afterwards."""

    group: Group
    ready: Ready
    write: LogWrite


class Turn:
    """What one loop turn gathers over all groups: messages by peer, writes, and entries to apply after both."""

    __slots__ = ("applies", "outbox", "work")

    def __init__(self) -> None:
        self.outbox: dict[NodeId, list[Addressed]] = {}
        self.work: list[Work] = []
        self.applies: list[tuple[Group, list[Applied]]] = []

    def post(self, group: GroupId, messages: tuple[Message, ...]) -> None:
        """Send these at the end of the turn."""
        for message in messages:
            box = self.outbox.get(message.to)
            if box is None:
                box = self.outbox[message.to] = []
            box.append((group, message))


class Group:
    """See the module. Created by the host, with a core that was started on what `repair.Opener` found."""

    def __init__(self, host: Surroundings, group: GroupId, raft: Raft, log: GroupLog, machine: StateMachine) -> None:
        self.id = group
        self.raft = raft
        self.log = log
        self.machine = machine
        self.machine_lock = asyncio.Lock()  # install; no apply begins while it is held
        self.image_lock = asyncio.Lock()  # checkpoint, export, install
        self.closed = False
        self.rebuild = Rebuild(self, host, lambda: self.snapshots.fetching)
        self.snapshots: SnapshotTraffic = SnapshotTraffic(self, host, self.rebuild)
        self.proposals = Proposals(group)
        self.reads = ReadRounds()
        self.waiters = Waiters()  # for an index to be applied
        self.successors = Waiters()  # for the leader of a term to be known
        self.appended = AppendTimes()
        self._host = host
        self._persisting = False
        self.discarding = False  # what was fetched for snapshots is being removed
        self._applying = False
        self._steps = ApplySteps(host.config)
        self._in_machine = False
        self._machine_idle: asyncio.Future[None] | None = None
        self.compaction = Compaction(self, host, self.snapshots, self.rebuild)
        self._clearing_repair = False
        self._news = GroupNews(group, raft)
        self.conditions = Conditions()

    @property
    def lost(self) -> str:
        """Why this replica must not go on; "" if it may."""
        return self.log.lost.reason if self.log.lost is not None else self._host.lost

    def retire(self, now: float) -> None:
        """Stop for good: the replica lost what others count on. Whoever waits is answered."""
        self.raft.retire(now)
        tell(REPLICA_LOST, group=group_name(self.id), why=self.lost)
        self.fail_all(lost_state(self))
        self._host.wake(self)

    @property
    def may_vote(self) -> bool:
        """False while the log is under repair (repair.py says why)."""
        return self.log.repair is None

    @property
    def busy(self) -> bool:
        """Whether disk or state machine are at work for this group."""
        at_work = self._persisting or self._applying or self.compaction.running
        return at_work or self.snapshots.offering or self.rebuild.installing or self.discarding

    def set_quiesced(self) -> None:
        """Tell the core whether it may campaign."""
        self.raft.set_quiesced(not self.may_vote or self.machine.damage is not None, self._host.maintenance)

    # --- messages in ------------------------------------------------------------------------------------------------
    def receive(self, message: Message, now: float) -> str:
        """One message from a peer. Returns why it is refused, "" if it is not."""
        if self.lost:
            return ""
        if message.type == _SNAPSHOT:
            return self.snapshots.offered(message, self._persisting)
        if self.may_vote or message.type not in _VOTE_REQUESTS:
            if message.entries and self._host.bytes_used() >= self._host.bounds.dropped:
                # As if they were lost: the leader sends them again, and until then this counts as a heartbeat.
                message = msgspec.structs.replace(message, entries=())
            return self.raft.step(message, now)
        return ""

    # --- a loop turn ------------------------------------------------------------------------------------------------
    def _may_apply(self, now: float) -> bool:
        raft, busy = self.raft, self._applying or self.rebuild.running
        if busy or not raft.follows_more:  # most turns end here
            self._steps.next_deadline = FAR
            return not busy
        awaited = bool(self.proposals) or self.waiters.next_deadline < FAR  # not who gave up, which is still in there
        return not self._steps.gathers(raft, self.log, awaited, now)

    @property
    def gathers(self) -> bool:
        """Whether what is committed is to be applied later, with others, if nobody waits for it."""
        return self._steps.next_deadline < FAR

    def has_work(self) -> bool:
        """Whether a turn would find anything after a message that changes no deadline to an earlier one."""
        waits = self.reads.queued or self.conditions.waiting or self.successors.waiting
        return bool(waits) or self.raft.role is not LEADER or self.raft.has_ready()

    def take(self, turn: Turn, now: float, may_persist: bool) -> bool:
        """Take what the core has ready. True if something waits for the transaction in flight to finish."""
        raft = self.raft
        self._news.look()
        self.rebuild.look()
        if self.reads.queued:
            self._begin_reads(now)
        persist = may_persist and not self._persisting
        while raft.has_ready(persist=persist, apply=(apply := self._may_apply(now))):
            ready = raft.ready(persist=persist, apply=apply)
            self._hand_out(turn, ready, now)
            if ready.snapshot is not None:
                persist = False
                self._persisting = True
                self._host.spawn(self._install(ready, ready.snapshot))
            elif ready.must_sync:
                persist = False
                self._persisting = True
                write = LogWrite(log=self.log, entries=ready.entries, hard_state=ready.hard_state)
                turn.work.append(Work(self, ready, write))
            elif ready.messages_after_persist:
                turn.post(self.id, ready.messages_after_persist)
        if not self.may_vote and not self._clearing_repair and repair_done(self.log):
            self._clearing_repair = True
            self._host.spawn(self._end_repair())
        if self.successors.waiting and raft.leader:
            self.successors.reached(raft.term)
        if self.conditions.waiting:
            self.conditions.check()
        return not may_persist and raft.has_ready(apply=False)

    def _hand_out(self, turn: Turn, ready: Ready, now: float) -> None:
        """Everything of a Ready that need not wait for the disk."""
        if ready.messages:
            turn.post(self.id, ready.messages)
            if self.raft.role is LEADER:
                self.appended.mark(self.raft.last_index, now)
        if ready.committed:
            self._applying = True
            turn.applies.append((self, self._to_apply(ready.committed)))
        if ready.reads:
            self.reads.confirmed(ready.reads, self.raft.applied, self.waiters, self.id)
        for context in ready.dropped_reads:
            self.reads.refuse(context, not_leader(self.id, self.raft.leader))
        if ready.snapshot_requests:
            self.snapshots.requested(ready.snapshot_requests)

    def persisted(self, turn: Turn, work: Work) -> None:
        """The write is durable and noted in the log."""
        self._persisting = False
        self.raft.advance(work.ready)
        if not self.lost:
            turn.post(self.id, work.ready.messages_after_persist)

    async def _end_repair(self) -> None:
        repair, over = self.log.repair, LogWrite(log=self.log, repair=False)
        await self._host.durable(over)
        self._clearing_repair = False
        self.set_quiesced()
        tell_repaired(self.id, repair)

    def _begin_reads(self, now: float) -> None:
        context = self.reads.begin()
        try:
            self.raft.read_index(context, now)
        except NotLeader as error:
            self.reads.refuse(context, error)

    # --- apply ------------------------------------------------------------------------------------------------------
    def _to_apply(self, entries: tuple[Entry, ...]) -> list[Applied]:
        batch = []
        for entry in entries:
            if entry.kind == _NORMAL:
                batch.append(Applied(entry.index, entry.term, entry.data, None))
            else:
                conf = self.raft.apply_conf_change(entry)
                batch.append(Applied(entry.index, entry.term, b"", encode_conf(conf)))
        return batch

    def apply(self, batch: list[Applied]) -> None:
        """Apply what the core handed out; a few small entries within this call."""
        if self.machine_lock.locked():
            self._host.spawn(self._apply_after_install(batch))
        else:
            self._start_apply(batch)

    async def _apply_after_install(self, batch: list[Applied]) -> None:
        async with self.machine_lock:
            pass
        self.apply(batch)

    def _start_apply(self, batch: list[Applied]) -> None:
        host = self._host
        self._in_machine = True
        host.failpoint("apply.before")

        def done(results: list[Any], error: BaseException | None) -> None:
            if error is None:
                self._applied(batch, results)
            elif isinstance(error, SHORTAGES):
                if host.is_news(self.id, "apply", error.code):
                    _log.error("%s: what is committed waits to be applied: %s", group_name(self.id), error)
                host.spawn(self._apply_later(batch))
            elif self.machine.damage is not None:
                self._machine_is_idle()
                self.rebuild.hold(batch)
            else:
                host.background_failed(error)

        if self.machine.takes_long(batch):
            host.long_pool.call(done, self.machine.apply, batch)
        else:
            host.apply_pool.call(done, self.machine.apply, batch, quick=host.config.is_quick(batch))

    async def _apply_later(self, batch: list[Applied]) -> None:
        """Nothing of it was applied, for want of room. A group that is closed meanwhile applies it when it is opened
        again."""
        await asyncio.sleep(NO_ROOM_SECONDS)
        if self.closed or self._host.stopped:
            self._applying = False
            self._machine_is_idle()
        else:
            self._start_apply(batch)

    def _applied(self, batch: list[Applied], results: list[Any]) -> None:
        """All of it, or its first entries."""
        host = self._host
        host.failpoint("apply.after")
        batch, rest = batch[: len(results)], batch[len(results) :]
        if rest:
            if host.is_news(self.id, "apply the rest"):
                _log.error("%s: %d committed entries wait for room to be applied", group_name(self.id), len(rest))
            host.spawn(self._apply_later(rest))
        else:
            self._applying = False
            self._machine_is_idle()
        if host.stopped:
            return
        last = batch[-1].index
        self.raft.applied_to(last)
        if self.proposals:
            applied = self.proposals.applied
            for entry, result in zip(batch, results, strict=True):
                applied(entry.index, entry.term, result)
        self.waiters.reached(last)
        host.wake(self)
        self.compaction.consider()

    def _machine_is_idle(self) -> None:
        self._in_machine = False
        if self._machine_idle is not None:
            if not self._machine_idle.done():  # nobody waits any more if the group was closed meanwhile
                self._machine_idle.set_result(None)
            self._machine_idle = None

    def nothing_to_apply(self) -> None:
        """What was handed out to be applied need not be any more."""
        self._applying = False

    async def machine_idle(self) -> None:
        """Wait until no entry is being applied. The caller holds the machine's lock, so that none begins then."""
        if self._in_machine:
            self._machine_idle = asyncio.get_running_loop().create_future()
            await self._machine_idle

    async def _install(self, ready: Ready, meta: SnapshotMeta) -> None:
        """The core took a snapshot: install it, then go on behind it."""
        installed = await self.snapshots.install(ready, meta)
        if self._host.stopped:
            return
        if not installed:
            self._persisting = False
            return
        self.raft.advance(ready)
        self._persisting = False
        self.proposals.covered(meta.index)
        self.waiters.reached(meta.index)
        if not self.lost:
            self._host.post(self.id, ready.messages_after_persist)
        self._host.wake(self)
        await self.discard_staged()

    async def discard_staged(self) -> None:
        """Remove what was fetched for snapshots: it is installed. Not once this is closed: another one on the same
        files may be fetching."""
        if self.closed:
            return
        self.discarding = True
        try:
            await self._host.fetcher.discard_others(self.id)
        except SHORTAGES as error:
            staged = "%s: what was staged stays until the next snapshot or start: %s"
            _log.warning(staged, group_name(self.id), error)
        finally:
            self.discarding = False

    # --- waiting ----------------------------------------------------------------------------------------------------
    def next_deadline(self) -> float:
        """When `tick` must be called next."""
        proposals, reads = self.proposals.next_deadline, self.reads.next_deadline
        first = min(self.raft.next_deadline(), proposals, reads, self._steps.next_deadline)
        for waits in (self.waiters, self.successors, self.conditions):
            if waits.waiting:  # seldom, and each turn asks
                first = min(first, waits.next_deadline)
        return first

    def tick(self, now: float, beat: bool = False) -> None:
        """Drive the core's timers and the deadlines of whoever waits. beat: see leadership.tick."""
        self.rebuild.look()
        self.raft.tick(now, beat)
        self.proposals.expire(now)
        if now >= self.reads.next_deadline:
            self.reads.expire(
                now, NoQuorum(f"no majority of {group_name(self.id)} confirmed a read in time", group=self.id)
            )
        self.waiters.expire(now)
        self.successors.expire(now)
        if self.conditions.waiting:
            self.conditions.expire(now)

    def fail_all(self, error: NeedleError) -> None:
        """The node stops, or this group is closed: answer everyone."""
        self.closed = True
        self.proposals.fail_all(error.message)
        self.reads.fail_all(error)
        self.waiters.fail_all(error)
        self.successors.fail_all(error)
        self.conditions.fail_all(error)
        self.snapshots.cancel()
        self.rebuild.cancel()
