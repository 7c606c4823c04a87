"""Drives the moves of key ranges whose source this node leads: copy, freeze, hand over, switch the map, clean up.

Everything a move needs is in the catalog and in the two shards' logs, so any later leader of the source goes on where
this one stops; two drivers at once disturb each other, but nothing else: imports are numbered, and the order

    source: Freeze - rest of the copy - source: Release - target: Own - catalog: the map's next epoch - source: Forget

is kept by every driver, as each step begins after the one before it is committed (`move_commands.STEPS`). See
docs/adr/0010. It must not know clients.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pyroaring import BitMap

from needle.base.errors import AlreadyExists, CollectionNotFound, Internal, NeedleError, Unavailable
from needle.base.ids import GroupId, NodeId, shard_group
from needle.base.model import WriteResult
from needle.multiraft.host import Host
from needle.protocol import calls, commands
from needle.protocol.catalog_commands import AdvanceMove, CatalogCommand, FinishMove
from needle.protocol.move_commands import (
    STEPS,
    Forget,
    Freeze,
    Import,
    Mark,
    MoveCommand,
    Own,
    PrepareMove,
    Release,
    Side,
)
from needle.protocol.peer_calls import MOVE, MoveAnswer, MoveCall
from needle.routing.topology import MoveInfo, MoveState, Topology, public_name
from needle.server.replica import HostedReplica
from needle.server.upkeep.lasting import next_beat
from needle.shard.apply import copying
from needle.shard.apply.holdings import OVER
from needle.shard.documents.records import StoredDocument

log = logging.getLogger("needle.server")

PAUSE_SECONDS = 0.2
STEP_SECONDS = 5.0
ROUNDS_MAX = 8
BYTES_MAX = 512 << 10
HELD_SECONDS = 2.0
"""Between two attempts of a move that waits for somebody: each is an entry in the target's log."""
MARKS = 16
"""Marking looks at ids only: so many times more in one step."""


class Groups(Protocol):
    """The way to other shards and to the catalog (client.shards.ClusterShards)."""

    def group(self, shard: int) -> Any: ...
    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult: ...
    async def sync(self, shard: int, version: int, timeout: float) -> None: ...


class MovingNode(Protocol):
    """The node whose shards are moved."""

    node_id: NodeId
    host: Host
    topology: Topology
    groups: dict[GroupId, HostedReplica]

    def now(self) -> float: ...
    @property
    def shards(self) -> Groups: ...
    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]: ...
    async def confirmed(self, timeout: float) -> Topology: ...


@dataclass
class _Copy:
    """How far one driver's copy is. step, cursors: as in holdings.Transfer. known: dead ordinals it has looked at.
    group: the source's. documents: that this driver has copied."""

    group: GroupId
    step: int
    cursors: dict[str, int]
    known: dict[str, BitMap] = field(default_factory=dict)
    documents: int = 0


@dataclass(frozen=True)
class _Held:
    """A move that waits for somebody to do something. group: the source's. again: when to try, by the loop's time."""

    group: GroupId
    why: str
    again: float


class Mover:
    """See the module."""

    def __init__(self, node: MovingNode, rows_max: int) -> None:
        """rows_max: documents looked at in one step; copied at once if a move does not say how many."""
        self._node = node
        self._rows_max = rows_max
        self._copies: dict[int, _Copy] = {}
        """By move, of those that this node drives or drove."""
        self._held: dict[int, _Held] = {}
        """By move, of those that this node drives."""
        self._tried: dict[int, float] = {}
        """By move: when it was looked at last, by the loop's time."""

    def held(self, group: GroupId) -> list[str]:
        """Why moves of what this node's shard `group` owns wait for somebody to do something."""
        return [held.why for held in self._held.values() if held.group == group]

    def copied(self, group: GroupId) -> dict[int, int]:
        """Documents copied by moves of what this node's shard `group` owns, by move, since this node drives them."""
        return {move: copy.documents for move, copy in self._copies.items() if copy.group == group}

    async def run(self) -> None:
        """Until the node stops: one move after the other."""
        node = self._node
        while not node.host.stopped:
            moves = node.topology.moves
            self._copies = {info.id: copy for info in moves if (copy := self._copies.get(info.id)) is not None}
            self._held = {info.id: self._held[info.id] for info in moves if info.id in self._held}
            self._tried = {info.id: self._tried[info.id] for info in moves if info.id in self._tried}
            for info in sorted(moves, key=_unhurried):
                held = self._held.get(info.id)
                if held is None or asyncio.get_running_loop().time() >= held.again:
                    await self._drive(info)
            await next_beat(node.now(), PAUSE_SECONDS)

    async def _drive(self, info: MoveInfo) -> None:
        """From one state to the next, as long as that works and this node leads the source."""
        node, group = self._node, shard_group(info.source)
        now: MoveInfo | None = info
        self._tried[info.id] = asyncio.get_running_loop().time()
        if group not in node.groups or not node.host.is_leader(group):
            self._held.pop(info.id, None)
        while now is not None and group in node.groups and node.host.is_leader(group):
            try:
                await self._advance(now)
            except AlreadyExists as error:  # under custom routing: see docs/sharding.md, "Which strategy"
                where = public_name(str(error.details.get("collection")))
                why = f"move {info.id} to shard {info.target} ({now.state}), collection {where!r}: {error.message}"
                known = self._held.get(info.id)
                if known is None or known.why != why:
                    log.error("shard %d: %s", info.source, why)
                self._held[info.id] = _Held(group, why, asyncio.get_running_loop().time() + HELD_SECONDS)
                return
            except NeedleError as error:
                log.info("move %d (%s) does not advance: %s", info.id, now.state, error)
                return
            self._held.pop(info.id, None)
            now = node.topology.move(info.id)
            log.info("move %d of shard %d to %d is %s", info.id, info.source, info.target, now.state if now else "done")

    async def _advance(self, info: MoveInfo) -> None:
        if info.state is MoveState.COPYING:
            copy, _ = await self._prepare(info)
            for _ in range(ROUNDS_MAX):
                copied = await self._copy(info, copy, self._node.topology)
                await self._mark(info, copy)
                if copied <= self._rows_max:
                    break
            await self._tell_catalog(AdvanceMove(info.id, MoveState.FREEZING))
        elif info.state is MoveState.FREEZING:
            await self._hand_over(info)
        else:
            while (await self._propose(info, Forget(info.id, self._rows_max))).count:
                pass
            await self._tell_catalog(FinishMove(info.id))

    # --- the steps ---------------------------------------------------------------------------------------------------
    async def _prepare(self, info: MoveInfo) -> tuple[_Copy, MoveAnswer]:
        """Have both shards take part; where the target is with it."""
        shard_map = self._node.topology.map
        if shard_map is None:
            raise Unavailable("the shard map is not known yet")
        oldest = min(other.id for other in (*self._node.topology.moves, info))

        def command(shard: int) -> PrepareMove:
            return PrepareMove(
                info.id,
                oldest,
                shard == info.target,
                list(info.ranges),
                shard_map.ranges(shard),
                shard_map.strategy,
                shard_map.shard_count,
            )

        await self._propose(info, command(info.source))
        target = await self._tell_target(info, command(info.target))
        copy = self._copies.get(info.id)
        if copy is None or copy.step != target.step:  # otherwise nobody has imported anything since
            copy = self._copies[info.id] = _Copy(shard_group(info.source), target.step, dict(target.cursors))
        return copy, target

    async def _hand_over(self, info: MoveInfo) -> None:
        copy, target = await self._prepare(info)
        if target.phase != OVER:
            floor = (await self._propose(info, Freeze(info.id))).version
            # Whatever has documents of these ranges was created before they froze.
            topology = await self._node.confirmed(STEP_SECONDS)
            await self._copy(info, copy, topology)
            await self._propose(info, Release(info.id))
            target = await self._tell_target(info, Own(info.id, copy.step, floor))
        released = (await self._propose(info, Release(info.id))).index
        await self._tell_catalog(AdvanceMove(info.id, MoveState.SWITCHED, released, target.at))

    async def _copy(self, info: MoveInfo, copy: _Copy, topology: Topology) -> int:
        """All that the target does not have yet; how many documents that were."""
        replica = self._node.groups[shard_group(info.source)].replica
        here = {spec.name for spec in replica.collections()}
        copied, refused = 0, None
        for name in sorted(one.stored_name for one in topology.collections):
            if name in here:
                try:
                    copied += await self._copy_collection(info, copy, name)
                except AlreadyExists as error:
                    refused = refused or error
                except CollectionNotFound:  # the target does not have it yet, or it is being dropped
                    await self._node.shards.sync(info.target, topology.version, STEP_SECONDS)
                    raise
        if refused is not None:
            raise refused
        return copied

    async def _mark(self, info: MoveInfo, copy: _Copy) -> None:
        """Have the source know what it will have to hide, while it is in no hurry."""
        fence = self._node.groups[shard_group(info.source)].replica.fence
        transfer = fence.holdings.transfer(info.id) if fence is not None else None
        if transfer is None:
            return
        for name, upto in copy.cursors.items():
            at = transfer.cursors.get(name, -1)
            while at < upto:
                at = min(upto, at + MARKS * self._rows_max)
                try:
                    await self._propose(info, Mark(info.id, name, at))
                except CollectionNotFound:
                    break  # dropped meanwhile

    async def _copy_collection(self, info: MoveInfo, copy: _Copy, name: str) -> int:
        replica, blocking = self._node.groups[shard_group(info.source)].replica, self._node.blocking
        rows_max = info.batch_size or self._rows_max
        copied, more, refused, end = 0, True, None, copying.last_ordinal(replica.view, name)
        # What is written meanwhile is for the next round: who writes faster than this copies must not hold it up.
        while more and (after := copy.cursors.get(name, -1)) < end:
            rows, cursor, more = await blocking(copying.page, replica.view, name, info.ranges, after, rows_max)
            try:
                for part in _parts(rows):
                    await self._import(info, copy, name, part, [])
                    copy.cursors[name] = part[-1].ordinal
            except AlreadyExists as error:
                refused = error  # the deletes go on: the target does not take any of what it has a copy of
                break
            copy.cursors[name] = cursor
            copied += len(rows)
            copy.documents += len(rows)
            if more and info.state is MoveState.COPYING:
                await self._rest(info.throttle_rate)
        known = copy.known.get(name, BitMap())
        deleted, known = await blocking(
            copying.deleted, replica.view, name, info.ranges, copy.cursors.get(name, -1), known
        )
        for first in range(0, len(deleted), self._rows_max):
            await self._import(info, copy, name, [], deleted[first : first + self._rows_max])
        copy.known[name] = known
        if refused is not None:
            raise refused
        return copied + len(deleted)

    async def _rest(self, seconds: float) -> None:
        """Between two batches of a copy. Raises Unavailable as soon as another move has frozen its ranges, which this
        node has to go on with: their writes wait. What is copied is known when this one goes on."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            node, now = self._node, loop.time()
            for other in node.topology.moves:
                if _unhurried(other) or other.id in self._held or now - self._tried.get(other.id, 0.0) < HELD_SECONDS:
                    continue
                if node.host.is_leader(shard_group(other.source)):
                    raise Unavailable(f"move {other.id} goes first: its ranges are frozen")
            if now >= until:
                return
            await asyncio.sleep(min(until - now, HELD_SECONDS))

    async def _import(
        self, info: MoveInfo, copy: _Copy, name: str, rows: Sequence[StoredDocument], deleted: list[str]
    ) -> None:
        command = Import(
            info.id,
            copy.step,
            name,
            rows[-1].ordinal if rows else copy.cursors.get(name, -1),
            [row.id for row in rows],
            [row.version for row in rows],
            b"".join(row.vector for row in rows),
            [row.metadata for row in rows],
            deleted,
            whole=True,
        )
        await self._tell_target(info, command)
        copy.step += 1

    # --- the ways ----------------------------------------------------------------------------------------------------
    async def _propose(self, info: MoveInfo, command: MoveCommand) -> WriteResult:
        """To the source, which this node leads."""
        _check_step(info, Side.SOURCE, command)
        data, group = commands.encode(command), shard_group(info.source)
        result: WriteResult = await self._node.host.propose(group, data, STEP_SECONDS)
        return result

    async def _tell_target(self, info: MoveInfo, command: MoveCommand) -> MoveAnswer:
        _check_step(info, Side.TARGET, command)
        group, data = shard_group(info.target), commands.encode(command)

        def body(seconds: float) -> bytes:
            return calls.encode(MoveCall(group, info.id, data, seconds))

        answer = await self._node.shards.group(info.target).ask_leader(MOVE, body, STEP_SECONDS)
        return calls.decode(answer, MoveAnswer)

    async def _tell_catalog(self, command: CatalogCommand) -> None:
        await self._node.shards.command(command, STEP_SECONDS)


def _unhurried(info: MoveInfo) -> bool:
    """Whether no writes wait for a move."""
    return info.state is not MoveState.FREEZING


def _check_step(info: MoveInfo, side: Side, command: MoveCommand) -> None:
    if (side, type(command)) not in STEPS[info.state]:
        raise Internal(f"move {info.id} is {info.state}: a {type(command).__name__} is not for its {side}")


def _parts(rows: Sequence[StoredDocument]) -> Iterator[list[StoredDocument]]:
    """Pieces of bounded size."""
    part: list[StoredDocument] = []
    size = 0
    for row in rows:
        weight = len(row.vector) + len(row.metadata) + len(row.id)
        if part and size + weight > BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(row)
        size += weight
    if part:
        yield part
