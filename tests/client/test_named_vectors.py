"""Named vectors through the client: made, written, filled in, found, read and dropped, of one node and of shards."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

import needle
from needle.base.errors import CollectionExists, InvalidArgument, VersionMismatch
from needle.base.model import Metric, VectorSpec
from needle.shard import reads

TITLE = VectorSpec(dimensions=2, metric=Metric.L2)
ROWS = np.random.default_rng(4).normal(size=(60, 3)).astype(np.float32)
NAMES = [f"d{at:02}" for at in range(60)]


@pytest.fixture
async def client() -> AsyncIterator[needle.Client]:
    async with needle.open(":memory:") as opened:
        yield opened


async def made(client: needle.Client) -> None:
    await client.create_collection("c", dimensions=3, metric="l2", vectors={"title": TITLE})


async def test_written_found_and_read(client: needle.Client) -> None:
    await made(client)
    await client.insert("a", [1, 0, 0], {"n": 1}, vectors={"title": [5, 5]}, collection="c")
    await client.insert("b", [0, 1, 0], {"n": 2}, collection="c")
    await client.insert("x", [0, 0, 1], {"n": 3}, vectors={"title": [1, 1]}, collection="c")
    hits = await client.search([0, 0], vector_name="title", collection="c", with_vectors=True)
    assert [hit.id for hit in hits] == ["x", "a"] and hits[0].vector.tolist() == [1, 1]
    assert [h.id for h in await client.search([0, 0], filter={"n": 1}, vector_name="title", collection="c")] == ["a"]
    assert [h.id for h in await client.search([0, 1, 0], k=1, collection="c")] == ["b"]
    alike = await client.search(like="a", k=5, vector_name="title", collection="c")
    assert [hit.id for hit in alike] == ["x"]
    many = await client.search_many([[0, 0], [9, 9]], 1, vector_name="title", collection="c")
    assert [[hit.id for hit in hits] for hits in many] == [["x"], ["a"]]
    document = await client.get("a", vectors=["title"], collection="c")
    assert document is not None and document.vectors is not None and document.vectors["title"].tolist() == [5, 5]
    without = await client.get("b", vectors=["title"], collection="c")
    assert without is not None and without.vectors == {} and without.vector.tolist() == [0, 1, 0]
    plain = await client.get("a", collection="c")
    assert plain is not None and plain.vectors is None
    scanned = {one.id: one.vectors async for one in client.scan(vectors=["title"], collection="c")}
    assert [name for name, vectors in scanned.items() if vectors] == ["a", "x"]
    told = await client.describe_collection("c")
    assert told.vectors == {"title": TITLE} and told.documents == 3


async def test_added_while_there_are_documents_filled_in_and_dropped(client: needle.Client) -> None:
    await client.create_collection("c", dimensions=3, metric="l2")
    await client.insert_batch(ids=NAMES, vectors=ROWS, collection="c")
    with pytest.raises(InvalidArgument, match="vector_name"):
        await client.search([0, 0], vector_name="title", collection="c")
    await client.add_vector("c", "title", TITLE)
    assert await client.search([0, 0], vector_name="title", collection="c") == []
    with pytest.raises(CollectionExists, match="c/title"):
        await client.add_vector("c", "title", TITLE)
    await client.add_vector("c", "title", TITLE, if_absent=True)
    versions = {one.id: one.version for one in await client.get(NAMES, collection="c")}
    changed = await client.insert(NAMES[3], ROWS[3], {"new": True}, vectors={"title": [7, 7]}, collection="c")
    for name in NAMES[:10]:
        try:
            await client.update_vector(name, [1, 2], name="title", if_version=versions[name], collection="c")
        except VersionMismatch:
            assert name == NAMES[3]
    late = await client.get(NAMES[3], vectors=["title"], collection="c")
    assert late is not None and late.version == changed.version and late.metadata == {"new": True}
    assert late.vectors is not None and late.vectors["title"].tolist() == [7, 7]
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    await client.update_vectors(NAMES[10:30], rows, name="title", collection="c")
    hits = await client.search([0, 1], k=60, vector_name="title", collection="c")
    assert len(hits) == 30 and hits[0].id == NAMES[10]
    taken = await client.delete_vector([NAMES[10], NAMES[11], NAMES[59], "nobody"], "title", collection="c")
    assert taken.count == 2
    hits = await client.search([0, 1], k=60, vector_name="title", collection="c")
    assert len(hits) == 28 and not {NAMES[10], NAMES[11]} & {hit.id for hit in hits}
    with pytest.raises(InvalidArgument, match="'titel'"):
        await client.delete_vector(NAMES[10], "titel", collection="c")
    with pytest.raises(needle.VersionMismatch):
        await client.delete_vector(NAMES[12], "title", if_version=1, collection="c")
    assert (await client.get(NAMES[10], collection="c")).vector.tolist() == ROWS[10].tolist()
    await client.drop_vector("c", "title")
    with pytest.raises(InvalidArgument, match="title"):
        await client.search([0, 1], vector_name="title", collection="c")
    with pytest.raises(InvalidArgument, match="title"):
        await client.drop_vector("c", "title")
    await client.add_vector("c", "title", VectorSpec(dimensions=4))
    assert await client.search([0, 0, 0, 1], vector_name="title", collection="c") == []
    assert await client.count(collection="c") == 60


async def test_batches_have_some_of_them(client: needle.Client) -> None:
    await made(client)
    titles = [None if at % 3 else [at, at] for at in range(60)]
    outcome = await client.insert_each(ids=NAMES, vectors=ROWS, named_vectors={"title": titles}, collection="c")
    assert not [one for one in outcome.values() if isinstance(one, Exception)]
    hits = await client.search([0, 0], k=60, vector_name="title", collection="c")
    assert [hit.id for hit in hits] == NAMES[::3]
    await client.insert_batch(
        ids=[*NAMES[:2], NAMES[0]], vectors=ROWS[:3], named_vectors={"title": [[1, 1], [2, 2], None]}, collection="c"
    )
    found = {one.id: one.vectors for one in await client.get(NAMES[:2], vectors=["title"], collection="c")}
    assert found[NAMES[0]] == {} and found[NAMES[1]]["title"].tolist() == [2, 2]  # of equal ids the last counts


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ({"other": [1, 2]}, "'title'"),
        ({"title": [1, 2, 3]}, "'c/title' takes 2"),
        ({"title": [1, float("nan")]}, "finite"),
        ([1, 2], "a vector by each name"),
    ],
)
async def test_what_does_not_fit_is_refused(client: needle.Client, vectors: object, says: str) -> None:
    await made(client)
    with pytest.raises(InvalidArgument, match=says):
        await client.insert("a", [1, 0, 0], vectors=vectors, collection="c")  # type: ignore[arg-type]
    assert await client.get("a", collection="c") is None


async def test_what_is_like_another_collection_has_its_vectors(client: needle.Client) -> None:
    await made(client)
    await client.create_collection("d", like="c")
    assert (await client.describe_collection("d")).vectors == {"title": TITLE}
    await client.create_collection("c", dimensions=3, metric="l2", vectors={"title": TITLE}, if_absent=True)
    other = {"title": VectorSpec(dimensions=5)}
    with pytest.raises(CollectionExists, match="other named vectors"):
        await client.create_collection("c", dimensions=3, metric="l2", vectors=other, if_absent=True)
    with pytest.raises(InvalidArgument, match="letters"):
        await client.create_collection("e", dimensions=3, vectors={"a/b": TITLE})


async def test_a_page_of_a_scan_is_bounded_by_its_named_vectors_too(
    client: needle.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of long ones became an answer that no frame takes."""
    await made(client)
    named = {"title": ROWS[:, :2]}
    await client.insert_batch(ids=NAMES, vectors=ROWS, named_vectors=named, collection="c")
    monkeypatch.setattr(reads, "SCAN_BYTES", 90)
    for order in (None, "n"):
        page = await client.scan_page(limit=60, vectors=["title"], collection="c", order_by=order)
        assert 11 <= len(page.documents) <= 20
    scanned = [one.id async for one in client.scan(vectors=["title"], collection="c")]
    assert scanned == NAMES


async def test_a_name_that_is_asked_for_twice_comes_once() -> None:
    async with needle.open(":memory:") as client:
        await client.create_collection("c", dimensions=1, vectors={"a": VectorSpec(dimensions=2, metric=Metric.L2)})
        await client.insert("x", [1], vectors={"a": [1, 2]}, collection="c")
        table = await client.scan(vectors=["a", "a"], collection="c").to_arrow()
        assert table.column_names.count("vector:a") == 1 and table["vector:a"].to_pylist() == [[1, 2]]
        assert list((await client.get("x", vectors=["a", "a"], collection="c")).vectors) == ["a"]
