"""The catalog as its log says, replayed; and every topology there ever was, for clients that know an old one.

Invariant: written by committed entries only. ownership.py checks what the shards' logs make of the moves of ranges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import msgspec

from needle.base.ids import CATALOG_GROUP, GroupId, shard_group
from needle.catalog.executed import Executed, execute_once
from needle.client.by_map import UNKNOWN_EPOCH
from needle.protocol.catalog_commands import decode_identified
from needle.protocol.move_commands import MoveCommand
from needle.raft.messages import ConfState
from needle.routing.shard_map import KeyRange, ShardMap, initial_map
from needle.routing.strategy import routing_key
from needle.routing.topology import Topology
from needle.shard.bulk.rows_file import Rows
from proof.checkers.members import Members
from proof.checkers.rebalances import Rebalances
from proof.checkers.replay import LogModel
from proof.checkers.violation import Violation
from proof.sim.shards.happenings import Happening, changes, configured, step_of
from proof.sim.shards.known import KnownTopologies
from proof.sim.shards.ownership import Ownerships
from proof.sim.shards.profile import metadata_of
from proof.sim.stage import Stage
from proof.sim.watch import Watch
from proof.sim.workload import COLLECTION

OLD_VIRTUAL_NODES = 3


class Truth:
    """See the module. topologies: all, oldest first."""

    def __init__(self, stage: Stage, watch: Watch) -> None:
        self._stage = stage
        self._watch = watch
        self.topologies: list[Topology] = [Topology()]
        self.known = KnownTopologies(stage, lambda: self.topologies)
        self._executed = Executed()
        self._identities: dict[int, int] = {}
        """At which index a command of that identity changed anything; never forgotten, unlike the catalog's own."""
        watch.on_catalog = self._catalog
        watch.on_document = self._document
        watch.on_move = self._step
        watch.on_members = self._members_changed
        self.members = Members(self._log_end)
        self.rebalances = Rebalances(self._owned_now)
        watch.key_of = self.key
        self.logs: Ownerships
        self._waiting: list[tuple[Collection[str], asyncio.Future[Happening]]] = []

    @property
    def now(self) -> Topology:
        """The newest."""
        return self.topologies[-1]

    @property
    def map(self) -> ShardMap:
        """Who owns what. The cluster must exist."""
        if self.now.map is None:
            raise RuntimeError("there is no cluster yet")
        return self.now.map

    def key(self, name: str) -> bytes:
        """A document's routing key."""
        shard_map = self.map
        return routing_key(shard_map.strategy, shard_map.shard_count, name, metadata_of(name))

    def owner(self, name: str) -> int:
        """The shard that owns a document."""
        return self.map.owner(self.key(name))

    def contended(self) -> bool:
        """Whether ranges move under a strategy by which a delete has to ask all shards."""
        return bool(self.now.moves) and self.map.strategy.kind == "custom"

    def maps(self) -> dict[int, ShardMap]:
        """Every map there ever was, by epoch."""
        return {topology.map.epoch: topology.map for topology in self.topologies if topology.map is not None}

    def moved(self) -> int:
        """How many moves of ranges have changed owners."""
        return self.logs.moved if self.now.map is not None else 0

    def wrote(self, key: str, index: int) -> GroupId:
        """The group in whose log a document was written or deleted at `index`."""
        for shard, model in self.models().items():
            if any(at == index for at, _ in model.history(key)):
                return shard_group(shard)
        return shard_group(self.owner(key))

    def groups(self) -> list[GroupId]:
        """The catalog's, and those of all shards that serve."""
        return [CATALOG_GROUP, *(shard_group(info.shard) for info in self.now.serving)]

    def nodes_of(self, group: GroupId) -> list[str]:
        """The nodes that hold a group."""
        return list(self.now.catalog if group == CATALOG_GROUP else self.now.shards[group - 1].replicas)

    def wanted(self, group: GroupId) -> list[str]:
        """The nodes that should be a group's voters."""
        holders = self.now.holders(group)
        return list(holders.wanted) if holders is not None else []

    def leaving(self, group: GroupId) -> list[str]:
        """Those that hold a group until the others are its voters."""
        holders = self.now.holders(group)
        return list(holders.leaving) if holders is not None else []

    def prepared(self, checksum: str, stored: str, rows: list[Rows]) -> None:
        """A bulk load's file may be named by an entry. stored: the collection's name in shards."""
        self._watch.prepared[checksum] = stored, rows

    def models(self, name: str = COLLECTION) -> dict[int, LogModel]:
        """What each shard's log did to a collection: to the workload's, if none is named."""
        found = self.now.collection(name)
        return self.models_of(found.stored_name if found is not None else name)

    def models_of(self, stored: str) -> dict[int, LogModel]:
        """The same of a collection by its name in shards, whether it is there still or not."""
        return {info.shard: self._watch.model(shard_group(info.shard), stored) for info in self.now.shards}

    def last(self) -> dict[int, int]:
        """By shard, the highest index that any replica has applied."""
        return {info.shard: self._watch.last(shard_group(info.shard)) for info in self.now.shards}

    def before_the_first(self) -> Topology:
        """A topology from before all others, with another ring of an older epoch: what a router knows that has slept
        through a resharding."""
        first = self.topologies[1]
        settings = first.settings
        if settings is None or first.map is None:
            raise RuntimeError("the first topology has no map")
        other = initial_map(settings.strategy, settings.shard_count, OLD_VIRTUAL_NODES)
        epoch = first.map.epoch - 1 or UNKNOWN_EPOCH  # 0 would be no epoch: the node routes then, by names of callers
        old = msgspec.structs.replace(other, epoch=epoch, owners=other.owners[::-1])
        if settings.strategy.kind == "custom":
            # A delete that was spread by an older map asks the new owners by ranges, and only a shard that took part in
            # a move knows its documents' keys. That all of them moved without a move does not happen.
            old = msgspec.structs.replace(first.map, epoch=epoch)
        return msgspec.structs.replace(first, version=first.version - 1, map=old, collections=self.now.collections)

    def _catalog(self, index: int, data: bytes) -> None:
        changed, self._executed, _ = execute_once(self.now, self._executed, index, data)
        if changed is not self.now:
            identity = decode_identified(data)[1]
            if identity is not None and self._identities.setdefault(identity.nonce, index) != index:
                first = self._identities[identity.nonce]
                raise Violation("catalog commands are executed once", f"the one of {first} again at {index}")
            if self.now.map is None and changed.map is not None:
                self.logs = Ownerships(changed.map, self._watch.model, self._stored, self._watch.dtypes)
                self.logs.on_expired = self._watch.on_expired
                self._watch.frozen, self._watch.expire_copies = self.logs.frozen, self.logs.expire_copies
                self.members.founded(CATALOG_GROUP, changed.catalog)
            for info in changed.shards[len(self.now.shards) :]:
                self.members.founded(shard_group(info.shard), info.founders)
                self.logs.founded(info.shard)
            if self.now.map is not None:
                self.logs.catalog(self.now, changed, self._stage.observer.committed.has_gap)
            self.rebalances.changed(self.now, changed)
            if (job := changed.rebalance) is not None and (self.now.rebalance is None or job != self.now.rebalance):
                self._stage.trace.tell(
                    f"rebalance {job.id} is {job.state}, runs {len(job.running)}: {job.why or 'well'}"
                )
            for group in self.groups():
                if (before := self.now.holders(group)) is not None and before != (after := changed.holders(group)):
                    self.members.assigned(group, before, after or before)
            was = self.now
            self.topologies.append(changed)
            for happening in changes(was, changed, self.groups()):
                self._happened(happening)
            self._stage.trace.note(f"the catalog is at version {changed.version}")

    def _members_changed(self, group: GroupId, index: int, conf: ConfState) -> None:
        self.members.changed(group, index, conf, self.now.holders(group))
        self._happened(configured(group, conf))

    def _log_end(self, group: GroupId, name: str) -> int | None:
        """Where a node's log of a group ends, when nothing but the product may have shortened it."""
        node = self._stage.fleet.nodes.get(name)
        replica = node.groups().get(group) if node is not None else None
        if name in self._stage.observer.rotten or replica is None:
            return None
        return int(replica.raft.last_index)

    def after(self, what: Collection[str]) -> asyncio.Future[Happening]:
        """The next of these (names of shards/happenings.py) that happens."""
        found: asyncio.Future[Happening] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, found))
        return found

    def _happened(self, happening: Happening) -> None:
        for what, found in self._waiting:
            if happening.what in what and not found.done():
                found.set_result(happening)
        self._waiting = [one for one in self._waiting if not one[1].done()]

    def _step(self, group: GroupId, index: int, command: MoveCommand) -> None:
        self._happened(step_of(self.now, group, command))
        if self.logs.step(group, index, command):
            self._stage.trace.tell(f"move {command.move}: {type(command).__name__} at {index} of group {group}")

    def _owned_now(self, shard: int) -> list[KeyRange]:
        return self.logs.owned_now(shard)

    def _stored(self) -> list[str]:
        return [info.stored_name for info in self.now.collections]

    def _document(self, group: GroupId, collection: str, key: str, version: int) -> None:
        self.logs.wrote(group, collection, key, version)
