"""The tools for language models find by words, by sparse vectors and by named ones (the protocol: integrations/mcp)."""

from __future__ import annotations

from typing import Any

import pytest

import needle
from needle import VectorSpec
from needle.base.errors import InvalidArgument
from needle.cli.mcp_tools import Tools


def ids(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["id"] for hit in hits]


async def test_documents_are_found_in_each_way_and_in_several_at_once() -> None:
    async with needle.open(":memory:") as client:
        title = {"title": VectorSpec(dimensions=2)}
        await client.create_collection("papers", dimensions=2, text="t", sparse=["s"], vectors=title)
        tools, where = Tools(client), {"collection": "papers"}
        for name, words, index in (("a", "red foxes", 1), ("b", "blue whales", 2), ("c", "foxes", 3)):
            at = [1.0, index / 10]
            metadata = {"t": words, "s": {"indices": [index, 9], "values": [index, 1]}}
            await tools.insert(name, vector=at, metadata=metadata, vectors={"title": at[::-1]}, **where)
        assert ids(await tools.search(keywords="whales", **where)) == ["b"]
        # Numbers come as a model's JSON had them, or as what checked it made of them.
        sparse = {"s": {"indices": [9.0, 3.0], "values": [1.0, 2.0]}}
        found = await tools.search(sparse=sparse, k=2, **where)
        assert [(hit["id"], hit["score"]) for hit in found] == [("c", 7.0), ("a", 1.0)]
        assert ids(await tools.search(vector=[0.3, 1.0], vector_name="title", k=1, **where)) == ["c"]
        assert ids(await tools.search(vector=[1.0, 0.1], keywords="whales", k=2, **where)) == ["b", "a"]
        assert ids(await tools.search(keywords="foxes", sparse=sparse, k=1, **where)) == ["c"]
        described = await tools.describe_collection("papers")
        assert described["sparse"]["s"]["state"] and described["vectors"]["title"]["dimensions"] == 2
        for asked in ({}, {"vector": [1.0, 0.0], "like": "a"}):
            with pytest.raises(InvalidArgument, match="one of text, like and vector, or keywords, or sparse"):
                await tools.search(**asked, **where)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="whole numbers"):
            await tools.search(sparse={"s": {"indices": [0.5], "values": [1.0]}}, **where)


async def test_no_answer_has_megabytes_of_metadata() -> None:
    """A hundred documents had six."""
    async with needle.open(":memory:") as client:
        await client.create_collection("papers", dimensions=2)
        for number in range(6):
            await client.insert(f"p{number}", [1, number], {"n": number, "body": "x" * 60_000}, collection="papers")
        tools, where = Tools(client), {"collection": "papers"}
        names = [f"p{number}" for number in range(6)]
        for asked in (
            tools.get(names, **where),  # type: ignore[arg-type]
            tools.search(vector=[1.0, 0.0], k=6, **where),  # type: ignore[arg-type]
            tools.list_documents(**where),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidArgument, match="name the `fields`") as caught:
                await asked
            assert caught.value.details["field"] == "fields"
        assert len(await tools.get(names[:4], **where)) == 4  # type: ignore[arg-type]
        assert len(await tools.search(vector=[1.0, 0.0], k=6, fields=["n"], **where)) == 6  # type: ignore[arg-type]
