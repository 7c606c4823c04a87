"""Makes the members of the groups that this node leads those that the catalog names: shards, and the catalog itself.

What to do next is decided by catalog.replica_steps from what the leader sees; this takes that step and looks again, so
any later leader goes on where this one stops. Invariants: a step is taken only for what the catalog confirmed in the
term in which it is proposed, so a leader that was away cannot bring back what the catalog has given up; the catalog is
told that nodes may give up their replicas only then, and after the change is committed. It must not know clients.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Protocol

from needle.base.errors import NeedleError
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.model import RaftStatus, WriteResult
from needle.catalog.replica_steps import Change, HandOver, Members, Settled, Step, Wait, next_step
from needle.multiraft.host import Host
from needle.protocol import calls
from needle.protocol.catalog_commands import CatalogCommand, ConfirmReplicas
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall
from needle.raft.messages import ConfState
from needle.routing.topology import Holders, Topology
from needle.server.ports import Peers

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 0.5
STEP_SECONDS: Final = 10.0
ASK_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
RETRY_SECONDS_MAX: Final = 60.0
LAG_MAX: Final = 200
"""Entries that a replica may lack and still count as caught up: what a busy leader has in flight."""
FETCHING_MAX: Final = 2
"""Groups of this node whose new replicas fetch all their data at the same time."""


class Catalog(Protocol):
    """The way to the catalog (client.shards.ClusterShards)."""

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult: ...


class LeadingNode(Protocol):
    """The node whose groups are looked after."""

    node_id: NodeId
    host: Host
    peers: Peers
    topology: Topology

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


class Replicas:
    """See the module."""

    def __init__(self, node: LeadingNode) -> None:
        self._node = node
        self._held: dict[GroupId, _Held] = {}
        """By group, of those that this node leads and whose members are not yet what the catalog says."""
        self._fetching: set[GroupId] = set()

    def why(self, group: GroupId) -> str:
        """What the members of a group that this node leads still lack; "" if they are what the catalog says."""
        held = self._held.get(group)
        return held.why if held is not None else ""

    async def run(self) -> None:
        """Until the node stops: one step after the other."""
        host = self._node.host
        while not host.stopped:
            await asyncio.sleep(LOOK_SECONDS)
            for group in host.groups():
                if group in host.groups() and host.is_leader(group):
                    await self._look(group)
                else:
                    self._forget(group)

    def _forget(self, group: GroupId) -> None:
        self._held.pop(group, None)
        self._fetching.discard(group)

    async def _look(self, group: GroupId) -> None:
        node, held = self._node, self._held.get(group)
        holders = node.topology.holders(group)
        if holders is None or (not holders.leaving and _holds(node.host.conf(group), holders)):
            self._forget(group)
            return
        if held is not None and node.now() < held.again:
            return
        try:
            why = await self._go_on(group, holders)
        except NeedleError as error:
            pause = min(RETRY_SECONDS_MAX, 2 * held.pause) if held is not None and held.pause else RETRY_SECONDS
            self._hold(group, _Held(error.message, node.now() + pause, pause))
        else:
            self._hold(group, _Held(why))

    def _hold(self, group: GroupId, held: _Held) -> None:
        known = self._held.get(group)
        if held.why and (known is None or known.why != held.why):
            log.info("%s does not have the members that the catalog names yet: %s", group_name(group), held.why)
        self._held[group] = held

    async def _go_on(self, group: GroupId, holders: Holders) -> str:
        """One step, if there is one to take; what it waits for."""
        host, term = self._node.host, self._node.host.term(group)
        reached = await self._reached(group, holders)
        step = next_step(self._members(group, holders, reached))
        if isinstance(step, Wait):
            return step.why
        confirmed = (await self._node.confirmed(STEP_SECONDS)).holders(group)
        if confirmed is None or confirmed != holders:
            return "this node does not know yet what the catalog has decided last"
        if isinstance(step, Settled):
            # What this replica applied is all that was committed before, the catalog's confirmation included.
            await host.read_index(group, STEP_SECONDS)
        step = next_step(self._members(group, holders, reached))
        if host.term(group) != term or not host.is_leader(group):
            return ""
        return await self._take(group, holders, step, term)

    async def _take(self, group: GroupId, holders: Holders, step: Step, term: int) -> str:
        host, name = self._node.host, group_name(group)
        if isinstance(step, Wait):
            return step.why
        if isinstance(step, HandOver):
            await host.transfer(group, step.to, STEP_SECONDS)
            log.info("%s goes to %s, for %s is to leave it", name, step.to, self._node.node_id)
        elif isinstance(step, Change):
            new = step.learners - set(host.members(group))
            if new and group not in self._fetching and len(self._fetching) >= FETCHING_MAX:
                return f"{FETCHING_MAX} other shards of {self._node.node_id} get new replicas first"
            if new:
                self._fetching.add(group)
            await host.change_membership(group, sorted(step.voters), sorted(step.learners), STEP_SECONDS, term)
            log.info("%s has the voters %s, learners %s", name, _listed(step.voters), _listed(step.learners))
            if not step.learners & set(holders.wanted):
                self._fetching.discard(group)
        elif holders.leaving:
            await self._node.shards.command(ConfirmReplicas(group, holders.assigned), STEP_SECONDS)
            log.info("%s is held by %s; %s may give it up", name, _listed(holders.wanted), _listed(holders.leaving))
        return ""

    # --- what is so -------------------------------------------------------------------------------------------------
    async def _reached(self, group: GroupId, holders: Holders) -> set[NodeId]:
        """Those that are wanted and no members yet, and answer. Not those whose directory lost what others count on."""
        new = [node for node in holders.wanted if node not in self._node.host.members(group)]
        answers = await asyncio.gather(*map(self._answers, new))
        return {node for node, answered in zip(new, answers, strict=True) if answered}

    async def _answers(self, node: NodeId) -> bool:
        try:
            data = await self._node.peers.call(node, WHO, calls.encode(WhoCall()), ASK_SECONDS)
        except NeedleError as error:
            log.debug("node %s, which is to hold a replica, does not answer: %s", node, error)
            return False
        return not calls.decode(data, WhoAnswer).lost

    def _members(self, group: GroupId, holders: Holders, reached: Collection[NodeId] = ()) -> Members:
        host, me = self._node.host, self._node.node_id
        conf, status = host.conf(group), host.status(group)
        live = {me, *reached} | {peer.id for peer in status.peers if peer.recently_active} - status.refused.keys()
        return Members(
            leader=me,
            voters=frozenset(conf.voters),
            learners=frozenset(conf.learners),
            changing=bool(conf.voters_outgoing) or host.applied_index(group) < host.last_change(group),
            wanted=holders.wanted,
            live=frozenset(live),
            caught_up=frozenset({me} | _caught_up(status, host.last_change(group))),
        )


def _holds(conf: ConfState, holders: Holders) -> bool:
    """Whether a group's members are those that the catalog names."""
    return not conf.voters_outgoing and not conf.learners and sorted(conf.voters) == sorted(holders.wanted)


def _caught_up(status: RaftStatus, last_change: int) -> set[NodeId]:
    """Peers that take the log as it grows, snapshots behind them, lack little of it, and nothing of what there was when
    they were added."""
    has = max(last_change, status.last_index - LAG_MAX)
    return {peer.id for peer in status.peers if peer.state == "replicate" and peer.match_index >= has}


def _listed(nodes: Collection[NodeId]) -> str:
    return ", ".join(sorted(nodes)) or "none"
