"""Configurations and how they change: joint consensus with learners (paper, section 6; etcd's confchange).

Invariant: two consecutive configurations share a node in any pair of their quorums. Every change of voters goes
through a joint configuration; a change of learners only takes effect at once. Pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import Internal, invalid
from needle.base.ids import NodeId
from needle.raft.messages import ConfChange, ConfState, Entry, EntryKind
from needle.raft.progress import Progress

_decoder = msgspec.msgpack.Decoder(ConfState)


def encode_conf(conf: ConfState) -> bytes:
    """The data of a CONF_CHANGE entry: all of the configuration that it puts into force, not a difference. So it
    means the same to a node that joined with an empty configuration, and applying it twice does no harm."""
    return msgspec.msgpack.encode(conf)


def decode_conf(entry: Entry) -> ConfState:
    """The configuration that a CONF_CHANGE entry puts into force. Raises Internal for any other entry."""
    if entry.kind != EntryKind.CONF_CHANGE:
        raise Internal(f"entry {entry.index} is not a configuration change")
    try:
        return _decoder.decode(entry.data)
    except DECODE_ERRORS as error:
        raise Internal(f"entry {entry.index} holds no readable configuration change: {error}") from error


def readable_conf(entry: Entry) -> ConfState | None:
    """The configuration in a CONF_CHANGE entry that a peer sent; None if it is none that a group could work with."""
    try:
        conf = _decoder.decode(entry.data)
    except DECODE_ERRORS:
        return None
    return conf if conf.voters else None


def check_change(change: ConfChange) -> None:
    """Raises InvalidArgument for a target that no leader may propose."""
    if change.leave:
        raise invalid("leave", change.leave, "False: the leader proposes the second half itself")
    if not change.voters:
        raise invalid("voters", change.voters, "at least one node")
    for name, ids in (("voters", change.voters), ("learners", change.learners)):
        if len(set(ids)) != len(ids) or "" in ids:
            raise invalid(name, ids, "distinct, non-empty node ids")
    both = sorted(set(change.voters) & set(change.learners))
    if both:
        raise invalid("learners", change.learners, f"nodes that are not voters too ({', '.join(both)})")


def silent(
    progress: Mapping[NodeId, Progress], leader: NodeId, voters: Collection[NodeId], now: float, within: float
) -> list[NodeId]:
    """Those of `voters` that have not answered `leader` for `within` seconds, or that it does not send its log to.
    progress: as the leader has it."""
    heard = {node for node, of in progress.items() if of.recent_active and now - of.contact <= within}
    return sorted(set(voters) - heard - {leader})


def is_joint(conf: ConfState) -> bool:
    return bool(conf.voters_outgoing)


def is_voter(conf: ConfState, node: NodeId) -> bool:
    """Whether the node's vote counts in any active voter set."""
    return node in conf.voters or node in conf.voters_outgoing


def members(conf: ConfState) -> list[NodeId]:
    """Every node that receives the log, sorted: the order in which a leader addresses them."""
    return sorted({*conf.voters, *conf.learners, *conf.voters_outgoing, *conf.learners_next})


def apply_change(conf: ConfState, change: ConfChange) -> ConfState:
    """The configuration that follows `conf` by `change`. Raises Internal for a change of voters while joint."""
    if change.leave:
        return ConfState(voters=conf.voters, learners=tuple(sorted({*conf.learners, *conf.learners_next})))
    voters = tuple(sorted(change.voters))
    if is_joint(conf):
        raise Internal("a membership change began while another one was under way")
    if set(voters) == set(conf.voters):
        return ConfState(voters=conf.voters, learners=tuple(sorted(change.learners)))
    old = set(conf.voters)
    return ConfState(
        voters=voters,
        learners=tuple(sorted(set(change.learners) - old)),
        voters_outgoing=conf.voters,
        learners_next=tuple(sorted(set(change.learners) & old)),
    )
