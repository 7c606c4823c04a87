"""The catalog as a pure state machine: (topology, command) -> (topology, result). The only truth about the cluster.

Invariants: deterministic; a refused command changes nothing; a repeated one answers the same; node ids and collection
ids are never used twice; every topology passes `Topology.check_invariants`. It knows neither disk nor Raft.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from needle.base.config import check_range
from needle.base.errors import (
    InvalidArgument,
    NeedleError,
    invalid,
)
from needle.base.ids import GroupId, NodeId, group_name, shard_group
from needle.base.model import WriteResult
from needle.catalog import collections, keys, nodes, range_moves, rebalances, vectors
from needle.catalog.changed import Changed, done, need_cluster
from needle.protocol.catalog_commands import (
    FORGET,
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
    DeclareField,
    DrainNode,
    DropCollection,
    FinishMove,
    MaintainNode,
    NoteBackup,
    RaiseVersion,
    RegisterNode,
    RemoveAlias,
    RemoveNode,
    RestartMove,
    RetireShard,
    SetAlias,
    SetReplicas,
    SetReplication,
    StartMove,
    StartRebalance,
    StepRebalance,
    WeighNode,
    ZoneNode,
    founded_at,
)
from needle.protocol.key_commands import CreateKey, LimitKey, RevokeKey
from needle.protocol.vector_commands import AddVector, DeclareSparse, DropVector
from needle.routing.jobs import kept
from needle.routing.leadable import check_leadable
from needle.routing.plans import REPLICAS_MAX
from needle.routing.replication import check_replication
from needle.routing.shard_map import SHARDS_MAX
from needle.routing.topology import (
    CollectionInfo,
    Holders,
    ShardInfo,
    Topology,
)

_replace = msgspec.structs.replace

ENDINGS = 5
"""The cluster's version from which on the catalog keeps how rebalances ended: nodes of the release before would not."""


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


def _create_cluster(now: Topology, index: int, command: CreateCluster) -> Changed:
    settings = command.settings
    if now.settings is not None:
        if now.settings != settings:
            raise InvalidArgument(
                f"this cluster exists, with other settings: {now.settings.in_words()}", field="settings"
            )
        return done(now, index, now.version, existed=True)
    check_range("shard_count", settings.shard_count, 1, SHARDS_MAX)
    check_range("replication_factor", settings.replication_factor, 1, REPLICAS_MAX)
    if len(command.assignment) != settings.shard_count or command.map.shard_count != settings.shard_count:
        raise invalid("shards", len(command.assignment), f"{settings.shard_count} shards, as in the settings")
    if not command.catalog:
        raise invalid("catalog", command.catalog, "at least one node")
    for node in command.nodes:
        nodes.check_node(node)
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
        cluster_version=founded_at(command),
        collections=() if command.first is None else (CollectionInfo(id=index, spec=command.first),),
    )
    return done(built, index)


def _add_shard(now: Topology, index: int, command: AddShard) -> Changed:
    need_cluster(now)
    there = now.shards[command.shard : command.shard + 1] if command.shard >= 0 else ()
    founders = tuple(command.replicas)
    if there and there[0].founders == founders:
        return done(now, index, now.version, existed=True)
    if command.shard != len(now.shards) or command.shard >= SHARDS_MAX:
        raise invalid("shard", command.shard, f"the next number, {len(now.shards)}, below {SHARDS_MAX}")
    _check_replicas(now, founders, shard_group(command.shard))
    made = ShardInfo(shard=command.shard, replicas=founders, founders=founders)
    return done(_replace(now, shards=(*now.shards, made)), index)


def _retire_shard(now: Topology, index: int, command: RetireShard) -> Changed:
    if not 0 <= command.shard < len(now.shards):
        raise invalid("shard", command.shard, f"a number below {len(now.shards)}")
    info = now.shards[command.shard]
    if info.retired:
        return done(now, index, now.version, existed=True)
    if now.map is not None and info.shard in now.map.owners:
        raise InvalidArgument(f"shard {info.shard} still owns key ranges; move these first", field="shard")
    if any(info.shard in (move.source, move.target) for move in now.moves):
        raise InvalidArgument(f"shard {info.shard} takes part in a move that is not over", field="shard")
    gone = _replace(info, replicas=(), founders=(), leaving=(), retired=True)
    return done(_replace(now, shards=tuple(gone if one is info else one for one in now.shards)), index)


def _set_replicas(now: Topology, index: int, command: SetReplicas) -> Changed:
    if not 0 <= command.shard < len(now.shards):
        raise invalid("shard", command.shard, f"a number below {len(now.shards)}")
    info, after = now.shards[command.shard], tuple(command.after)
    if info.replicas == after:
        return done(now, index, now.version, existed=True)
    if info.replicas != tuple(command.before):
        raise InvalidArgument(f"shard {info.shard} is on {info.replicas}, not on {command.before}", field="before")
    shards = tuple(_replace(s, replicas=after, leaving=()) if s.shard == info.shard else s for s in now.shards)
    return done(_replace(now, shards=shards), index)


def _set_replication(now: Topology, index: int, command: SetReplication) -> Changed:
    need_cluster(now)
    check_replication(now, command.replicas)
    if now.replicas == command.replicas:
        return done(now, index, now.version, existed=True)
    return done(_replace(now, replicas=command.replicas), index)


def _holders(now: Topology, group: int) -> Holders:
    holders = now.holders(group)
    if holders is None:
        raise invalid("group", group, f"the catalog or a shard, 0 to {len(now.shards)}")
    return holders


def _check_replicas(now: Topology, named: tuple[NodeId, ...], group: GroupId) -> None:
    strange = sorted(set(named) - now.addresses().keys())
    if strange:
        raise invalid("nodes", ", ".join(strange), f"nodes of this cluster: {', '.join(now.addresses())}")
    if not named or len(set(named)) != len(named) or len(named) > REPLICAS_MAX:
        raise invalid("nodes", ", ".join(named), f"1 to {REPLICAS_MAX} different nodes")
    check_leadable(now, named, group)


def _assign_replicas(now: Topology, index: int, command: AssignReplicas) -> Changed:
    need_cluster(now)
    held, after = _holders(now, command.group), tuple(command.after)
    if held.wanted == after:
        return done(now, index, now.version, existed=True)
    if held.wanted != tuple(command.before):
        raise InvalidArgument(
            f"{group_name(command.group)} is assigned to {', '.join(held.wanted)} meanwhile, not to "
            f"{', '.join(command.before)}",
            field="before",
        )
    _check_replicas(now, after, command.group)
    leaving = tuple(node for node in held.all if node not in after)
    same = set(after) == set(held.wanted)
    holders = Holders(after, leaving, held.assigned if same else index)
    return done(now.with_holders(command.group, holders), index)


def _confirm_replicas(now: Topology, index: int, command: ConfirmReplicas) -> Changed:
    held = _holders(now, command.group)
    if held.assigned != command.assigned or not held.leaving:
        return done(now, index, now.version, existed=True)
    made = now.with_holders(command.group, Holders(held.wanted, (), held.assigned))
    # The group has other members than it began with: a founder whose replica is gone must not begin it once more.
    shards = tuple(_replace(s, founders=()) if shard_group(s.shard) == command.group else s for s in made.shards)
    return done(_replace(made, shards=shards), index)


def _start_move(now: Topology, index: int, command: StartMove) -> Changed:
    need_cluster(now)
    made = range_moves.started(now, index, command)
    if made is now:
        return done(now, index, next(info.id for info in now.moves if info.nonce == command.nonce), existed=True)
    return done(made, index)


def _of_moves(
    change: Callable[[Topology, Any], Topology],
) -> Callable[[Topology, int, Any], Changed]:
    def executed(now: Topology, index: int, command: Any) -> Changed:
        made = change(now, command)
        return done(made, index, now.version if made is now else 0, existed=made is now)

    return executed


def _start_rebalance(now: Topology, index: int, command: StartRebalance) -> Changed:
    need_cluster(now)
    job = rebalances.started(now, index, command)
    empty = command.empty if command.wish.replace is None else command.wish.replace.old
    if command.first is not None:
        now, _ = _EXECUTE[type(command.first)](now, index, command.first)
    if empty:
        now, _ = nodes.drain(now, index, DrainNode(empty, True))
    if now.rebalance is not None and now.cluster_version >= ENDINGS:
        now = _replace(now, ended=kept(now.ended, now.rebalance))
    return done(_replace(now, rebalance=job), index)


def _ask_rebalance(now: Topology, index: int, command: AskRebalance) -> Changed:
    job = rebalances.asked(now, command)
    if job is now.rebalance:
        return done(now, index, now.version, existed=True)
    return done(_replace(now, rebalance=job), index)


def _step_rebalance(now: Topology, index: int, command: StepRebalance) -> Changed:
    job, decisions = rebalances.stepped(now, index, command)
    for decision in decisions:
        now = _EXECUTE[type(decision)](now, index, decision)[0]
    return done(_replace(now, rebalance=job), index)


def _create_key(now: Topology, index: int, command: CreateKey) -> Changed:
    need_cluster(now)
    return done(_replace(now, keys=keys.created(now.keys, index, command)), index)


def _limit_key(now: Topology, index: int, command: LimitKey) -> Changed:
    return done(_replace(now, keys=keys.limited(now.keys, command)), index, existed=True)


def _revoke_key(now: Topology, index: int, command: RevokeKey) -> Changed:
    left = tuple(key for key in now.keys if key.name != command.name)
    if len(left) == len(now.keys):
        return done(now, index, now.version, existed=False)
    return done(_replace(now, keys=left), index, existed=True)


def _note_backup(now: Topology, index: int, command: NoteBackup) -> Changed:
    need_cluster(now)

    def noted(before: int, said: int) -> int:
        return 0 if said == FORGET else max(before, said)

    made = _replace(now, backed_up=noted(now.backed_up, command.backup), archived=noted(now.archived, command.archive))
    return done(now, index, now.version, existed=True) if made == now else done(made, index)


_EXECUTE: dict[type, Callable[[Topology, int, Any], Changed]] = {
    CreateCluster: _create_cluster,
    RegisterNode: nodes.register,
    RemoveNode: nodes.remove,
    RaiseVersion: nodes.raise_version,
    DrainNode: nodes.drain,
    MaintainNode: nodes.maintain,
    WeighNode: nodes.weigh,
    ZoneNode: nodes.zone,
    AddShard: _add_shard,
    RetireShard: _retire_shard,
    SetReplicas: _set_replicas,
    SetReplication: _set_replication,
    AssignReplicas: _assign_replicas,
    ConfirmReplicas: _confirm_replicas,
    CreateCollection: collections.create,
    DropCollection: collections.drop,
    AlterCollection: collections.alter,
    DeclareField: collections.declare_field,
    AddVector: vectors.add,
    DropVector: vectors.drop,
    DeclareSparse: vectors.declare_sparse,
    SetAlias: collections.set_alias,
    RemoveAlias: collections.remove_alias,
    CreateKey: _create_key,
    LimitKey: _limit_key,
    RevokeKey: _revoke_key,
    StartMove: _start_move,
    AdvanceMove: _of_moves(range_moves.advanced),
    RestartMove: _of_moves(range_moves.restarted),
    CancelMove: _of_moves(range_moves.cancelled),
    FinishMove: _of_moves(range_moves.finished),
    StartRebalance: _start_rebalance,
    AskRebalance: _ask_rebalance,
    StepRebalance: _step_rebalance,
    NoteBackup: _note_backup,
}
