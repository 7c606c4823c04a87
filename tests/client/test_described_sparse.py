"""What is told of sparse vectors' indexes where shards say no sizes, as to an API key for some documents only."""

from __future__ import annotations

from needle.base.collection_sizes import CollectionSize, FieldIndex
from needle.client.document_calls import Held
from needle.client.naming import _sparse_fields


def test_what_no_shard_says_is_not_told_and_not_building() -> None:
    said = Held(3, CollectionSize(fields={}))
    assert _sparse_fields(("s",), {0: Held(3, None), 1: Held(2, None)}) == {"s": FieldIndex(state="not_told")}
    assert _sparse_fields(("s",), {0: said, 1: Held(2, None)}) == {"s": FieldIndex(state="building")}
    assert _sparse_fields((), {0: Held(3, None)}) == {}
