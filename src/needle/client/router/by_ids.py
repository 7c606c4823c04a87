"""Changes and deletes by ids over all shards: each is asked about those that it may have.

Invariant: a shard that has done its part is not asked again, however ranges move meanwhile; a part that no longer has
one owner was done by nobody, and is spread again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from needle.base.errors import NeedleError, VersionMismatch, invalid
from needle.base.model import WriteResult
from needle.client.router.by_filter import Write
from needle.client.router.deletion import Deletion, Part
from needle.client.router.routes import Scattered
from needle.protocol.commands import Spread
from needle.routing.topology import Ownership


async def spread_by_ids(
    deletion: Deletion,
    command: Spread,
    collection: str,
    timeout: float,
    ownership: Callable[[], Ownership],
    write: Write,
) -> WriteResult:
    """Have every shard do its part of what is done to `command.ids`. collection: by its name inside the shards."""
    deadline = asyncio.get_running_loop().time() + timeout

    async def one(part: Part) -> None:
        owned: Ownership

        def owner() -> int:
            nonlocal owned
            owned = ownership()
            if part.spread(owned) != [part]:
                raise Scattered
            return part.shard

        left = max(0.001, deadline - asyncio.get_running_loop().time())
        try:
            owned = ownership()  # raises once the alias has another meaning
            deletion.done(await write(owner, lambda session: part.command(owned, command, collection, session), left))
        except Scattered:  # the shard has refused it
            await asyncio.gather(*map(one, part.spread(owned)))
        except NeedleError as error:
            deletion.failed(part, error)

    now, expected, name = ownership(), command.expected, command.ids[0]
    apart = expected is not None and now.map.strategy.kind == "custom"
    if apart and len(command.ids) > 1:
        raise invalid("if_version", expected, "for one document, as no shard can judge several under this strategy")
    await asyncio.gather(*map(one, deletion.begin(collection, now)))
    result = deletion.result()
    if apart and not result.count:  # no shard has it
        raise VersionMismatch(f"document {name!r} has version 0, not {expected}", id=name[:80], actual=0)
    return result
