"""Which shards a request concerns: by the keys of its documents, by the name of its collection. A part of the router.

It reaches shards and catalog through `Shards` only, and asks no shard anything.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, Self, TypeVar

import msgspec

from needle.base.decoding import routed_metadata
from needle.base.dtypes import DType, VectorForm
from needle.base.errors import CollectionNotFound, DeadlineExceeded, NeedleError, in_seconds
from needle.base.model import ReadMode, SearchRequest, WriteResult
from needle.base.runtime import Blocking, beside
from needle.base.text import TextField
from needle.client.meaning import Meaning, meant, switched
from needle.client.router.fan_out import FanOut, ShardGroup
from needle.protocol import catalog_commands
from needle.protocol.bounds import bound_command
from needle.protocol.calls import Freshness
from needle.protocol.commands import JUDGED_MAX, Bound, Command, Session
from needle.protocol.named import Named
from needle.protocol.peer_calls import IndexRoom
from needle.routing.stored_collections import StoredCollections
from needle.routing.strategy import routing_key
from needle.routing.topology import CollectionInfo, Ownership, Topology, public_name, vector_called

BATCH_BYTES_MAX = 1 << 20
PAUSE_SECONDS = 0.02
EFFORT_BY_NODES = 5
"""Since this version nodes know the effort of searches that do not say any (base/versions.py)."""
LOOK_SECONDS = 0.1
BATCH_DOCUMENTS_MAX = 10_000
"""Documents of one entry."""
BESIDE_BYTES = 64 * 1024
"""What takes time by the byte is done in a thread from this size on."""
_FLOAT32 = DType.FLOAT32
"""By a name of its own, for every write asks for it: see raft.state.LEADER."""

T = TypeVar("T")


class Shards(Protocol):
    """How the router reaches shards and catalog: `client.shards` in a client and in a node, a fake in tests."""

    def group(self, shard: int) -> ShardGroup: ...
    def topology(self) -> Topology:
        """The newest topology known here."""
        ...

    async def refresh(self, version: int, timeout: float) -> Topology:
        """Ask nodes for a topology of at least `version`; the newest known when there is none in time."""
        ...

    async def confirmed(self, timeout: float) -> Topology:
        """A topology at least as new as all that was committed before the call. Raises when the catalog does not
        answer in time."""
        ...

    async def command(self, command: catalog_commands.CatalogCommand, timeout: float) -> WriteResult:
        """Execute a command of the catalog; on return `topology` is at least that new."""
        ...

    def nonce(self) -> int:
        """A random number that tells one command from others like it."""
        ...

    async def sync(self, shard: int, version: int, timeout: float, *, by_log: bool = False) -> None:
        """Have a shard's leader apply the catalog's collections as of `version`. by_log: and have the shard's log say
        that whoever leads it must know that version."""
        ...

    async def index_room(self, shard: int, collection: str, path: str, timeout: float, kind: str = "") -> IndexRoom:
        """What an index of a field would take on a shard's leader, and what there is for it. collection: its name
        inside the shards. kind: as in IndexRoomCall."""
        ...


def said_of(error: NeedleError, info: CollectionInfo) -> None:
    """Put a shard's error in the words of a caller, who knows the collection by its name and not by the one inside."""
    known = [(info.stored_vector(one), f"{info.spec.name}/{one.name}") for one in info.vectors]
    known += [(info.stored_name, info.spec.name), (info.stored_name[:80], info.spec.name[:80])]  # shortened
    for stored, name in known:
        error.message = error.message.replace(repr(stored), repr(name))
        if error.details.get("collection") == stored:
            error.details["collection"] = name
    error.args = (error.message,)


def in_callers_names(named: Sequence[Named]) -> list[Named]:
    """Named vectors by the names that callers know."""
    return [msgspec.structs.replace(one, vector=vector_called(one.vector)) for one in named]


def owner_of(owned: Ownership, name: str, metadata: bytes) -> int:
    """The shard that owns a document."""
    strategy = owned.map.strategy
    if owned.only is not None and strategy.kind != "custom":
        return owned.only
    decoded = routed_metadata(metadata) if strategy.kind == "custom" else None
    return owned.map.owner(routing_key(strategy, owned.map.shard_count, name, decoded))


class Scattered(Exception):
    """The documents of one part no longer have one owner: route them again."""


class Routes:
    """What one router knows of the shards. seen: the log index of each shard that its session has seen. fan_out: asks
    them. blocking: threads for what takes long by the byte."""

    def __init__(self, shards: Shards, *, batch_bytes_max: int, blocking: Blocking | None) -> None:
        self.shards = shards
        self.blocking = blocking
        self.seen: dict[int, int] = {}
        self._collections = StoredCollections()
        self.fan_out = FanOut(shards.group, shards.topology, shards.refresh)
        self._batch_bytes_max = batch_bytes_max
        self._bound: Bound | None = None

    # --- routing -----------------------------------------------------------------------------------------------------
    def owner(self, name: str, metadata: bytes) -> int:
        """The shard that owns a document."""
        return owner_of(self.fan_out.ownership(), name, metadata)

    def beside(self, size: int, fn: Callable[..., T], *arguments: object) -> Awaitable[T]:
        """Run what takes time by the byte, for `size` bytes: in a thread if they are many. It must not touch self's
        state."""
        return beside(self.blocking if size > BESIDE_BYTES else None, fn, *arguments)

    def in_session(self, seen: dict[int, int]) -> Self:
        """A copy with a session of its own, so this holds nothing that is bound to it."""
        other = copy.copy(self)
        other.seen = seen
        return other

    def bound_to(self, filter_json: bytes) -> Self:
        """A copy that works for an API key that is bound to a filter."""
        other = copy.copy(self)
        other._bound = Bound(filter_json)
        other.fan_out = self.fan_out.bound_to(other._bound)
        return other

    def binding(self, make: Callable[[Session], Command]) -> Callable[[Session], Command]:
        """The command of a write, for the key that this works for."""
        bound = self._bound
        return make if bound is None else lambda session: bound_command(make(session), bound)

    @property
    def part_max(self) -> tuple[int, int]:
        """Bytes and documents of one part of a batch. This process may work for a bound key, or have one itself."""
        bound = self._bound is not None or self.shards.topology().own_key is not None
        return self._batch_bytes_max, JUDGED_MAX if bound else BATCH_DOCUMENTS_MAX

    def saw(self, shard: int, index: int) -> None:
        """A shard answered as of this index of its log."""
        if index > self.seen.get(shard, 0):
            self.seen[shard] = index

    def fresh(self, mode: ReadMode, max_staleness: float, session: bool) -> Callable[[int], Freshness]:
        """How fresh each shard's answer must be. session: as new as what was seen of it."""
        return lambda shard: Freshness(mode, self.seen.get(shard, 0) if session else 0, max_staleness)

    def as_stored(self, request: SearchRequest, stored: str) -> SearchRequest:
        """For the shards. How accurate searches are that do not say it is the catalog's to say, and nodes ask theirs:
        this one may be old. Those of releases before version 5 do not, so it is said for them."""
        topology, ef_search = self.shards.topology(), request.ef_search
        if not ef_search and topology.cluster_version < EFFORT_BY_NODES:  # where no vector has a name yet
            info = self._collections.find(topology, stored)
            ef_search = 0 if info is None else info.spec.index.ef_search
        return msgspec.structs.replace(request, collection=stored, ef_search=ef_search)

    def text_of(self, stored: str) -> TextField | None:
        """By which text the documents of a collection are found with words, if any: the same as long as it is there."""
        info = self._collections.find(self.shards.topology(), stored)
        return None if info is None else info.spec.text

    def form(self, stored: str) -> VectorForm | None:
        """How the vectors of a collection are stored; None for float32, and where it is not known here."""
        info = self._collections.find(self.shards.topology(), stored)
        return None if info is None or info.spec.dtype is _FLOAT32 else info.spec.form

    async def vector(self, stored: str, name: str, timeout: float) -> str:
        """The name inside the shards of a named vector of a collection, "" for "". stored: the collection's there.
        Raises CollectionNotFound for a collection of before; InvalidArgument once the catalog confirms that it has no
        such vector."""
        if not name:
            return ""
        info, name_ = self._collections.find(self.shards.topology(), stored), name[:80]
        if info is None or all(one.name != name for one in info.vectors):
            info = (await self.shards.confirmed(timeout)).named(public_name(stored))
        if info is None or info.stored_name != stored:
            raise CollectionNotFound(f"there is no collection {public_name(stored)!r} with a vector {name_!r} any more")
        return info.stored_vector(info.vector(name))

    async def check_sparse(self, stored: str, name: str, timeout: float) -> None:
        """Raises CollectionNotFound for a collection of before; InvalidArgument once the catalog confirms that its
        documents have no such sparse vectors."""
        info = self._collections.find(self.shards.topology(), stored)
        if info is None or name not in info.sparse:
            info = (await self.shards.confirmed(timeout)).named(public_name(stored))
        if info is None or info.stored_name != stored:
            raise CollectionNotFound(f"there is no collection {public_name(stored)!r} with {name[:80]!r} any more")
        info.check_sparse(name)

    def sparse_of(self, stored: str) -> tuple[str, ...]:
        """The fields that are sparse vectors of a collection, as far as it is known here."""
        info = self._collections.find(self.shards.topology(), stored)
        return () if info is None else info.sparse

    async def vectors(self, stored: str, named: Sequence[Named], timeout: float) -> list[Named]:
        """With their names inside the shards."""
        return [msgspec.structs.replace(one, vector=await self.vector(stored, one.vector, timeout)) for one in named]

    def vector_forms(self, stored: str) -> dict[str, VectorForm]:
        """How the named vectors of a collection are stored, by their names inside the shards; of those known here."""
        info = self._collections.find(self.shards.topology(), stored)
        return {} if info is None else {name: spec.form for name, spec in info.stored_specs().items()}

    def known(self, collection: str) -> CollectionInfo | None:
        """A collection by its name, or an alias, if it is known here."""
        return self._collections.named(self.shards.topology(), collection)

    async def named(
        self, collection: str, timeout: float, run: Callable[[str, float], Awaitable[T]], tried: int = 0
    ) -> T:
        """Run with the collection's name inside the shards and the seconds left; again if it was dropped and made again
        meanwhile, or its alias got another meaning, or a shard does not have it yet. tried: the id of the one that a
        shard did not have, 0 for none. Raises CollectionNotFound once the catalog confirms it."""
        loop = asyncio.get_running_loop()
        deadline, left = loop.time() + timeout, timeout
        while True:
            info = self.known(collection)
            if info is None or info.id == tried:
                info = await self._looked_up(collection, tried, timeout, deadline)
                left = max(0.001, deadline - loop.time())
            tried = info.id
            alias = info.spec.name != collection
            meaning = Meaning(collection, info.id) if alias else None
            token = meant.set(meaning) if alias or meant.get() is not None else None
            try:
                return await run(info.stored_name, left)
            except CollectionNotFound:
                pass
            except NeedleError as error:
                if not alias or not switched(error) or loop.time() >= deadline:
                    said_of(error, info)
                    raise
                tried = 0
            finally:
                if token is not None:
                    meant.reset(token)
            left = max(0.001, deadline - loop.time())

    async def _looked_up(self, collection: str, tried: int, timeout: float, deadline: float) -> CollectionInfo:
        """One that is not known here, or whose shard did not have it, as nodes know it. tried: its id then, or 0."""
        loop, now = asyncio.get_running_loop(), self.shards.topology()
        info = now.collection(collection)
        if info is None:  # any node may know it, also while the catalog cannot confirm anything
            newer = await self.shards.refresh(now.version + 1, min(LOOK_SECONDS, timeout / 4))
            info = newer.collection(collection)
        if info is None or info.id == tried:
            confirmed = await self.shards.confirmed(max(0.001, deadline - loop.time()))
            info = confirmed.collection(collection)
        if info is None:
            raise CollectionNotFound(f"there is no collection {collection[:80]!r}", collection=collection[:80])
        if info.id == tried:
            if loop.time() >= deadline - PAUSE_SECONDS:
                named = f"collection {collection[:80]!r} of the catalog"
                raise DeadlineExceeded(f"a shard does not have {named} after {in_seconds(timeout)}")
            await asyncio.sleep(PAUSE_SECONDS)
        return info
