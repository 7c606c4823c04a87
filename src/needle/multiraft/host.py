"""The multi-Raft host: what servers ask of the Raft groups of a node. Its part, the engine, does the work (engine.py).

Invariant: "not leader" is answered only for what never entered a log. It must not know what a state machine stores.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from needle.base.errors import (
    DeadlineExceeded,
    InMaintenance,
    InvalidArgument,
    NeedleError,
    Overloaded,
    TransferFailed,
    in_seconds,
    invalid,
)
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.model import RaftStatus
from needle.multiraft.archives import UNNAMED
from needle.multiraft.codec import ChunkRequest
from needle.multiraft.engine import Engine
from needle.multiraft.group import Group
from needle.multiraft.heirs import Heirs, unheard
from needle.multiraft.log.group_log import LogWrite
from needle.multiraft.log.log_records import GIVEN_UP
from needle.multiraft.member_changes import change_members
from needle.multiraft.proposals import Receiver
from needle.multiraft.reads import not_leader
from needle.multiraft.rebuild import refuse_damaged
from needle.multiraft.repair import BOOTSTRAP_AT, not_while_repairing
from needle.multiraft.snapshots.sender import Exported
from needle.multiraft.status import GroupLoad, group_load, group_status
from needle.raft import membership
from needle.raft.messages import ConfState, Entry, EntryKind
from needle.raft.state import LEADER


class Host:
    """All Raft groups of one node, on its event loop. engine: runs the groups, from its `start` to its `stop`; who made
    it closes its pools, its store and the state machines after that. heirs: who takes over what this node leads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.heirs = Heirs(engine)

    @property
    def stopped(self) -> bool:
        """Whether the engine has stopped, or is stopping."""
        return self.engine.stopped

    @property
    def maintenance(self) -> bool:
        """Whether this node is to lead nothing."""
        return self.engine.maintenance

    @property
    def lost(self) -> str:
        """Why no replica of this node may go on; "" if they may."""
        return self.engine.lost

    async def propose(self, group: GroupId, data: bytes, timeout: float) -> Any:
        """Replicate `data`; the state machine's result after commit by a quorum and apply here. timeout: seconds.

        Raises what `submit` raises and what it settles with.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(group, data, timeout, future)
        return await future

    def submit(self, group: GroupId, data: bytes, timeout: float, receiver: Receiver) -> None:
        """Replicate `data`, and settle `receiver` as `propose` answers: in the turn in which the entry is applied.

        Raises NotLeader, Overloaded, Unavailable: it has no effect. Settles with the NeedleError with which the state
        machine refused it, ProposalDropped (no effect) or OutcomeUnknown (it may have one).
        """
        engine = self.engine
        replica, config = engine.serving(group), engine.config
        if len(replica.proposals) >= config.proposals_max:
            raise Overloaded(f"{config.proposals_max} writes wait in {group_name(group)}; slow down", group=group)
        if (used := engine.bytes_used()) >= engine.bounds.refused:
            bound = config.log_bytes_max
            raise Overloaded(
                f"the Raft log of node {engine.node_id} takes {used} of log_bytes_max = {bound} bytes, and takes "
                f"writes again once what is applied is cut off: try again; if it lasts, raise log_bytes_max",
                group=group, used=used, bytes_max=bound,
            )  # fmt: skip
        refuse_damaged(group, replica.machine)
        now = engine.clock.monotonic()
        index, term = replica.raft.propose(data, now)
        replica.proposals.add(index, term, receiver, now + timeout)
        engine.wake(replica)

    async def read_index(self, group: GroupId, timeout: float) -> int:
        """Confirm leadership and wait until all that was committed before is applied here; that index.

        Raises NotLeader, NoQuorum, DeadlineExceeded.
        """
        return await self.begin_read(group, timeout)

    def begin_read(self, group: GroupId, timeout: float) -> asyncio.Future[int]:
        """Like read_index, without waiting for it. Raises NotLeader at once; the rest comes with the future."""
        replica = self.engine.serving(group)
        if replica.raft.role is not LEADER:
            raise not_leader(group, replica.raft.leader)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        replica.reads.add(future, self.engine.clock.monotonic() + timeout)
        self.engine.wake(replica)
        return future

    def leased_index(self, group: GroupId) -> int | None:
        """The index that a leased read which begins now has to see; None if this node does not hold the lease."""
        return self.engine.serving(group).raft.read_lease(self.engine.clock.monotonic())

    async def read_leased(self, group: GroupId, timeout: float) -> int:
        """Like read_index, without a round while this node holds the lease."""
        index = self.leased_index(group)
        if index is None:
            return await self.read_index(group, timeout)
        await self.wait_applied(group, index, timeout)
        return index

    async def wait_applied(self, group: GroupId, index: int, timeout: float) -> None:
        """Wait until this replica has applied `index`. Raises DeadlineExceeded."""
        replica = self.engine.serving(group)
        if replica.raft.applied >= index:
            return
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        text = f"{group_name(group)} did not apply index {index} within {in_seconds(timeout)}"
        replica.waiters.add(
            index, future, self.engine.clock.monotonic() + timeout, lambda: DeadlineExceeded(text, group=group)
        )
        self.engine.wake(replica)
        await future

    async def change_membership(
        self, group: GroupId, voters: Sequence[NodeId], learners: Sequence[NodeId], timeout: float, term: int = 0
    ) -> None:
        """Replace the group's configuration by joint consensus; returns when the old one no longer counts. term: in
        which this node must still lead when it proposes the change; 0 for any.

        Raises NotLeader, MembershipChangePending, InvalidArgument (also when no majority of `voters` is heard from);
        OutcomeUnknown when it is not done in time.
        """
        await change_members(self.engine, group, voters, learners, timeout, term)

    async def transfer(self, group: GroupId, to: NodeId | None, timeout: float) -> NodeId:
        """Hand leadership to `to`, or to the most caught-up voter; the new leader. timeout: seconds, at most four
        election timeouts count (the core gives up after two).

        Raises NotLeader; InvalidArgument, at once, for a node that is no other voter or does not answer; TransferFailed
        which says what the target lacked.
        """
        engine, within = self.engine, self.engine.config.election_timeout
        replica = engine.serving(group)
        raft, now = replica.raft, engine.clock.monotonic()
        if to in raft.conf.voters and to in unheard(engine, replica):
            raise InvalidArgument(
                f"to = {to!r} is not allowed: {to} has not answered {engine.node_id}, which leads, for {within:g} s; "
                "start it, or name another voter",
                field="to",
            )
        target = raft.transfer_leadership(to or self.heirs.best(replica), now)
        engine.wake(replica)
        term = raft.term

        def over() -> bool:
            """Somebody took over, or the core has given up."""
            leads = raft.role is LEADER
            return (not leads and bool(raft.leader)) or (leads and (raft.term != term or not raft.is_transferring))

        def late() -> NeedleError:
            return TransferFailed(
                f"{target} did not take over {group_name(group)}: {self._lacks(replica, target)}",
                group=group,
                target=target,
            )

        await replica.conditions.until(over, now + min(timeout, 4 * within), late)
        if raft.role is LEADER:
            raise late()
        if raft.leader != target:
            raise TransferFailed(
                f"{raft.leader}, not {target}, took over {group_name(group)}", group=group, leader=raft.leader
            )
        return target

    def _lacks(self, replica: Group, target: NodeId) -> str:
        """Why a transfer to `target` did not come about, as far as this node can tell."""
        of, last = replica.raft.progress().get(target), replica.log.last_index()
        if of is None:
            return f"{self.engine.node_id} does not lead any more, and no other leader is known"
        if target in unheard(self.engine, replica):
            return "it does not answer"
        if of.match < last:
            return f"it has the log up to {of.match} of {last}"
        return "it has the whole log but was not elected (is it in maintenance?)"

    def force_election(self, group: GroupId) -> None:
        """Campaign now; other nodes still honour the lease of a leader they hear. Raises InMaintenance, CorruptLog."""
        replica = self.engine.serving(group)
        if self.engine.maintenance:
            raise InMaintenance("a node in maintenance does not campaign")
        refuse_damaged(group, replica.machine)
        if not replica.may_vote:
            raise not_while_repairing(replica.log)
        replica.raft.campaign(self.engine.clock.monotonic())
        self.engine.wake(replica)

    def disconnected(self, node: NodeId) -> None:
        """`node` ended its connection to this one: followers of it take it for dead if they hear no more of it."""
        if self.engine.stopped:
            return
        now = self.engine.clock.monotonic()
        for group in self.engine.groups.values():
            if group.raft.leader == node:
                group.raft.report_disconnected(node, now)
                self.engine.wake(group)

    def set_maintenance(self, on: bool) -> None:
        """While on, this node hands over the leadership of its groups, and takes none; it votes and follows."""
        started = on and not self.engine.maintenance
        self.engine.maintenance = on
        for group in self.engine.groups.values():
            group.set_quiesced()
            self.engine.wake(group)
        if started:
            self.engine.spawn(self.heirs.drain())

    async def leader_after(self, group: GroupId, term: int, timeout: float) -> None:
        """Wait until the leader of a later term than `term` is known here, for at most `timeout` seconds."""
        replica = self.engine.find(group)
        raft = replica.raft

        def late() -> NeedleError:
            return DeadlineExceeded(f"{group_name(group)} had no new leader within {in_seconds(timeout)}", group=group)

        if raft.leader and raft.term > term:
            return
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        replica.successors.add(term + 1, future, self.engine.clock.monotonic() + timeout, late)
        self.engine.wake(replica)
        with contextlib.suppress(DeadlineExceeded):
            await future

    # --- replicas that are not open ---------------------------------------------------------------------------------
    def known_commit(self, group: GroupId) -> int:
        """What the log of a replica that is not open says to be committed; 0 if it knows nothing of the group."""
        log = self.engine.store.group(group)
        return max(log.hard_state.commit if log.hard_state is not None else 0, log.start.index)

    async def forget_state(self, group: GroupId) -> None:
        """Note durably that the state of a replica, which is not open, is about to be deleted on purpose. Term, vote
        and entries stay. If it is opened again without a state, it takes nobody for its members, fetches everything,
        and does not vote until it has more than it ever acknowledged (repair.py), and nobody is told of damage. Raises
        InvalidArgument if it is open."""
        if group in self.engine.groups:
            raise invalid("group", group, "a group that is not open on this node")
        log = self.engine.store.group(group)
        if log.hard_state is not None and not log.given_up:
            await self.engine.durable(LogWrite(log=log, bootstrap=GIVEN_UP))

    # --- for an archive of the log -----------------------------------------------------------------------------------
    def committed(self, group: GroupId, after: int, upto: int, bytes_max: int) -> list[Entry] | None:
        """Entries behind `after`, up to `upto` (which must be applied here), at most about bytes_max; None if the log
        does not have the first of them any more."""
        log = self.engine.find(group).log
        if after < BOOTSTRAP_AT.index and log.start == BOOTSTRAP_AT:
            return [Entry(BOOTSTRAP_AT.index, BOOTSTRAP_AT.term, int(EntryKind.CONF_CHANGE), b"")]
        return None if after < log.start.index else log.entries(after + 1, upto + 1, bytes_max)

    def has_upto(self, group: GroupId, index: int) -> int:
        """The last entry up to `index` that the log here has and knows to be committed: what is applied may be ahead of
        it for a moment, after a power cut, or while a disk is late."""
        found = self.engine.find(group)
        return min(index, found.log.last_index(), found.raft.commit)

    def term_of(self, group: GroupId, index: int) -> int:
        """The term of an entry; 0 if the log does not have it."""
        log = self.engine.find(group).log
        return log.term(index) if log.start.index <= index <= log.last_index() else 0

    def note_archived(self, group: GroupId, target: str, index: int, until: int, begun: bool = False) -> None:
        """The archive at a target has the log up to `index`; what comes behind is kept for it, within bounds
        (retention.py). begun: it began there lately."""
        self.engine.find(group).compaction.archives.note(target, index, until, self.engine.clock.monotonic(), begun)

    def expect_archive(self, group: GroupId) -> None:
        """Logs are archived, so its log is kept from where it begins until it is known what an archive has: who was
        started again has forgotten that, and may be the only one that has entries that an archive lacks."""
        self.note_archived(group, UNNAMED, 0, 0)

    def archived_until(self, group: GroupId) -> tuple[int, float]:
        """The clock of its leader up to which archives have said to have the log (microseconds since 1970), 0 if none
        has since this replica was opened; and for how many seconds none has asked."""
        archives, now = self.engine.find(group).compaction.archives, self.engine.clock.monotonic()
        return archives.until(now), archives.silent(now)

    async def image(self, group: GroupId, after: int) -> Exported:
        """The files of the group's state at index `after` or later, from which its log goes on; for `image_chunk`.
        Raises as an export does."""
        replica = self.engine.serving(group)
        refuse_damaged(group, replica.machine)
        return await replica.snapshots.exported(lambda made: made.meta.index >= max(after, replica.log.start.index))

    async def image_chunk(self, request: ChunkRequest) -> bytes:
        """Bytes of a file of it. Raises Unavailable if another one took its place."""
        return await self.engine.shelf.read(request, self.engine.clock.monotonic())

    # --- what is known here -----------------------------------------------------------------------------------------
    def groups(self) -> list[GroupId]:
        """The open groups, sorted."""
        return sorted(self.engine.groups)

    def leader(self, group: GroupId) -> NodeId | None:
        """Who leads the group, as far as this node knows."""
        return self.engine.find(group).raft.leader or None

    def is_leader(self, group: GroupId) -> bool:
        """Whether this node leads the group, as far as it knows."""
        return self.engine.find(group).raft.role is LEADER

    def standing(self, group: GroupId) -> tuple[int, NodeId]:
        """The last index applied here, and who leads, as far as this node knows ("": nobody)."""
        raft = self.engine.find(group).raft
        return raft.applied, raft.leader

    def leads_in(self, group: GroupId, term: int) -> bool:
        """Whether this node leads the group, and in this term, as far as it knows."""
        raft = self.engine.find(group).raft
        return raft.term == term and raft.role is LEADER

    def term(self, group: GroupId) -> int:
        """The current term, as far as this node knows."""
        return self.engine.find(group).raft.term

    def applied_index(self, group: GroupId) -> int:
        """The last index applied here."""
        return self.engine.find(group).raft.applied

    def applies_at_once(self, group: GroupId, index: int) -> bool:
        """Whether an entry is only gathered here (apply_steps.py): who waits for it waits for its apply alone."""
        return self.engine.find(group).gathers and self.has_upto(group, index) == index

    def is_at_rest(self, group: GroupId) -> bool:
        """Whether everything in this replica's log is applied here."""
        raft = self.engine.find(group).raft
        return raft.applied == raft.last_index

    def check_serves(self, group: GroupId) -> None:
        """Raises LostState if this replica must not answer, not even with what it has."""
        self.engine.serving(group)

    def lost_replica(self, group: GroupId) -> str:
        """Why this replica must not go on; "" if it may."""
        return self.engine.find(group).lost

    def conf(self, group: GroupId) -> ConfState:
        """The configuration that this replica applied last."""
        return self.engine.find(group).raft.conf

    def last_change(self, group: GroupId) -> int:
        """On a leader: the index up to which its log may hold changes of the members; those beyond what is applied here
        are under way."""
        return self.engine.find(group).raft.pending_conf_index

    def members(self, group: GroupId) -> list[NodeId]:
        """Voters and learners by the configuration that this replica applied last, old and new ones of a change that is
        under way; [] for a replica that has not heard of its group yet."""
        return membership.members(self.engine.find(group).raft.conf)

    def refused(self) -> dict[NodeId, str]:
        """Nodes that this one does not hear because they lost what they told it, and why: members of groups that are
        open here. One that was removed concerns nobody any more."""
        found = self.engine.lives.refused()
        known = {node for group in self.engine.groups for node in self.members(group)} if found else set()
        return {node: why for node, why in found.items() if node in known}

    def damage(self, group: GroupId) -> str:
        """Why the replica's data is not served and fetched again (rebuild.py); "" if it is whole."""
        damage = self.engine.find(group).machine.damage
        return "" if damage is None else damage.message

    def load(self, group: GroupId) -> GroupLoad:
        """What is under way in this replica."""
        return group_load(self.engine.find(group))

    def status(self, group: GroupId) -> RaftStatus:
        """This replica's view of the group. Addresses, documents and digest are the server's to fill in."""
        engine = self.engine
        now, active = engine.clock.monotonic(), 2 * engine.config.election_timeout
        replica, refused = engine.find(group), engine.lives.refused()
        exported = engine.shelf.current(group)
        shares = exported.shares() if exported is not None else {}
        return group_status(replica, engine.node_id, engine.maintenance, now, active, refused, shares)
