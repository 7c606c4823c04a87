"""Changes and deletes by ids over all shards: each is asked about those that it may have.

Invariant: a shard that has done its part is not asked again, however ranges move meanwhile; a part that no longer has
one owner was done by nobody, and is spread again. What is sure to be refused is refused before any shard has written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from needle.base.dtypes import VectorForm
from needle.base.errors import NeedleError, VersionMismatch, invalid
from needle.base.filters.builder import Filter, conditions
from needle.base.model import WriteResult
from needle.client.router.batch_plan import DEFAULTS, doubtful
from needle.client.router.by_filter import Write
from needle.client.router.deletion import Deletion, Part
from needle.client.router.packing import unsayable
from needle.client.router.routes import Scattered
from needle.protocol.commands import JUDGED_MAX, JUDGEMENTS_MAX, Delete, Spread, UpdateVectors
from needle.routing.topology import Ownership


def doubtful_ids(command: Spread, form: VectorForm | None) -> set[str]:
    """Ids of documents that a shard may refuse for themselves. form: of the collection, if it is known. Raises
    InvalidArgument for what one shard would refuse if it had all documents: of several, those with few of them would do
    their part."""
    count = len(command.ids)
    if (command.matches or not isinstance(command, Delete)) and count > JUDGED_MAX:
        raise invalid("ids", f"{count} ids", f"at most {JUDGED_MAX} in a write that is judged by what is stored")
    if command.matches and (size := conditions(Filter.from_json(command.matches))) * count > JUDGEMENTS_MAX:
        allowed = f"a filter whose conditions, times the ids, are {JUDGEMENTS_MAX} at most"
        raise invalid("if_matches", f"{size} conditions for {count} ids", allowed)
    rows = memoryview(command.vectors if isinstance(command, UpdateVectors) else b"")
    odd = {*doubtful(command.ids, rows, (), DEFAULTS), *unsayable(rows, len(command.ids), form)}
    return {command.ids[at] for at in odd}


async def spread_by_ids(
    deletion: Deletion,
    command: Spread,
    collection: str,
    timeout: float,
    ownership: Callable[[], Ownership],
    write: Write,
    odd: set[str],
    documents_max: int,
) -> WriteResult:
    """Have every shard do its part of what is done to `command.ids`. collection: by its name inside the shards. odd,
    documents_max: a shard may refuse these, and more than so many. It is asked first."""
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
    parts = deletion.begin(collection, now)
    first = [part for part in parts if len(part.names) > documents_max or not odd.isdisjoint(part.names)]
    await asyncio.gather(*map(one, first))
    rest = [part for part in parts if part not in first] if first else parts
    if deletion.refused:  # what the others would do is not wanted alone
        deletion.left.extend(rest)
    else:
        await asyncio.gather(*map(one, rest))
    result = deletion.result()
    if apart and not result.count:  # no shard has it
        raise VersionMismatch(f"document {name!r} has version 0, not {expected}", id=name[:80], actual=0)
    return result
