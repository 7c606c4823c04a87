"""Texts in the place of vectors: each way in, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

import needle
from needle.base.errors import CollectionExists, CollectionNotFound, ConfigError, InvalidArgument
from needle.client import embedding
from needle.client.embedding import WORDLLAMA


class Letters:
    """How often "a", "b" and "c" are in a text."""

    name = "letters"
    dimensions = 3

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def embed(self, texts: list[str]) -> Any:
        self.asked.append(texts)
        return [[float(text.count(letter)) for letter in "abc"] for text in texts]


@pytest.fixture
async def client() -> AsyncIterator[needle.Client]:
    async with needle.open(":memory:", embedder=Letters()) as opened:
        await opened.create_collection("a", model="letters", metric="l2")
        yield opened


async def test_a_text_is_taken_wherever_a_vector_is(client: needle.Client) -> None:
    await client.insert("1", text="aab", collection="a")
    await client.insert_if_absent("2", text="b", collection="a")
    version = (await client.get("2", collection="a")).version  # type: ignore[union-attr]
    await client.compare_and_set("2", version, None, {"n": 2}, text="bb", collection="a")
    await client.insert_batch(ids=["3", "4"], texts=["c", "cc"], metadatas=[{"n": 3}, None], collection="a")
    await client.insert_each(ids=["5"], texts=iter(["abc"]), collection="a")
    await client.update_vector("4", text="ccc", collection="a")
    await client.update_vectors(["3", "1"], texts=["cb", "a"], collection="a")
    found = await client.get(["1", "2", "3", "4", "5"], collection="a")
    assert [one.vector.tolist() for one in found] == [[1, 0, 0], [0, 2, 0], [0, 1, 1], [0, 0, 3], [1, 1, 1]]
    assert [one.metadata for one in found] == [None, {"n": 2}, {"n": 3}, None, None]

    await client.set_alias("other", "a")
    for collection in ("a", "other"):
        for search in (
            client.search,
            client.search_strong,
            client.search_leased,
            client.search_eventual,
        ):
            hits = await search(text="bb", k=1, collection=collection)
            assert [(hit.id, hit.distance) for hit in hits] == [("2", 0)]
        partial = await client.search_partial(text="ccc", k=1, collection=collection)
        assert [hit.id for hit in partial.hits] == ["4"]
        many = await client.search_many(texts=["a", "ccc"], k=1, mode="eventual", collection=collection)
        assert [[hit.id for hit in hits] for hits in many] == [["1"], ["4"]]


async def test_a_collection_names_its_model(client: needle.Client) -> None:
    described = await client.describe_collection("a")
    assert (described.model, described.dimensions) == ("letters", 3)
    await client.create_collection("like a", like="a")
    await client.create_collection("none", like="a", model="")
    await client.create_collection("unknown", dimensions=5, model="somebody's")
    models = {one.name: one.model for one in await client.describe_collections()}
    assert models == {"a": "letters", "like a": "letters", "none": None, "unknown": "somebody's"}
    assert {spec.name: spec.model for spec in await client.collections()}["none"] == ""

    await client.create_collection("a", dimensions=3, metric="l2", if_absent=True)  # whoever names none takes any
    with pytest.raises(CollectionExists, match="model 'letters', not 'other'"):
        await client.create_collection("a", dimensions=3, metric="l2", model="other", if_absent=True)
    with pytest.raises(CollectionExists, match="model '', not 'letters'"):
        await client.create_collection("none", model="letters", metric="l2", if_absent=True)
    for wrong in ({"dimensions": 4, "model": "letters"}, {"dimensions": 4, "like": "a"}):
        with pytest.raises(InvalidArgument, match="dimensions = 4 is not allowed: 3, as the model 'letters' has"):
            await client.create_collection("wrong", **wrong)
    with pytest.raises(InvalidArgument, match="256, as the model 'wordllama' has"):
        await client.create_collection("wrong", dimensions=3, model="wordllama")
    with pytest.raises(InvalidArgument, match="dimensions are to be named"):
        await client.create_collection("wrong", model="somebody's")
    with pytest.raises(InvalidArgument, match=r"model = .* is not allowed: 1 to 128 bytes"):
        await client.create_collection("wrong", dimensions=3, model="x" * 129)


async def test_an_embedder_of_the_models_name_and_another_size_is_told_by_the_text(client: needle.Client) -> None:
    """It was `dimensions`, which a search does not take, and the wrong one of both was called not allowed."""
    client.embedder.dimensions = 4  # type: ignore[union-attr]
    with pytest.raises(InvalidArgument, match="'a' has vectors of 3 numbers, and 'letters' makes 4 here") as refused:
        await client.search(text="a", collection="a")
    assert refused.value.details["field"] == "text"


async def test_what_no_model_fits_is_refused_in_words(client: needle.Client) -> None:
    await client.create_collection("none", dimensions=3)
    await client.create_collection("other", model="wordllama")
    with pytest.raises(InvalidArgument, match="collection 'none' names no model") as refused:
        await client.insert("1", text="a", collection="none")
    assert refused.value.details["field"] == "text"
    with pytest.raises(InvalidArgument, match="'wordllama', and texts become those of 'letters' here"):
        await client.search(text="a", collection="other")
    with pytest.raises(CollectionNotFound):
        await client.search(text="a", collection="nowhere")
    with pytest.raises(InvalidArgument, match="either query or text"):
        await client.search([1, 2, 3], text="a", collection="a")
    with pytest.raises(InvalidArgument, match="either a query, or the id"):
        await client.search(like="1", text="a", collection="a")
    with pytest.raises(InvalidArgument, match="either vectors or texts"):
        await client.insert_batch(ids=["1"], vectors=[[1, 2, 3]], texts=["a"], collection="a")
    with pytest.raises(InvalidArgument, match="one row for each of the 2 ids"):
        await client.insert_batch(ids=["1", "2"], texts=["a"], collection="a")
    for texts, told in (("abc", "a list of texts"), (["a", 5], r"texts\[1\]"), (["a", "\ud800"], r"texts\[1\]")):
        with pytest.raises(InvalidArgument, match=told):
            await client.search_many(texts=texts, collection="a")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="text = "):
        await client.update_vector("1", text=b"a", collection="a")  # type: ignore[arg-type]
    assert await client.count(collection="a") == 0


async def test_a_collection_that_is_made_anew_with_another_model_is_noticed(client: needle.Client) -> None:
    await client.search(text="a", collection="a")
    await client.drop_collection("a")
    await client.create_collection("a", dimensions=3, model="somebody's")
    with pytest.raises(InvalidArgument, match="somebody's"):
        await client.search(text="a", collection="a")


@pytest.mark.parametrize("made", [[[1, 2]], [[1, 2, 3], [1, 2, 3]], [1, 2, 3], [[1, 2, float("nan")]], "words"])
async def test_what_an_embedder_makes_is_checked(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Letters, "embed", lambda self, texts: made)
    async with needle.open(":memory:", embedder=Letters()) as client:
        await client.create_collection("a", model="letters")
        with pytest.raises(InvalidArgument, match="what letters makes of texts"):
            await client.insert("1", text="a", collection="a")
        assert await client.count(collection="a") == 0


async def test_what_comes_near_a_text_is_told(client: needle.Client) -> None:
    async with client.watch("a", text="ab", max_distance=0.5) as feed:
        await client.insert("far", text="cc", collection="a")
        await client.insert("near", text="ba", collection="a")
        assert [(one.kind, one.id) for one in [await anext(feed)]] == [("insert", "near")]
    for wrong in ({}, {"query": [1, 1, 0], "text": "ab"}):
        with pytest.raises(InvalidArgument, match="either a query vector or a text"):
            client.watch("a", max_distance=0.5, **wrong)
    await client.create_collection("plain", dimensions=3)
    with pytest.raises(InvalidArgument, match="model"):
        await client.watch("plain", text="ab", max_distance=0.5).begin()


@pytest.mark.parametrize("embedder", ["wordllama", object(), type("Half", (), {"name": "x", "dimensions": 3})()])
def test_what_is_no_embedder_is_refused(embedder: Any) -> None:
    with pytest.raises(ConfigError, match="embedder = "):
        needle.connect("127.0.0.1:1", embedder=embedder)


async def test_without_the_extra_a_text_is_refused_and_vectors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    monkeypatch.setattr(WORDLLAMA, "_model", None)
    async with needle.open(":memory:") as client:
        await client.create_collection("a", model="wordllama")
        await client.insert("1", np.ones(256, np.float32), collection="a")
        with pytest.raises(ConfigError, match="pip install 'needle-vdb"):
            await client.search(text="a", collection="a")
        assert [hit.id for hit in await client.search(np.ones(256, np.float32), 1, collection="a")] == ["1"]


def test_texts_are_worked_on_in_parts_that_are_bounded() -> None:
    sizes = [1, 5, 3, embedding.PADDED_BYTES, *[embedding.PADDED_BYTES // 3] * 4, 2]
    texts = ["x" * size for size in sizes]
    parts = [texts[part] for part in embedding._parts(texts)]
    assert [text for part in parts for text in part] == texts
    assert all(len(part) == 1 or len(part) * max(map(len, part)) <= embedding.PADDED_BYTES for part in parts)
    assert [len(part) for part in parts] == [3, 1, 3, 2]
    assert list(embedding._parts([])) == []
