"""Cursors, and pages of several shards as one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import ClusterTooOld, InvalidArgument
from needle.base.filters.ordering import START, Key, ScanOrder
from needle.client import cursor as cursors
from needle.client import values
from needle.client.cursor import Place
from needle.client.router.merge import merge_pages, merged_pages
from needle.client.scanning import Batch, Scan, SyncScan
from needle.client.scanning import Place as Progress
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch, ScanAnswer

PLACE = Place("docs", b'{"a": 1}', (0, 1), "doc-17")


def test_a_cursor_leads_to_its_place() -> None:
    assert cursors.decode(cursors.encode(PLACE), msgspec.structs.replace(PLACE, after="")) == PLACE


@pytest.mark.parametrize("wrong", ["", "x", "é", 7, b"x", cursors.encode(PLACE)[:-1], cursors.encode(PLACE) + "A"])
def test_what_is_no_cursor_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match=r"cursor = .* is none"):
        cursors.decode(wrong, PLACE)


@pytest.mark.parametrize("other", [{"collection": "k"}, {"filter": b"{}"}, {"slice": (0, 2)}, {"order_by": "a"}])
def test_a_cursor_of_another_scan_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=r"cursor = .* is of a scan"):
        cursors.decode(cursors.encode(PLACE), msgspec.structs.replace(PLACE, **other))


@pytest.mark.parametrize("key", [(0, 2**63), (0, -0.5), (0, float("-inf")), (1, b"a\xff"), (2, 1), (3, None)])
def test_a_cursor_of_an_ordered_scan_leads_behind_its_key(key: Key) -> None:
    place = msgspec.structs.replace(PLACE, order_by="a.b", key=key)
    found = cursors.decode(cursors.encode(place), msgspec.structs.replace(place, after="", key=START))
    assert found == place and found.order is not None and found.order.known()
    with pytest.raises(InvalidArgument, match="order"):
        cursors.decode(cursors.encode(place), msgspec.structs.replace(place, order_by="a"))


@pytest.mark.parametrize("wrong", ["$id", "a..b", "", 5])
def test_what_is_no_field_to_order_by_is_refused_by_that_name(wrong: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        values.order_by(wrong, False)
    assert caught.value.details["field"] == "order_by" and "Filter.ids" not in caught.value.message


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


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), unique=True, max_size=20), min_size=1, max_size=4
    ),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_pages_in_the_order_of_a_field_lose_and_repeat_nothing(
    shards: list[list[tuple[int, int]]], limit: int, seed: int, descending: bool
) -> None:
    sign = -1 if descending else 1  # ids ascend either way
    rng, held = random.Random(seed), [sorted((sign * key, f"d{n:02}") for key, n in shard) for shard in shards]
    seen: list[tuple[Key, str]] = []
    at: tuple[Key, str] | None = (START, "")
    while at is not None:
        pages = []
        for shard in held:
            left = [(key, name) for key, name in shard if at[0] == START or (key, name) > (sign * at[0][1], at[1])]
            shown = [((0, sign * key), name) for key, name in left[: rng.randint(1, limit)]]
            last = shown[-1] if len(shown) < len(left) else (None, None)
            names = [name for _, name in shown]
            batch = DocumentBatch(names, [1] * len(names), [b""] * len(names), b"", 5)
            pages.append(ScanAnswer(batch, last[1], keys=[key for key, _ in shown], key=last[0]))
        found = merge_pages(pages, limit, descending=descending)
        assert at[0] == START or found.documents.ids or found.reached is None, "it goes on forever"
        assert len(seen) <= sum(map(len, held)), "it gives documents twice"
        assert len(found.keys) == len(found.documents.ids) < limit + len(shards)
        seen += zip(found.keys, found.documents.ids, strict=True)
        at = None if found.reached is None or found.key is None else (found.key, found.reached)
    assert seen == [((0, sign * key), name) for key, name in sorted(one for shard in held for one in shard)]


def test_a_page_of_a_node_that_knows_no_order_is_not_taken_for_ordered() -> None:
    batch = DocumentBatch(["a"], [1], [b""], b"", 5)
    with pytest.raises(ClusterTooOld, match="order of a field"):
        merged_pages({0: calls.encode(ScanAnswer(batch, None))}, 5, ScanOrder("n"))
    with pytest.raises(ClusterTooOld):
        merged_pages({0: calls.encode(ScanAnswer(batch, "a", keys=[(0, 1)]))}, 5, ScanOrder("n"))
    assert merged_pages({0: calls.encode(ScanAnswer(batch, None))}, 5, None)[1].documents == batch


@pytest.mark.parametrize(
    ("limit", "asked", "ended"), [(5, [5, 2], ["c6"]), (3, [3], ["c3"]), (9, [9, 6, 3], []), (None, [None] * 3, [])]
)
def test_a_scan_with_a_limit_reads_no_more_and_gives_back_what_is_kept(
    limit: int | None, asked: list[int | None], ended: list[str]
) -> None:
    """Pages hold three documents here, whatever is asked for: one may hold more than that."""
    wanted, ends = list[int | None](), list[str]()

    def read_now(cursor: str | None, most: int | None) -> Batch:
        first = 0 if cursor is None else int(cursor[1:])
        wanted.append(most)
        ids = [f"d{at}" for at in range(first, first + 3)]
        return Batch(DocumentBatch(ids, [1] * 3, [b"{}"] * 3, b"", 1), f"c{first + 3}" if first < 6 else None)

    async def read(cursor: str | None, most: int | None) -> Batch:
        return read_now(cursor, most)

    async def end(cursor: str) -> None:
        ends.append(cursor)

    async def whole() -> list[str]:
        scan = Scan(read, None, with_vectors=False, most=limit, end=end)
        found = [document.id async for document in scan]
        await scan.aclose()
        return found

    expected = [f"d{at}" for at in range(9)][:limit]
    assert asyncio.run(whole()) == expected
    assert (wanted, ends) == (asked, ended)
    assert [one.id for one in SyncScan(read_now, Progress(None, False, limit), ends.append)] == expected
    assert (wanted, ends) == (asked * 2, ended * 2)
    table = SyncScan(read_now, Progress(None, False, limit), ends.append).to_arrow()
    assert table.column("id").to_pylist() == expected
    assert (wanted, ends) == (asked * 3, ended * 3)
