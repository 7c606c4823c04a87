"""Cursors, and pages of several shards as one."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import InvalidArgument
from needle.client import cursor as cursors
from needle.client.cursor import Place
from needle.client.router.merge import merge_pages
from needle.protocol.calls import DocumentBatch, ScanAnswer

PLACE = Place("docs", b'{"a": 1}', (0, 1), "doc-17")


def test_a_cursor_leads_to_its_place() -> None:
    assert cursors.decode(cursors.encode(PLACE), msgspec.structs.replace(PLACE, after="")) == PLACE


@pytest.mark.parametrize("wrong", ["", "x", "é", 7, b"x", cursors.encode(PLACE)[:-1], cursors.encode(PLACE) + "A"])
def test_what_is_no_cursor_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match=r"cursor = .* is none"):
        cursors.decode(wrong, PLACE)


@pytest.mark.parametrize("other", [{"collection": "k"}, {"filter": b"{}"}, {"slice": (0, 2)}])
def test_a_cursor_of_another_scan_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=r"cursor = .* is of a scan"):
        cursors.decode(cursors.encode(PLACE), msgspec.structs.replace(PLACE, **other))


def page(shard: list[str], after: str, limit: int, rng: random.Random) -> ScanAnswer:
    """As a shard answers, which may look at fewer than `limit`."""
    ids = [name for name in sorted(shard) if name > after]
    shown = ids[: rng.randint(1, limit)]
    reached = shown[-1] if len(shown) < len(ids) else None
    rows = [name.encode() * 4 for name in shown]
    return ScanAnswer(DocumentBatch(shown, [1] * len(shown), rows, b"".join(row[:4] for row in rows), 5), reached)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), unique=True, max_size=20), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 2**32),
)
def test_pages_of_shards_lose_and_repeat_nothing(shards: list[list[int]], limit: int, seed: int) -> None:
    """Also where shards have documents of one id, as under custom routing."""
    rng, held = random.Random(seed), [[f"d{n:02}" for n in shard] for shard in shards]
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        found = merge_pages([page(shard, after, limit, rng) for shard in held], limit)
        documents = found.documents
        assert len(documents.ids) < limit + len(shards)
        assert documents.metadata == [name.encode() * 4 for name in documents.ids]
        assert documents.vectors == b"".join(name.encode() + name.encode()[:1] for name in documents.ids)
        seen += documents.ids
        after = found.reached
    assert seen == sorted(name for shard in held for name in shard)
