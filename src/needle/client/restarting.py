"""A rolling restart: one node after the other, followers first, while the cluster serves.

A node is in maintenance before it is stopped, so it leads nothing; the next one waits until it has everything again.
Invariants: a node is restarted only while each of its groups has a majority without it that answers and has the log;
one node at a time, also if two people begin; that a process began again is told by the process itself. How a node is
restarted is the caller's to say.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, Unavailable, invalid
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name
from needle.base.model import RaftStatus
from needle.client import values
from needle.client.directory import Caller
from needle.client.doing_without import able, held_by, leaders_say, why_not
from needle.client.nodes import address_of, maintain
from needle.client.shards import ClusterShards, OverShards
from needle.client.values import Seconds
from needle.protocol.peer_calls import WhoAnswer
from needle.routing.topology import Topology

LOOK_SECONDS = 0.1
ASK_SECONDS = 2.0
SETTLE_SECONDS = 10.0
"""So long a cluster may take to be well enough for the first restart: leadership may be on its way."""
YIELD_SECONDS = 30.0
"""So long who was first waits for others that began at the same time: they notice it, and give up."""
NODE_SECONDS = 6.0
"""What a node takes as a rule, if its command restarts it at once: to hand over what it leads, to start, to catch up
(17 s for three nodes by tests/cluster/test_rolling_restart.py). The more was written meanwhile the longer it takes."""


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """A node of a rolling restart. leads: the groups that it led, by name. why_not: why it cannot be restarted now; ""
    if it can. seconds: from maintenance until it had everything again; of a plan, about as long as that takes with a
    command that restarts the node at once."""

    node: NodeId
    address: str
    leads: tuple[str, ...]
    why_not: str = ""
    seconds: float = 0.0


Doing = Callable[[NodeId, str], "Awaitable[None] | None"]


class RestartMethods(OverShards):
    """A part of `Client`."""

    async def plan_rolling_restart(
        self, nodes: Iterable[NodeId] | None = None, *, timeout: Seconds = 10.0
    ) -> list[Restart]:
        """The order in which `rolling_restart` takes the nodes (default: all), and what stands against it now. Nothing
        is changed."""
        return await _Rolling(self._caller, self._shards).plan(nodes, values.check_timeout(timeout))

    async def rolling_restart(
        self,
        restart: Doing,
        *,
        nodes: Iterable[NodeId] | None = None,
        told: Callable[[str], None] | None = None,
        timeout: Seconds = 600.0,
    ) -> list[Restart]:
        """Restart nodes (default: all), one at a time, those that lead least first and the catalog's leader last.

        restart: called with a node's id and address; ends when its process was told to restart, or has. A coroutine
        function, or another one, which runs in a thread; what it returns is awaited if it can be. told: called with
        what happens, for people. timeout: seconds for each node.

        Raises InvalidArgument while a node is in maintenance; Unavailable, before it touches the node, if the cluster
        could not do without it, also after some waiting; DeadlineExceeded for a node that does not come back in time.
        Then that node stays in maintenance, and no other one is restarted; see `needle maintenance exit`.
        """
        seconds = values.check_timeout(timeout)
        return await _Rolling(self._caller, self._shards).run(restart, nodes, told or _nobody, seconds)


class _Rolling:
    """One rolling restart, or its plan."""

    def __init__(self, caller: Caller, shards: ClusterShards) -> None:
        self._caller = caller
        self._shards = shards

    async def plan(self, nodes: Iterable[NodeId] | None, seconds: float) -> list[Restart]:
        """See `plan_rolling_restart`."""
        now = await self._shards.confirmed(seconds)
        wanted = _wanted(now, nodes)
        groups = await self._groups(now, wanted, min(seconds, SETTLE_SECONDS))
        found = []
        for node in in_order(wanted, groups):
            why = _resting(now, ()) or await self._silent(node) or why_not(node, groups, now)
            address, leads = now.addresses()[node], _led(node, groups)
            found.append(Restart(node=node, address=address, leads=leads, why_not=why, seconds=NODE_SECONDS))
        return found

    async def run(
        self, restart: Doing, nodes: Iterable[NodeId] | None, told: Callable[[str], None], seconds: float
    ) -> list[Restart]:
        """See `rolling_restart`."""
        left, done = _wanted(await self._shards.confirmed(seconds), nodes), list[Restart]()
        while left:
            now = await self._shards.confirmed(seconds)
            left = [node for node in left if node in now.addresses()]  # one may have been removed meanwhile
            if not left:
                break
            groups = await self._groups(now, left, min(seconds, SETTLE_SECONDS))
            node = in_order(left, groups)[0]
            left.remove(node)
            await self._may_go(node, seconds if done else min(seconds, SETTLE_SECONDS))
            try:
                done.append(await self._restarted(node, _led(node, groups), restart, told, seconds))
            except asyncio.CancelledError:
                told(f"{node}: given up; if it is in maintenance still, `needle maintenance exit {node}` ends that")
                raise
        return done

    async def _restarted(
        self, node: NodeId, leads: tuple[str, ...], restart: Doing, told: Callable[[str], None], seconds: float
    ) -> Restart:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        left = _Countdown(begun + seconds)
        before = await self._who(node)
        told(f"{node}: others take over {', '.join(leads) or 'nothing'}")
        since = await maintain(self._caller, self._shards, node, True, left())
        if not since:
            raise InvalidArgument(f"another command has {node} in maintenance by now: maybe a restart", field="nodes")
        address = (await self._alone(node, since, told, left)).addresses()[node]
        told(f"{node}: restart")
        await _told_to_restart(restart, node, address, left())
        await self._until(lambda: self._anew(node, before), left, f"{node} was not seen to start again")
        told(f"{node}: runs, and catches up")
        await self._until(lambda: self._out(node, left), left, f"{node} is still in maintenance")
        await self._until(lambda: self._whole(node), left, f"{node} does not have everything again")
        took = loop.time() - begun
        told(f"{node}: done after {took:.1f} s")
        return Restart(node=node, address=address, leads=leads, seconds=took)

    async def _alone(self, node: NodeId, since: int, told: Callable[[str], None], left: _Countdown) -> Topology:
        """The catalog, once only this node is in maintenance. Of several that began at the same time the one whose node
        was first goes on: the catalog's order is the same for all, so the others give theirs up, and it waits until
        they have. since: of this node's maintenance. Raises InvalidArgument for all but that one."""
        patience, said = _Countdown(asyncio.get_running_loop().time() + YIELD_SECONDS), False
        while True:
            now = await self._shards.confirmed(left())
            others = {info.id: info.maintenance for info in now.nodes if info.maintenance}
            if others.pop(node, 0) != since:
                raise InvalidArgument(f"somebody ended the maintenance of {node}: it is not restarted", field="nodes")
            if not others:
                return now
            if min(others.values()) < since or patience.over():
                await maintain(self._caller, self._shards, node, False, left())
                raise InvalidArgument(f"{node} is not restarted, and back: {_resting(now, (node,))}", field="nodes")
            if not said:
                told(
                    f"{node}: waits until {', '.join(others)} is out of maintenance, which another command began later"
                )
                said = True
            await asyncio.sleep(LOOK_SECONDS)

    async def _may_go(self, node: NodeId, seconds: float) -> None:
        """Wait until the cluster can do without a node. Raises Unavailable, InvalidArgument."""
        left = _Countdown(asyncio.get_running_loop().time() + seconds)
        while True:
            now = await self._shards.confirmed(left())
            if why := _resting(now, ()):
                raise InvalidArgument(why, field="nodes")
            groups = await self._groups(now, [node], left())
            why = await self._silent(node) or why_not(node, groups, now)
            if not why:
                return
            if not left.over():
                await asyncio.sleep(LOOK_SECONDS)
                continue
            raise Unavailable(f"{node} is not restarted: {why}", node=node)

    async def _who(self, node: NodeId) -> WhoAnswer:
        return await self._shards.describe(await address_of(self._shards, node), ASK_SECONDS)

    async def _silent(self, node: NodeId) -> str:
        try:
            who = await self._who(node)
        except NeedleError as error:
            return f"it does not answer: {error.message}"
        return who.lost

    async def _until(self, look: Callable[[], Awaitable[str]], left: _Countdown, what: str) -> None:
        """Look until nothing is said any more. Raises DeadlineExceeded with what was said last."""
        while why := await look():
            if left.over():
                raise DeadlineExceeded(f"{what} in time: {why}. It stays as it is, and no other node is restarted")
            await asyncio.sleep(LOOK_SECONDS)

    async def _anew(self, node: NodeId, before: WhoAnswer) -> str:
        try:
            now = await self._who(node)
        except NeedleError as error:
            return error.message
        if now.incarnation != before.incarnation:
            return "another data directory answers under its name"
        if before.life and now.life == before.life:
            return "the same process answers still"
        return now.lost

    async def _out(self, node: NodeId, left: _Countdown) -> str:
        try:
            await maintain(self._caller, self._shards, node, False, left())
        except Unavailable as error:
            return error.message
        return ""

    async def _whole(self, node: NodeId) -> str:
        """What a node still lacks, by the word of those that lead its groups."""
        try:
            now = await self._shards.confirmed(ASK_SECONDS)
        except NeedleError as error:  # another node may have died meanwhile, which led the catalog
            if not error.retryable:
                raise
            return f"the catalog does not say who holds what: {error.message}"
        for group, status in (await self._groups(now, [node], ASK_SECONDS)).items():
            if status is None:
                return f"{group_name(group)} has no leader that answers"
            if node in status.voters and node not in able(status):
                return f"it lacks a part of {group_name(group)}"
        return ""

    async def _groups(
        self, now: Topology, nodes: Collection[NodeId], seconds: float
    ) -> dict[GroupId, RaftStatus | None]:
        return await leaders_say(self._shards, held_by(now, nodes), seconds)


async def _told_to_restart(restart: Doing, node: NodeId, address: str, seconds: float) -> None:
    """Raises DeadlineExceeded if that does not end."""
    try:
        async with asyncio.timeout(seconds) as limit:
            if asyncio.iscoroutinefunction(restart):
                doing: object = restart(node, address)
            else:  # also a lambda or an object whose call gives what is to be awaited
                doing = await asyncio.to_thread(restart, node, address)
            if inspect.isawaitable(doing):
                await doing
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(
            f"what restarts {node} has not ended in time; {node} is in maintenance, and no other node is restarted"
        ) from None


class _Countdown:
    """The seconds left until a deadline; never 0, for who calls with it."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __call__(self) -> float:
        return max(ASK_SECONDS, self._deadline - asyncio.get_running_loop().time())

    def over(self) -> bool:
        return asyncio.get_running_loop().time() >= self._deadline


# --- what follows from what is so; pure ------------------------------------------------------------------------------
def in_order(nodes: Sequence[NodeId], groups: Mapping[GroupId, RaftStatus | None]) -> list[NodeId]:
    """Those that lead least first, the catalog's leader last: leadership moves as seldom as possible."""

    def key(node: NodeId) -> tuple[bool, int, NodeId]:
        led = [group for group, status in groups.items() if status is not None and status.node_id == node]
        return CATALOG_GROUP in led, len(led), node

    return sorted(nodes, key=key)


def _wanted(now: Topology, nodes: Iterable[NodeId] | None) -> list[NodeId]:
    known = now.addresses()
    if nodes is None:
        return list(known)
    wanted = list(dict.fromkeys(values.check_ids(nodes, "nodes", "a list of ids of nodes")))
    strange = [str(node) for node in wanted if node not in known]
    if strange:
        raise invalid("nodes", ", ".join(strange), f"nodes of this cluster: {', '.join(known)}")
    return wanted


def _nobody(text: str) -> None:
    """Is told."""


def _led(node: NodeId, groups: Mapping[GroupId, RaftStatus | None]) -> tuple[str, ...]:
    return tuple(group_name(group) for group, of in groups.items() if of is not None and of.node_id == node)


def _resting(now: Topology, but: Collection[NodeId]) -> str:
    """Why nobody may begin: other nodes are in maintenance; "" if none is."""
    resting = [info.id for info in now.nodes if info.maintenance and info.id not in but]
    if not resting:
        return ""
    are = "are" if len(resting) > 1 else "is"
    return f"{', '.join(resting)} {are} in maintenance: `needle maintenance exit` first, or wait for who restarts it"
