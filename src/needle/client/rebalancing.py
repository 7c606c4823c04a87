"""The client's methods for growing, shrinking and evening out a cluster: what it holds, what would move, and moving it.

A part of `Client`. Nothing here decides what moves: the node that leads the catalog plans, and carries it out.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from needle.base.errors import InvalidArgument, Unavailable, invalid
from needle.base.ids import NodeId
from needle.base.versions import EMPTIES
from needle.client import values
from needle.client.directory import Caller
from needle.client.feeds import TIMEOUT
from needle.client.measuring import measure
from needle.client.shards import ClusterShards, OverShards
from needle.client.values import Seconds
from needle.protocol import calls
from needle.protocol.catalog_commands import AskRebalance, DrainNode, StartRebalance
from needle.protocol.rebalance_calls import PLAN, PROGRESS, PlanCall, ProgressAnswer, ProgressCall
from needle.routing.jobs import Ended, Job, JobState, Progress, RebalanceConfig, check_over
from needle.routing.plans import CATALOG, Plan, ReplicaMove, ShardSplit, Wish
from needle.routing.stats import RebalanceStats, key_shares, summarize
from needle.routing.topology import NodeState, Topology

ShardOrCatalog = int | Literal["catalog"]
SETTLE_SECONDS = 3.0
"""So long a shard may be without a leader that says what it holds."""
PAUSE_SECONDS = 0.05


class RebalanceMethods(OverShards):
    """See the module."""

    async def get_stats(self, *, timeout: Seconds = TIMEOUT) -> RebalanceStats:
        """What each shard holds, in documents and bytes, which share of the keys it owns, how often it is called, and
        what each node holds and has room for. imbalance_ratio: the largest shard over the mean, minus 1, by bytes: 0.2
        says that it is 20 % larger than a fair share. unknown: shards of which no leader answers, also not after an
        election's time: what they hold is not in the other figures. Raises Forbidden for a key of some
        collections only."""
        return await stats_of(self._caller, self._shards, values.check_timeout(timeout))

    async def plan_rebalance(self, wish: Wish | None = None, *, timeout: Seconds = TIMEOUT) -> Plan:
        """What would move so that the cluster is as wished (by default: even), in order. Nothing does. Raises
        InvalidArgument for a wish that names what is not there."""
        seconds = values.check_timeout(timeout)
        return await self._plan(_checked(wish), seconds)

    async def _plan(self, wish: Wish, seconds: float) -> Plan:
        return await plan_of(self._shards, wish, seconds)

    async def start_rebalance(
        self, config: RebalanceConfig | None = None, *, wish: Wish | None = None, timeout: Seconds = TIMEOUT
    ) -> int:
        """Have the cluster move what must move so that it is as wished (by default: even); returns the rebalance's id
        once it is decided. It goes on without who asked for it. Raises InvalidArgument for a wish that cannot be (such
        as `lost` of a node that had the only replica of a shard), and while another rebalance is not over; Unavailable,
        with the reasons, if nothing of it can be done now."""
        seconds = values.check_timeout(timeout)
        return await self._start(_checked(wish), config, seconds)

    async def _start(self, wish: Wish, config: RebalanceConfig | None, seconds: float) -> int:
        made = check_config(config)
        await check_idle(self._shards, seconds)
        plan = await self._plan(wish, seconds)
        if plan.beyond_help:
            allowed = "nodes that the others can do without"
            raise invalid("lost", ", ".join(wish.lost), f"{allowed}; {'; '.join(plan.beyond_help)}")
        if why := plan.missing():
            raise Unavailable(f"nothing can be moved now: {why}")
        return (await self._shards.command(StartRebalance(wish, made), seconds)).version

    async def add_shard(self, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT) -> int:
        """Have the cluster serve one shard more, with its fair share of the keys; under the strategy range, of what can
        be cut between known ids. As `start_rebalance`."""
        seconds = values.check_timeout(timeout)
        serving = len((await self._shards.confirmed(seconds)).serving)
        return await self._start(Wish(shards=serving + 1), config, seconds)

    async def remove_shard(
        self, shard: int, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT
    ) -> int:
        """Have the other shards take over all that a shard owns, then give it up; its number is not used again. As
        `start_rebalance`."""
        seconds = values.check_timeout(timeout)
        serving = [info.shard for info in (await self._shards.confirmed(seconds)).serving]
        if shard not in serving:
            raise invalid("shard", shard, f"one of {', '.join(map(str, serving))}")
        if len(serving) == 1:
            raise invalid("shard", shard, "one of several: the last shard cannot be removed")
        return await self._start(Wish(retire=(shard,)), config, seconds)

    async def split_shard(
        self, shard: int, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT
    ) -> int:
        """Have a new shard take over about half of what a shard owns; nothing else moves. As `start_rebalance`; raises
        Unavailable, and changes nothing, if it cannot be cut, or no nodes can take the new one."""
        seconds = values.check_timeout(timeout)
        wish = wish_to_split(await self._shards.confirmed(seconds), values.check_count(shard, "shard", 0))
        return await self._by_hand(wish, f"shard {shard} cannot be split", config, seconds)

    async def move_replica(
        self,
        shard: int | Literal["catalog"],
        source: NodeId,
        target: NodeId,
        config: RebalanceConfig | None = None,
        *,
        timeout: Seconds = TIMEOUT,
    ) -> int:
        """Have the node `target` hold a shard, or "catalog", in the place of the node `source`, which may be dead;
        nothing else moves. As `start_rebalance`; raises Unavailable, and changes nothing, if `target` does not answer,
        has no room, or is in a zone with another replica while a zone without one has room."""
        seconds = values.check_timeout(timeout)
        wish = wish_to_move(shard, values.check_id(source, "source"), values.check_id(target, "target"))
        name = "the catalog" if shard == "catalog" else f"shard {shard}"
        why = f"the replica of {name} cannot go from {source} to {target}"
        return await self._by_hand(wish, why, config, seconds)

    async def _by_hand(self, wish: Wish, refused: str, config: RebalanceConfig | None, seconds: float) -> int:
        await check_idle(self._shards, seconds)
        plan = await self._plan(wish, seconds)
        if why := plan.missing(unmet=True, waiting=True):
            raise Unavailable(f"{refused}: {why}")
        return await self._start(wish, config, seconds)

    async def drain_node(
        self, node: NodeId, config: RebalanceConfig | None = None, *, timeout: Seconds = TIMEOUT
    ) -> int:
        """Have other nodes take over all that a node holds, and give it nothing new from now on; when it is done,
        `remove_node` has the cluster forget it, `undrain_node` use it again. As `start_rebalance`; raises Unavailable,
        and changes nothing, if no other node can take a replica."""
        seconds, name = values.check_timeout(timeout), values.check_id(node, "node")
        made = check_config(config)
        now = await self._shards.confirmed(seconds)
        check_over(now.rebalance)
        await check_emptied(self._shards, name, seconds)
        if now.cluster_version >= EMPTIES:
            start = StartRebalance(Wish(balance=False), made, empty=name)
            return (await self._shards.command(start, seconds)).version
        await self._shards.command(DrainNode(name, True), seconds)
        try:
            return await self._start(Wish(balance=False), made, seconds)
        except InvalidArgument as error:  # somebody else was quicker, and that one empties the node, too
            left = f"{error.message}; {name} is to be emptied from now on, until `needle node drain {name} --undo`"
            raise InvalidArgument(left, **error.details) from error

    async def undrain_node(self, node: NodeId, *, timeout: Seconds = TIMEOUT) -> None:
        """Use a node again that was to be emptied. A rebalance brings it replicas back."""
        command = DrainNode(values.check_id(node, "node"), False)
        await self._shards.command(command, values.check_timeout(timeout))

    async def rebalance_progress(self, id: int | None = None, *, timeout: Seconds = TIMEOUT) -> Progress | None:
        """How far a rebalance is, or how it ended, whoever started it. id: by default the last one; None if there never
        was one. Of those before the last one the catalog keeps how the last 16 ended. Raises InvalidArgument for
        another id."""
        seconds = values.check_timeout(timeout)
        if id is not None:
            values.check_count(id, "id")
        found = await progress_of(self._shards, seconds)
        if id is None or (found is not None and found.id == id):
            return found
        return ended_in(await self._shards.confirmed(seconds), id)

    async def pause_rebalance(self, id: int | None = None, *, timeout: Seconds = TIMEOUT) -> None:
        """Start no more moves; those that copy stop behind their next batch, those that are further end. id: by default
        the last rebalance. Raises InvalidArgument if it is over, or not the last one."""
        await self._ask("pause", id, values.check_timeout(timeout))

    async def resume_rebalance(self, id: int | None = None, *, timeout: Seconds = TIMEOUT) -> None:
        """Go on with a rebalance that was paused. As `pause_rebalance`."""
        await self._ask("resume", id, values.check_timeout(timeout))

    async def cancel_rebalance(self, id: int | None = None, *, timeout: Seconds = TIMEOUT) -> None:
        """End a rebalance: replicas and key ranges that are on their way are taken back, unless their switch is
        decided, and nothing else moves. What was moved before stays where it is; a node that was being emptied or
        replaced gets nothing new all the same, until `undrain_node`. As `pause_rebalance`."""
        await self._ask("cancel", id, values.check_timeout(timeout))

    async def _ask(self, what: Literal["pause", "resume", "cancel"], id_: int | None, seconds: float) -> None:
        shards = self._shards
        if id_ is not None:
            values.check_count(id_, "id")
        id_ = check_asked(await shards.confirmed(seconds), what, id_)
        await shards.command(AskRebalance(id_, what), seconds)


def check_asked(now: Topology, what: Literal["pause", "resume", "cancel"], id_: int | None) -> int:
    """Which rebalance to pause, resume or cancel. Raises InvalidArgument if it is not known, or over; the last one may
    be cancelled again. One that is over by the time that the catalog hears of it, that refuses."""
    last = now.rebalance
    if id_ is None:
        if last is None:
            raise InvalidArgument(
                f"this cluster was never rebalanced, so there is nothing to {what}", field="rebalance"
            )
        id_ = last.id
    running = last is not None and not last.over
    if last is not None and last.id == id_:
        if last.state is JobState.CANCELLING and what != "cancel":
            raise InvalidArgument(f"rebalance {id_} is being cancelled, so it cannot be {what}d", field="rebalance")
        state, goes_on = last.state, ""
        if running or (what == "cancel" and state is JobState.CANCELLED):
            return id_
    else:
        state = ended_in(now, id_).state
        goes_on = f"; rebalance {last.id} is {last.state}" if last is not None and running else ""
    raise InvalidArgument(f"rebalance {id_} {_OVER[state]}, so there is nothing to {what}{goes_on}", field="rebalance")


_OVER = {JobState.DONE: "is done", JobState.FAILED: "has failed", JobState.CANCELLED: "was cancelled"}


async def plan_of(shards: ClusterShards, wish: Wish, seconds: float) -> Plan:
    """See `RebalanceMethods.plan_rebalance`."""
    group = shards.group(CATALOG)
    data = await group.ask_leader(PLAN, lambda left: calls.encode(PlanCall(wish, left)), seconds)
    return calls.decode(data, Plan)


async def check_emptied(shards: ClusterShards, node: NodeId, seconds: float) -> None:
    """Raises Unavailable if other nodes cannot take all that a node holds."""
    plan = await plan_of(shards, Wish(drain=(node,), balance=False), seconds)
    if why := plan.missing(unmet=True):
        raise Unavailable(f"{node} cannot be emptied: {why}")


async def progress_of(shards: ClusterShards, seconds: float) -> Progress | None:
    """See `RebalanceMethods.rebalance_progress`."""
    group = shards.group(CATALOG)
    data = await group.ask_leader(PROGRESS, lambda left: calls.encode(ProgressCall(left)), seconds)
    return calls.decode(data, ProgressAnswer).progress


def ended_in(now: Topology, id_: int) -> Progress:
    """How a rebalance ended that is over, as the catalog says. Raises InvalidArgument if it does not know it."""
    last = now.rebalance
    endings = [*now.ended, *([Ended.of(last)] if last is not None and last.over else [])]
    for one in endings:
        if one.id == id_:
            return one.progress()
    there = "there is none" if last is None else f"the last one is {last.id}"
    kept = f", and of those before it {', '.join(str(one.id) for one in now.ended)} are known" if now.ended else ""
    raise InvalidArgument(f"rebalance {id_} is not known: {there}{kept}", field="rebalance")


async def stats_of(caller: Caller, shards: ClusterShards, seconds: float) -> RebalanceStats:
    """See `RebalanceMethods.get_stats`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + min(seconds, SETTLE_SECONDS)
    while True:
        topology = await shards.confirmed(seconds)
        found = await measure(caller, topology, seconds, hot=True, for_client=True)
        if not found.stats.unknown or loop.time() >= deadline:
            return summarize(topology, found.stats)
        await asyncio.sleep(PAUSE_SECONDS)  # leadership may be on its way to another node


async def check_idle(shards: ClusterShards, seconds: float) -> None:
    """Raises InvalidArgument while a rebalance is not over."""
    check_over((await shards.confirmed(seconds)).rebalance)


def check_config(config: RebalanceConfig | None) -> RebalanceConfig:
    """Raises InvalidArgument."""
    if config is not None and not isinstance(config, RebalanceConfig):
        raise InvalidArgument(f"config is a RebalanceConfig, not a {type(config).__name__}", field="config")
    return config or RebalanceConfig()


def wish_to_split(now: Topology, shard: int) -> Wish:
    """That a new shard gets half of this one. now: what the catalog says."""
    return Wish(split=ShardSplit(shard=shard, into=len(now.shards)))


def wish_to_move(shard: ShardOrCatalog, source: NodeId, target: NodeId) -> Wish:
    """That one node holds a shard, or the catalog, in the place of another one. Raises InvalidArgument."""
    number = CATALOG if shard == "catalog" else values.check_count(shard, "shard", 0)
    return Wish(move=ReplicaMove(shard=number, source=source, target=target))


def known_rebalance(client: RebalanceMethods) -> Job | None:
    """The last rebalance as this client has heard of it; it asks for news in the background."""
    shards = client._shards
    shards.look()
    return shards.topology().rebalance


def still_emptied(now: Topology) -> list[NodeId]:
    """The nodes that are to be emptied: after a cancel they get nothing new all the same."""
    return [info.id for info in now.nodes if info.state is NodeState.DRAINING]


def without_keys(now: Topology) -> list[int]:
    """The shards that own no keys: after a cancel one that was being added stays so."""
    owning = key_shares(now)
    return [info.shard for info in now.serving if info.shard not in owning]


def _checked(wish: Wish | None) -> Wish:
    if wish is not None and not isinstance(wish, Wish):
        raise InvalidArgument(f"wish is a Wish, not a {type(wish).__name__}", field="wish")
    made = wish or Wish()
    made.check_asked()
    return made
