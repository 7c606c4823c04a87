"""The operator: creates the cluster, hands leaderships over, changes who holds what, replaces lost machines.

Invariant: it never takes a voter from a group that lacks one already (assigning.py). It must not know clients or
checkers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from needle.base.errors import DiskFull, InvalidArgument, NeedleError, OutcomeUnknown, StorageError, Unavailable
from needle.base.ids import CATALOG_GROUP, GroupId, shard_group
from needle.base.model import ReadMode
from needle.client.client import Client
from needle.client.finding import find_topology
from needle.client.health import lost_nodes
from needle.protocol import calls
from needle.protocol.calls import Freshness, GetCall, GroupCall
from needle.protocol.catalog_commands import CancelMove, RemoveNode, StartMove
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall
from needle.routing.topology import ClusterSettings, NodeState, Topology
from needle.server.catalog.founding import create_cluster
from proof.checkers.violation import Violation
from proof.sim.assigning import Holders
from proof.sim.databases import ShardAware
from proof.sim.machine import stream
from proof.sim.resizing import Resizing
from proof.sim.shards.profile import Shape
from proof.sim.shards.truth import Truth
from proof.sim.spec import BY_HAND_KINDS, RESIZE_KINDS, TURNOVER_KINDS
from proof.sim.stage import Stage
from proof.sim.turnover import Turnover
from proof.sim.workload import COLLECTION

ADMIN_SECONDS = 5.0
CREATE_SECONDS = 10.0
REPEAT_SECONDS = 1.0
NAME = "operator"
DATA_GROUP = shard_group(0)
DATA_SHARE = 0.7
"""Of what is done to a group in the profile of one shard: how much is done to the shard's, not to the catalog's."""
OTHERS_SHARE = 0.3
"""Of the moves of replicas, how many another administrator wants otherwise."""


class Operator:
    """See the module. Fits the injector's Controls."""

    def __init__(self, stage: Stage, truth: Truth, profile: Shape, founders: list[str]) -> None:
        self._stage = stage
        self._fleet = stage.fleet
        self._truth = truth
        self._profile = profile
        self._founders = founders
        self._rng = stream(stage.spec.seed, NAME)
        self._endpoint = stage.network.endpoint(NAME, stage.client_process(NAME))
        self.holders = Holders(stage, truth, founders, profile.replicas, self._rng)
        self.resizing = Resizing(stage, truth, profile, stream(stage.spec.seed, "resizing", 1))
        self.turnover = Turnover(stage, truth, self.holders, self, stream(stage.spec.seed, "turnover"))

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
                index=self._stage.profile.index,
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
        return self._fleet.leader(DATA_GROUP if self._profile.one_group else self.group(hint))

    def _some_group(self) -> GroupId:
        """As `leader`, drawn when an operator's command is about one group."""
        group = self.group(self._rng.randrange(len(self._truth.now.serving) + 1))
        return DATA_GROUP if self._profile.one_group and self._rng.random() < DATA_SHARE else group

    def may_lose(self, name: str) -> bool:
        """Whether each group remains without this node's data; joined nodes hold no group."""
        return (
            self._profile.replicas >= 3
            and not self.resizing.is_lowered
            and self.holders.may_lose(name, self.resizing.under_way)
        )

    def is_moving(self) -> bool:
        """Whether a rebalance is under way."""
        return self.resizing.under_way

    def sharing(self, name: str) -> set[str]:
        """The nodes with which this one shares a group."""
        return self.holders.sharing(name)

    def finds_others(self, name: str) -> bool:
        """Whether this node, with the list that it was founded with, knows where one is that is still there. Whoever
        empties a node that has no list starts it with such addresses."""
        return any(node not in self._fleet.retired for node in self._founders if node != name)

    async def restored(self) -> bool:
        """Whether every group has as many voters as it began with, those that the catalog names, and all may lead. The
        leaders see to that; nodes that are lost, or were taken from a group, the operator replaces."""
        self.turnover.sweep()
        if not await self._nobody_rests():
            return False
        if not self.holders.all_mended():
            await self._stage.ask(NAME, self._told("restore of all", self._administer("all", "restore")))
            return False
        return all(map(self.holders.all_are_voters, self._truth.groups()))

    async def _nobody_rests(self) -> bool:
        """Whether no node is in maintenance. One that began late, behind the command that was to end it, or that of a
        rolling restart that was broken off, is ended."""
        for node in self._truth.now.nodes:
            if node.maintenance and not self._is_gone(node.id):
                await self._stage.ask(NAME, self._told("end", self._administer(node.id, "end-maintenance")))
                return False
        return True

    async def resized(self) -> bool:
        """Whether no rebalance is under way any more, and all nodes are used again."""
        if not self.turnover.ended():
            await self._stage.ask(NAME, self._told("the end of turnover", self._administer("all", "end-turnover")))
            return False
        if not await self._nobody_rests():  # a replica that leaves hands over to none that rests
            return False
        if self.resizing.ended():
            return True
        await self._stage.ask(NAME, self._told("the end of resizing", self._administer("all", "end-resizing")))
        return False

    async def admin(self, name: str, what: str) -> None:
        """An operator's command; it may be refused or time out."""
        self._stage.ask(NAME, self._told(f"{what} of {name}", self._administer(name, what)))
        await asyncio.sleep(0)

    async def _told(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (Unavailable, OutcomeUnknown, InvalidArgument, StorageError, DiskFull) as error:
            self._stage.trace.note(f"{what}: {error}")
        else:
            self._stage.trace.tell(f"{what} is done")

    async def _administer(self, name: str, what: str) -> None:
        client, serving = self._client().client, self._truth.now.serving
        shards = len(serving)
        if what == "step-down":
            await client.step_down(shard=serving[self._rng.randrange(shards)].shard, timeout=ADMIN_SECONDS)
        elif what == "force-election":
            group = self._some_group()
            body = calls.encode(GroupCall(group, ADMIN_SECONDS))
            address = self._fleet.machines[name].address
            await self._endpoint.call(address, calls.FORCE_ELECTION, body, ADMIN_SECONDS)
        elif what == "maintenance":
            await client.enter_maintenance_mode(name, force=True, timeout=ADMIN_SECONDS)
        elif what == "end-maintenance":
            await end_maintenance(client.exit_maintenance_mode, name, lambda: self._is_gone(name))
        elif what == "read-there":
            await self._read_there(name)
        elif what == "prefer":
            info = serving[self._rng.randrange(shards)]
            await self.holders.assign(client, shard_group(info.shard), [*info.wanted[1:], info.wanted[0]])
        elif what in ("demote", "remove"):
            await self.holders.shrink(client, name, what)
        elif what == "replace" and not self.resizing.is_lowered:
            await self.holders.replace(client, name)
        elif what == "move-replica":
            await self._move_replicas(client, name)
        elif what == "restore":
            for group in self.holders.to_mend():
                await self._told(f"restore of group {group}", self.holders.mend(client, group))
        elif what == "move-range":
            command = self._move()
            if command is not None:
                await client.change_catalog(command, timeout=ADMIN_SECONDS)
        elif what == "cancel-move":
            await client.change_catalog(CancelMove(int(name)), timeout=ADMIN_SECONDS)
        elif what in TURNOVER_KINDS:
            await self.turnover.run(client, name, what)
        elif what == "end-turnover":
            await self.turnover.end(client)
        elif what in (*RESIZE_KINDS, *BY_HAND_KINDS):
            await self.resizing.ask(client, what, self.holders.members)
        elif what == "end-resizing":
            await self.resizing.end(client)
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
        if not names or len(self._truth.now.serving) < 2:
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
        target = rng.choice([info.shard for info in self._truth.now.serving if info.shard != source])
        return StartMove(rng.getrandbits(63), shard_map.epoch, ranges, source, target)

    async def _move_replicas(self, client: Client, fresh: str) -> None:
        """One or more of a group's replicas go to other nodes, as the catalog is told; the leaders do the rest. Now and
        then another administrator wants something else at the same time."""
        lost = self._fleet.retired | self._fleet.forgetful
        group = self.holders.to_move(fresh, lost)
        if group is None:
            return
        nodes = self.holders.moved(group, fresh, lost)
        if self._rng.random() < OTHERS_SHARE:
            other = self.holders.moved(group, fresh, lost)
            work = self.holders.assign(self._client().client, group, other)
            self._stage.ask(NAME, self._told(f"another assignment of group {group}", work))
        await self.holders.assign(client, group, nodes)

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
        """Whether somebody who asks how the cluster is hears that no replica of this node goes on, or who asks the node
        that it belongs to no cluster. Raises Violation if the node reads documents to whoever asks it."""
        return await self._stage.ask(NAME, self._told_lost(name))

    async def _told_lost(self, name: str) -> bool:
        groups = [group for group in self._truth.groups() if name in self._truth.nodes_of(group)]
        shards = [group for group in groups if group != CATALOG_GROUP]
        for group in shards:
            await self._read_of_lost(name, group)
        try:
            if shards and name in lost_nodes(await self._client().client.cluster_status(timeout=ADMIN_SECONDS)):
                return True
            body = calls.encode(WhoCall())
            answer = await self._endpoint.call(self._fleet.machines[name].address, WHO, body, ADMIN_SECONDS)
            who = calls.decode(answer, WhoAnswer)
            return who.uid == 0 or bool(who.lost and not shards)
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
    def members(self) -> list[str]:
        """The nodes that the cluster was created with; in the place of lost machines those that came for them."""
        return list(self.holders.members)

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

    def _is_gone(self, name: str) -> bool:
        return self.removed(name) or name in self._fleet.retired

    async def newest(self) -> Topology | None:
        """The topology as a client that has just come is told."""
        try:
            return await self._client().client.refresh_topology(self._truth.now.version, timeout=ADMIN_SECONDS)
        except NeedleError:
            return None


async def end_maintenance(leave: Callable[..., Awaitable[None]], name: str, is_gone: Callable[[], bool]) -> None:
    """An operator repeats this until the node has heard it: a node that is forgotten would never vote or lead again."""
    while not is_gone():
        try:
            await leave(name, timeout=ADMIN_SECONDS)
            return
        except (Unavailable, OutcomeUnknown):
            await asyncio.sleep(REPEAT_SECONDS)
