"""Requests with idempotency keys on real nodes: executed once, also when processes are killed between a write and its
answer, another node takes the retry, or the documents have moved to another shard since."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from cluster.processes import ShardedProcesses, healthy
from needle.client.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol.catalog_commands import StartMove

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROW = [1.0] * 8
DOCUMENTS = "/v1/collections/default"
GONE = (OSError, HTTPException)
RUN_SECONDS = 12.0


class World(NamedTuple):
    """Three nodes that hold two shards each."""

    cluster: ProcessCluster
    client: Client

    async def ask(self, node: int, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        """The status and the body of an answer. Raises GONE."""
        address = list(self.cluster.nodes.values())[node].http
        headers = {"content-type": "application/json"} | ({} if key is None else {"idempotency-key": key})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{address}{DOCUMENTS}{path}", data, headers, method=method)
        return await asyncio.to_thread(_ask, request)

    async def metadata(self, name: str) -> Any:
        return (await self.ask(0, "GET", f"/documents/{name}?with_vectors=false"))[1]["metadata"]


def _ask(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_path: Path) -> AsyncIterator[World]:
    async with ShardedProcesses(module_path, 3) as cluster:
        await cluster.create(2, 3)
        await cluster.ready()
        async with cluster.connect() as client:
            await client.create_collection("default", dimensions=8, metric="l2")
            await healthy(client)
            await wait_for(lambda: client.topology().cluster_version >= 6 or client.refresh_topology(), 30, "version 6")
            yield World(cluster, client)


async def test_a_request_that_comes_again_is_answered_as_the_first_time(world: World) -> None:
    first = await world.ask(0, "PUT", "/documents/a", {"vector": ROW, "metadata": {"n": 1}}, "put-1")
    assert first[0] == 200
    assert (await world.ask(1, "PUT", "/documents/a", {"vector": ROW, "metadata": {"n": 2}}))[0] == 200
    for node in range(3):
        assert await world.ask(node, "PUT", "/documents/a", {"vector": ROW, "metadata": {"n": 1}}, "put-1") == first
    assert await world.metadata("a") == {"n": 2}  # the first one was not written again
    status, problem = await world.ask(2, "PUT", "/documents/a", {"vector": ROW, "metadata": {"n": 3}}, "put-1")
    assert (status, problem["code"], problem["field"]) == (422, "idempotency_key_reused", "idempotency-key")
    assert problem["retryable"] is False and await world.metadata("a") == {"n": 2}


async def test_what_became_a_sparse_vector_since_is_answered_as_the_first_time(world: World) -> None:
    body = {"vector": ROW, "metadata": {"weird": "none"}}
    first = await world.ask(0, "PUT", "/documents/weird", body, "weird-1")
    assert first[0] == 200
    patched = await world.ask(0, "PATCH", "/documents/weird", {"set": {"weird": "no"}}, "weird-2")
    await world.client.add_sparse("default", "weird")
    try:
        for node in range(3):
            assert await world.ask(node, "PUT", "/documents/weird", body, "weird-1") == first
            assert await world.ask(node, "PATCH", "/documents/weird", {"set": {"weird": "no"}}, "weird-2") == patched
        for key in ("weird-3", None):
            assert (await world.ask(0, "PUT", "/documents/weird", body, key))[0] == 400
        assert await world.metadata("weird") == {"weird": "no"}
    finally:
        await world.client.drop_sparse("default", "weird")


async def test_refusals_are_remembered_too(world: World) -> None:
    assert (await world.ask(0, "PUT", "/documents/b", {"vector": ROW}))[0] == 200
    body = {"vector": ROW, "if_version": 0}
    first = await world.ask(0, "PUT", "/documents/b", body, "refused")
    assert (first[0], first[1]["code"]) == (409, "already_exists")
    assert (await world.ask(1, "DELETE", "/documents/b"))[0] == 200
    again = await world.ask(2, "PUT", "/documents/b", body, "refused")
    assert (again[0], again[1]["code"], again[1]["details"]) == (409, "already_exists", first[1]["details"])
    assert (await world.ask(2, "PUT", "/documents/b", body, "another"))[0] == 200


async def test_batches_and_changes_by_a_filter_are_executed_once_in_every_shard(world: World) -> None:
    ids = [f"m{n:02}" for n in range(40)]
    body = {"ids": ids, "vectors": [ROW] * 40, "metadatas": [{"tags": [], "many": True}] * 40}
    first = await world.ask(0, "POST", "/insert", body, "batch")
    assert first == (200, {"written": 40, "failed": []})
    change = {"filter": {"many": True}, "append": {"tags": ["x"]}, "return_ids": True}
    changed = await world.ask(1, "POST", "/patch", change, "change")
    assert changed[1]["count"] == 40 and sorted(changed[1].pop("ids")) == ids
    some = {"ids": ids[:30], "append": {"tags": ["y"]}}
    patched = await world.ask(2, "POST", "/patch", some, "patch")
    assert patched[1]["count"] == 30
    for node in range(3):
        assert await world.ask(node, "POST", "/insert", body, "batch") == first
        told = (await world.ask(node, "POST", "/patch", change, "change"))[1]
        assert sorted(told.pop("ids")) == ids and told == changed[1]
        assert (await world.ask(node, "POST", "/patch", some, "patch"))[1] == patched[1]
    assert await world.metadata("m00") == {"tags": ["x", "y"], "many": True}
    assert await world.metadata("m39") == {"tags": ["x"], "many": True}
    deleted = await world.ask(0, "POST", "/delete", {"filter": {"many": True}}, "gone")
    assert (await world.ask(1, "POST", "/insert", body))[1]["written"] == 40
    assert await world.ask(2, "POST", "/delete", {"filter": {"many": True}}, "gone") == deleted
    assert (await world.ask(2, "POST", "/count", {"filter": {"many": True}}))[1] == {"count": 40}


async def test_an_instant_that_has_passed_since_does_not_make_it_another_request(world: World) -> None:
    until = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
    body = {"vector": ROW, "expires_at": until}
    first = await world.ask(0, "PUT", "/documents/soon", body, "soon")
    assert first[0] == 200

    async def gone() -> bool:
        return (await world.ask(1, "GET", "/documents/soon"))[0] == 404

    await wait_for(gone, 60, "the end of the document")
    assert await world.ask(2, "PUT", "/documents/soon", body, "soon") == first
    assert await gone()
    late = await world.ask(2, "PUT", "/documents/soon", body, "late")
    assert (late[0], late[1]["field"]) == (400, "expires_at")


async def test_what_takes_no_key_and_what_is_none(world: World) -> None:
    for key in ("", "x" * 256, "a\tb"):
        status, problem = await world.ask(0, "PUT", "/documents/z", {"vector": ROW}, key)
        assert (status, problem["field"]) == (400, "idempotency-key"), key
    status, problem = await world.ask(0, "PATCH", "", {"ttl": 60}, "k")
    assert (status, problem["field"]) == (400, "idempotency-key")
    assert (await world.ask(0, "POST", "/count", {}, "put-1"))[0] == 200  # reads are repeated freely


async def _appends(world: World, name: str, ending: asyncio.Event, rng: random.Random) -> tuple[list[str], int]:
    """Append words to a document, each by one request that is sent until it is answered; the words, and how many of
    the requests had to be sent again."""
    words: list[str] = []
    repeated = 0
    while not ending.is_set():
        word, tries = f"{name}.{len(words)}", 0

        async def sent(word: str = word) -> bool:
            nonlocal tries
            tries += 1
            body = {"append": {"words": [word]}, "timeout": 1.0}
            try:
                status, answer = await world.ask(rng.randrange(3), "PATCH", f"/documents/{name}", body, word)
            except GONE:
                return False
            assert status == 200 or answer["retryable"] or answer["code"] == "outcome_unknown", answer
            return status == 200

        await wait_for(sent, 60, f"an answer to {word}")
        words.append(word)
        repeated += tries > 1
    return words, repeated


async def _kills(world: World, rng: random.Random) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + RUN_SECONDS
    names = list(world.cluster.nodes)
    while loop.time() < until:
        name = rng.choice(names)
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        world.cluster.kill(name)
        await asyncio.sleep(rng.uniform(0.1, 0.8))
        world.cluster.restart(name)
        await world.cluster.ready(name)


async def _moves(world: World, ending: asyncio.Event, enough: asyncio.Event, refused: list[Exception]) -> None:
    """Move half of what a shard owns to and fro; `enough` is set once two moves began. refused: what was not begun."""
    done = 0
    while not ending.is_set():
        topology = await world.client.refresh_topology(timeout=0.2)
        if topology.moves or topology.map is None:
            await asyncio.sleep(0.05)
            continue
        source = done % 2
        ranges = topology.map.ranges(source)
        move = StartMove(1000 + done, topology.map.epoch, ranges[: max(1, len(ranges) // 2)], source, 1 - source)
        try:
            await world.client.change_catalog(move, timeout=5.0)
        except Exception as error:  # noqa: BLE001  # a node was killed: it is tried again
            refused.append(error)
            await asyncio.sleep(0.1)
            continue
        done += 1
        if done > 1:
            enough.set()


async def test_each_request_is_executed_once_while_nodes_are_killed_and_ranges_move(world: World) -> None:
    rng, ending, enough = random.Random(12), asyncio.Event(), asyncio.Event()
    names = [f"w{n}" for n in range(6)]
    for name in names:
        assert (await world.ask(0, "PUT", f"/documents/{name}", {"vector": ROW, "metadata": {"words": []}}))[0] == 200
    writers = [asyncio.ensure_future(_appends(world, name, ending, random.Random(name))) for name in names]
    refused: list[Exception] = []
    moving = asyncio.ensure_future(_moves(world, ending, enough, refused))
    await _kills(world, rng)
    began = asyncio.ensure_future(enough.wait())  # a slow machine does one move while its nodes are killed
    await asyncio.wait({began, moving}, timeout=120, return_when=asyncio.FIRST_COMPLETED)
    if not began.done():
        status = await world.client.cluster_status()
        pytest.fail(f"{moving}; moves: {world.client.topology().moves}; refused: {refused[-3:]}; replicas: {status}")
    ending.set()
    done = await asyncio.gather(*writers)
    await moving
    await wait_for(lambda: healthy(world.client), 60, "health")
    for name, (words, _) in zip(names, done, strict=True):
        assert (await world.metadata(name))["words"] == words
    assert sum(again for _, again in done) > 5
