"""What is known about a cluster at one version of its catalog: settings, nodes, shards, ownership, collections.

Nodes and clients hold the same struct. Invariant: immutable; a newer one replaces it whole. `version` is the log index
of the catalog command that made it; the map's `epoch` changes only when a key changes its shard.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from operator import attrgetter

import msgspec

from needle.base.access import ADMIN, Identity, KeyInfo
from needle.base.errors import invalid
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, shard_group
from needle.base.model import Claim
from needle.base.sharding_config import VIRTUAL_NODES
from needle.base.versions import FIRST
from needle.routing.collection_info import CollectionInfo as CollectionInfo
from needle.routing.collection_info import NamedVector as NamedVector
from needle.routing.collection_names import called as called
from needle.routing.collection_names import collection_id as collection_id
from needle.routing.collection_names import dropped_as as dropped_as
from needle.routing.collection_names import public_name as public_name
from needle.routing.collection_names import vector_called as vector_called
from needle.routing.collection_names import vector_id as vector_id
from needle.routing.jobs import Ended, Job
from needle.routing.ranges import check_ranges, contains, fingerprint
from needle.routing.recoveries import Recovery
from needle.routing.shard_map import KeyRange, ShardMap
from needle.routing.strategy import CONSISTENT_HASH, ShardStrategy


class NodeState(StrEnum):
    """active: takes replicas. draining: keeps what it has until it is placed elsewhere. removed: gone for good; the id
    is never used again."""

    ACTIVE = "active"
    DRAINING = "draining"
    REMOVED = "removed"


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """incarnation: drawn when the node's data directory was made: the same id on another directory is another node. 0
    of one that was silent when the cluster was founded with it: the first directory that registers is its.
    maintenance: the catalog's index since when the node is in maintenance, 0 if it is not. weighed, zoned: `weight`,
    `zone` is what an operator said, and the node's own setting does not count. knows: the version of commands and
    formats up to which it can read them, as it said last."""

    id: NodeId
    address: str
    incarnation: int
    zone: str = ""
    weight: float = 1.0
    state: NodeState = NodeState.ACTIVE
    maintenance: int = 0
    weighed: bool = False
    zoned: bool = False
    knows: int = FIRST

    def registered_as(self, said: NodeInfo) -> NodeInfo:
        """What the node says of itself now, with what others have decided about it."""
        return msgspec.structs.replace(
            said,
            state=self.state,
            maintenance=self.maintenance,
            weight=self.weight if self.weighed else said.weight,
            weighed=self.weighed,
            zone=self.zone if self.zoned else said.zone,
            zoned=self.zoned,
        )


class ShardInfo(msgspec.Struct, frozen=True, kw_only=True):
    """replicas: nodes, the preferred leader first. founders: those that start the shard's Raft group, () once it has
    had other members; a node that is added later waits until the group contacts it. since: index of the entry in the
    shard's log that made what it owns what the map says; 0 if that never changed. leaving: the last of `replicas`,
    which hold theirs until the others are the group's voters. assigned: version of the catalog that said which nodes
    should; 0 if its founders still do. retired: it owned nothing any more and was given up; its number, and its
    group's, are not used again."""

    shard: int
    replicas: tuple[NodeId, ...]
    founders: tuple[NodeId, ...]
    since: int = 0
    leaving: tuple[NodeId, ...] = ()
    assigned: int = 0
    retired: bool = False

    @property
    def wanted(self) -> tuple[NodeId, ...]:
        """The nodes that should be the voters of the shard's group, and no others."""
        return self.replicas[: len(self.replicas) - len(self.leaving)]


class Holders(msgspec.Struct, frozen=True):
    """The nodes that hold a group's replicas by the catalog. wanted, leaving, assigned: as in ShardInfo."""

    wanted: tuple[NodeId, ...]
    leaving: tuple[NodeId, ...] = ()
    assigned: int = 0

    @property
    def all(self) -> tuple[NodeId, ...]:
        """Those that are leaving last."""
        return (*self.wanted, *self.leaving)


class MoveState(StrEnum):
    """How far a move of key ranges is. copying: the source serves while its documents are copied. freezing: the source
    takes no more writes for them; the rest is copied, then it gives the ranges up and the target takes them; or it
    takes writes again, and the next attempt copies. switched: the map names the target; the source deletes what it left
    behind. cancelling: the source is to keep the ranges, unless it has given them up already. given up: it keeps them;
    the target deletes what it has copied. Then the move is gone from the topology."""

    COPYING = "copying"
    FREEZING = "freezing"
    SWITCHED = "switched"
    CANCELLING = "cancelling"
    GIVEN_UP = "given_up"


ENDING = (MoveState.CANCELLING, MoveState.GIVEN_UP)
"""Of a move whose ranges stay where they are, or arrive if that was decided already."""


class MoveInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A move of ranges that is under way. id: the catalog's log index of its start, so ids ascend. nonce: of the call
    that started it. batch_size, throttle_rate: as in StartMove. attempt: counts the freezes that led back."""

    id: int
    nonce: int
    ranges: tuple[KeyRange, ...]
    source: int
    target: int
    state: MoveState = MoveState.COPYING
    batch_size: int = 0
    throttle_rate: float = 0.0
    attempt: int = 0


class AliasInfo(msgspec.Struct, frozen=True, array_like=True):
    """Another name of a collection."""

    name: str
    collection: str


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the cluster was created."""

    shard_count: int
    replication_factor: int
    virtual_nodes_per_shard: int = VIRTUAL_NODES
    strategy: ShardStrategy = CONSISTENT_HASH

    def in_words(self) -> str:
        """For people, as the options of `needle cluster create` say it."""
        return (
            f"{self.shard_count} shards, {self.replication_factor} replicas, strategy {self.strategy.text()}, "
            f"{self.virtual_nodes_per_shard} virtual nodes"
        )


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster is made of, as its catalog says. Before the cluster is created: version 0, no settings, no map.
    dropped: ids of collections that were dropped, the last ones; shards delete no other. founding: drawn when the
    cluster was made, to tell it from one that is made again after its catalog was lost. catalog: the nodes that hold
    it; catalog_leaving and catalog_assigned: as in ShardInfo. rebalance: the last one, also when it is over; ended:
    how those before it ended, the last few. aliases:
    by name, ascending; none has the name of a collection, or leads to another alias. When one gets another meaning, the
    map gets the next epoch, so that whoever goes by the old one is refused. keys: the API keys, by name; only nodes and
    admins are told them. cluster_version: of commands and formats, which every node that was not removed knows; it
    never falls. recovered: how often it was, the last one last. backed_up, archived: when the last backup that is told
    of began, and the last time that an archive of the logs was told to be made (microseconds since 1970); 0 if none is
    expected. replicas: that each shard should have, as an operator said last; 0: as in the settings."""

    version: int = 0
    settings: ClusterSettings | None = None
    map: ShardMap | None = None
    catalog: tuple[NodeId, ...] = ()
    nodes: tuple[NodeInfo, ...] = ()
    shards: tuple[ShardInfo, ...] = ()
    collections: tuple[CollectionInfo, ...] = ()
    """By name, ascending."""
    moves: tuple[MoveInfo, ...] = ()
    dropped: tuple[int, ...] = ()
    founding: int = 0
    catalog_leaving: tuple[NodeId, ...] = ()
    catalog_assigned: int = 0
    rebalance: Job | None = None
    aliases: tuple[AliasInfo, ...] = ()
    keys: tuple[KeyInfo, ...] = ()
    cluster_version: int = FIRST
    recovered: tuple[Recovery, ...] = ()
    backed_up: int = 0
    archived: int = 0
    ended: tuple[Ended, ...] = ()
    replicas: int = 0

    @property
    def replication_factor(self) -> int:
        """Replicas that each shard should have; 0 before the cluster is created."""
        return self.replicas or (self.settings.replication_factor if self.settings is not None else 0)

    def node(self, node: NodeId) -> NodeInfo | None:
        """What is known of a node, removed ones included."""
        return next((info for info in self.nodes if info.id == node), None)

    def address_of(self, node: NodeId) -> str | None:
        """Where a node that was not removed listens."""
        info = self.node(node)
        return info.address if info is not None and info.state is not NodeState.REMOVED else None

    def addresses(self) -> dict[NodeId, str]:
        """Where each node listens, removed ones left out."""
        return {info.id: info.address for info in self.nodes if info.state is not NodeState.REMOVED}

    def older_than(self, version: int) -> list[NodeInfo]:
        """The nodes that do not know commands and formats of `version`, removed ones left out."""
        return [info for info in self.nodes if info.state is not NodeState.REMOVED and info.knows < version]

    def collection(self, name: str) -> CollectionInfo | None:
        """By its name, or an alias of it."""
        alias = self.alias(name) if self.aliases else None
        return self.named(name if alias is None else alias.collection)

    def named(self, name: str) -> CollectionInfo | None:
        """By its own name: each routed call asks, so it does not look at all of them."""
        at = bisect_left(self.collections, name, key=attrgetter("spec.name"))
        return self.collections[at] if at < len(self.collections) and self.collections[at].spec.name == name else None

    def alias(self, name: str) -> AliasInfo | None:
        """The alias of this name."""
        at = bisect_left(self.aliases, name, key=attrgetter("name"))
        return self.aliases[at] if at < len(self.aliases) and self.aliases[at].name == name else None

    @property
    def own_key(self) -> KeyInfo | None:
        """The key by which this topology was told, if it is bound to a filter."""
        return self.keys[0] if self.keys and not self.keys[0].digest else None

    def told_to(self, caller: Identity) -> Topology:
        """What a caller may know of it: keys are for nodes and admins, and who may use some collections hears of no
        others."""
        if caller.rank >= ADMIN:
            return self
        own = (msgspec.structs.replace(key, digest=b"") for key in self.keys if key.since == caller.since)
        made = msgspec.structs.replace(self, keys=tuple(own) if caller.filter else ())
        allowed = caller.collections
        if allowed is None:
            return made
        some = [info for name in sorted(allowed) if (info := self.named(name)) is not None]
        aliases = tuple(alias for alias in self.aliases if alias.collection in allowed)
        return msgspec.structs.replace(made, collections=tuple(some), aliases=aliases)

    def move(self, move: int) -> MoveInfo | None:
        """A move that is under way."""
        return next((info for info in self.moves if info.id == move), None)

    def hosted_by(self, node: NodeId) -> list[ShardInfo]:
        """The shards with a replica on `node`."""
        return [info for info in self.shards if node in info.replicas]

    def holders(self, group: GroupId) -> Holders | None:
        """Who holds the replicas of a shard's group, or of the catalog's; None for a group that is not known."""
        if group == CATALOG_GROUP:
            staying = self.catalog[: len(self.catalog) - len(self.catalog_leaving)]
            return Holders(staying, self.catalog_leaving, self.catalog_assigned) if staying else None
        if not 0 < group <= len(self.shards):
            return None
        info = self.shards[group - 1]
        return Holders(info.wanted, info.leaving, info.assigned) if not info.retired else None

    @property
    def serving(self) -> tuple[ShardInfo, ...]:
        """The shards that were not retired."""
        return tuple(info for info in self.shards if not info.retired)

    def with_holders(self, group: GroupId, holders: Holders) -> Topology:
        """The same, with other holders of a known group."""
        change = msgspec.structs.replace
        nodes, leaving, assigned = holders.all, holders.leaving, holders.assigned
        if group == CATALOG_GROUP:
            return change(self, catalog=nodes, catalog_leaving=leaving, catalog_assigned=assigned)
        made = change(self.shards[group - 1], replicas=nodes, leaving=leaving, assigned=assigned)
        return change(self, shards=tuple(made if shard_group(i.shard) == group else i for i in self.shards))

    def check_invariants(self) -> None:
        """Raises InvalidArgument if nodes, shards and map contradict each other."""
        known = set(self.addresses())
        for info in self.shards:
            if info.retired and info.replicas:
                raise invalid(f"shard {info.shard}", info.replicas, "no nodes, for it is retired")
            if info.retired:
                continue
            if len(set(info.replicas)) != len(info.replicas) or not set(info.replicas) <= known or not info.wanted:
                raise invalid(f"shard {info.shard}", info.replicas, "different nodes of the cluster, at least one")
        if [info.shard for info in self.shards] != list(range(len(self.shards))):
            raise invalid("shards", [info.shard for info in self.shards], "the numbers from 0, in order")
        if older := self.older_than(self.cluster_version):
            raise invalid("cluster_version", self.cluster_version, f"at most {min(info.knows for info in older)}")
        if not set(self.catalog) <= known:
            raise invalid("catalog", self.catalog, "nodes of the cluster")
        names = [alias.name for alias in self.aliases]
        if names != sorted(set(names)) or any(map(self.named, names)):
            raise invalid("aliases", names, "different names in order, none of them that of a collection")
        if any(self.named(alias.collection) is None for alias in self.aliases):
            raise invalid("aliases", names, "names of collections")
        if self.map is not None:
            self.map.check_invariants()
            if not set(self.map.owners) <= {info.shard for info in self.serving}:
                raise invalid("shard_map", sorted(set(self.map.owners)), "shards of the cluster only")
            self._check_moves(self.map)

    def _check_moves(self, shard_map: ShardMap) -> None:
        spans = sorted((span for info in self.moves for span in info.ranges), key=lambda span: span[0])
        for (_, end), (start, _) in pairwise(spans):
            if end is None or start < end:
                raise invalid("moves", start, "ranges that only one move is about")
        for info in self.moves:
            check_ranges("ranges", info.ranges)
            owner = info.target if info.state is MoveState.SWITCHED else info.source
            if not contains(shard_map.ranges(owner), info.ranges):
                raise invalid(f"move {info.id}", list(info.ranges), f"ranges that shard {owner} owns")


class Ownership:
    """The ranges of each shard at a map's epoch, with a fingerprint each: what an answer says it was computed on.

    Naming a range list by (epoch, fingerprint) instead of spelling it out keeps 100 ranges a shard off every answer;
    two lists that differ have different fingerprints (XXH3-64 of their encoding).
    """

    def __init__(self, shard_map: ShardMap, since: Mapping[int, int] | None = None) -> None:
        """since: by shard, ShardInfo.since; 0 if it is not there."""
        self.map = shard_map
        self._since = dict(since or {})
        self.epoch = shard_map.epoch
        self._ranges = shard_map.by_owner()
        self.owners = sorted(self._ranges)
        self._prints = {shard: fingerprint(ranges) for shard, ranges in self._ranges.items()}
        self._claims: dict[int, Claim] = {}
        self.only = self.owners[0] if len(self.owners) == 1 else None
        """The shard that owns everything, if one does."""

    def ranges(self, shard: int) -> list[KeyRange]:
        """What a shard owns; [] for a shard that owns nothing."""
        return self._ranges.get(shard, [])

    def claim(self, shard: int) -> Claim:
        """What a read by this map takes the shard to own."""
        found = self._claims.get(shard)
        if found is None:
            found = Claim(self.fingerprint(shard), self._since.get(shard, 0))
            if shard in self._prints:  # callers may name what there is not
                self._claims[shard] = found
        return found

    def fingerprints(self, shards: Sequence[int]) -> list[int]:
        """Of the ranges of each of these."""
        known = self._prints
        return [known.get(shard) or fingerprint([]) for shard in shards]

    def fingerprint(self, shard: int) -> int:
        """Of its ranges."""
        return self._prints.get(shard) or fingerprint([])
