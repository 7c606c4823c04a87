"""What collections and named vectors are called inside the shards: none is taken for another."""

from __future__ import annotations

import pytest

from needle.base.config import Limits
from needle.base.errors import InvalidArgument
from needle.base.model import VectorSpec
from needle.routing.collection_names import (
    OF,
    called,
    collection_of,
    dropped_as,
    readable,
    stored_vector,
    vector_called,
    vector_id,
)
from needle.shard.apply.spec_validation import check_name, check_spec

AWKWARD = ["docs", "team@2/docs", "docs@12/title", "a/b", "@", "1@1/1@1", "x@1"]


@pytest.mark.parametrize("name", AWKWARD)
def test_a_collection_that_looks_like_a_vector_is_dropped_as_what_it_is(name: str) -> None:
    """One called `team@2/docs` stayed in the shards for good once it was dropped."""
    assert dropped_as(f"{name}@40") == 40 and called(f"{name}@40") == name
    stored = stored_vector(f"{name}@40", "title", 1280)
    assert dropped_as(stored) == -1280 and called(stored) == f"{name}/title"
    assert collection_of(stored) == f"{name}@40" and vector_called(stored) == "title"


def test_no_collection_has_the_stored_name_of_a_vector() -> None:
    stored, collection = stored_vector("docs@12", "title", vector_id(12, 0)), "docs@12/title@384"
    assert readable(stored) == collection != stored
    with pytest.raises(InvalidArgument):
        check_name("collection", f"docs@12{OF}title")
    check_spec(VectorSpec(dimensions=2).stored_as(stored, "docs@12"), Limits())
