"""What a shard's calls are checked by before they are served: the epoch of the caller's map, and who owns a document.

Invariant: a write gets past these checks only if the shard owns the routing key of every document in it by the map of
the epoch that the caller routed by. It must not know the wire, nor how a write is proposed.
"""

from __future__ import annotations

from typing import Any

from needle.base.decoding import routed_metadata
from needle.base.errors import InvalidArgument, StaleEpoch, Unavailable, invalid
from needle.base.ids import GroupId
from needle.protocol import commands
from needle.protocol.calls import SearchCall, WriteCall
from needle.routing.ranges import check_ranges
from needle.routing.strategy import ShardStrategy, routing_key
from needle.routing.topology import Ownership, Topology, public_name
from needle.server.service.served import ServedNode, command_of
from needle.shard.apply.holdings import Fence
from needle.shard.live_collection import ReplicaView

BEHIND_SECONDS = 1.0
_FOR_THE_CATALOG = frozenset({commands.CreateCollection, commands.DropCollection})
"""Looked up by type: `isinstance` asks the metaclass of each struct, and every write comes by here."""
_OF_PARTS = (commands.Patch, commands.ChangeWhere)


class Ownerships:
    """The map of this node's topology, and what is refused by it."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node

    async def of(self, epoch: int, timeout: float = BEHIND_SECONDS) -> Ownership:
        """The map of the caller's epoch. Raises StaleEpoch if this node's is another one."""
        node = self._node
        owned = node.ownership
        if owned is None or owned.epoch < epoch:
            # The caller knows a newer map: this node will have it in a moment.
            await node.wait_topology(node.topology.version + 1, min(timeout, BEHIND_SECONDS))
            owned = node.ownership
        if owned is None or owned.epoch < epoch:
            raise Unavailable(f"node {node.node_id} does not know the shard map of epoch {epoch} yet")
        if owned.epoch > epoch:
            raise self.stale(f"the shard map has epoch {owned.epoch}, not {epoch}", owned)
        return owned

    def stale(self, text: str, here: Ownership, *, owned: bool = True) -> StaleEpoch:
        """The refusal of a call that was routed by another map; owned=False: of a document that the shard lacks."""
        return StaleEpoch(text, epoch=here.epoch, version=self._node.topology.version, owned=owned)

    def lacks(self, *groups: GroupId) -> bool:
        """Whether the log of one of these shards says that this node must know a newer catalog: by the one that it has,
        the meaning of an alias, or a time to live, may be that of before (docs/adr/0065)."""
        each = [self._node.groups.get(group) for group in groups]
        return any(self.lacks_of(hosted.replica.view) for hosted in each if hosted is not None)

    def lacks_of(self, view: ReplicaView) -> bool:
        """The same of the replica with this view."""
        now = self._node.topology
        return view.catalog.missing(now.founding, now.version) > 0

    async def learn(self, group: GroupId, timeout: float) -> None:
        """Wait for the catalog that the shard's log says this node must know. Raises Unavailable."""
        hosted, now = self._node.groups.get(group), self._node.topology
        version = 0 if hosted is None else hosted.replica.view.catalog.missing(now.founding, now.version)
        if version and not await self._node.wait_topology(version, min(timeout, BEHIND_SECONDS)):
            raise Unavailable(
                f"node {self._node.node_id} must know version {version} of the catalog to serve shard {group - 1}, and "
                f"knows {self._node.topology.version} yet"
            )

    async def check_sparse(self, call: SearchCall, timeout: float) -> None:
        """Of a search that was answered: whether the collection still has the sparse vectors that it searched by. Only
        the catalog says so. Who asked may not have heard yet that they were dropped, and this node not that they were
        declared; so the catalog is asked before a refusal. Raises InvalidArgument; Unavailable, and others of that
        kind, if the catalog does not answer."""
        asked, stored, node = call.request.sparse, call.request.collection, self._node
        hosted = node.groups.get(call.group)
        info = None if hosted is None else hosted.collections.find(node.topology, stored)
        if asked is None or info is None or asked.name in info.sparse:
            return
        newest = (await node.confirmed(min(timeout, BEHIND_SECONDS))).named(public_name(stored))
        if newest is not None and newest.stored_name == stored:
            newest.check_sparse(asked.name)

    async def moving(self, owned: Ownership, timeout: float) -> None:
        """The shard's log is ahead of the map of this node: that will come in a moment."""
        if self._node.ownership is owned:
            await self._node.wait_topology(self._node.topology.version + 1, min(timeout, BEHIND_SECONDS))

    def checked(self, owned: Ownership, call: WriteCall, *, by_log: bool = False) -> commands.Command:
        """The command of a shard's write, all of whose documents it owns. by_log: which it owns is left to the shard's
        log to judge, which owns what the map says. May run in any thread."""
        command = command_of(call)
        if type(command) in _FOR_THE_CATALOG:
            raise InvalidArgument("collections are made through the catalog", field="command")
        custom = owned.map.strategy.kind == "custom"
        if custom and isinstance(command, _OF_PARTS) and command.change is not None:
            _check_keeps_key(owned.map.strategy, command.change)
        if type(command) is commands.ChangeWhere or (custom and isinstance(command, commands.Spread)):
            _check_spread(command)
        elif not by_log:
            self._check_owner(owned, call.group, command)
        return command

    def _check_owner(self, owned: Ownership, group: GroupId, command: commands.Command) -> None:
        """Raises StaleEpoch (owned=False) for a document that another shard owns."""
        shard_map, shard = owned.map, group - 1
        strategy, count = shard_map.strategy, shard_map.shard_count
        custom = strategy.kind == "custom"
        if owned.only == shard and not custom:
            return  # whatever the key is
        if isinstance(command, commands.Insert):
            for name, metadata in zip(command.ids, command.metadata, strict=False):
                decoded = routed_metadata(metadata) if custom else None
                if shard_map.owner(routing_key(strategy, count, name, decoded)) != shard:
                    raise self.stale(f"shard {shard} does not own document {name[:80]!r}", owned, owned=False)
        elif isinstance(command, commands.Spread):
            for name, owner in zip(command.ids, shard_map.owners_of(command.ids), strict=True):
                if owner != shard:
                    raise self.stale(f"shard {shard} does not own document {name[:80]!r}", owned, owned=False)


def agrees(fence: Fence, owned: Ownership, group: GroupId) -> bool:
    """Whether a shard's log owns what the map says, and no range of it is about to leave."""
    return not fence.freezes and fence.fingerprint == owned.fingerprint(group - 1)


def _check_keeps_key(strategy: ShardStrategy, change: commands.Change) -> None:
    """A document under another shard key may belong to another shard. Judged here as well as by the log, which knows
    the strategy only after a move."""
    named = [*(path for path, _ in change.set), *change.unset, *(path for path, _ in [*change.append, *change.remove])]
    keys = [tuple(field.split(".")) for field in strategy.fields]
    for path in named:
        at = tuple(path.split("."))
        if strategy.router or any(at[: len(key)] == key or key[: len(at)] == at for key in keys):
            raise invalid(
                "change", path, f"no field that the shard key ({strategy.text()}) is made of; insert it again"
            )
    if change.whole is not None:
        raise invalid("change", "whole metadata", "fields that are no part of the shard key; insert the document again")


def _check_spread(command: commands.Spread | commands.ChangeWhere) -> None:
    """By which map it was spread is the sender's to say, and the log's to judge: a repeated one may come by a newer
    map, and its number may have been executed by the older one."""
    if not command.owned and not command.within:
        raise invalid("owned", command.owned, "the fingerprint of the ranges that this write is about")
    if command.within:
        check_ranges("within", command.within)


def takes(fence: Fence, command: commands.Command) -> bool:
    """Whether the shard's log would take a write now."""
    if isinstance(command, commands.Insert):
        return all(map(fence.accepts, command.ids, command.metadata))
    if not isinstance(command, commands.Spread | commands.ChangeWhere):
        return True
    if not fence.custom and not isinstance(command, commands.ChangeWhere):
        return all(fence.accepts(name, b"") for name in command.ids)
    if command.within:
        return fence.takes(command.within)
    return command.owned == fence.fingerprint and not fence.freezes


def lists(topology: Topology, collection: str) -> bool:
    """Whether the catalog has a collection, which is named as inside the shards."""
    info = topology.collection(public_name(collection))
    return info is not None and info.stored_name == collection


def named_in(call: Any) -> str:
    """The collection that a read is about."""
    request = getattr(call, "request", None)
    name: str = request.collection if request is not None else getattr(call, "collection", "")
    return name
