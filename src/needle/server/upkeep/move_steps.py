"""How the driver of a move of key ranges tells the two shards and the catalog its steps (`move_commands.STEPS`).

Invariant: a command goes only to whose log it is for while the catalog has the move in that state. It must not know
what comes after what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from needle.base.errors import Internal, Unavailable, VersionMismatch
from needle.base.ids import GroupId, NodeId, shard_group
from needle.base.model import WriteResult
from needle.base.runtime import micros_of
from needle.multiraft.host import Host
from needle.protocol import calls, commands
from needle.protocol.catalog_commands import CatalogCommand
from needle.protocol.move_commands import STEPS, MoveCommand, PrepareMove, Side
from needle.protocol.peer_calls import MOVE, MoveAnswer, MoveCall
from needle.routing.topology import MoveInfo, Topology
from needle.server.beats import Beats
from needle.server.ports import Catalog, NodePorts
from needle.server.replica import HostedReplica
from needle.shard.apply.holdings import Transfer
from needle.shard.state_machine import Replica

STEP_SECONDS = 5.0
AT_ONCE = 8
"""So many commands are on their way to a target: a move of which much was deleted has hundreds."""
T = TypeVar("T")
S = TypeVar("S")


class Groups(Catalog, Protocol):
    """The way to other shards and to the catalog."""

    def group(self, shard: int) -> Any: ...
    async def sync(self, shard: int, version: int, timeout: float, *, by_log: bool = False) -> None: ...


class MovingNode(Protocol):
    """The node whose shards are moved."""

    node_id: NodeId
    host: Host
    topology: Topology
    groups: dict[GroupId, HostedReplica]
    ports: NodePorts
    beats: Beats

    def now(self) -> float: ...
    @property
    def shards(self) -> Groups: ...
    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]: ...
    async def confirmed(self, timeout: float) -> Topology: ...


class MoveSteps:
    """See the module."""

    def __init__(self, node: MovingNode) -> None:
        self._node = node

    def prepare(self, info: MoveInfo, shard: int) -> PrepareMove:
        """Has one of the two shards take part. Raises Unavailable while this node knows no map."""
        shard_map = self._node.topology.map
        if shard_map is None:
            raise Unavailable("the shard map is not known yet")
        oldest = min(other.id for other in (*self._node.topology.moves, info))
        return PrepareMove(
            info.id,
            oldest,
            shard == info.target,
            list(info.ranges),
            shard_map.ranges(shard),
            shard_map.strategy,
            shard_map.shard_count,
        )

    def replica(self, info: MoveInfo) -> Replica:
        """The source's, on this node. It may be given up between any two steps: not to be kept. Raises Unavailable."""
        hosted = self._node.groups.get(shard_group(info.source))
        if hosted is None:
            raise Unavailable(f"shard {info.source} has no replica on node {self._node.node_id} any more")
        return hosted.replica

    def source(self, info: MoveInfo) -> Transfer | None:
        """Where the source's log is with the move, as far as this node has applied it. Raises as `replica`."""
        fence = self.replica(info).fence
        return fence.holdings.transfer(info.id) if fence is not None else None

    async def propose(self, info: MoveInfo, command: MoveCommand) -> WriteResult:
        """To the source, which this node leads."""
        _check_step(info, Side.SOURCE, command)
        data = commands.entry(command, self._node.topology, micros_of(self._node.ports.clock))
        group = shard_group(info.source)
        result: WriteResult = await self._node.host.propose(group, data, STEP_SECONDS)
        return result

    async def tell_target(self, info: MoveInfo, command: MoveCommand) -> MoveAnswer:
        """To the target's leader; where its log is with the move."""
        _check_step(info, Side.TARGET, command)
        group, data = shard_group(info.target), commands.encode(command)  # its leader proposes it

        def body(seconds: float) -> bytes:
            return calls.encode(MoveCall(group, info.id, data, seconds))

        answer = await self._node.shards.group(info.target).ask_leader(MOVE, body, STEP_SECONDS)
        return calls.decode(answer, MoveAnswer)

    async def tell_target_all(self, info: MoveInfo, told: Sequence[MoveCommand]) -> None:
        """Commands of which the log refuses each (VersionMismatch) before it has the one before: several are sent at
        once, and those again that were faster than the one before."""
        for first in range(0, len(told), AT_ONCE):
            some = told[first : first + AT_ONCE]
            answers = await asyncio.gather(*(self.tell_target(info, one) for one in some), return_exceptions=True)
            for one, answer in zip(some, answers, strict=True):
                if isinstance(answer, VersionMismatch):
                    await self.tell_target(info, one)
                elif isinstance(answer, BaseException):
                    raise answer

    async def tell_catalog(self, command: CatalogCommand) -> None:
        """Returns once it is executed."""
        await self._node.shards.command(command, STEP_SECONDS)


def _check_step(info: MoveInfo, side: Side, command: MoveCommand) -> None:
    if (side, type(command)) not in STEPS[info.state]:
        raise Internal(f"move {info.id} is {info.state}: a {type(command).__name__} is not for its {side}")


async def side_by_side(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, S]) -> tuple[T, S]:
    """What both return. The first error of either is raised, once the other one has ended, too."""
    tasks = asyncio.ensure_future(one), asyncio.ensure_future(other)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
