"""Makes the members of the groups that this node leads those that the catalog names: shards, and the catalog itself.

What to do next is decided by catalog.replica_steps from what the leader sees; this takes that step and looks again, so
any later leader goes on where this one stops. Invariants: a step is taken only for what the catalog confirmed in the
term in which it is proposed, so a leader that was away cannot bring back what the catalog has given up; the catalog is
told that nodes may give up their replicas only then, and after the change is committed. It must not know clients.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from needle.base.errors import NeedleError
from needle.base.events import LEADER_MOVED, tell
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.model import RaftStatus
from needle.catalog.replica_steps import Change, HandOver, Members, Settled, Step, Wait, next_step
from needle.multiraft.host import Host
from needle.protocol import calls
from needle.protocol.catalog_commands import ConfirmReplicas
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall
from needle.raft.messages import ConfState
from needle.routing.topology import Holders, Topology
from needle.server.beats import Beats
from needle.server.ports import Catalog, Peers

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 0.5
STEP_SECONDS: Final = 10.0
ASK_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
RETRY_SECONDS_MAX: Final = 60.0
LAG_MAX: Final = 200
"""Committed entries that a replica may lack and count as caught up: what is under way to it from a busy leader."""
FETCHING_MAX: Final = 2
"""Groups of this node whose new replicas fetch all their data at the same time."""
GROUPS_AT_ONCE: Final = 256
"""Groups that are looked at before the event loop's other work goes on: less than a millisecond."""


class LeadingNode(Protocol):
    """The node whose groups are looked after."""

    node_id: NodeId
    host: Host
    peers: Peers
    topology: Topology
    beats: Beats

    @property
    def shards(self) -> Catalog: ...
    def now(self) -> float: ...
    async def confirmed(self, timeout: float) -> Topology:
        """At least as new as everything committed before the call."""
        ...


@dataclass(frozen=True)
class _Held:
    """Why a group is not there yet. again: when to try; pause: how long that was put off."""

    why: str
    again: float = 0.0
    pause: float = 0.0


@dataclass(frozen=True)
class _Look:
    """A group whose members are not what the catalog says, as far as this node knew, which led it in `term`. new:
    those that are wanted and no members yet."""

    group: GroupId
    holders: Holders
    term: int
    new: frozenset[NodeId]


class Replicas:
    """See the module."""

    def __init__(self, node: LeadingNode) -> None:
        self._node = node
        self._held: dict[GroupId, _Held] = {}
        """By group, of those that this node leads and whose members are not yet what the catalog says."""
        self._fetching: set[GroupId] = set()
        """Of those, the ones with a new replica that answers and fetches the data."""

    def why(self, group: GroupId) -> str:
        """What the members of a group that this node leads still lack; "" if they are what the catalog says."""
        held = self._held.get(group)
        return held.why if held is not None else ""

    async def run(self) -> None:
        """Until the node stops: one step of each group, then again."""
        while not self._node.host.stopped:
            await self._node.beats.next(LOOK_SECONDS, self._rests)
            await self._round()

    def _rests(self) -> bool:
        """Whether a round would find nothing; asked of few groups only."""
        groups = self._node.host.groups()
        known = self._held or self._fetching or len(groups) > GROUPS_AT_ONCE
        return not known and all(self._unsettled(group) is None for group in groups)

    async def _round(self) -> None:
        """New nodes are asked once each, and the catalog once, however many groups are under way."""
        due = await self._due()
        reached = await self._reached(due)
        able = [look for look in due if self._may_go_on(look, reached)]
        if not able:
            return
        try:
            confirmed = await self._node.confirmed(STEP_SECONDS)
        except NeedleError as error:
            for look in able:
                self._put_off(look.group, error)
            return
        for look in able:
            await self._go_on(look, reached, confirmed.holders(look.group))

    async def _due(self) -> list[_Look]:
        """The groups to look after now; what is known of others is forgotten."""
        found: list[_Look] = []
        for number, group in enumerate(self._node.host.groups(), 1):
            if (look := self._unsettled(group)) is not None:
                found.append(look)
            if number % GROUPS_AT_ONCE == 0:
                await asyncio.sleep(0)  # the event loop has other work
        groups, now = {look.group for look in found}, self._node.now()
        self._held = {group: held for group, held in self._held.items() if group in groups}
        self._fetching &= groups
        return [look for look in found if (held := self._held.get(look.group)) is None or now >= held.again]

    def _unsettled(self, group: GroupId) -> _Look | None:
        """The group, if this node leads it and its members are not what the catalog says."""
        node, host = self._node, self._node.host
        holders = node.topology.holders(group)
        try:
            if holders is None or not host.is_leader(group):
                return None
            if not holders.leaving and _holds(host.conf(group), holders):
                return None
            return _Look(group, holders, host.term(group), frozenset(holders.wanted) - set(host.members(group)))
        except NeedleError as error:
            log.debug("%s was closed meanwhile: %s", group_name(group), error)
            return None

    def _may_go_on(self, look: _Look, reached: Collection[NodeId]) -> bool:
        """Whether there is a step to take, if the catalog confirms what this node knows."""
        try:
            step = self._step(look, reached)
        except NeedleError as error:
            self._put_off(look.group, error)
            return False
        if isinstance(step, Wait):
            self._hold(look.group, _Held(step.why))
        return not isinstance(step, Wait)

    async def _go_on(self, look: _Look, reached: Collection[NodeId], confirmed: Holders | None) -> None:
        try:
            why = await self._take(look, reached, confirmed)
        except NeedleError as error:
            self._put_off(look.group, error)
        else:
            self._hold(look.group, _Held(why))

    def _put_off(self, group: GroupId, error: NeedleError) -> None:
        held = self._held.get(group)
        pause = min(RETRY_SECONDS_MAX, 2 * held.pause) if held is not None and held.pause else RETRY_SECONDS
        self._hold(group, _Held(error.message, self._node.now() + pause, pause))

    def _hold(self, group: GroupId, held: _Held) -> None:
        known = self._held.get(group)
        if held.why and (known is None or known.why != held.why):
            log.info("%s does not have the members that the catalog names yet: %s", group_name(group), held.why)
        self._held[group] = held

    async def _take(self, look: _Look, reached: Collection[NodeId], confirmed: Holders | None) -> str:
        """One step, if there is one to take; what it waits for. confirmed: by the catalog, since it was looked at."""
        host, group, holders = self._node.host, look.group, look.holders
        if confirmed is None or confirmed != holders:
            return "this node does not know yet what the catalog has decided last"
        if isinstance(self._step(look, reached), Settled):
            # What this replica applied is all that was committed before, the catalog's confirmation included.
            await host.read_index(group, STEP_SECONDS)
        step = self._step(look, reached)
        if host.term(group) != look.term or not host.is_leader(group):
            return ""
        if isinstance(step, Wait):
            return step.why
        if isinstance(step, HandOver):
            await self._hand_over(group, step)
        elif isinstance(step, Change):
            await self._change(look, step)
        elif holders.leaving:
            await self._node.shards.command(ConfirmReplicas(group, holders.assigned), STEP_SECONDS)
            wanted, gone = _listed(holders.wanted), _listed(holders.leaving)
            log.info("%s is held by %s; %s may give it up", group_name(group), wanted, gone)
        return ""

    async def _hand_over(self, group: GroupId, step: HandOver) -> None:
        await self._node.host.transfer(group, step.to, STEP_SECONDS)
        why = f"{self._node.node_id} is to leave it"
        tell(LEADER_MOVED, group=group_name(group), to=step.to, why=why)

    async def _change(self, look: _Look, step: Change) -> None:
        host, group = self._node.host, look.group
        if step.learners - set(host.members(group)):
            self._fetching.add(group)
        await host.change_membership(group, sorted(step.voters), sorted(step.learners), STEP_SECONDS, look.term)

    def _step(self, look: _Look, reached: Collection[NodeId]) -> Step:
        """What to do next; a new replica waits while those of FETCHING_MAX other groups fetch."""
        group, now = look.group, self._members(look, reached)
        if now.learners & frozenset(now.wanted) & frozenset(now.live) - frozenset(now.caught_up):
            self._fetching.add(group)
        else:
            self._fetching.discard(group)  # one that does not answer holds up nobody
        step = next_step(now)
        new = isinstance(step, Change) and step.learners - now.learners - now.voters
        if new and group not in self._fetching and len(self._fetching) >= FETCHING_MAX:
            return Wait(f"{FETCHING_MAX} other shards of {self._node.node_id} get new replicas first")
        return step

    # --- what is so -------------------------------------------------------------------------------------------------
    async def _reached(self, due: Iterable[_Look]) -> set[NodeId]:
        """Those that are wanted and no members yet, and answer. Not those whose directory lost what others count on, or
        that are short of memory."""
        new = sorted({node for look in due for node in look.new})
        answers = await asyncio.gather(*map(self._answers, new))
        return {node for node, answered in zip(new, answers, strict=True) if answered}

    async def _answers(self, node: NodeId) -> bool:
        try:
            data = await self._node.peers.call(node, WHO, calls.encode(WhoCall()), ASK_SECONDS)
            who = calls.decode(data, WhoAnswer)
        except NeedleError as error:
            log.debug("node %s, which is to hold a replica, does not answer: %s", node, error)
            return False
        if who.levels is not None and who.levels.memory is not None and who.levels.memory.tight:
            log.info("node %s, which is to hold a replica, is short of memory", node)
            return False
        return not who.lost

    def _members(self, look: _Look, reached: Collection[NodeId]) -> Members:
        host, me, group = self._node.host, self._node.node_id, look.group
        conf, status = host.conf(group), host.status(group)
        active = {peer.id for peer in status.peers if peer.recently_active} - status.refused.keys()
        return Members(
            leader=me,
            voters=frozenset(conf.voters),
            learners=frozenset(conf.learners),
            changing=bool(conf.voters_outgoing) or host.applied_index(group) < host.last_change(group),
            wanted=look.holders.wanted,
            live=frozenset({me} | active | (look.new & frozenset(reached))),
            caught_up=frozenset({me} | _caught_up(status, host.last_change(group))),
            resting=frozenset(one.id for one in self._node.topology.nodes if one.maintenance),
        )


def _holds(conf: ConfState, holders: Holders) -> bool:
    """Whether a group's members are those that the catalog names."""
    return not conf.voters_outgoing and not conf.learners and sorted(conf.voters) == sorted(holders.wanted)


def _caught_up(status: RaftStatus, last_change: int) -> set[NodeId]:
    """Peers that have snapshots behind them, lack little of what is committed, and nothing of what there was when they
    were added. One that was restarted while nothing is written stays in the state "probe", and counts."""
    peers = [peer for peer in status.peers if peer.state != "snapshot" and peer.lag_entries <= LAG_MAX]
    return {peer.id for peer in peers if peer.match_index >= last_change}


def _listed(nodes: Collection[NodeId]) -> str:
    return ", ".join(sorted(nodes)) or "none"
