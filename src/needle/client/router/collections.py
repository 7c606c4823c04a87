"""Collections: made and dropped in the catalog, then in every shard.

Invariant: a drop is acknowledged only when every shard has confirmed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from needle.base.errors import CollectionNotFound, NeedleError, OutcomeUnknown, invalid
from needle.base.model import CollectionSpec, IndexParams, ReadMode, VectorChange, VectorSpec, WriteResult
from needle.base.sparse import SPARSE_KIND
from needle.client.router.routes import LOOK_SECONDS, Shards
from needle.protocol import catalog_commands
from needle.protocol.peer_calls import IndexRoom
from needle.protocol.vector_commands import AddVector, DeclareSparse, DropVector
from needle.protocol.versioned import check_known
from needle.routing.topology import CollectionInfo, Topology


async def listed(shards: Shards, mode: ReadMode, timeout: float) -> list[CollectionSpec]:
    """All collections, by name, as `described`."""
    return [info.spec for info in (await described(shards, mode, timeout))[0]]


async def described(shards: Shards, mode: ReadMode, timeout: float) -> tuple[list[CollectionInfo], dict[str, str]]:
    """All collections by name, and the collection of each alias, in the newest topology: that of the catalog's leader,
    or for eventual reads of any node that is asked."""
    if mode is ReadMode.EVENTUAL:
        now = await shards.refresh(shards.topology().version + 1, min(LOOK_SECONDS, timeout))
    else:
        now = await shards.confirmed(timeout)
    return list(now.collections), {alias.name: alias.collection for alias in now.aliases}


async def alter(
    shards: Shards,
    name: str,
    ef_search: int,
    ttl: float,
    timeout: float,
    index: IndexParams | None = None,
    vectors: Sequence[VectorChange] = (),
) -> WriteResult:
    """Change a collection: ef_search for all searches that begin once their client or node knows of it; ttl for all
    writes that begin after this has returned, for every shard's leader knows it then; index for all searches of a shard
    from where its log says that it has switched, and so those of named vectors. OutcomeUnknown if it is so in the
    catalog and a shard does not confirm that it knows. Raises CollectionNotFound."""
    deadline = asyncio.get_running_loop().time() + timeout
    found = (await shards.confirmed(timeout)).collection(name)
    if found is None:
        raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
    left = max(0.001, deadline - asyncio.get_running_loop().time())
    command = catalog_commands.AlterCollection(found.spec.name, found.id, ef_search, ttl, index, list(vectors))
    result = await shards.command(command, left)
    if ttl >= 0:
        silent = await _sync_all(shards, result.version, deadline, by_log=True)
        _confirmed(silent, f"collection {name[:80]!r} with ttl {ttl:g} s")
    return result


async def declare_sparse(
    shards: Shards, name: str, field: str, declared: bool, timeout: float, *, fits: bool = True
) -> WriteResult:
    """Have documents be found by the sparse vectors of a field of metadata, or not any more: once this returns, every
    shard's leader knows, and whoever leads it later. fits: but before, each is asked whether its leader has the memory
    for the index. OutcomeUnknown if one does not confirm it. Raises CollectionNotFound; InvalidArgument if one has not
    the memory, with nothing changed."""
    found, deadline = await _found(shards, name, timeout)
    command = DeclareSparse(found.spec.name, found.id, field, declared)
    now = shards.topology()
    check_known(command, now)
    if fits and declared and field not in found.sparse:
        await _check_fits(shards, now, found, field, deadline, SPARSE_KIND)
    result = await shards.command(command, max(0.001, deadline - asyncio.get_running_loop().time()))
    silent = await _sync_all(shards, result.version, deadline, by_log=True)
    how = "" if declared else "no "
    _confirmed(silent, f"collection {name[:80]!r} with {how}sparse vectors {field[:80]!r}")
    return result


async def declare_field(shards: Shards, name: str, path: str, declared: bool, timeout: float) -> WriteResult:
    """Have every replica keep an index of a field, or not any more. It is made in the background, so this waits for no
    shard; but before, each is asked whether its leader has the memory. Raises CollectionNotFound; InvalidArgument if
    one has not, with nothing changed."""
    deadline = asyncio.get_running_loop().time() + timeout
    now = await shards.confirmed(timeout)
    found = now.collection(name)
    if found is None:
        raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
    command = catalog_commands.DeclareField(found.spec.name, found.id, path, declared)
    check_known(command, now)  # before shards are asked what nodes of an older release do not know
    if declared and path not in found.fields:
        await _check_fits(shards, now, found, path, deadline)
    left = max(0.001, deadline - asyncio.get_running_loop().time())
    return await shards.command(command, left)


async def _check_fits(
    shards: Shards, now: Topology, found: CollectionInfo, path: str, deadline: float, kind: str = ""
) -> None:
    """Raises InvalidArgument if the leader of a shard has not the memory for an index. kind: as in IndexRoomCall."""
    left = max(0.001, deadline - asyncio.get_running_loop().time())
    serving = [info.shard for info in now.serving]
    rooms = await asyncio.gather(*(_room(shards, one, found, path, left, kind) for one in serving))
    for shard, room in zip(serving, rooms, strict=True):
        if room.needs > room.room:
            raise invalid(
                "field",
                path,
                f"a field whose index fits: in shard {shard} it would take about {room.needs:,} bytes, and "
                f"limits.field_index_bytes_max leaves {max(0, room.room):,} beside the other declared ones: raise "
                "that setting of the nodes, or drop another declared index",
            )


async def _room(shards: Shards, shard: int, found: CollectionInfo, path: str, timeout: float, kind: str) -> IndexRoom:
    try:
        return await shards.index_room(shard, found.stored_name, path, timeout, kind)
    except CollectionNotFound:  # it was away when that was made
        return IndexRoom(0, 0)


async def set_alias(shards: Shards, alias: str, collection: str, timeout: float) -> WriteResult:
    """Make `alias` another name of a collection. On return every shard's leader refuses who goes by what it meant
    before; OutcomeUnknown if it is so in the catalog and a shard does not confirm that it knows."""
    return await _renamed(shards, catalog_commands.SetAlias(alias, collection), timeout)


async def remove_alias(shards: Shards, alias: str, timeout: float) -> WriteResult:
    """There is no such alias any more. As `set_alias`."""
    return await _renamed(shards, catalog_commands.RemoveAlias(alias), timeout)


async def _renamed(
    shards: Shards, command: catalog_commands.SetAlias | catalog_commands.RemoveAlias, timeout: float
) -> WriteResult:
    deadline = asyncio.get_running_loop().time() + timeout
    result = await shards.command(command, timeout)
    silent = await _sync_all(shards, result.version, deadline, by_log=True)
    _confirmed(silent, f"alias {command.alias[:80]!r} as asked for")
    return result


def _confirmed(silent: dict[int, NeedleError], has: str) -> None:
    """Raises OutcomeUnknown unless every shard knows what the catalog has."""
    if silent:
        numbers, why = ", ".join(map(str, silent)), next(iter(silent.values())).message
        raise OutcomeUnknown(
            f"the catalog has {has}, but shards {numbers} did not confirm in time that they know; they will once they "
            f"can: {why}"
        )


async def create(
    shards: Shards,
    spec: CollectionSpec,
    if_absent: bool,
    timeout: float,
    fields: Sequence[str] = (),
    vectors: Sequence[tuple[str, VectorSpec]] = (),
    sparse: Sequence[str] = (),
) -> WriteResult:
    """Create a collection in the catalog, then in every shard that answers; others get it when they are back. fields:
    declared ones. That there is room for their indexes is not asked: they are empty, like the collection. vectors:
    named ones. sparse: fields of metadata that are sparse ones."""
    deadline = asyncio.get_running_loop().time() + timeout
    lists = list(fields), list(vectors), list(sparse)
    command = catalog_commands.CreateCollection(spec, if_absent, shards.nonce(), *lists)
    result = await shards.command(command, timeout)
    await _sync_all(shards, result.version, deadline, by_log=bool(sparse))  # shards' logs do not say which are sparse
    return result


async def add_vector(
    shards: Shards, name: str, vector: str, spec: VectorSpec, if_absent: bool, timeout: float
) -> WriteResult:
    """Let documents of a collection have a vector of this name. As `create`. Raises CollectionNotFound."""
    found, deadline = await _found(shards, name, timeout)
    command = AddVector(found.spec.name, found.id, vector, spec, if_absent)
    result = await shards.command(command, max(0.001, deadline - asyncio.get_running_loop().time()))
    await _sync_all(shards, result.version, deadline)
    return result


async def drop_vector(shards: Shards, name: str, vector: str, timeout: float) -> WriteResult:
    """Documents of a collection have no vector of this name any more. Raises as `drop`; InvalidArgument if there is no
    such vector."""
    found, deadline = await _found(shards, name, timeout)
    found.vector(vector)
    command = DropVector(found.spec.name, found.id, vector)
    result = await shards.command(command, max(0.001, deadline - asyncio.get_running_loop().time()))
    silent = await _sync_all(shards, result.version, deadline)
    _confirmed(silent, f"dropped vector {vector[:80]!r} of collection {name[:80]!r}")
    return result


async def _found(shards: Shards, name: str, timeout: float) -> tuple[CollectionInfo, float]:
    """The collection of a name, and until when there is time. Raises CollectionNotFound."""
    deadline = asyncio.get_running_loop().time() + timeout
    found = (await shards.confirmed(timeout)).collection(name)
    if found is None:
        raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
    return found, deadline


async def drop(shards: Shards, name: str, timeout: float) -> WriteResult:
    """Drop a collection and all its documents: once this returns, no shard takes or shows one of them any more.

    Raises OutcomeUnknown when the catalog has dropped it but not every shard confirmed that in time; they follow by
    themselves. Raises CollectionNotFound if there is none of that name, and no shard has one left.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    now = await shards.confirmed(timeout)
    if (alias := now.alias(name)) is not None:
        raise invalid("name", name, f"a collection, not an alias of {alias.collection!r}; `remove_alias` removes it")
    found = now.named(name)
    version = now.version
    if found is not None:
        left = max(0.001, deadline - asyncio.get_running_loop().time())
        version = (await shards.command(catalog_commands.DropCollection(name, found.id), left)).version
    silent = await _sync_all(shards, version, deadline)
    if silent:
        numbers, why = ", ".join(map(str, silent)), next(iter(silent.values())).message
        raise OutcomeUnknown(
            f"the catalog has no collection {name[:80]!r} any more, but shards {numbers} did not confirm in "
            f"time that they dropped it; they will once they can: {why}"
        )
    if found is None:
        raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
    return WriteResult(version=version, index=version, existed=True)


async def _sync_all(shards: Shards, version: int, deadline: float, *, by_log: bool = False) -> dict[int, NeedleError]:
    """Have all shards apply the catalog's collections as of `version`; those that could not now, and why. by_log: later
    leaders know it, too."""
    left = max(0.001, deadline - asyncio.get_running_loop().time())
    serving = [info.shard for info in shards.topology().serving]
    told = await asyncio.gather(
        *(shards.sync(s, version, left, by_log=by_log) for s in serving), return_exceptions=True
    )
    silent: dict[int, NeedleError] = {}
    for shard, outcome in zip(serving, told, strict=True):
        if isinstance(outcome, NeedleError):  # whatever it is: the catalog has done what was asked
            silent[shard] = outcome
        elif isinstance(outcome, BaseException):
            raise outcome
    return silent
