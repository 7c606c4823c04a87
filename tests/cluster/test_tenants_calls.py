"""API keys that are bound to a filter: calls that a client of ours does not send, what keys hand on."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import numpy as np
import pytest

import needle
from harness import tenants
from harness.tenants import MINE, A, V, World, ask, ids, others
from needle import Client, Forbidden, NeedleError
from needle.base.model import HitBatch, SearchRequest, WriteResult
from needle.client.router.routes import JUDGED_MAX
from needle.local.process_cluster import ProcessCluster
from needle.protocol import calls, commands
from needle.routing.strategy import routing_key

pytestmark = pytest.mark.asyncio(loop_scope="module")
cluster, world, filled = tenants.cluster, tenants.world, tenants.filled
C = "/v1/collections/default"


# --- calls that name no map, which the node carries out -------------------------------------------------------------
async def plain(world: World, node: str, method: str, call: Any, kind: Any, who: str = "a") -> Any:
    client: Client = getattr(world, who)
    return calls.decode(await client._caller.call(node, method, calls.encode(call), 10.0), kind)


def written(command: commands.Command) -> calls.WriteCall:
    return calls.WriteCall(1, commands.encode(command))


async def test_what_a_node_carries_out_for_a_key_is_bound_too(world: World, filled: dict[str, Any]) -> None:
    fresh, node = calls.Freshness(), world.a.nodes()["node-2"]
    wide = b'{"tenant":"b"}'
    got = calls.GetCall(1, "default", ["a0", "b0"], True, fresh, bound=wide)
    assert (await plain(world, node, calls.GET, got, calls.DocumentBatch)).ids == ["a0"]
    for like, found in (("", MINE), ("a0", MINE[1:])):
        asked = SearchRequest(
            collection="default", vector=b"" if like else np.ones(8, "<f4").tobytes(), k=50, like=like
        )
        hits = await plain(world, node, calls.SEARCH, calls.SearchCall(1, asked, fresh), HitBatch)
        assert sorted(hits.ids) == found
    with pytest.raises(needle.DocumentNotFound):
        asked = SearchRequest(collection="default", vector=b"", k=50, like="b0", bound=wide)
        await plain(world, node, calls.SEARCH, calls.SearchCall(1, asked, fresh), HitBatch)
    counted = await plain(
        world, node, calls.COUNT, calls.CountCall(1, "default", b"", fresh, bound=wide), calls.CountAnswer
    )
    assert counted.count == 5
    page = calls.ScanCall(1, "default", b"", "", 100, False, fresh, bound=wide)
    assert (await plain(world, node, calls.SCAN, page, calls.ScanAnswer)).documents.ids == MINE
    told = await plain(
        world, node, calls.COLLECTIONS, calls.CollectionsCall(1, fresh, sizes=True), calls.CollectionsAnswer
    )
    assert (told.counts, told.sizes) == ([5], [])
    vector, theirs = np.ones(8, "<f4").tobytes(), commands.Bound(wide, 1)
    with pytest.raises(Forbidden):
        insert = commands.Insert("default", ["b0"], vector, [b'{"tenant":"a"}'], bound=theirs)
        await plain(world, node, calls.WRITE, written(insert), WriteResult)
    deleted = await plain(world, node, calls.WRITE, written(commands.Delete("default", ["b0"])), WriteResult)
    where = commands.ChangeWhere("default", b"{}", None, return_ids=True, bound=theirs)
    gone = await plain(world, node, calls.WRITE, written(where), WriteResult)
    assert (deleted.count, sorted(gone.ids)) == (0, MINE)
    assert await others(world) == filled


@pytest.mark.parametrize("routed", [True, False])
async def test_nobody_reads_the_answers_of_anothers_session(world: World, filled: dict[str, Any], routed: bool) -> None:
    """Sessions of shards are numbered by the log, so their ids can be guessed."""
    now = world.b.topology()
    assert now.map is not None
    shard, epoch = (now.map.owner(routing_key(now.map.strategy, now.map.shard_count, "b9")), now.map.epoch)
    node, stored = (
        now.addresses()[next(info for info in now.shards if info.shard == shard).replicas[0]],
        now.collection("default").stored_name,
    )
    group, epoch, stored = (shard + 1, epoch, stored) if routed else (1, 0, "default")

    async def write(who: str, command: commands.Command) -> WriteResult:
        call = calls.WriteCall(group, commands.encode(command), 10.0, epoch)
        return await plain(world, node, calls.WRITE, call, WriteResult, who)

    opened = await write("b", commands.OpenSession(77, owner=0))
    numbered = commands.Session(opened.index, 1, 1)
    insert = commands.Insert(stored, ["b9"], np.ones(8, "<f4").tobytes(), [b'{"tenant":"b"}'], session=numbered)
    first = await write("b", insert)
    assert await write("b", insert) == first
    with pytest.raises(needle.SessionExpired):
        await write("a", commands.Delete(stored, ["b9"], session=numbered))
    with pytest.raises(needle.SessionExpired):
        await write("admin", commands.Delete(stored, ["b9"], session=commands.Session(opened.index, 2, 1)))
    assert (await write("a", commands.OpenSession(77))).index != opened.index


# --- cursors, pages, bounds ------------------------------------------------------------------------------------------
async def test_a_cursor_of_another_key_gives_nobody_more(world: World, filled: dict[str, Any]) -> None:
    page = await world.b.scan_page(limit=1)
    assert ids(page.documents) == ["b0"]
    assert ids((await world.a.scan_page(cursor=page.cursor)).documents) == []
    status, answer = await ask(world, 0, "POST", f"{C}/scan", {"limit": 1}, key="b")
    cursor = json.loads(answer)["cursor"]
    status, answer = await ask(world, 1, "POST", f"{C}/scan", {"cursor": cursor})
    assert (status, json.loads(answer)["documents"]) == (200, [])


async def test_a_session_token_of_another_key_gives_nobody_more(world: World, filled: dict[str, Any]) -> None:
    headers = {"content-type": "application/json", "authorization": f"Bearer {world.keys['a']}", "needle-session": ""}

    def search(token: str) -> tuple[str, str]:
        body = json.dumps({"vector": V, "k": 100, "mode": "eventual"}).encode()
        request = urllib.request.Request(
            f"http://{world.doors[0]}{C}/search", body, headers | {"needle-session": token}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.headers["needle-session"], answer.read().decode()

    token, _ = await asyncio.to_thread(search, "")
    headers["authorization"] = f"Bearer {world.keys['b']}"
    _, answer = await asyncio.to_thread(search, token)
    assert '"b0"' in answer
    assert '"a0"' not in answer


async def test_a_reader_of_a_filter_reads_it_and_writes_nothing(
    cluster: ProcessCluster, world: World, filled: dict[str, Any]
) -> None:
    async with cluster.connect(api_key=world.keys["reader"]) as client:
        assert ids(await client.search(V, 100)) == MINE
        with pytest.raises(Forbidden):
            await client.insert("a0", V, A)


async def test_a_large_part_is_refused_by_whoever_does_not_cut_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 4 * JUDGED_MAX
    rows = {"ids": [f"a-{n}" for n in range(count)], "vectors": np.ones((count, 8), "f4"), "metadatas": [A] * count}
    monkeypatch.setattr("needle.client.router.routes.JUDGED_MAX", count)
    with pytest.raises(NeedleError, match="at most 1000 in a write"):
        await world.a.insert_batch(**rows)
    assert world.a.topology().keys[0].digest == b""


async def test_later_pages_of_a_consistent_scan_are_bound_too(world: World, filled: dict[str, Any]) -> None:
    """A node reads them at pins, not by the map: on the way on which it once left the key's filter out."""
    found, cursor = [], None
    while True:
        body = {"limit": 2, "cursor": cursor} if cursor else {"limit": 2, "consistent": True}
        status, answer = await ask(world, 0, "POST", f"{C}/scan", body)
        assert status == 200
        page = json.loads(answer)
        found += [one["id"] for one in page["documents"]]
        cursor = page.get("cursor")
        if cursor is None:
            break
    assert found == MINE


async def test_a_feed_tells_a_key_of_its_own_documents_only(world: World, filled: dict[str, Any]) -> None:
    async with world.a.changes() as feed:
        await world.b.insert("b0", V, {"tenant": "b", "n": 7})
        await world.admin.patch("b1", set={"tenant": "a"})
        await world.admin.patch("b1", set={"tenant": "b"})
        await world.b.delete("b1")
        await world.a.insert("a9", V, {"tenant": "a"})
        async with asyncio.timeout(30):
            told = [await anext(feed) for _ in range(3)]
        kinds = sorted((one.kind, one.id) for one in told)
        assert kinds == [("delete", "b1"), ("insert", "a9"), ("insert", "b1")]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(feed), 0.3)
    async with world.a.changes(since="start") as feed, asyncio.timeout(30):
        assert [(await anext(feed)).id for _ in range(7)] == ["", *sorted([*MINE, "a9"])]
