"""A node in the place of another one: all that the old one holds goes to the new one, then the old one is forgotten.

It is a rebalance like others: from its start on, which is one entry of the catalog, the old node gets nothing new, and
its end, which is another one, removes it; so it goes on without who asked for it. The old node may be dead. Invariant:
it may be repeated, whatever was done of it already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, RebalanceEnded, Unavailable
from needle.base.ids import CATALOG_GROUP, NodeId, group_name, shard_group
from needle.client import values
from needle.client.rebalancing import check_config, plan_of
from needle.client.shards import OverShards
from needle.client.values import Seconds
from needle.protocol.catalog_commands import StartRebalance
from needle.protocol.versioned import check_known
from needle.routing.jobs import Ended, Progress, RebalanceConfig, check_over
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import Replacement, Wish
from needle.routing.stats import RebalanceStats
from needle.routing.topology import NodeState, Topology

log = logging.getLogger("needle.client")

LOOK_SECONDS: Final = 0.25
ASK_SECONDS: Final = 5.0


class ReplaceMethods(OverShards):
    """A part of `Client`."""

    async def plan_replacement(self, old: NodeId, new: NodeId, *, timeout: Seconds = 10.0) -> list[MoveReplicas]:
        """What `replace_node` would move. Nothing does. Raises what `start_replacement` would raise."""
        seconds = values.check_timeout(timeout)
        wish = _wish(old, new)
        now = await self._shards.confirmed(seconds)
        if _goes_on(now, wish) is not None or not _check(now, wish):
            return []
        return await self._plan_replacement(now, wish, seconds)

    async def _plan_replacement(self, now: Topology, wish: Wish, seconds: float) -> list[MoveReplicas]:
        check_known(StartRebalance(wish, RebalanceConfig()), now)  # older nodes would plan something else
        check_over(now.rebalance)
        plan = await plan_of(self._shards, wish, seconds)
        if why := plan.missing(unmet=True, waiting=True):
            raise Unavailable(why)
        return [move for move in plan.moves if isinstance(move, MoveReplicas)]

    async def start_replacement(
        self, old: NodeId, new: NodeId, config: RebalanceConfig | None = None, *, timeout: Seconds = 10.0
    ) -> int | None:
        """Have the cluster put all that `old` holds, dead or alive, on `new`, which has joined, and forget `old` when
        that is done; returns the id of the rebalance that does it, also of one that does already (at the pace that it
        began with), or None if it was done before. `old` gets nothing new from its start on, also after a cancel, until
        `undrain_node`.

        Raises InvalidArgument for nodes that are not there, while another rebalance is not over, if `new` holds a part
        of what `old` holds, if another node is taking the place of `old`, or did, and `new` holds nothing, or if `new`
        is in a zone with another replica and `old` was not; Unavailable without room on the disk of `new`, or if it
        does not answer; ClusterTooOld while nodes of a release before are in the cluster. It changes nothing then.
        """
        seconds, made = values.check_timeout(timeout), check_config(config)
        wish = _wish(old, new)
        start, now = StartRebalance(wish, made), await self._shards.confirmed(seconds)
        known = _goes_on(now, wish)
        if known is not None:
            return known
        if not _check(now, wish):
            return None
        await self._plan_replacement(now, wish, seconds)
        return (await self._shards.command(start, seconds)).version

    async def replace_node(
        self,
        old: NodeId,
        new: NodeId,
        *,
        config: RebalanceConfig | None = None,
        told: Callable[[str], None] | None = None,
        timeout: Seconds = 3600.0,
    ) -> int | None:
        """`start_replacement`, and wait until it is done; returns what that does. told: called with what has happened,
        for people.

        Raises what that raises; RebalanceEnded if it has failed, or somebody has cancelled it; DeadlineExceeded
        when it takes longer: the cluster goes on with it, and the same call goes on waiting.
        """
        seconds, loop = values.check_timeout(timeout), asyncio.get_running_loop()
        deadline = loop.time() + seconds
        id_ = await self.start_replacement(old, new, config, timeout=min(seconds, 10.0))
        if id_ is None:
            if told is not None:
                told(f"{old} was removed from this cluster before; nothing was changed")
            return None
        if told is not None:
            told(f"rebalance {id_} replaces {old} by {new}; it goes on if you stop waiting")
        while not await self._is_replaced(id_, old, max(1.0, deadline - loop.time())):
            if loop.time() >= deadline:
                raise DeadlineExceeded(
                    f"{new} is not in the place of {old} within {seconds:g} s; rebalance {id_} goes on with it "
                    "(`needle rebalance --status`), and the same call waits for it"
                )
            await asyncio.sleep(LOOK_SECONDS)
        if told is not None:
            told(replaced_in_words(self._shards.topology(), id_, old, new))
        return id_

    async def _is_replaced(self, id_: int, old: NodeId, left: float) -> bool:
        """Raises RebalanceEnded if that rebalance is over and did not do it."""
        try:
            now = await self._shards.confirmed(min(left, ASK_SECONDS))
        except NeedleError as error:
            if not error.retryable:
                raise
            log.debug("not known how far rebalance %d is: %s", id_, error)
            return False
        job, known = now.rebalance, now.node(old)
        if known is None or known.state is NodeState.REMOVED:
            return True
        if job is not None and job.id == id_ and not job.over:
            return False
        ended = next((one for one in now.ended if one.id == id_), None)
        if job is not None and job.id == id_:
            ended = Ended.of(job)
        if ended is None:
            why = f"rebalance {id_}, which was to replace {old}, is over; how it ended is not known any more"
            raise RebalanceEnded(why, id=id_)
        raise not_replaced(ended, old)


def took_over(now: Topology, id_: int, new: NodeId) -> bool:
    """Whether the node that was to replace another one took anything over by this rebalance, which is done: healing may
    have emptied the old one before."""
    if not now.hosted_by(new) and new not in now.catalog:
        return False
    job = now.rebalance
    known = [job] if job is not None and job.id == id_ else [one for one in now.ended if one.id == id_]
    return any(one.moves > 0 for one in known) or not known


def replaced_in_words(now: Topology, id_: int, old: NodeId, new: NodeId) -> str:
    """What a replacement that is done has come to, for people."""
    gone, known = now.node(old), now.node(new)
    if took_over(now, id_, new):
        told = f"{new} is in the place of {old}"
    else:
        told = f"{old} held nothing any more, so {new} took nothing over from it"
        if not now.hosted_by(new) and new not in now.catalog:
            told += f": `needle node add {new}` brings it its share"
    if gone is not None and known is not None:
        if gone.weighed and gone.weight != known.weight:
            told += f"; {old} was given weight {gone.weight:g}, {new} has {known.weight:g} (`needle node weight`)"
        if gone.zoned and gone.zone != known.zone:
            told += f"; {old} was given zone {gone.zone!r}, {new} has {known.zone!r} (`needle node zone`)"
    return told


def not_replaced(ended: Ended | Progress, old: NodeId) -> RebalanceEnded:
    """Why a replacement is over and was not done."""
    why = ended.why or "somebody ended it"
    return RebalanceEnded(
        f"rebalance {ended.id} is {ended.state}: {why}. What was not moved yet is still on {old}, which gets nothing "
        f"new: repeat the command, or `needle node drain --undo {old}`",
        id=ended.id,
        state=ended.state.value,
    )


def with_size(move: MoveReplicas, stats: RebalanceStats) -> MoveReplicas:
    """The same move, with what it copies for each node that gets a replica."""
    size, count = stats.shard_sizes.get(move.group - 1), len(move.added)
    if size is None:
        return move
    return msgspec.structs.replace(move, documents=count * size.documents, bytes=count * size.bytes)


def _wish(old: NodeId, new: NodeId) -> Wish:
    return Wish(replace=Replacement(old=values.check_id(old, "old"), new=values.check_id(new, "new")))


def _goes_on(now: Topology, wish: Wish) -> int | None:
    """The rebalance that does what is wished, if it is not over."""
    job = now.rebalance
    return job.id if job is not None and not job.over and job.wish.replace == wish.replace else None


def _check(now: Topology, wish: Wish) -> bool:
    """Whether anything is left to do. Raises InvalidArgument for what others are doing, or did, instead; the rest is
    the planner's to judge."""
    assert wish.replace is not None
    old, new = wish.replace.old, wish.replace.new
    gone = now.node(old)
    if gone is not None and gone.state is NodeState.REMOVED:
        if not now.hosted_by(new) and new not in now.catalog:
            raise InvalidArgument(
                f"{old} was removed from this cluster before, and not for {new}, which holds nothing: "
                f"`needle node add {new}` brings it its share",
                field="old",
            )
        return False
    for group in (CATALOG_GROUP, *(shard_group(info.shard) for info in now.serving)):
        held = now.holders(group)
        if held is not None and old in held.leaving and new not in held.wanted:
            raise InvalidArgument(
                f"{group_name(group)} is on its way from {old} to {', '.join(held.wanted)} already, by another "
                "command; repeat this one when that is done, for what is left",
                field="new",
            )
    return True
