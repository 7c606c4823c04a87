"""Who holds which group, as the operator of a run sees it and has the catalog told: replicas move, leave, come back.

Invariants: no voter is taken from a group that lacks one already, nor while a disk has lost what it promised: the
product promises nothing to a group that its operator takes apart. It must not know clients or checkers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence

from needle.base.errors import InvalidArgument
from needle.base.ids import CATALOG_GROUP, GroupId
from needle.client.client import Client
from needle.protocol.catalog_commands import AssignReplicas, ConfirmReplicas
from needle.raft.messages import ConfState
from needle.routing.replication import catalog_size
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage

ADMIN_SECONDS = 5.0
OUTDATED_SHARE = 0.5
"""Of the decisions who holds a group, how many are followed by a late word of a leader about an earlier one."""
REPLACEMENTS_MAX = 2
KNOWN_TRIES = 25


class Holders:
    """See the module. members: the nodes that hold groups, or may."""

    def __init__(self, stage: Stage, truth: Truth, founders: Sequence[str], replicas: int, rng: random.Random) -> None:
        """replicas: of each shard."""
        self._stage = stage
        self._fleet = stage.fleet
        self._truth = truth
        self._rng = rng
        self._replicas = replicas
        self._shrinking: set[GroupId] = set()
        self.members = list(founders)

    # --- how it is ----------------------------------------------------------------------------------------------------
    def may_lose(self, name: str, moving: bool = False) -> bool:
        """Whether each group remains without this node's data. moving: a rebalance is under way, so groups are on their
        way from some nodes to others."""
        return (
            name in self.members
            and not self._fleet.retired.intersection(self.members)
            and all(self._is_whole(group) or (moving and self._remains(group, name)) for group in self._truth.groups())
        )

    def _remains(self, group: GroupId, name: str) -> bool:
        """Whether three voters or more, of the old and of the new ones if it is between, have a majority of good disks
        without this node."""
        conf = self._conf(group)
        bad = {name} | self._fleet.observer.rotten | self._fleet.spoilt
        if conf is None or group in self._shrinking:
            return False
        halves = [half for half in (conf.voters, conf.voters_outgoing) if half]
        return all(len(half) > 2 and keeps_quorum(half, bad) for half in halves)

    def sharing(self, name: str) -> set[str]:
        """The nodes with which this one shares a group."""
        groups = [nodes for group in self._truth.groups() if name in (nodes := self._truth.nodes_of(group))]
        return {node for nodes in groups for node in nodes if node != name}

    def all_are_voters(self, group: GroupId) -> bool:
        """Whether a group's configuration is what the catalog says, as far as its leader has applied."""
        conf = self._conf(group)
        if conf is None or conf.voters_outgoing or conf.learners or self._truth.leaving(group):
            return False
        return sorted(conf.voters) == sorted(self._wanted(group, conf))

    def _wanted(self, group: GroupId, conf: ConfState) -> list[str]:
        """The voters by the catalog; a node with other disks than before cannot be added again under its name."""
        nodes, lost = self._truth.wanted(group), self._fleet.forgetful
        return [node for node in nodes if node in conf.voters or node not in lost]

    def _conf(self, group: GroupId) -> ConfState | None:
        """What a group's leader has applied."""
        name = self._fleet.leader(group)
        conf: ConfState | None = self._fleet.nodes[name].groups()[group].raft.conf if name else None
        return conf

    def _full(self, group: GroupId) -> int:
        """How many replicas a group should have: as the operator said last, or as it began with. The catalog is begun
        by all founders, and comes to so many at once."""
        said = self._truth.now.replicas
        if group == CATALOG_GROUP:
            return catalog_size(self._stage.spec.nodes, said or self._replicas)
        if said:
            return min(said, len(self.members))
        first = self._truth.topologies[1].holders(group)
        return len(first.wanted) if first is not None else min(self._replicas, len(self.members))

    def _is_whole(self, group: GroupId) -> bool:
        """Whether all nodes that a group began with, or as many others, are its voters, and nothing else is decided;
        and whether all of them are there: a machine that is lost is a voter until its replacement is decided."""
        wanted = self._truth.wanted(group)
        full = len(wanted) == self._full(group) and not self._fleet.retired.intersection(wanted)
        return full and group not in self._shrinking and self.all_are_voters(group)

    # --- what is changed ----------------------------------------------------------------------------------------------
    async def assign(self, client: Client, group: GroupId, nodes: list[str]) -> None:
        """Have the catalog told that `nodes` hold a group, the preferred leader first."""
        command = AssignReplicas(group, self._truth.wanted(group), nodes)
        await client.change_catalog(command, timeout=ADMIN_SECONDS)
        self._stage.trace.tell(f"group {group} is assigned to {', '.join(sorted(nodes))}")
        if self._rng.random() < OUTDATED_SHARE:
            await self._confirm_outdated(client, group)

    async def _confirm_outdated(self, client: Client, group: GroupId) -> None:
        """A leader that was away tells only now that an earlier decision is carried out."""
        told = [holders.assigned for now in self._truth.topologies if (holders := now.holders(group)) is not None]
        outdated = sorted({assigned for assigned in told if 0 < assigned < told[-1]})
        if outdated:
            command = ConfirmReplicas(group, self._rng.choice(outdated))
            await client.change_catalog(command, timeout=ADMIN_SECONDS)
            self._stage.trace.tell(f"group {group}: the assignment of {command.assigned} is confirmed late")

    async def shrink(self, client: Client, name: str, what: str) -> None:
        """Take a node's replica from a group: until "restore", or back at once, while it is under way. Never from one
        that lacks a voter already, and never while a disk has lost what it promised: what remains could be stuck."""
        groups = [group for group in self._truth.groups() if name in self._truth.wanted(group)]
        if not groups:
            return
        group = self._rng.choice(groups)
        before = self._truth.wanted(group)
        rest = [node for node in before if node != name]
        if len(rest) < 2 or self._fleet.retired.intersection(rest) or not self._is_whole(group):
            return
        if not keeps_quorum(rest, self._fleet.observer.rotten | self._fleet.spoilt):
            return
        self._shrinking.add(group)  # for good if nobody knows what became of it
        try:
            await self.assign(client, group, rest)
            if what == "demote":
                await asyncio.sleep(2.0 * self._rng.random())
                await self.assign(client, group, before)
        except InvalidArgument:
            self._shrinking.discard(group)
            raise
        self._shrinking.discard(group)

    async def replace(self, client: Client, name: str) -> None:
        """A member's machine is lost: a new one with a new name takes its place in every group."""
        fleet, rest = self._fleet, [node for node in self.members if node != name]
        bad = fleet.observer.rotten | fleet.spoilt
        if len(fleet.machines) >= self._stage.spec.nodes + REPLACEMENTS_MAX or not self.may_lose(name):
            return
        if not keeps_quorum(rest, bad) or fleet.forgetful.intersection(rest):
            return
        held = [group for group in self._truth.groups() if name in self._truth.wanted(group)]
        fleet.retired.add(name)
        fleet.crash(name, power_cut=True, why="lost for good")
        fresh = fleet.add()
        self.members = sorted([*rest, fresh])
        fleet.start(fresh)
        self._stage.trace.tell(f"{fresh} takes the place of {name}")
        for _ in range(KNOWN_TRIES):
            if self._truth.now.node(fresh) is not None:
                break
            await asyncio.sleep(0.2)
        for group in held:
            wanted = self._truth.wanted(group)
            await self.assign(client, group, [fresh if node == name else node for node in wanted])

    def to_move(self, fresh: str, lost: set[str]) -> GroupId | None:
        """A group of which a replica may go to node `fresh`."""
        if fresh not in self.members or fresh in lost or not self._fleet.observer.rotten <= self._fleet.retired:
            return None
        groups = [group for group in self._truth.groups() if fresh not in self._truth.nodes_of(group)]
        groups = [group for group in groups if len(self._truth.wanted(group)) == self._full(group)]
        return self._rng.choice(groups) if groups else None

    def moved(self, group: GroupId, fresh: str, lost: set[str]) -> list[str]:
        """The nodes of a group with `fresh` and perhaps others in the place of lost ones first."""
        before, held = self._truth.wanted(group), self._truth.nodes_of(group)
        spare = [node for node in self.members if node not in held and node not in lost and node != fresh]
        new = [fresh, *self._rng.sample(spare, len(spare))][: self._rng.randint(1, len(before))]
        order = self._rng.sample(before, len(before))
        gone = sorted(order, key=lambda node: node not in lost)[: len(new)]
        return self._rng.sample(made := [*(node for node in before if node not in gone), *new], len(made))

    def _mended(self, group: GroupId) -> list[str]:
        """Whom an operator would have hold a group: others for lost nodes, preferably those that hold it still, and as
        many as it began with. A lost node stays if there is nobody else and it is a voter."""
        conf, lost = self._conf(group), self._fleet.retired | self._fleet.forgetful
        wanted = self._truth.wanted(group)
        kept = [node for node in wanted if node not in lost]
        spare = [node for node in (*self._truth.leaving(group), *self.members) if node not in wanted]
        spare = [node for node in dict.fromkeys(spare) if node not in lost]
        made = [*kept, *spare[: max(0, self._full(group) - len(kept))]]
        voting = [node for node in wanted if node in lost and conf is not None and node in conf.voters]
        return [*made, *voting[: max(0, self._full(group) - len(made))]]

    def to_mend(self) -> list[GroupId]:
        """The groups of which the catalog has other nodes hold replicas than an operator wants."""
        return [group for group in self._truth.groups() if set(self._mended(group)) != set(self._truth.wanted(group))]

    def all_mended(self) -> bool:
        """Whether there are none."""
        return not self.to_mend()

    async def mend(self, client: Client, group: GroupId) -> None:
        """Give a group its replicas back."""
        await self.assign(client, group, self._mended(group))


def keeps_quorum(voters: Sequence[str], rotten: Collection[str]) -> bool:
    """Whether a majority of `voters` has disks that keep what they promised: nodes with others may be out for good."""
    return 2 * sum(node not in rotten for node in voters) > len(voters)
