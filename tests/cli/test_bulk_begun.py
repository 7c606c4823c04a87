"""What a bulk load is refused with for what the shards already have of its collection."""

from __future__ import annotations

from typing import Any

import pytest

from catalog.catalog_util import topology
from needle.base.errors import InvalidArgument
from needle.base.ids import shard_group
from needle.base.model import CollectionSpec
from needle.cli.bulk.loading import begun_of
from needle.protocol import calls
from needle.protocol.bulk_calls import BulkBeginAnswer
from needle.routing.topology import CollectionInfo

SPEC = CollectionSpec(name="books", dimensions=1)


class Shards:
    """Behind a client: what the leader of each says."""

    def __init__(self, *said: BulkBeginAnswer) -> None:
        self._said = {shard_group(shard): one for shard, one in enumerate(said)}

    @property
    def _shards(self) -> Shards:
        return self

    def group(self, shard: int) -> Shards:
        return Shards(self._said[shard_group(shard)])

    async def ask_leader(self, *_: Any) -> bytes:
        return calls.encode(self._said[shard_group(0)])


def held(documents: int, loaded: str = "") -> BulkBeginAnswer:
    return BulkBeginAnswer(1, SPEC, 0, documents, documents > 0, loaded, 100, 0)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            [held(3, "a" * 32), held(3, "b" * 32), held(1)],
            "shards 0, 1 took their part of a load .* nothing is left to",
        ),
        ([held(0), held(2), held(0)], r"was written to in shard 1 \(2 documents\)"),
    ],
)
async def test_what_came_with_a_range_of_keys_is_not_taken_for_what_somebody_wrote(
    said: list[BulkBeginAnswer], why: str
) -> None:
    """A load that had ended, run again after its shard was split, told to load into another collection."""
    now = topology(shards=3)
    with pytest.raises(InvalidArgument, match=why):
        await begun_of(Shards(*said), CollectionInfo(id=1, spec=SPEC), now, 1.0)  # type: ignore[arg-type]
