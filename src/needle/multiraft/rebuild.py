"""Getting a damaged state machine's data again from another replica, while this replica's log goes on.

A state machine that finds that what it stores is not what was written says so (`StateMachine.damage`) and answers
nothing more. Its log is whole: so the replica keeps it, appends, acknowledges and votes as before, and nothing that was
acknowledged has a copy less. It only leads no more, hands leadership over if it has it (to one voter after the other,
until one takes it that is whole), and applies nothing until it has the data again:

 1. It asks the leader for a snapshot of at least the index that it had applied, and fetches it as any other. What is
    not answered soon is asked again, of whoever leads then: the leader may still be making the snapshot, or the answer
    is lost, and nothing here would ever tell (a link that lets through one direction only closes no connection).
 2. When its own log holds, durably, all that the snapshot holds, the snapshot replaces the state, and nothing else
    changes: entries that it holds are skipped when they are applied.
 3. If the leader's log has moved on meanwhile so that the core gets a snapshot, that one does the same.

Which index and configuration a state machine had that is found damaged when it is opened is not known. Until it has
data again the core takes the index at which the log begins for the applied one. Its configuration may be old; nothing
depends on that in a replica that only follows and votes.

Invariant: one runs a group at a time, and never beside the fetch of a snapshot that the core was offered. It must not
know what a state machine stores.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from needle.base.errors import CorruptSnapshot, DeadlineExceeded, DiskFailed, NeedleError, ReplicaDamaged, Unavailable
from needle.base.events import DATA_DAMAGED, DATA_REPAIRED, tell
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.news import FOR_EVER, News
from needle.multiraft.codec import StateRequest, decode_manifest, decode_state, encode_state_request
from needle.multiraft.conditions import Conditions
from needle.multiraft.ports import Applied, StateMachine
from needle.multiraft.proposals import Proposals
from needle.multiraft.replica import Replica
from needle.multiraft.surroundings import Surroundings
from needle.raft.messages import SnapshotMeta
from needle.raft.state import LEADER

STATE_METHOD = "raft.state"
CATCH_UP_TIMEOUTS = 20
"""Election timeouts in which the own log has to hold what a fetched snapshot holds."""

_log = logging.getLogger("needle.multiraft")
T = TypeVar("T")


def refuse_damaged(group: GroupId, machine: StateMachine) -> None:
    """Raises ReplicaDamaged."""
    if (damage := machine.damage) is not None:
        raise ReplicaDamaged(
            f"this node's replica of {group_name(group)} is damaged and waits for its data from another one: "
            f"{damage.message}",
            group=group,
        )


class Rebuilt(Replica, Protocol):
    """A replica whose data may be fetched again. discarding: what was fetched before is being removed."""

    proposals: Proposals
    conditions: Conditions
    discarding: bool

    def set_quiesced(self) -> None:
        """Tell the core whether it may campaign."""
        ...

    def apply(self, batch: list[Applied]) -> None:
        """Apply what was handed out before."""
        ...

    def nothing_to_apply(self) -> None:
        """What was handed out to be applied need not be any more."""
        ...

    async def discard_staged(self) -> None:
        """Remove what was fetched: it is installed."""
        ...


class Rebuild:
    """See the module. running: entries must not be applied, and none was handed out but those that are held."""

    def __init__(self, group: Rebuilt, host: Surroundings, offered: Callable[[], bool]) -> None:
        """offered: whether a snapshot that a leader offered is on its way, or here and not installed yet."""
        self.running = False
        self.fetching = False
        self.installing = False
        self._task: asyncio.Task[None] | None = None
        self._group = group
        self._host = host
        self._offered = offered
        self._knows_nothing = group.machine.damage is not None
        self._held: list[Applied] | None = None
        self._refused = ""
        self._waits_for_log = False
        self._asked: set[NodeId] = set()
        """Who was told to take over, and did not yet."""

    def hold(self, batch: list[Applied]) -> None:
        """These could not be applied."""
        self._held = batch
        self._group.raft.suspend_apply()
        self.look()

    def look(self) -> None:
        """Begin if the state machine is damaged. Cheap."""
        group = self._group
        if group.machine.damage is None or self.running or self._host.stopped:
            return
        self.running = True
        tell(DATA_DAMAGED, group=group_name(group.id), why=group.machine.damage.message)
        group.set_quiesced()
        group.proposals.fail_all("this replica's data was found damaged")
        self._task = self._host.spawn(self._run())

    def cancel(self) -> None:
        """The group stops: it may be opened again, on the same files, by another one. What is being installed, or
        removed, is waited for (`Group.busy`)."""
        if self._task is not None and not self.installing and not self._group.discarding:
            self._task.cancel()

    async def _run(self) -> None:
        host, group, said = self._host, self._group, News(FOR_EVER, keys_max=1)
        while not host.stopped and not group.closed and group.machine.damage is not None:
            try:
                await self._once()
            except DiskFailed:
                raise
            except NeedleError as error:
                if said.is_news(str(error)):
                    _log.warning("%s: not repaired yet: %s", group_name(group.id), error)
            finally:
                self.fetching = False
            if group.machine.damage is not None:
                await asyncio.sleep(host.config.election_timeout)
        if not host.stopped and not group.closed:
            self._go_on()

    def _go_on(self) -> None:
        group = self._group
        self.running = self._knows_nothing = False
        group.set_quiesced()
        held, self._held = self._held, None
        tell(DATA_REPAIRED, group=group_name(group.id))
        if held is not None:
            if held[-1].index > group.raft.applied:
                group.raft.resume_apply(held[-1].index)
                group.apply(held)
            else:
                group.nothing_to_apply()
        self._host.wake(group)

    async def _once(self) -> None:
        host, group = self._host, self._group
        raft = group.raft
        if raft.role is LEADER:
            self._hand_over()
            return
        self._asked.clear()
        if not raft.leader:
            raise Unavailable(f"{group_name(group.id)} has no leader to fetch the data from")
        if self._offered():
            return
        self.fetching = True
        leader = raft.leader
        body = encode_state_request(StateRequest(group.id, raft.applied, self._refused))
        try:
            answer = host.transport.call(leader, STATE_METHOD, body, host.config.snapshot_chunk_timeout)
            meta = decode_state(await self._of(leader, answer, lambda: 0))
            fetch = host.fetcher.fetch(group.id, leader, meta.descriptor, group.machine)
            directory = await self._of(leader, fetch, lambda: host.fetcher.bytes_fetched)
        except DiskFailed as error:  # the leader's, not this node's
            raise Unavailable(f"{leader} could not give its data: {error.message}") from error
        await self._until_logged(meta)
        await self._install(meta, directory)
        await group.discard_staged()

    async def _of(self, leader: NodeId, work: Awaitable[T], came: Callable[[], int]) -> T:
        """What a leader is asked for, while it leads; after that as long as `came`, how much came so far, grows."""
        host, raft, seen = self._host, self._group.raft, came()
        asking = asyncio.ensure_future(work)
        try:
            while not asking.done():
                await asyncio.wait([asking], timeout=host.config.election_timeout)
                before, seen = seen, came()
                if raft.leader != leader and not asking.done() and seen == before:
                    raise Unavailable(f"{leader}, which was asked for a snapshot, leads no more")
            return asking.result()
        finally:
            asking.cancel()

    def _hand_over(self) -> None:
        """To the voter that is furthest; if it does not take over, for it may be damaged too, to each other in turn."""
        host, group = self._host, self._group
        raft = group.raft
        if raft.is_transferring:
            return
        left = [voter for voter in raft.conf.voters if voter != host.node_id and voter not in self._asked]
        if not left:
            self._asked.clear()
        to = left[0] if self._asked else None
        self._asked.add(raft.transfer_leadership(to, host.clock.monotonic()))
        host.wake(group)

    async def _until_logged(self, meta: SnapshotMeta) -> None:
        host, group = self._host, self._group

        def late() -> NeedleError:
            return DeadlineExceeded(
                f"the log of {group_name(group.id)} does not reach the snapshot's index {meta.index}"
            )

        def done() -> bool:
            reached = group.raft.commit >= meta.index <= group.log.last_index()
            return reached or group.machine.damage is None or not self._waits_for_log

        deadline = host.clock.monotonic() + CATCH_UP_TIMEOUTS * host.config.election_timeout
        self._waits_for_log = True
        try:
            await group.conditions.until(done, deadline, late)
            if not self._waits_for_log:
                raise Unavailable(
                    f"the log of {group_name(group.id)} goes on from a snapshot of its leader, which comes"
                )
        finally:
            self._waits_for_log = False

    def gives_way(self) -> bool:
        """The leader offers a snapshot: its log begins behind the end of this one, which so never reaches what was
        fetched. Whether only that is waited for: then the offer is taken, as by any member that is behind."""
        gives, self._waits_for_log = self._waits_for_log, False
        if gives:
            self._host.wake(self._group)
        return gives

    async def _install(self, meta: SnapshotMeta, directory: str) -> None:
        host, group = self._host, self._group
        async with group.image_lock, group.machine_lock:
            await group.machine_idle()
            if (
                group.closed
                or group.machine.damage is None
                or meta.index < group.raft.applied
                or group.log.pending is not None
            ):
                return
            self.installing = True
            try:
                await host.apply_pool.run(group.machine.install_snapshot, directory)
            except CorruptSnapshot:
                self._refused = decode_manifest(meta.descriptor).snapshot
                raise
            finally:
                self.installing = False
            host.failpoint("snapshot.after_install")
            if self._knows_nothing:
                group.raft.state_replaced(meta.index, meta.conf)
