"""What a change feed asks of the shards: a few calls in the values of the wire. The router makes them
(router/feeding.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from needle.protocol.change_calls import LIMIT_MAX, ChangesAnswer, Near, Position
from needle.routing.topology import Topology


class Begun(NamedTuple):
    """stored: the collection's name inside the shards. ends: by shard, where its changes end; all of one map. vectors:
    the names inside the shards of the named ones that were asked for."""

    stored: str
    collection_id: int
    ends: dict[int, Position]
    vectors: tuple[str, ...] = ()


class Asked(NamedTuple):
    """Of one shard. past: as in ChangesCall. applied: by a replica that has applied this entry. limit: changes.
    filter, near, named: as in ChangesCall."""

    stored: str
    shard: int
    position: Position
    with_vectors: bool
    wait: float
    past: int = 0
    applied: int = 0
    limit: int = LIMIT_MAX
    filter: bytes = b""
    near: Near | None = None
    named: tuple[str, ...] = ()


class FeedCalls(Protocol):
    """Of one cluster. Safe to call concurrently on one event loop."""

    @property
    def topology(self) -> Topology:
        """The newest known here."""
        ...

    async def renewed(self, timeout: float) -> Topology:
        """As the catalog confirms it."""
        ...

    async def look(self, timeout: float) -> Topology:
        """A newer topology, if a node tells of one in time."""
        ...

    async def begin(self, collection: str, timeout: float, vectors: Sequence[str] = ()) -> Begun:
        """Where the changes of all shards end. No move of a range is half before that and half behind: all shards own
        there what one map says. vectors: named ones. Raises CollectionNotFound; InvalidArgument for a vector that there
        is not."""
        ...

    async def ends(self, stored: str, timeout: float) -> dict[int, Position]:
        """By shard; see `begin`."""
        ...

    async def page(self, asked: Asked, timeout: float) -> ChangesAnswer | None:
        """The next changes of a shard; None if no replica knows all of them any more. Raises the last error of a
        replica if none answers in time; CollectionNotFound, for a named vector too."""
        ...

    async def released(self, stored: str, shard: int, position: Position, move: int, timeout: float) -> int | None:
        """The entry behind `position` by which a move took ranges away from a shard, 0 if none did; None if no replica
        knows. It sees all that was committed before the call."""
        ...
