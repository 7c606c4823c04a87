"""Shards that cannot be rebuilt, because most of their replicas were on nodes that are said to be lost. Pure.

Invariant: none is called beyond help of which a majority of those that are to hold it, or of all that hold it now, is
left among the other nodes, nor one that is led, unless all that hold it are said to be lost: what is only silent comes
back. Who votes is not in the catalog: a shard that is to get more replicas (`needle shard replicas`) keeps its voters
until the new nodes have its log, so one silent node that is left may have all of it, and lead once it is back. Nor is
one whose replicas move while those of before may be the voters still, and most of them left.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from needle.base.ids import NodeId, shard_group
from needle.routing.topology import Holders, Topology


class NotRebuilt(msgspec.Struct, frozen=True):
    """By shard, why, and what can be done. beyond_help: it never can be. not_yet: not before somebody has done that."""

    beyond_help: dict[int, str]
    not_yet: dict[int, str]


def not_rebuilt(
    topology: Topology, lost: Collection[NodeId], unknown: Collection[int], alive: Collection[NodeId]
) -> NotRebuilt:
    """lost: nodes that will not come back, as somebody says. unknown: shards of which no leader answers. alive: nodes
    that answer, those that are said to be lost, too."""
    found = NotRebuilt({}, {})
    for info in topology.serving if lost else ():
        held = topology.holders(shard_group(info.shard))
        if held is None:
            continue
        left, gone = [node for node in held.all if node not in lost], [node for node in held.all if node in lost]
        # Who votes while replicas move are those of before, those that are wanted, or some of both.
        few = all(2 * len(set(left) & set(nodes)) <= len(nodes) for nodes in (held.wanted, held.all))
        if left and few and info.shard not in unknown:
            if not set(gone).intersection(alive):  # else it is led with them
                found.not_yet[info.shard] = _led(info.shard, held, left, gone)
        elif left and few and (silent := [node for node in left if node not in alive]):
            found.not_yet[info.shard] = _silent(info.shard, held, silent, gone)
        elif left and few and _former_may_lead(held, left):
            found.not_yet[info.shard] = _moving(info.shard, held, left, gone)
        elif not left or few:
            found.beyond_help[info.shard] = _said(info.shard, held, gone, alive)
    return found


def _led(shard: int, held: Holders, left: list[NodeId], lost: list[NodeId]) -> str:
    without = f"{len(lost)} of its {len(held.all)} replicas, those of {', '.join(lost)}"
    names = f"`needle shard replicas {shard} {' '.join(left)} NODE...`, with nodes that answer"
    return f"shard {shard} serves without {without}: {names}, has these hold it instead"


def _silent(shard: int, held: Holders, silent: list[NodeId], lost: list[NodeId]) -> str:
    names, one = ", ".join(silent), len(silent) == 1
    who = f"{names}, which {'holds' if one else 'hold'} it, too, {'does' if one else 'do'} not answer"
    are = f"{len(lost)} of its {len(held.all)} replicas are on {', '.join(lost)}"
    return (
        f"shard {shard} has no leader: {are}, and {who}. Start {names} first, and repeat this. Where the others had "
        "not got the shard's log yet, as soon after `needle shard replicas`, nothing is lost: it leads again; "
        "else this says what helps"
    )


def _former_may_lead(held: Holders, left: list[NodeId]) -> bool:
    """Whether most of the voters of before may be left: as many of `wanted` as are leaving are new, and these may be
    the lost ones."""
    if not held.leaving:
        return False
    lost = sum(node not in left for node in held.wanted)
    living_new = max(0, len(held.leaving) - lost)
    return 2 * (len(left) - living_new) > len(held.wanted)


def _moving(shard: int, held: Holders, left: list[NodeId], lost: list[NodeId]) -> str:
    return (
        f"shard {shard} has no leader: {len(lost)} of its {len(held.all)} replicas are on {', '.join(lost)}, and they "
        f"were being moved: by the catalog alone, {', '.join(left)} may be most of those that vote, or not. If they "
        f"are, it leads again by itself in a moment: repeat this then. If it stays without a leader, start one of "
        f"{', '.join(lost)} again with what is on its disk; if that is gone, `needle restore` a backup, or "
        "`needle recover` what another node has"
    )


def also_lost(topology: Topology, lost: Collection[NodeId], shards: Collection[int], alive: Collection[NodeId]) -> str:
    """That other nodes which hold these shards and do not answer have to be named, too, if they are lost; "" if there
    are none, or nobody is said to be lost."""
    held = [node for shard in shards for node in topology.shards[shard].wanted] if lost else []
    silent = sorted({node for node in held if node not in alive} - {*lost})
    if not silent:
        return ""
    named = " ".join(f"--lost {node}" for node in [*sorted(lost), *silent])
    do = "does" if len(silent) == 1 else "do"
    return (
        f"; {', '.join(silent)} {do} not answer: lost nodes have to be named together, so if {', '.join(silent)} will "
        f"not come back either, `needle rebalance {named}`"
    )


def _said(shard: int, held: Holders, lost: list[NodeId], alive: Collection[NodeId]) -> str:
    count, names = len(held.all), ", ".join(lost)
    of = "its only replica is" if count == 1 else f"{len(lost)} of its {count} replicas are"
    why = f"shard {shard} cannot be rebuilt, because {of} on {names}"
    if answering := [node for node in lost if node in alive]:
        return (
            f"{why}: {answering[0]} answers, so `needle node drain {answering[0]}` has others take over what it holds"
        )
    again = f"start {names if count == 1 else 'enough of them'} again"
    return (
        f"{why}: {again}, on another machine if need be, with what is on the disk; if that is gone, `needle restore` a "
        "backup, or `needle recover` what another node has"
    )
