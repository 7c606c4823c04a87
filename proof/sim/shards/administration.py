"""The operator of a sharded cluster: creates it, hands leaderships over, changes preferred leaders, removes nodes.

It must not know clients or checkers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from needle.base.errors import InvalidArgument, NeedleError, OutcomeUnknown, StorageError, Unavailable
from needle.base.ids import CATALOG_GROUP, GroupId, shard_group
from needle.base.model import ReadMode
from needle.client.client import Client
from needle.client.health import lost_nodes
from needle.client.shards import find_topology
from needle.protocol import calls
from needle.protocol.calls import Freshness, GetCall, GroupCall
from needle.protocol.catalog_commands import AssignReplicas, ConfirmReplicas, RemoveNode, StartMove
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall
from needle.raft.messages import ConfState
from needle.routing.topology import ClusterSettings, NodeState, Topology
from needle.server.catalog.founding import create_cluster
from proof.sim.administration import end_maintenance, keeps_quorum
from proof.sim.machine import stream
from proof.sim.shards.databases import ShardAware
from proof.sim.shards.profile import ShardProfile
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage
from proof.sim.violation import Violation
from proof.sim.workload import COLLECTION

ADMIN_SECONDS = 5.0
CREATE_SECONDS = 10.0
NAME = "operator"
OTHERS_SHARE = 0.3
"""Of the moves of replicas, how many another administrator wants otherwise."""
OUTDATED_SHARE = 0.5
"""Of the decisions who holds a group, how many are followed by a late word of a leader about an earlier one."""


class ShardOperator:
    """See the module. Fits the injector's Controls."""

    def __init__(self, stage: Stage, truth: Truth, profile: ShardProfile, founders: list[str]) -> None:
        self._stage = stage
        self._fleet = stage.fleet
        self._truth = truth
        self._profile = profile
        self._founders = founders
        self._rng = stream(stage.spec.seed, NAME)
        self._shrinking: set[GroupId] = set()
        self._endpoint = stage.network.endpoint(NAME, stage.client_process(NAME))

    # --- the beginning ------------------------------------------------------------------------------------------------
    async def create(self) -> bool:
        """Create the cluster and its first collection; False if it has to be tried again."""
        return await self._stage.ask(NAME, self._create())

    async def _create(self) -> bool:
        if self._profile.described:
            return await find_topology(self._endpoint, self._fleet.addresses()) is not None
        profile, machines = self._profile, self._fleet.machines
        settings = ClusterSettings(
            shard_count=profile.shards,
            replication_factor=profile.replicas,
            virtual_nodes_per_shard=profile.virtual_nodes,
            strategy=profile.strategy,
        )
        nodes = {name: machines[name].address for name in self._founders}
        try:
            await create_cluster(
                self._endpoint,
                settings,
                nodes,
                rng=self._rng,
                boundaries=profile.boundaries,
                timeout=CREATE_SECONDS,
            )
            await self._client().client.create_collection(
                COLLECTION,
                dimensions=self._stage.profile.dimensions,
                metric=self._stage.profile.metric,
                if_absent=True,
                timeout=CREATE_SECONDS,
            )
        except (Unavailable, OutcomeUnknown) as error:
            self._stage.trace.tell(f"the cluster is not created yet: {error}")
            return False
        return True

    def _client(self) -> ShardAware:
        return ShardAware(self._endpoint, self._fleet.addresses(), self._truth.now, self._rng)

    # --- the injector's Controls --------------------------------------------------------------------------------------
    def group(self, hint: int) -> GroupId:
        """One of the groups."""
        groups = self._truth.groups()
        return groups[hint % len(groups)]

    def leader(self, hint: int = 0) -> str | None:
        """The node that leads one of the groups."""
        return self._fleet.leader(self.group(hint))

    def may_lose(self, name: str) -> bool:
        """Whether each group remains without this node's data; joined nodes hold no group."""
        return (
            self._profile.replicas >= 3
            and name in self._founders
            and not self._fleet.retired.intersection(self._founders)
            and all(self._is_whole(group) for group in self._truth.groups())
        )

    def sharing(self, name: str) -> set[str]:
        """The nodes with which this one shares a group."""
        groups = [nodes for group in self._truth.groups() if name in (nodes := self._truth.nodes_of(group))]
        return {node for nodes in groups for node in nodes if node != name}

    def finds_others(self, name: str) -> bool:
        """Whoever emptied a node starts it with addresses of nodes that are there, or it belongs to no cluster."""
        return True

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

    async def restored(self) -> bool:
        """Whether every group has as many voters as it began with, those that the catalog names. The leaders see to
        that; nodes that are lost, or were taken from a group, the operator replaces."""
        groups = self._truth.groups()
        if any(set(self._mended(group)) != set(self._truth.wanted(group)) for group in groups):
            await self._stage.ask(NAME, self._told("restore of all", self._administer("all", "restore")))
            return False
        return all(self.all_are_voters(group) for group in groups)

    async def admin(self, name: str, what: str) -> None:
        """An operator's command; it may be refused or time out."""
        self._stage.ask(NAME, self._told(f"{what} of {name}", self._administer(name, what)))
        await asyncio.sleep(0)

    async def _told(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (Unavailable, OutcomeUnknown, InvalidArgument, StorageError) as error:
            self._stage.trace.note(f"{what}: {error.code}")
        else:
            self._stage.trace.tell(f"{what} is done")

    async def _administer(self, name: str, what: str) -> None:
        client, shards = self._client().client, len(self._truth.now.shards)
        if what == "step-down":
            await client.step_down(shard=self._rng.randrange(shards), timeout=ADMIN_SECONDS)
        elif what == "force-election":
            group = self.group(self._rng.randrange(shards + 1))
            body = calls.encode(GroupCall(group, ADMIN_SECONDS))
            address = self._fleet.machines[name].address
            await self._endpoint.call(address, calls.FORCE_ELECTION, body, ADMIN_SECONDS)
        elif what == "maintenance":
            await client.enter_maintenance_mode(name, timeout=ADMIN_SECONDS)
        elif what == "end-maintenance":
            await end_maintenance(client.exit_maintenance_mode, name, lambda: self.removed(name))
        elif what == "read-there":
            await self._read_there(name)
        elif what == "prefer":
            info = self._truth.now.shards[self._rng.randrange(shards)]
            await self._assign(client, shard_group(info.shard), [*info.wanted[1:], info.wanted[0]])
        elif what in ("demote", "remove"):
            await self._shrink(client, name, what)
        elif what == "move-replica":
            await self._move_replicas(client, name)
        elif what == "restore":
            await self._restore(client)
        elif what == "move-range":
            command = self._move()
            if command is not None:
                await client.change_catalog(command, timeout=ADMIN_SECONDS)
        elif what == "leave":
            await client.change_catalog(RemoveNode(name), timeout=ADMIN_SECONDS)
        else:
            raise ValueError(what)

    def _move(self) -> StartMove | None:
        """A move around some document, from the shard that owns it to another one: its range, a part of that, or all
        that the shard owns."""
        rng, shard_map = self._rng, self._truth.map
        models = self._truth.models()
        names = sorted({name for model in models.values() for name in model.at(model.last_index)})
        if not names or len(self._truth.now.shards) < 2:
            return None
        key = self._truth.key(rng.choice(names))
        source, draw = shard_map.owner(key), rng.random()
        ranges = shard_map.ranges(source)
        start, end = next(span for span in ranges if span[0] <= key and (span[1] is None or key < span[1]))
        if draw < 0.3 and key > start:
            ranges = [(key, end)]
        elif draw < 0.6:
            ranges = [(start, key + b"\x00")]
        elif draw < 0.9:
            ranges = [(start, end)]
        target = rng.choice([info.shard for info in self._truth.now.shards if info.shard != source])
        return StartMove(rng.getrandbits(63), shard_map.epoch, ranges, source, target)

    async def _shrink(self, client: Client, name: str, what: str) -> None:
        """Take a node's replica from a group: until "restore", or back at once, while it is under way. As in a single
        group, never from one that lacks a voter already, and never while a disk has lost what it promised: what remains
        could be stuck."""
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
            await self._assign(client, group, rest)
            if what == "demote":
                await asyncio.sleep(2.0 * self._rng.random())
                await self._assign(client, group, before)
        except InvalidArgument:
            self._shrinking.discard(group)
            raise
        self._shrinking.discard(group)

    async def _move_replicas(self, client: Client, fresh: str) -> None:
        """One or more of a group's replicas go to other nodes, as the catalog is told; the leaders do the rest. Now and
        then another administrator wants something else at the same time."""
        lost = self._fleet.retired | self._fleet.forgetful
        if fresh not in self._founders or fresh in lost or not self._fleet.observer.rotten <= self._fleet.retired:
            return
        groups = [group for group in self._truth.groups() if fresh not in self._truth.nodes_of(group)]
        groups = [group for group in groups if len(self._truth.wanted(group)) == self._full(group)]
        if not groups:
            return
        group = self._rng.choice(groups)
        nodes = self._moved(group, fresh, lost)
        if self._rng.random() < OTHERS_SHARE:
            other = self._moved(group, fresh, lost)
            work = self._assign(self._client().client, group, other)
            self._stage.ask(NAME, self._told(f"another assignment of group {group}", work))
        await self._assign(client, group, nodes)

    def _moved(self, group: GroupId, fresh: str, lost: set[str]) -> list[str]:
        """The nodes of a group with `fresh` and perhaps others in the place of lost ones first."""
        before, held = self._truth.wanted(group), self._truth.nodes_of(group)
        spare = [node for node in self._founders if node not in held and node not in lost and node != fresh]
        new = [fresh, *self._rng.sample(spare, len(spare))][: self._rng.randint(1, len(before))]
        order = self._rng.sample(before, len(before))
        gone = sorted(order, key=lambda node: node not in lost)[: len(new)]
        return self._rng.sample(made := [*(node for node in before if node not in gone), *new], len(made))

    async def _assign(self, client: Client, group: GroupId, nodes: list[str]) -> None:
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

    def _full(self, group: GroupId) -> int:
        """How many replicas a group began with."""
        first = self._truth.topologies[1].holders(group)
        return len(first.wanted) if first is not None else 0

    def _is_whole(self, group: GroupId) -> bool:
        """Whether all nodes that a group began with, or as many others, are its voters, and nothing else is decided."""
        full = len(self._truth.wanted(group)) == self._full(group)
        return full and group not in self._shrinking and self.all_are_voters(group)

    def _mended(self, group: GroupId) -> list[str]:
        """Whom an operator would have hold a group: others for lost nodes, preferably those that hold it still, and as
        many as it began with. A lost node stays if there is nobody else and it is a voter."""
        conf, lost = self._conf(group), self._fleet.retired | self._fleet.forgetful
        wanted = self._truth.wanted(group)
        kept = [node for node in wanted if node not in lost]
        spare = [node for node in (*self._truth.leaving(group), *self._founders) if node not in wanted]
        spare = [node for node in dict.fromkeys(spare) if node not in lost]
        made = [*kept, *spare[: self._full(group) - len(kept)]]
        voting = [node for node in wanted if node in lost and conf is not None and node in conf.voters]
        return [*made, *voting[: self._full(group) - len(made)]]

    async def _restore(self, client: Client) -> None:
        """Give every group its replicas back."""
        for group in self._truth.groups():
            mended = self._mended(group)
            if set(mended) != set(self._truth.wanted(group)):
                await self._told(f"restore of group {group}", self._assign(client, group, mended))

    async def _read_there(self, name: str) -> None:
        groups = [group for group in self._fleet.behind(name) if group != CATALOG_GROUP]
        if groups:
            await self._read(name, groups[0], Freshness(timeout=ADMIN_SECONDS))

    async def _read(self, name: str, group: GroupId, freshness: Freshness) -> None:
        """Read a shard at this very node."""
        now = self._truth.now
        found = now.collection(COLLECTION)
        if found is None or now.map is None:
            raise Unavailable("there is nothing to read yet")
        body = calls.encode(GetCall(group, found.stored_name, [], False, freshness, now.map.epoch))
        await self._endpoint.call(self._fleet.machines[name].address, calls.GET, body, ADMIN_SECONDS)

    # --- a node that lost its data ------------------------------------------------------------------------------------
    async def told_lost(self, name: str) -> bool:
        """Whether somebody who asks how the cluster is hears that no replica of this node goes on. Raises Violation if
        the node reads documents to whoever asks it."""
        return await self._stage.ask(NAME, self._told_lost(name))

    async def _told_lost(self, name: str) -> bool:
        groups = [group for group in self._truth.groups() if name in self._truth.nodes_of(group)]
        shards = [group for group in groups if group != CATALOG_GROUP]
        for group in shards:
            await self._read_of_lost(name, group)
        try:
            if shards:
                return name in lost_nodes(await self._client().client.cluster_status(timeout=ADMIN_SECONDS))
            body = calls.encode(WhoCall())
            answer = await self._endpoint.call(self._fleet.machines[name].address, WHO, body, ADMIN_SECONDS)
            return bool(calls.decode(answer, WhoAnswer).lost)
        except NeedleError:
            return False

    async def _read_of_lost(self, name: str, group: GroupId) -> None:
        freshness = Freshness(ReadMode.EVENTUAL, timeout=ADMIN_SECONDS)
        try:
            await self._read(name, group, freshness)
        except NeedleError as error:
            self._stage.trace.note(f"{name} does not answer a read of group {group}: {error.code}")
        else:
            raise Violation("lost state serves nobody", f"{name} lost its data, and reads group {group} to who asks it")

    # --- what it knows ------------------------------------------------------------------------------------------------
    def founders(self) -> list[str]:
        """The nodes that the cluster was created with."""
        return list(self._founders)

    def catalog_nodes(self) -> list[str]:
        """The nodes that hold the catalog."""
        return self._truth.nodes_of(CATALOG_GROUP)

    def knows(self, name: str) -> bool:
        """Whether the catalog has the node where its machine listens."""
        return self._truth.now.address_of(name) == self._fleet.machines[name].address

    def removed(self, name: str) -> bool:
        """Whether the catalog has removed the node."""
        info = self._truth.now.node(name)
        return info is not None and info.state is NodeState.REMOVED

    async def newest(self) -> Topology | None:
        """The topology as a client that has just come is told."""
        try:
            return await self._client().client.refresh_topology(self._truth.now.version, timeout=ADMIN_SECONDS)
        except NeedleError:
            return None
