"""Change feeds over HTTP: a plain client of server-sent events against real nodes."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from cluster.processes import ShardedProcesses, healthy
from harness.event_streams import events
from needle.base.errors import NeedleError
from needle.base.model import Metric, VectorSpec
from needle.client.client import Client
from needle.local.process_cluster import wait_for


@asynccontextmanager
async def _started(directory: Path, shards: int, nodes: int) -> AsyncIterator[tuple[ShardedProcesses, Client]]:
    async with ShardedProcesses(directory, nodes=nodes) as processes:
        await processes.create(shards, nodes)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=2, metric="l2")
            yield processes, client


async def test_a_reader_goes_on_at_another_node_when_its_own_is_killed(tmp_path: Path) -> None:
    async with _started(tmp_path, 2, 3) as (processes, client):
        await client.insert_batch([(f"a{n}", [n, 0.5], {"n": n}) for n in range(3)])
        async with events(processes.nodes["node-1"].http, "?since=start") as stream:
            told = await stream.some(5)
            assert [one.kind for one in told] == ["reset", "insert", "insert", "insert", "ready"]
            assert told[2].data["vector"] == [1, 0.5]
            assert told[2].data["metadata"] == {"n": 1}
            await client.patch("a1", set={"n": 7})
            last = (await stream.some(1))[0]
            assert (last.kind, last.data["id"], last.data["metadata"]) == ("update", "a1", {"n": 7})
            processes.kill("node-1")
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await asyncio.wait_for(stream.next(), 30)

        async def written() -> bool:
            return (await client.insert("b", [1, 1])).version > 0

        await wait_for(written, 60, "a write without the node")
        await client.delete("a1", timeout=30)
        header = f"last-event-id: {last.id}"
        async with events(processes.nodes["node-2"].http, "?with_vectors=false&since=now&timeout=30", header) as stream:
            of: dict[str, list[str]] = {}
            while of.get("a1") != ["delete"] or "b" not in of:
                one = (await stream.some(1))[0]
                assert "vector" not in one.data
                of.setdefault(one.data["id"], []).append(one.kind)
        assert of["b"][0] == "insert"  # it may have been written again, as nobody said it was
        assert of.keys() == {"a1", "b"}


async def test_what_comes_near_is_told_and_gone_on_with_at_another_node(tmp_path: Path) -> None:
    near = {"vector": [0, 0], "max_distance": 2.0, "filter": {"n": {"$gte": 1}}}
    async with _started(tmp_path, 2, 3) as (processes, client):
        at = [processes.nodes[f"node-{n}"].http for n in (1, 2, 3)]
        wrong = [
            {"max_distance": 1},
            {"vector": [0, 0]},
            {"vector": [0, 0], "text": "a", "max_distance": 1},
            near | {"since": "start"},
            near | {"vector": [0, 0, 0]},
            near | {"max_distance": "near"},
        ]
        for body in wrong:
            async with events(at[0], watch=body) as stream:
                assert stream.status == 400 or (await stream.some(1))[0].data["code"] == "invalid_argument", body
        async with events(at[1], watch=near) as stream:
            await client.insert_batch([("far", [9, 9], {"n": 1}), ("other", [1, 0], {"n": 0}), ("a", [1, 0], {"n": 1})])
            told = (await stream.some(1))[0]
            assert (told.kind, told.data["id"], told.data["distance"], told.data["vector"]) == (
                "insert",
                "a",
                1,
                [1, 0],
            )
        await client.update_vector("a", [5, 5])
        async with events(at[2], "", f"last-event-id: {told.id}", watch=near | {"with_vectors": False}) as stream:
            gone = (await stream.some(1))[0]
            assert (gone.kind, gone.data["id"], "distance" in gone.data) == ("delete", "a", False)
            await client.update_vector("far", [0, 1])
            came = (await stream.some(1))[0]
            assert (came.kind, came.data["id"], "vector" in came.data) == ("insert", "far", False)


async def test_events_have_named_vectors_and_a_watch_is_near_by_one(tmp_path: Path) -> None:
    near = {"vector": [0, 0, 0], "max_distance": 2.0, "vector_name": "title"}
    async with _started(tmp_path, 2, 3) as (processes, client):
        at = [processes.nodes[f"node-{n}"].http for n in (1, 2, 3)]
        title = VectorSpec(dimensions=3, metric=Metric.L2)
        await client.add_vector("default", "title", title)
        await client.insert("a", [1, 1], vectors={"title": [1, 0, 0]})
        async with (
            events(at[0], "?since=start&vectors=title") as stream,
            events(at[1], watch=near) as watch,
        ):
            told = await stream.some(3)
            assert [one.data.get("vectors") for one in told] == [None, {"title": [1, 0, 0]}, None]
            await client.insert("b", [1, 1])
            await client.update_vector("b", [0, 0, 1], name="title")
            told = await stream.some(2)
            assert [one.data["vectors"] for one in told] == [{}, {"title": [0, 0, 1]}]
            (came,) = await watch.some(1)
            assert (came.kind, came.data["id"], came.data["vector"]) == ("insert", "b", [0, 0, 1])
            asked = json.dumps({"ids": ["a", "b", "x"], "name": "title", "vectors": None}).encode()
            url, head = f"http://{at[2]}/v1/collections/default/update_vectors", {"content-type": "application/json"}
            request = urllib.request.Request(url, asked, head)
            written = await asyncio.to_thread(lambda: json.load(urllib.request.urlopen(request, timeout=30)))
            assert written["count"] == 2
            gone = await watch.some(2)
            assert {(one.kind, one.data["id"]) for one in gone} == {("delete", "a"), ("delete", "b")}
        async with events(at[2], "?vectors=title&with_vectors=false", f"last-event-id: {told[0].id}") as stream:
            (again,) = await stream.some(1)
            assert "vector" not in again.data
            assert again.data["vectors"] == {"title": [0, 0, 1]}
        async with events(at[2], "?vectors=other") as stream:
            assert stream.status == 400
        async with events(at[2], watch=near | {"vector_name": "other"}) as stream:
            assert stream.status == 400


async def test_it_has_a_filter_refuses_what_is_wrong_and_ends_in_good_order(tmp_path: Path) -> None:
    async with _started(tmp_path, 1, 3) as (processes, client):
        at = processes.nodes["node-3"].http
        for wrong in ("?since=nonsense", "?filter=7", "?filter=" + quote('{"n": {"$no": 1}}'), "?other=1"):
            async with events(at, wrong) as stream:
                assert stream.status == 400, wrong
        wanted = quote('{"n": {"$gte": 2}}')
        async with events(at, f"?filter={wanted}") as stream, events(at) as slow, events(at) as dropped:
            assert [slow.status, dropped.status] == [200, 200]
            await client.insert("x", [1, 2], {"n": 1})
            await client.insert("y", [1, 2], {"n": 2})
            assert [(one.kind, one.data["id"]) for one in await stream.some(1)] == [("insert", "y")]
            await client.patch("y", set={"n": 0})
            assert [(one.kind, one.data["id"]) for one in await stream.some(1)] == [("delete", "y")]
            assert [one.data["id"] for one in await slow.some(3)] == [
                "x",
                "y",
                "y",
            ]  # one that reads late misses nothing
            await client.enter_maintenance_mode("node-3")
            told = await stream.some(2)
            assert [(one.kind, one.data["code"], one.data["retryable"]) for one in told] == [
                ("problem", "in_maintenance", True)
            ]
            async with events(at) as refused:
                assert refused.status == 503
            await client.exit_maintenance_mode("node-3")
        async with events(at) as stream:
            await client.drop_collection("default")
            assert [(one.kind, one.data["code"]) for one in await stream.some(2)] == [
                ("problem", "collection_not_found")
            ]


async def test_a_stopped_node_ends_its_feeds_and_a_revoked_key_too(tmp_path: Path) -> None:
    async with _started(tmp_path, 1, 1) as (processes, client):
        key = await client.create_key("reader", "reader", filter={"mine": True})
        at = processes.nodes["node-1"].http
        async with events(at, "", f"api-key: {key.key}") as bound, events(at) as stream:
            await client.insert("x", [1, 2], {"mine": False})
            await client.insert("y", [1, 2], {"mine": True})
            assert [one.data["id"] for one in await bound.some(1)] == ["y"]
            assert [one.data["id"] for one in await stream.some(2)] == ["x", "y"]
            await client.revoke_key("reader")
            assert [one.data["code"] for one in await bound.some(2)] == ["unauthenticated"]
            stopped = asyncio.create_task(asyncio.to_thread(processes.terminate, "node-1"))
            assert [one.data["code"] for one in await stream.some(2)] == ["unavailable"]
            await stopped
    with pytest.raises((NeedleError, OSError)):
        async with events(at):
            pass
