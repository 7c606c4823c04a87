"""A search of several shards of one node in one call (docs/adr/0096).

| method | takes | answers |
|---|---|---|
| search_shards | SearchShardsCall | SearchShardsAnswer |

Invariant: the answer says of each shard that was asked, in that order, either on which ranges and at which index it was
searched, or why it was not; and of each hit whose it is. A node of a release before answers UnknownMethod.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from needle.base.errors import Detail, NeedleError, from_wire
from needle.base.ids import GroupId
from needle.base.model import HitBatch, SearchRequest
from needle.protocol.calls import Freshness

SEARCH_SHARDS: Final = "search_shards"
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
