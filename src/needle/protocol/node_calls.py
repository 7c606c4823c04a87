"""A read of several shards of one node in one call (docs/adr/0096, docs/adr/0123).

| method | takes | answers |
|---|---|---|
| search_shards | SearchShardsCall | SearchShardsAnswer |
| read_shards | ReadShardsCall | ReadShardsAnswer |

Invariant: the answer says of each shard that was asked, in that order, either on which ranges it was read, and of a
search at which index, or why it was not; and of each hit whose it is. A node of a release before answers UnknownMethod.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from needle.base.errors import Detail, NeedleError, from_wire, invalid
from needle.base.ids import GroupId
from needle.base.model import HitBatch, SearchRequest
from needle.protocol.calls import CountCall, FacetCall, Freshness, GetCall, Ids, SearchCall

SEARCH_SHARDS: Final = "search_shards"
READ_SHARDS: Final = "read_shards"
SHARDS_MAX: Final = 256
"""Of one call."""


class AskedShard(msgspec.Struct, frozen=True, array_like=True):
    """min_index: as in Freshness, of this shard."""

    group: GroupId
    min_index: int = 0


class SearchShardsCall(msgspec.Struct, frozen=True, array_like=True):
    """epoch: of the caller's map, by which it chose the shards. freshness: of each, but for `min_index`. count: 0 for a
    SearchCall of each shard, otherwise a SearchManyCall of so many vectors."""

    shards: Annotated[list[AskedShard], msgspec.Meta(min_length=1, max_length=SHARDS_MAX)]
    request: SearchRequest
    freshness: Freshness
    epoch: int
    count: int = 0


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """A shard's error, as errors travel."""

    code: str
    message: str
    details: dict[str, Detail]

    @staticmethod
    def of(error: NeedleError) -> Refused:
        """What an error is as it travels."""
        return Refused(error.code, error.message, error.details)

    def error(self) -> NeedleError:
        """As it was raised on the node."""
        details = {name: value for name, value in self.details.items() if name not in ("self", "message")}
        return from_wire(self.code, self.message, details)


class SearchedShard(msgspec.Struct, frozen=True, array_like=True):
    """fingerprint: as in ShardAnswer. applied_index: at which it was searched, of several searches the least. refused:
    why it was not; then the others say nothing."""

    fingerprint: int = 0
    applied_index: int = 0
    refused: Refused | None = None


class SearchShardsAnswer(msgspec.Struct, frozen=True, array_like=True):
    """epoch: of the map that all shards answered by. shards: in the order in which they were asked. body: NodeHits."""

    epoch: int
    shards: list[SearchedShard]
    body: memoryview


class NodeHits(msgspec.Struct, frozen=True, array_like=True):
    """batches: of each vector, the k nearest of all shards that answered. places: of each batch the shard of each hit,
    by its place in the call."""

    batches: list[HitBatch]
    places: list[list[int]]


OfShard = GetCall | CountCall | FacetCall | SearchCall
"""What each shard of a ReadShardsCall is asked."""


class ReadShardsCall(msgspec.Struct, frozen=True, array_like=True):
    """epoch, freshness: as of SearchShardsCall. get, count, facet, search: one of these, which is what each shard is
    asked; its own group, freshness and epoch count for nothing. ids: of a get, those of each shard."""

    shards: Annotated[list[AskedShard], msgspec.Meta(min_length=1, max_length=SHARDS_MAX)]
    freshness: Freshness
    epoch: int
    get: GetCall | None = None
    count: CountCall | None = None
    facet: FacetCall | None = None
    search: SearchCall | None = None
    ids: Annotated[list[Ids], msgspec.Meta(max_length=SHARDS_MAX)] = []


def asked_of_each(call: ReadShardsCall) -> tuple[str, OfShard]:
    """The method, which is also the name of the field, and what each shard is asked by it. Raises InvalidArgument."""
    there = [(name, one) for name in ("get", "count", "facet", "search") if (one := getattr(call, name)) is not None]
    if len(there) != 1:
        raise invalid("body", [name for name, _ in there], "one of get, count, facet, search")
    return there[0]


class ReadShard(msgspec.Struct, frozen=True, array_like=True):
    """fingerprint: as in ShardAnswer. body: what the shard answers. refused: why it does not. Neither of them: there is
    no room for it in this answer, and it has to be asked alone."""

    fingerprint: int = 0
    body: memoryview | None = None
    refused: Refused | None = None


class ReadShardsAnswer(msgspec.Struct, frozen=True, array_like=True):
    """epoch: of the map that all shards answered by. shards: in the order in which they were asked."""

    epoch: int
    shards: list[ReadShard]
