"""The catalog as a pure state machine: (topology, command) -> (topology, result). The only truth about the cluster.

Invariants: deterministic; a refused command changes nothing; a repeated one answers the same; node ids and collection
ids are never used twice; every topology passes `Topology.check_invariants`. It knows neither disk nor Raft.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from needle.base.config import check_node_id, check_range, parse_address
from needle.base.errors import (
    ClusterTooOld,
    CollectionExists,
    CollectionNotFound,
    InvalidArgument,
    NeedleError,
    Unavailable,
    invalid,
)
from needle.base.ids import CATALOG_GROUP, NodeId, group_name, shard_group
from needle.base.model import WriteResult
from needle.base.versions import FIRST
from needle.catalog import keys, range_moves, rebalances
from needle.protocol.catalog_commands import (
    AddShard,
    AdvanceMove,
    AlterCollection,
    AskRebalance,
    AssignReplicas,
    CancelMove,
    CatalogCommand,
    ConfirmReplicas,
    CreateCluster,
    CreateCollection,
    CreateKey,
    DrainNode,
    DropCollection,
    FinishMove,
    MaintainNode,
    RaiseVersion,
    RegisterNode,
    RemoveAlias,
    RemoveNode,
    RestartMove,
    RetireShard,
    RevokeKey,
    SetAlias,
    SetReplicas,
    StartMove,
    StartRebalance,
    StepRebalance,
    WeighNode,
    ZoneNode,
)
from needle.routing.plans import REPLICAS_MAX, ZONE_CHARS_MAX
from needle.routing.topology import (
    AliasInfo,
    CollectionInfo,
    Holders,
    NodeInfo,
    NodeState,
    ShardInfo,
    Topology,
)

COLLECTIONS_MAX = 10_000
ALIASES_MAX = 1000
DROPPED_MAX = 4096
NODES_MAX = 4096
SHARDS_MAX = 4096
"""Retired ones included: their numbers are not used again."""

_replace = msgspec.structs.replace
_STATE = {True: NodeState.DRAINING, False: NodeState.ACTIVE}


def execute(topology: Topology, index: int, command: CatalogCommand) -> tuple[Topology, WriteResult | NeedleError]:
    """Apply one command at log index `index`. The version of the new topology is `index` if anything changed."""
    try:
        changed, result = _EXECUTE[type(command)](topology, index, command)
        if changed is not topology:
            changed = _replace(changed, version=index)
            changed.check_invariants()
    except NeedleError as error:
        return topology, error
    return changed, result


def _done(topology: Topology, index: int, version: int = 0, existed: bool = False) -> tuple[Topology, WriteResult]:
    return topology, WriteResult(version=version or index, index=index, existed=existed)


def _create_cluster(now: Topology, index: int, command: CreateCluster) -> tuple[Topology, WriteResult]:
    settings = command.settings
    if now.settings is not None:
        if now.settings != settings:
            raise InvalidArgument(f"this cluster exists, with other settings: {now.settings}", field="settings")
        return _done(now, index, now.version, existed=True)
    check_range("shard_count", settings.shard_count, 1, SHARDS_MAX)
    check_range("replication_factor", settings.replication_factor, 1, REPLICAS_MAX)
    if len(command.assignment) != settings.shard_count or command.map.shard_count != settings.shard_count:
        raise invalid("shards", len(command.assignment), f"{settings.shard_count} shards, as in the settings")
    if not command.catalog:
        raise invalid("catalog", command.catalog, "at least one node")
    for node in command.nodes:
        _check_node(node)
    ids, addresses = {node.id for node in command.nodes}, {node.address for node in command.nodes}
    if not len(ids) == len(addresses) == len(command.nodes):
        raise invalid("nodes", sorted(ids), "ids and addresses that differ")
    shards = tuple(
        ShardInfo(shard=shard, replicas=tuple(nodes), founders=tuple(nodes))
        for shard, nodes in enumerate(command.assignment)
    )
    built = _replace(
        now,
        settings=settings,
        map=command.map,
        catalog=tuple(command.catalog),
        nodes=tuple(sorted(command.nodes, key=lambda node: node.id)),
        shards=shards,
        founding=command.founding,
        cluster_version=min((node.knows for node in command.nodes), default=FIRST),
        collections=() if command.first is None else (CollectionInfo(id=index, spec=command.first),),
    )
    return _done(built, index)


def _check_node(node: NodeInfo) -> None:
    check_node_id("node", node.id)
    parse_address(f"address of {node.id}", node.address)
    check_range(f"weight of {node.id}", node.weight, 0, 1000)
    if len(node.zone) > ZONE_CHARS_MAX:
        raise invalid(f"zone of {node.id}", node.zone, f"at most {ZONE_CHARS_MAX} characters")


def _register(now: Topology, index: int, command: RegisterNode) -> tuple[Topology, WriteResult]:
    node = command.node
    _check_node(node)
    _need_cluster(now)
    known = now.node(node.id)
    if known is None and len(now.nodes) >= NODES_MAX:
        raise invalid("node", node.id, f"one of at most {NODES_MAX} nodes, removed ones included")
    if known is not None and known.state is NodeState.REMOVED:
        raise invalid("node", node.id, "an id that was never removed from this cluster: ids are not used again")
    if known is not None and known.incarnation not in (0, node.incarnation):
        raise InvalidArgument(
            f"node {node.id} of this cluster has another data directory. If that is lost, remove {node.id} and start "
            f"this node under a new id: a node that forgot its votes must not come back under its name",
            field="node",
        )
    if node.knows < now.cluster_version:
        raise invalid(
            "node",
            node.id,
            f"one of a release that knows version {now.cluster_version} of commands and formats, which this cluster is "
            f"at; {node.id} knows up to {node.knows}: start it with the release that the other nodes run",
        )
    wanted = node if known is None else known.registered_as(node)
    if wanted == known:
        return _done(now, index, now.version, existed=True)
    others = [info for info in now.nodes if info.id != node.id]
    nodes = tuple(sorted([*others, wanted], key=lambda info: info.id))
    return _done(_replace(now, nodes=nodes), index, existed=known is not None)


def _raise_version(now: Topology, index: int, command: RaiseVersion) -> tuple[Topology, WriteResult]:
    _need_cluster(now)
    if command.version <= now.cluster_version:
        return _done(now, index, now.version, existed=True)
    said = dict(command.said)
    nodes = tuple(_replace(info, knows=max(info.knows, said.get(info.id, FIRST))) for info in now.nodes)
    made = _replace(now, nodes=nodes)
    if older := made.older_than(command.version):
        names = ", ".join(f"{info.id} ({info.knows})" for info in older)
        raise ClusterTooOld(
            f"the cluster cannot be at version {command.version} of commands and formats yet: not known to {names}",
            nodes=", ".join(info.id for info in older),
        )
    return _done(_replace(made, cluster_version=command.version), index)


def _remove(now: Topology, index: int, command: RemoveNode) -> tuple[Topology, WriteResult]:
    known = now.node(command.node)
    if known is None:
        raise invalid("node", command.node, "a node of this cluster")
    if known.state is NodeState.REMOVED:
        return _done(now, index, now.version, existed=False)
    held = [info.shard for info in now.hosted_by(command.node)]
    if held or command.node in now.catalog:
        what = f"replicas of shards {held}" if held else "the catalog"
        raise InvalidArgument(
            f"node {command.node} still holds {what}: `needle node remove` moves that first", field="node"
        )
    gone = _replace(known, state=NodeState.REMOVED, maintenance=0)
    nodes = tuple(gone if info.id == command.node else info for info in now.nodes)
    return _done(_replace(now, nodes=nodes), index, existed=True)


def _drain_node(now: Topology, index: int, command: DrainNode) -> tuple[Topology, WriteResult]:
    known = _known(now, command.node)
    return _with_node(now, index, known, _replace(known, state=_STATE[command.draining]))


def _maintain_node(now: Topology, index: int, command: MaintainNode) -> tuple[Topology, WriteResult]:
    known = _known(now, command.node)
    if command.on == bool(known.maintenance):
        return _done(now, index, now.version, existed=True)
    if command.on:
        _check_led(now, command.node)
    return _with_node(now, index, known, _replace(known, maintenance=index if command.on else 0))


def _weigh_node(now: Topology, index: int, command: WeighNode) -> tuple[Topology, WriteResult]:
    known, weight = _known(now, command.node), command.weight
    changed = _replace(known, weight=known.weight if weight is None else weight, weighed=weight is not None)
    _check_node(changed)
    return _with_node(now, index, known, changed)


def _zone_node(now: Topology, index: int, command: ZoneNode) -> tuple[Topology, WriteResult]:
    known, zone = _known(now, command.node), command.zone
    changed = _replace(known, zone=known.zone if zone is None else zone, zoned=zone is not None)
    _check_node(changed)
    return _with_node(now, index, known, changed)


def _known(now: Topology, node: NodeId) -> NodeInfo:
    known = now.node(node)
    if known is None or known.state is NodeState.REMOVED:
        raise invalid("node", node, f"a node of this cluster: {', '.join(now.addresses())}")
    return known


def _with_node(now: Topology, index: int, known: NodeInfo, changed: NodeInfo) -> tuple[Topology, WriteResult]:
    if changed == known:
        return _done(now, index, now.version, existed=True)
    nodes = tuple(changed if info is known else info for info in now.nodes)
    return _done(_replace(now, nodes=nodes), index, existed=True)


def _check_led(now: Topology, node: NodeId) -> None:
    """Raises InvalidArgument if all other nodes that hold a group with this one are in maintenance: nobody could lead
    it. A group on this node alone it keeps leading."""
    resting = {info.id for info in now.nodes if info.maintenance}
    for group in (CATALOG_GROUP, *(shard_group(info.shard) for info in now.serving)):
        held = now.holders(group)
        others = set(held.all) - {node} if held is not None and node in held.all else set()
        if others and others <= resting:
            raise InvalidArgument(
                f"{', '.join(sorted(others))} are in maintenance: with {node} nobody could lead {group_name(group)}; "
                "`needle maintenance exit` brings them back first",
                field="node",
            )


def _add_shard(now: Topology, index: int, command: AddShard) -> tuple[Topology, WriteResult]:
    _need_cluster(now)
    nodes, known = tuple(command.replicas), now.shards[command.shard : command.shard + 1] if command.shard >= 0 else ()
    if known and known[0].founders == nodes:
        return _done(now, index, now.version, existed=True)
    if command.shard != len(now.shards) or command.shard >= SHARDS_MAX:
        raise invalid("shard", command.shard, f"the next number, {len(now.shards)}, below {SHARDS_MAX}")
    _check_replicas(now, nodes)
    made = ShardInfo(shard=command.shard, replicas=nodes, founders=nodes)
    return _done(_replace(now, shards=(*now.shards, made)), index)


def _retire_shard(now: Topology, index: int, command: RetireShard) -> tuple[Topology, WriteResult]:
    if not 0 <= command.shard < len(now.shards):
        raise invalid("shard", command.shard, f"a number below {len(now.shards)}")
    info = now.shards[command.shard]
    if info.retired:
        return _done(now, index, now.version, existed=True)
    if now.map is not None and info.shard in now.map.owners:
        raise InvalidArgument(f"shard {info.shard} still owns key ranges; move these first", field="shard")
    if any(info.shard in (move.source, move.target) for move in now.moves):
        raise InvalidArgument(f"shard {info.shard} takes part in a move that is not over", field="shard")
    gone = _replace(info, replicas=(), founders=(), leaving=(), retired=True)
    return _done(_replace(now, shards=tuple(gone if one is info else one for one in now.shards)), index)


def _set_replicas(now: Topology, index: int, command: SetReplicas) -> tuple[Topology, WriteResult]:
    if not 0 <= command.shard < len(now.shards):
        raise invalid("shard", command.shard, f"a number below {len(now.shards)}")
    info, after = now.shards[command.shard], tuple(command.after)
    if info.replicas == after:
        return _done(now, index, now.version, existed=True)
    if info.replicas != tuple(command.before):
        raise InvalidArgument(f"shard {info.shard} is on {info.replicas}, not on {command.before}", field="before")
    shards = tuple(_replace(s, replicas=after, leaving=()) if s.shard == info.shard else s for s in now.shards)
    return _done(_replace(now, shards=shards), index)


def _holders(now: Topology, group: int) -> Holders:
    holders = now.holders(group)
    if holders is None:
        raise invalid("group", group, f"the catalog or a shard, 0 to {len(now.shards)}")
    return holders


def _check_replicas(now: Topology, nodes: tuple[NodeId, ...]) -> None:
    strange = sorted(set(nodes) - now.addresses().keys())
    if strange:
        raise invalid("nodes", ", ".join(strange), f"nodes of this cluster: {', '.join(now.addresses())}")
    if not nodes or len(set(nodes)) != len(nodes) or len(nodes) > REPLICAS_MAX:
        raise invalid("nodes", ", ".join(nodes), f"1 to {REPLICAS_MAX} different nodes")


def _assign_replicas(now: Topology, index: int, command: AssignReplicas) -> tuple[Topology, WriteResult]:
    _need_cluster(now)
    held, after = _holders(now, command.group), tuple(command.after)
    if held.wanted == after:
        return _done(now, index, now.version, existed=True)
    if held.wanted != tuple(command.before):
        raise InvalidArgument(
            f"{group_name(command.group)} is assigned to {', '.join(held.wanted)} meanwhile, not to "
            f"{', '.join(command.before)}",
            field="before",
        )
    _check_replicas(now, after)
    leaving = tuple(node for node in held.all if node not in after)
    same = set(after) == set(held.wanted)
    holders = Holders(after, leaving, held.assigned if same else index)
    return _done(now.with_holders(command.group, holders), index)


def _confirm_replicas(now: Topology, index: int, command: ConfirmReplicas) -> tuple[Topology, WriteResult]:
    held = _holders(now, command.group)
    if held.assigned != command.assigned or not held.leaving:
        return _done(now, index, now.version, existed=True)
    made = now.with_holders(command.group, Holders(held.wanted, (), held.assigned))
    # The group has other members than it began with: a founder whose replica is gone must not begin it once more.
    shards = tuple(_replace(s, founders=()) if shard_group(s.shard) == command.group else s for s in made.shards)
    return _done(_replace(made, shards=shards), index)


def _create_collection(now: Topology, index: int, command: CreateCollection) -> tuple[Topology, WriteResult]:
    _need_cluster(now)
    name = command.spec.name
    found = now.named(name)
    if (alias := now.alias(name)) is not None:
        raise CollectionExists(f"{name!r} is an alias, of collection {alias.collection!r}", collection=name)
    if found is not None:
        if found.nonce == command.nonce or (command.if_absent and found.spec.is_altered_from(command.spec)):
            return _done(now, index, found.id, existed=found.nonce != command.nonce)
        raise CollectionExists(f"collection {name!r} exists{_difference(found, command)}", collection=name)
    if len(now.collections) >= COLLECTIONS_MAX:
        raise invalid("collection", name, f"one of at most {COLLECTIONS_MAX}")
    made = CollectionInfo(id=index, spec=command.spec, nonce=command.nonce)
    collections = tuple(sorted([*now.collections, made], key=lambda info: info.spec.name))
    return _done(_replace(now, collections=collections), index)


def _difference(found: CollectionInfo, command: CreateCollection) -> str:
    return f", with another specification: {found.spec}" if found.spec != command.spec else ""


def _drop_collection(now: Topology, index: int, command: DropCollection) -> tuple[Topology, WriteResult]:
    left = tuple(info for info in now.collections if (info.spec.name, info.id) != (command.name, command.id))
    if len(left) == len(now.collections):
        return _done(now, index, now.version, existed=False)
    led = [alias.name for alias in now.aliases if alias.collection == command.name]
    if led:
        names = ", ".join(map(repr, led[:10]))
        raise invalid("collection", command.name, f"one without an alias: remove {names}, or let them lead elsewhere")
    dropped = (*now.dropped, command.id)[-DROPPED_MAX:]
    return _done(_replace(now, collections=left, dropped=dropped), index, existed=True)


def _alter_collection(now: Topology, index: int, command: AlterCollection) -> tuple[Topology, WriteResult]:
    found = now.named(command.name)
    if found is None or found.id != command.id:
        raise CollectionNotFound(f"there is no collection {command.name!r}", collection=command.name)
    held = found.spec
    ef_search = command.ef_search or held.index.ef_search
    ttl = held.ttl if command.ttl < 0 else command.ttl
    spec = _replace(held, index=_replace(held.index, ef_search=ef_search), ttl=ttl)
    if spec == held:
        return _done(now, index, now.version, existed=True)
    collections = tuple(_replace(info, spec=spec) if info is found else info for info in now.collections)
    made = _replace(now, collections=collections)
    return _done(made if ttl == held.ttl else _refusing_older(made), index, existed=True)


def _set_alias(now: Topology, index: int, command: SetAlias) -> tuple[Topology, WriteResult]:
    _need_cluster(now)
    name, leads_to = command.alias, command.collection
    if leads_to == name:
        raise invalid("alias", name, "another name than that of what it leads to")
    if now.named(name) is not None:
        raise CollectionExists(f"{name!r} is a collection, and can be no alias", collection=name)
    if (other := now.alias(leads_to)) is not None:
        raise invalid("collection", leads_to, f"a collection, not an alias: {other.collection!r} is what it leads to")
    if now.named(leads_to) is None:
        raise CollectionNotFound(f"there is no collection {leads_to!r}", collection=leads_to)
    before = now.alias(name)
    if before is not None and before.collection == leads_to:
        return _done(now, index, now.version, existed=True)
    if before is None and len(now.aliases) >= ALIASES_MAX:
        raise invalid("alias", name, f"one of at most {ALIASES_MAX}")
    others = [alias for alias in now.aliases if alias is not before]
    aliases = tuple(sorted([*others, AliasInfo(name, leads_to)], key=lambda alias: alias.name))
    made = _replace(now, aliases=aliases)
    return _done(made if before is None else _refusing_older(made), index, existed=before is not None)


def _remove_alias(now: Topology, index: int, command: RemoveAlias) -> tuple[Topology, WriteResult]:
    if now.alias(command.alias) is None:
        raise CollectionNotFound(f"there is no alias {command.alias!r}", collection=command.alias)
    left = tuple(alias for alias in now.aliases if alias.name != command.alias)
    return _done(_refusing_older(_replace(now, aliases=left)), index, existed=True)


def _refusing_older(now: Topology) -> Topology:
    """With a map by which shards refuse who knows only an older catalog."""
    return now if now.map is None else _replace(now, map=_replace(now.map, epoch=now.map.epoch + 1))


def _start_move(now: Topology, index: int, command: StartMove) -> tuple[Topology, WriteResult]:
    _need_cluster(now)
    made = range_moves.started(now, index, command)
    if made is now:
        return _done(now, index, next(info.id for info in now.moves if info.nonce == command.nonce), existed=True)
    return _done(made, index)


def _of_moves(
    change: Callable[[Topology, Any], Topology],
) -> Callable[[Topology, int, Any], tuple[Topology, WriteResult]]:
    def executed(now: Topology, index: int, command: Any) -> tuple[Topology, WriteResult]:
        made = change(now, command)
        return _done(made, index, now.version if made is now else 0, existed=made is now)

    return executed


def _need_cluster(now: Topology) -> None:
    if now.settings is None:
        raise Unavailable("the cluster was not created yet: `needle cluster create`")


def _start_rebalance(now: Topology, index: int, command: StartRebalance) -> tuple[Topology, WriteResult]:
    _need_cluster(now)
    return _done(_replace(now, rebalance=rebalances.started(now, index, command)), index)


def _ask_rebalance(now: Topology, index: int, command: AskRebalance) -> tuple[Topology, WriteResult]:
    job = rebalances.asked(now, command)
    if job is now.rebalance:
        return _done(now, index, now.version, existed=True)
    return _done(_replace(now, rebalance=job), index)


def _step_rebalance(now: Topology, index: int, command: StepRebalance) -> tuple[Topology, WriteResult]:
    job, decisions = rebalances.stepped(now, index, command)
    for decision in decisions:
        now = _EXECUTE[type(decision)](now, index, decision)[0]
    return _done(_replace(now, rebalance=job), index)


def _create_key(now: Topology, index: int, command: CreateKey) -> tuple[Topology, WriteResult]:
    _need_cluster(now)
    return _done(_replace(now, keys=keys.created(now.keys, index, command)), index)


def _revoke_key(now: Topology, index: int, command: RevokeKey) -> tuple[Topology, WriteResult]:
    left = tuple(key for key in now.keys if key.name != command.name)
    if len(left) == len(now.keys):
        return _done(now, index, now.version, existed=False)
    return _done(_replace(now, keys=left), index, existed=True)


_EXECUTE: dict[type, Callable[[Topology, int, Any], tuple[Topology, WriteResult]]] = {
    CreateCluster: _create_cluster,
    RegisterNode: _register,
    RemoveNode: _remove,
    RaiseVersion: _raise_version,
    DrainNode: _drain_node,
    MaintainNode: _maintain_node,
    WeighNode: _weigh_node,
    ZoneNode: _zone_node,
    AddShard: _add_shard,
    RetireShard: _retire_shard,
    SetReplicas: _set_replicas,
    AssignReplicas: _assign_replicas,
    ConfirmReplicas: _confirm_replicas,
    CreateCollection: _create_collection,
    DropCollection: _drop_collection,
    AlterCollection: _alter_collection,
    SetAlias: _set_alias,
    RemoveAlias: _remove_alias,
    CreateKey: _create_key,
    RevokeKey: _revoke_key,
    StartMove: _start_move,
    AdvanceMove: _of_moves(range_moves.advanced),
    RestartMove: _of_moves(range_moves.restarted),
    CancelMove: _of_moves(range_moves.cancelled),
    FinishMove: _of_moves(range_moves.finished),
    StartRebalance: _start_rebalance,
    AskRebalance: _ask_rebalance,
    StepRebalance: _step_rebalance,
}
