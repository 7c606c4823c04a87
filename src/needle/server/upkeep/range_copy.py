"""Copies the documents of a move of key ranges to its target: page by page, then what was deleted meanwhile, then what
is remembered of requests with idempotency keys.

Imports are numbered (`holdings.Transfer.step`), so what another driver does meanwhile is noticed, and this one begins
where the target says that it is. Memory: one page. It must not know when the ranges freeze.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import msgspec

from needle.base.dtypes import DType
from needle.base.errors import AlreadyExists, CollectionNotFound, Unavailable
from needle.base.ids import GroupId, shard_group
from needle.protocol.calls import expiries
from needle.protocol.move_commands import Import, ImportRequests, Mark, MoveCommand
from needle.protocol.named import Named
from needle.protocol.peer_calls import MoveAnswer
from needle.routing.topology import MoveInfo, MoveState, Topology, public_name
from needle.server.upkeep.copy_turn import CopyTurn
from needle.server.upkeep.move_steps import STEP_SECONDS, MoveSteps, MovingNode
from needle.shard import copying
from needle.shard.copying import Looked, Rest
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.state_machine import Replica

BYTES_MAX = 512 << 10
MARKS = 16
"""Marking looks at ids only: so many times more in one step."""

Requests = tuple[list[bytes], int]
"""As of `OnceTable.rows_after`."""


@dataclass
class Copy:
    """How far one driver's copy is. step, cursors: as in holdings.Transfer. known: where it has looked for deletes.
    seen: collections as they were when all of them was copied. group: the source's. documents: that this driver has
    copied. requests: number of the last one that it has."""

    group: GroupId
    step: int
    cursors: dict[str, int]
    known: dict[str, Looked] = field(default_factory=dict)
    seen: dict[str, CollectionRecord] = field(default_factory=dict)
    documents: int = 0
    requests: int = -1


class RangeCopier:
    """See the module."""

    def __init__(
        self,
        node: MovingNode,
        steps: MoveSteps,
        rows_max: int,
        turn: CopyTurn,
        rest: Callable[[MoveInfo, float], Awaitable[object]],
    ) -> None:
        """turn: taken for each step while nothing is frozen. rest: waits so many seconds between two pages, and for
        longer while the move is paused; raises if the move is not to go on."""
        self._node = node
        self._steps = steps
        self._rows_max = rows_max
        self._turn = turn
        self._rest = rest
        self.copies: dict[int, Copy] = {}
        """By move, of those that this node drives or drove."""

    def reached(self, info: MoveInfo, target: MoveAnswer) -> Copy:
        """How far the copy is, now that the target has said where it is."""
        copy = self.copies.get(info.id)
        if copy is None or copy.step != target.step:  # otherwise nobody has imported anything since
            copy = self.copies[info.id] = Copy(shard_group(info.source), target.step, dict(target.cursors))
        return copy

    async def copy(self, info: MoveInfo, copy: Copy, topology: Topology) -> int:
        """All that the target does not have yet, while the source takes writes; how many documents that were."""
        here = self._steps.replica(info).view.collections
        copied, refused = 0, None
        for name in sorted(one.stored_name for one in topology.collections):
            if name in here and copy.seen.get(name) != here[name].record:
                await self._rest(info, 0.0)
                try:
                    copied += await self._copy_collection(info, copy, name)
                except AlreadyExists as error:
                    refused = refused or error
                except CollectionNotFound:
                    await self._sync(info, topology)
                    raise
        if refused is not None:
            raise refused
        await self._copy_requests(info, copy)
        return copied

    async def rest(self, info: MoveInfo, copy: Copy, topology: Topology, then: Callable[[int], MoveCommand]) -> None:
        """All that the target does not have yet of ranges that take no writes, and what is to follow it, once so many
        imports are applied. What one look finds is sent at once, for writes wait meanwhile."""
        names = sorted(one.stored_name for one in topology.collections)
        more = True
        try:
            while more:
                # Not behind searches: writes wait for this look, as they do for the threads that apply.
                look = partial(self._look_at_rest, info, copy, names)
                found, requests, more = await self._node.ports.apply_pool.run(look)
                found = [replace(one, rows=await listed(self._node, one.name, one.rows)) for one in found]
                told: list[MoveCommand] = list(_of_rest(info, copy, found, requests, self._rows_max))
                await self._steps.tell_target_all(info, told if more else [*told, then(copy.step)])
        except BaseException as error:
            self.copies.pop(info.id, None)  # it is ahead of the target
            if isinstance(error, CollectionNotFound):
                await self._sync(info, topology)
            raise

    def _look_at_rest(self, info: MoveInfo, copy: Copy, names: list[str]) -> tuple[list[Rest], Requests, bool]:
        """One look for all: each waits for a thread."""
        replica = self._source(info)
        found, more = replica.look(
            copying.rest, names, info.ranges, copy.seen, copy.cursors, copy.known, self._rows_max
        )
        requests, last = replica.sessions.once.rows_after(copy.requests, BYTES_MAX)
        return found, (requests, last), more or sum(map(len, requests)) >= BYTES_MAX

    async def _sync(self, info: MoveInfo, topology: Topology) -> None:
        """The target does not have a collection yet, or it is being dropped."""
        await self._node.shards.sync(info.target, topology.version, STEP_SECONDS)

    async def _copy_requests(self, info: MoveInfo, copy: Copy) -> None:
        """All of the shard's: which ranges they were about is not kept. The target leaves out those that it has. What
        is executed meanwhile is for the next round, or for the rest: on slow cores there is always some."""
        end = self._source(info).sessions.once.last
        while True:
            await self._rest(info, 0.0)
            known = self._source(info).sessions.once
            async with self._step(info):
                rows, last = await self._node.blocking(known.rows_after, copy.requests, BYTES_MAX)
                if not rows or copy.requests >= end:
                    return
                await self._steps.tell_target(info, ImportRequests(info.id, copy.step, rows))
                copy.step += 1
                copy.requests = last

    async def mark(self, info: MoveInfo, copy: Copy) -> None:
        """Have the source know what it will have to hide, while it is in no hurry."""
        transfer = self._steps.source(info)
        if transfer is None:
            return
        for name, upto in copy.cursors.items():
            at = transfer.cursors.get(name, -1)
            while at < upto:
                at = min(upto, at + MARKS * self._rows_max)
                try:
                    async with self._step(info):
                        await self._steps.propose(info, Mark(info.id, name, at))
                except CollectionNotFound:
                    break  # dropped meanwhile

    async def _copy_collection(self, info: MoveInfo, copy: Copy, name: str) -> int:
        record, rows_max = copying.record(self._steps.replica(info).view, name), self._rows_max
        end = record.next_ordinal - 1
        copied, more, refused, left = 0, True, None, info.batch_size
        # What is written meanwhile is for the next round: who writes faster than this copies must not hold it up.
        while more and (after := copy.cursors.get(name, -1)) < end:
            try:
                async with self._step(info):
                    rows, more = await self._copy_page(info, copy, name, after, min(left or rows_max, rows_max))
            except AlreadyExists as error:
                refused = error  # the deletes go on: the target does not take any of what it has a copy of
                break
            copied += rows
            left -= min(left, rows_max)
            if more and info.state is MoveState.COPYING:
                await self._rest(info, 0.0 if left else info.throttle_rate)
                left = left or info.batch_size
        await self._rest(info, 0.0)
        known = copy.known.get(name)
        upto = copy.cursors.get(name, -1)
        deleted, known = await self._look(info, copying.deleted, name, info.ranges, upto, known)
        for first in range(0, len(deleted), self._rows_max):
            async with self._step(info):
                await self._import(info, copy, name, [], deleted[first : first + self._rows_max])
        copy.known[name] = known
        if refused is not None:
            raise refused
        copy.seen[name] = record
        return copied + len(deleted)

    def _step(self, info: MoveInfo) -> AbstractAsyncContextManager[None]:
        """Around each step: those of frozen ranges wait for no others."""
        return self._turn.batch() if info.state is MoveState.COPYING else nullcontext()

    async def _copy_page(self, info: MoveInfo, copy: Copy, name: str, after: int, rows_max: int) -> tuple[int, bool]:
        """The next documents; how many, and whether there may be more."""
        rows, cursor, more = await self._look(info, copying.page, name, info.ranges, after, rows_max)
        for part in _parts(await listed(self._node, name, rows)):
            await self._import(info, copy, name, part, [])
            copy.cursors[name] = part[-1].ordinal
        copy.cursors[name] = cursor
        copy.documents += len(rows)
        return len(rows), more

    def _source(self, info: MoveInfo) -> Replica:
        """The source as it is now. Raises Unavailable once this node leads it no more."""
        replica = self._steps.replica(info)
        if not self._node.host.is_leader(shard_group(info.source)):
            raise Unavailable(f"node {self._node.node_id} does not lead shard {info.source} any more")
        return replica

    async def _look(self, info: MoveInfo, at: Callable[..., Any], *arguments: object) -> Any:
        """At the source as it is now, in a thread."""
        return await self._node.blocking(self._source(info).look, at, *arguments)

    async def _import(
        self, info: MoveInfo, copy: Copy, name: str, rows: Sequence[StoredDocument], deleted: list[str]
    ) -> None:
        cursor = rows[-1].ordinal if rows else copy.cursors.get(name, -1)
        await self._steps.tell_target(info, _command(info, copy.step, name, cursor, rows, deleted))
        copy.step += 1


def _of_rest(
    info: MoveInfo, copy: Copy, found: Sequence[Rest], requests: Requests, rows_max: int
) -> Iterator[Import | ImportRequests]:
    """The imports of what was found. `copy` is behind each of them once it is sent."""
    for one in found:
        gone = [one.deleted[at : at + rows_max] for at in range(0, len(one.deleted), rows_max)]
        # Rows and what was deleted are of one state, so no id is in both, and one import may have some of each.
        for part, ids in zip_longest(_parts(one.rows), gone):
            cursor = part[-1].ordinal if part else one.cursor
            yield _command(info, copy.step, one.name, cursor, part or [], ids or [])
            copy.step += 1
        copy.cursors[one.name] = one.cursor
        copy.documents += len(one.rows)
        if one.known is not None:
            copy.known[one.name], copy.seen[one.name] = one.known, one.record
    rows, copy.requests = requests
    if rows:
        yield ImportRequests(info.id, copy.step, rows)
        copy.step += 1


async def listed(node: MovingNode, collection: str, rows: list[StoredDocument]) -> list[StoredDocument]:
    """Documents of a collection without vectors of which the catalog knows nothing, as the source may hold some after
    a restore of the catalog: no target has them or will, so a move with them would never end. collection: by its name
    in the shard. Of a vector that this node has not heard of yet the catalog is asked, after the rows were read:
    without it the document would count as copied."""
    here = {name for row in rows for name, _, _ in row.named}
    if here <= _vectors_of(node.topology, collection):
        return rows
    known = _vectors_of(await node.confirmed(STEP_SECONDS), collection)
    if here <= known:
        return rows
    return [msgspec.structs.replace(row, named=tuple(one for one in row.named if one[0] in known)) for row in rows]


def _vectors_of(topology: Topology, collection: str) -> set[str]:
    """By their names in the shard."""
    info = topology.named(public_name(collection))
    return (
        set() if info is None or info.stored_name != collection else {info.stored_vector(one) for one in info.vectors}
    )


def _named_of(rows: Sequence[StoredDocument]) -> list[Named]:
    """The named vectors of documents, as a command has them."""
    found: dict[tuple[str, DType], tuple[list[int], list[bytes]]] = {}
    for at, row in enumerate(rows):
        for name, vector, dtype in row.named:
            places, block = found.setdefault((name, dtype), ([], []))
            places.append(at)
            block.append(vector)
    return [Named(name, places, b"".join(block), dtype) for (name, dtype), (places, block) in sorted(found.items())]


def _command(
    info: MoveInfo, step: int, name: str, cursor: int, rows: Sequence[StoredDocument], deleted: list[str]
) -> Import:
    return Import(
        info.id,
        step,
        name,
        cursor,
        [row.id for row in rows],
        [row.version for row in rows],
        b"".join(row.vector for row in rows),
        [row.metadata for row in rows],
        deleted,
        whole=True,
        expires=expiries([row.expires for row in rows]),
        named=_named_of(rows),
    )


def _parts(rows: Sequence[StoredDocument]) -> Iterator[list[StoredDocument]]:
    """Pieces of bounded size."""
    part: list[StoredDocument] = []
    size = 0
    for row in rows:
        weight = len(row.vector) + len(row.metadata) + len(row.id) + sum(len(one[1]) for one in row.named)
        if part and size + weight > BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(row)
        size += weight
    if part:
        yield part
