"""`needle mcp` as a process, before the client of the Model Context Protocol's own project."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, StdioServerParameters, stdio_client

import needle
from needle.local.process_cluster import ProcessCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The addresses of three nodes, with ten documents."""
    with ProcessCluster(Path(tmp_path_factory.mktemp("cluster")), 3, dimensions=2).running() as started:
        with needle.connect_sync(started.cluster) as client:
            ids = [f"d{n}" for n in range(10)]
            vectors = [[1.0, n / 10] for n in range(10)]
            client.insert_batch(ids=ids, vectors=vectors, metadatas=[{"n": n, "odd": n % 2 == 1} for n in range(10)])
        yield started.cluster


@asynccontextmanager
async def session(cluster: str, *options: str) -> AsyncIterator[ClientSession]:
    arguments = ["-m", "needle", "mcp", "--cluster", cluster, *options]
    async with (
        stdio_client(StdioServerParameters(command=sys.executable, args=arguments)) as (reading, writing),
        ClientSession(reading, writing) as opened,
    ):
        await opened.initialize()
        yield opened


async def call(opened: ClientSession, tool: str, **arguments: Any) -> Any:
    """What a tool answers; what it refuses as text."""
    answer = await opened.call_tool(tool, arguments)
    texts = [one.text for one in answer.content if one.type == "text"]
    if answer.is_error:
        return "\n".join(texts)
    found = answer.structured_content
    return found["result"] if found is not None and set(found) == {"result"} else found or json.loads(texts[0])


READING = {"list_collections", "describe_collection", "search", "get", "count", "list_documents"}


async def test_a_model_reads_and_cannot_write(cluster: str) -> None:
    async with session(cluster) as opened:
        offered = (await opened.list_tools()).tools
        assert {one.name for one in offered} == READING
        assert all(one.description and one.annotations and one.annotations.read_only_hint for one in offered)
        assert [one["name"] for one in await call(opened, "list_collections")] == ["default"]
        assert (await call(opened, "describe_collection"))["documents"] == 10
        near = await call(opened, "search", vector=[1.0, 0.0], k=3, filter={"odd": True}, fields=["n"])
        assert [(one["id"], one["metadata"]) for one in near] == [("d1", {"n": 1}), ("d3", {"n": 3}), ("d5", {"n": 5})]
        assert (await call(opened, "search", like="d0", k=2))[0]["id"] == "d1"
        assert [one["id"] for one in await call(opened, "get", ids=["d3", "d99"])] == ["d3"]
        assert await call(opened, "count", filter={"n": {"$gte": 7}}) == 3
        page = await call(opened, "list_documents", limit=6)
        rest = await call(opened, "list_documents", limit=6, cursor=page["cursor"])
        ids = [one["id"] for one in [*page["documents"], *rest["documents"]]]
        assert sorted(ids) == [f"d{n}" for n in range(10)]
        assert rest["cursor"] is None
        assert "Unknown tool" in str(await call(opened, "delete", ids=["d0"]))


async def test_what_is_refused_is_said_in_words(cluster: str) -> None:
    async with session(cluster) as opened:
        assert "from 1 to 100" in await call(opened, "search", vector=[1.0, 0.0], k=1000)
        assert "one of text, like and vector" in await call(opened, "search")
        assert "no sparse vectors" in await call(opened, "search", sparse={"s": {"indices": [3], "values": [1]}})
        assert "names no model" in await call(opened, "search", text="words")
        assert "[collection_not_found]" in await call(opened, "count", collection="nowhere")
        assert "[invalid_argument]" in await call(opened, "count", filter={"n": {"$like": 1}})


async def test_with_write_documents_are_inserted_patched_and_deleted(cluster: str) -> None:
    async with session(cluster, "--write") as opened:
        assert {one.name for one in (await opened.list_tools()).tools} == READING | {"insert", "patch", "delete"}
        assert not (await call(opened, "insert", id="new", vector=[0.0, 1.0], metadata={"n": 77}))["replaced"]
        assert (await call(opened, "patch", ids=["new"], set={"seen": True}, unset=["n"]))["patched"] == 1
        assert (await call(opened, "get", ids=["new"]))[0]["metadata"] == {"seen": True}
        assert (await call(opened, "delete", ids=["new", "other"]))["deleted"] == 1
        assert await call(opened, "get", ids=["new"]) == []
