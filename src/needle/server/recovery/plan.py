"""What becomes of a directory that is recovered: decided once, and the shape of the cluster that it is then. Pure.

Invariant: the cluster that was, and the one that is made, have nothing in common by which a node could take one for the
other: neither cluster_id nor founding nor uid, nor the incarnation of this directory. The former nodes are removed for
good in the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from needle.base.errors import InvalidArgument
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name, shard_group
from needle.multiraft.offline import Standing
from needle.routing.recoveries import Recovery
from needle.routing.topology import NodeState, ShardInfo, Topology

_replace = msgspec.structs.replace
CLUSTER_ID_CHARS: Final = 200


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A replica, as it stands in the directory. commit: the last entry that it knows to be on a majority. last: the
    last that it has, term: its last. voters: of its group. why: what else is to be known of it; "" for nothing."""

    group: GroupId
    commit: int
    last: int
    term: int
    voters: tuple[NodeId, ...]
    why: str = ""

    def in_words(self) -> str:
        """For people."""
        open_ = self.last - self.commit
        kept = f"; {open_} behind that are kept, acknowledged or not" if open_ else ""
        more = f"; {self.why}" if self.why else ""
        return (
            f"{group_name(self.group)}: entries up to {self.last} of term {self.term}, known to be on a majority up to "
            f"{self.commit}{kept}; it was on {', '.join(sorted(self.voters))}{more}"
        )


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What is there. topology: the newest that the directory knows. found: its replicas. emptied: shards of which it
    has none, or none that can be read, and why."""

    node: NodeId
    cluster_id: str
    topology: Topology
    found: tuple[Found, ...]
    emptied: Mapping[int, str]

    def others(self) -> dict[NodeId, str]:
        """Where the other nodes of the cluster were."""
        return {node: at for node, at in self.topology.addresses().items() if node != self.node}

    def check(self) -> None:
        """Raises InvalidArgument if nothing can, or need, be recovered."""
        node, now = self.node, self.topology
        if now.settings is None or now.node(node) is None:
            raise InvalidArgument(f"the directory of node {node} knows the shape of no cluster: nothing to recover")
        if not any(one.group != CATALOG_GROUP for one in self.found):
            raise InvalidArgument(f"node {node} has no replica of any shard: nothing to recover")
        if all(set(one.voters) == {node} for one in self.found) and not self.emptied:
            raise InvalidArgument(f"node {node} is a majority of all that it holds: start it, it needs nobody else")
        here = {one.group - 1: one for one in self.found}
        for move in now.moves:
            if move.source not in here or move.target not in here:
                raise InvalidArgument(
                    f"key ranges were moving from shard {move.source} to shard {move.target}, and node {node} does not "
                    "hold both: it cannot be known which documents are whose. Restore a backup"
                )
        for info in now.serving:
            if (one := here.get(info.shard)) is not None and one.last < info.since:
                raise InvalidArgument(
                    f"the replica of shard {info.shard} ends at index {one.last}, before a move of key ranges at "
                    f"{info.since}: it lacks documents that the map says it has. Restore a backup"
                )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Written down before anything is changed. at: microseconds since 1970. former: the cluster_id before. nonce: of
    the first start of the log's new history. groups: where each goes on, the catalog's included. sure: up to
    which index each is known to be on a majority; plans of earlier releases do not say."""

    at: int
    node: NodeId
    former: str
    cluster_id: str
    uid: int
    founding: int
    incarnation: int
    nonce: int
    groups: dict[GroupId, Standing]
    emptied: tuple[int, ...] = ()
    sure: dict[GroupId, int] = {}

    @property
    def shards(self) -> list[int]:
        """Those that keep what they have."""
        return sorted(group - 1 for group in self.groups if group != CATALOG_GROUP)


def plan_of(survey: Survey, cluster_id: str, at: int, draws: Sequence[int]) -> Plan:
    """draws: four numbers of 62 random bits. cluster_id: "" for one that is made of the former and of what was drawn.
    Raises InvalidArgument for one that is not allowed."""
    uid, founding, incarnation, nonce = (draw + 1 for draw in draws)
    made = cluster_id or f"{survey.cluster_id}-recovered-{founding & 0xFFFFFFFF:08x}"
    whole = made == made.strip() and made.isprintable()
    if made == survey.cluster_id or len(made) > CLUSTER_ID_CHARS or not whole:
        raise InvalidArgument(
            f"cluster_id = {made[:80]!r} is not allowed: the new cluster needs one that the former has not, of at most "
            f"{CLUSTER_ID_CHARS} printable characters without spaces around them, so that its nodes cannot be taken "
            "for those of the other",
            field="cluster_id",
        )
    groups = {one.group: Standing(one.last + 1, one.term + 1) for one in survey.found}
    version = survey.topology.version
    catalog = groups.get(CATALOG_GROUP, Standing(0, 1))
    groups[CATALOG_GROUP] = Standing(max(catalog.index, version + 1), catalog.term)
    return Plan(
        at=at,
        node=survey.node,
        former=survey.cluster_id,
        cluster_id=made,
        uid=uid,
        founding=founding,
        incarnation=incarnation,
        nonce=nonce,
        groups=groups,
        emptied=tuple(sorted(survey.emptied)),
        sure={one.group: one.commit for one in survey.found},
    )


def recovered(now: Topology, plan: Plan) -> Topology:
    """The new cluster: one node, that has all of it."""
    me, version = plan.node, plan.groups[CATALOG_GROUP].index
    # Not what the log has behind that: the others may have put other entries in its place, and acknowledged these.
    kept = {shard: plan.sure.get(shard_group(shard), 0) for shard in plan.shards}
    note = Recovery(at=plan.at, node=me, cluster_id=plan.former, founding=now.founding, kept=kept, emptied=plan.emptied)
    nodes = tuple(
        _replace(info, incarnation=plan.incarnation, state=NodeState.ACTIVE, maintenance=0)
        if info.id == me
        else _replace(info, state=NodeState.REMOVED, maintenance=0)
        for info in now.nodes
    )
    made = _replace(
        now,
        version=version,
        founding=plan.founding,
        nodes=nodes,
        catalog=(me,),
        catalog_leaving=(),
        catalog_assigned=version,
        rebalance=None,
        shards=tuple(_alone(info, plan, version) for info in now.shards),
        recovered=(*now.recovered, note),
    )
    made.check_invariants()
    return made


def _alone(info: ShardInfo, plan: Plan, version: int) -> ShardInfo:
    """A shard whose one replica is here: as it was, or new and empty."""
    if info.retired:
        return info
    me = (plan.node,)
    if info.shard in plan.shards:
        return _replace(info, replicas=me, founders=(), leaving=(), assigned=version)
    return _replace(info, replicas=me, founders=me, leaving=(), assigned=0, since=0)
