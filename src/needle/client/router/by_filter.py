"""Changes and deletes by a filter over all shards: which shard is asked about which ranges of keys.

Invariant: no range is judged twice, and none is left out, however ranges move meanwhile: what a shard has refused
because it moved is asked of whoever owns it then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from needle.base.errors import NeedleError
from needle.base.model import WriteResult
from needle.client.where import MakePart, Moved, WhereWork
from needle.protocol.commands import Command, Session
from needle.routing.ranges import contains, intersection, union
from needle.routing.shard_map import KeyRange
from needle.routing.topology import Ownership

Write = Callable[[Callable[[], int], Callable[[Session], Command], float], Awaitable[WriteResult]]
"""Writes to the shard that the first names at each attempt what the second makes, within seconds."""


async def change_in_shards(
    work: WhereWork, collection: str, timeout: float, ownership: Callable[[], Ownership], write: Write
) -> WriteResult:
    """Have every shard do its part. collection: by its name inside the shards. Raises as `WhereWork.result`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout

    async def one(shard: int, ranges: list[KeyRange]) -> None:
        try:
            await work.run(parts(shard, ranges, ownership()))
        except Moved:  # the shard has refused it
            work.left.extend(ranges)
        except NeedleError as error:  # the alias has another meaning by now
            work.fail(error)

    def parts(shard: int, ranges: list[KeyRange], owned: Ownership) -> Callable[[MakePart], Awaitable[WriteResult]]:
        def owner() -> int:
            nonlocal owned
            owned = ownership()
            if not contains(owned.ranges(shard), ranges):
                raise Moved
            return shard

        async def part(make: MakePart) -> WriteResult:
            def command(session: Session) -> Command:
                if owned.ranges(shard) == ranges:  # as nearly always, and much shorter
                    return make(collection, session, owned.fingerprint(shard), [])
                return make(collection, session, 0, ranges)

            return await write(owner, command, max(0.001, deadline - loop.time()))

        return part

    work.begin(collection)
    now = ownership()
    shares = [(shard, now.ranges(shard)) for shard in now.owners]
    while True:
        await asyncio.gather(*(one(shard, list(ranges)) for shard, ranges in shares if ranges))
        left, work.left = union(work.left), []
        if work.failed or not left:
            return work.result()
        try:
            now = ownership()
        except NeedleError as error:
            work.fail(error)
            return work.result()
        shares = [(shard, intersection(now.ranges(shard), left)) for shard in now.owners]
