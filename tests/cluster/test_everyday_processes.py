"""Changes by ids and by filters, counts and scans on real processes: of one group, and of shards whose ranges move."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle
from cluster.processes import ShardedProcesses, healthy
from needle import ConditionFailed, DocumentNotFound, Filter, InvalidArgument, VersionMismatch
from needle.client import Client
from needle.local.process_cluster import ProcessCluster
from needle.protocol.catalog_commands import StartMove
from needle.routing.strategy import ShardStrategy, routing_key

COUNT = 120


def vector(n: int) -> list[float]:
    return [1.0, float(n), 2.0, 0.0, 0.0, 0.0, 0.0, 1.0]


async def filled(client: Client) -> None:
    await client.insert_each(
        ids=[f"d{n:03}" for n in range(COUNT)],
        vectors=[vector(n) for n in range(COUNT)],
        metadatas=[{"n": n, "odd": n % 2 == 1, "in": {"side": "x"}, "tags": ["a"]} for n in range(COUNT)],
    )


async def scanned(client: Client, filter: Any = None, **options: Any) -> list[str]:
    return [document.id async for document in client.scan(filter, **options)]


async def changes(client: Client) -> None:
    before = await client.get("d007")
    assert before is not None
    first = await client.patch("d007", set={"n": 1007, "in.more": [1]}, unset="odd", append={"tags": ["b"]})
    assert (first.count, first.existed, first.version > before.version) == (1, True, True)
    now = await client.get("d007")
    assert now is not None and now.version == first.version
    assert now.metadata == {"n": 1007, "in": {"side": "x", "more": [1]}, "tags": ["a", "b"]}
    assert now.vector.tobytes() == before.vector.tobytes()
    assert [hit.id for hit in await client.search(vector(7), 3, {"n": {"$gt": 1000}})] == ["d007"]
    many = await client.patch([f"d{n:03}" for n in range(20, 40)] + ["absent"], remove={"tags": ["a"]})
    assert many.count == 20 and await client.count({"tags": "a"}) == COUNT - 20
    with pytest.raises(VersionMismatch):
        await client.patch("d007", set={"n": 0}, if_version=before.version)
    with pytest.raises(ConditionFailed):
        await client.patch(["d007"], set={"n": 0}, if_matches={"n": 7})
    with pytest.raises(ConditionFailed):
        await client.insert("d007", vector(7), if_matches=Filter.eq("n", 7))
    with pytest.raises(ConditionFailed):
        await client.delete("d007", if_matches={"n": 7})
    await client.patch("d007", set={"n": 7, "odd": True}, if_version=first.version, if_matches={"n": 1007})
    await client.replace_metadata("d008", {"n": 8, "odd": False})
    replaced = await client.get("d008")
    assert replaced is not None and replaced.metadata == {"n": 8, "odd": False}


async def changes_by_filter(client: Client) -> None:
    assert (await client.patch_where({"odd": True}, set={"seen": 1}, dry_run=True)).count == COUNT // 2
    assert await client.count(Filter.exists("seen")) == 0
    done = await client.patch_where({"odd": True}, set={"seen": 1}, return_ids=True)
    assert done.count == COUNT // 2 and sorted(done.ids) == [f"d{n:03}" for n in range(1, COUNT, 2)]
    assert await client.count({"seen": 1}) == COUNT // 2
    assert await client.count() == await client.count({}) == COUNT
    gone = await client.delete_where({"n": {"$gte": COUNT - 50}})
    assert gone.count == 50 and await client.count() == COUNT - 50
    assert (await client.delete_where({"n": {"$gte": COUNT - 50}})).count == 0


async def scans(client: Client) -> None:
    ids = [f"d{n:03}" for n in range(COUNT - 50)]
    assert await scanned(client) == ids
    assert await scanned(client, {"odd": True}) == ids[1::2]
    shares = [await scanned(client, slice=(n, 3)) for n in range(3)]
    assert all(shares) and sorted(one for share in shares for one in share) == ids
    seen, cursor = [], None
    while True:
        page = await client.scan_page({"odd": False}, cursor=cursor, limit=7, with_vectors=True)
        seen += [document.id for document in page.documents]
        assert all(one.vector is not None for one in page.documents)
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == ids[::2]
    first = await client.scan_page(limit=5)
    assert first.cursor is not None
    for wrong, options in (
        (first.cursor[:-3], {}),
        (first.cursor, {"filter": {"odd": True}}),
        (first.cursor, {"collection": "other"}),
        ("x" * 20, {}),
    ):
        with pytest.raises(InvalidArgument, match="cursor"):
            await client.scan_page(cursor=wrong, **options)


async def ordered_scans(client: Client) -> None:
    """By a field, of which several documents have each value; page by page, now and as it was."""
    ids = [f"d{n:03}" for n in range(COUNT - 50)]
    await client.patch_where({}, set={"rank": 0})
    for n in range(5):
        await client.patch(ids[n::5], set={"rank": -n if n else "text"})
    await client.patch(ids[:2], unset=["rank"])
    wanted = [one for n in (4, 3, 2, 1) for one in ids[n::5] if one != "d001"] + ids[5::5] + ids[:2]
    assert await scanned(client, order_by="rank") == wanted
    assert await scanned(client, {"$ids": ids[:20]}, order_by="rank") == [one for one in wanted if one < "d020"]
    down = [*ids[5::5], *(one for n in (1, 2, 3, 4) for one in ids[n::5] if one != "d001"), *ids[:2]]
    assert await scanned(client, order_by="rank", descending=True) == down
    shares = [await scanned(client, order_by="rank", slice=(n, 2)) for n in range(2)]
    assert sorted(shares[0] + shares[1]) == ids and all(
        share == [one for one in wanted if one in share] for share in shares
    )
    page = await client.scan_page(order_by="rank", limit=7, consistent=True, fields=["n"])
    found, cursor = [one.id for one in page.documents], page.cursor
    await client.patch(ids[10:], set={"rank": 7})
    await client.delete(ids[3])
    while cursor is not None:
        page = await client.scan_page(order_by="rank", limit=20, cursor=cursor, fields=["n"])
        assert all(one.metadata.keys() == {"n"} for one in page.documents)
        found, cursor = found + [one.id for one in page.documents], page.cursor
    assert found == wanted
    await client.insert(ids[3], vector(3), {"n": 3, "odd": True, "in": {"side": "x"}, "tags": ["a"]})
    first = await client.scan_page(order_by="rank", limit=5)
    for options in (
        {},
        {"order_by": "n"},
        {"order_by": "rank", "filter": {"odd": True}},
        {"order_by": "rank", "descending": True},
    ):
        with pytest.raises(InvalidArgument, match="cursor"):
            await client.scan_page(cursor=first.cursor, **options)
    await client.patch_where({}, unset=["rank"])


async def scans_of_one_moment(client: Client) -> None:
    """They show what there was, whatever is done meanwhile, until they are read to the end."""
    before = await whole(client)
    page = await client.scan_page(limit=7, with_vectors=True, consistent=True)
    left = client.scan(consistent=True)
    assert (await anext(left)).id == before[0][0]
    found, cursor, last = page.documents, page.cursor, ""
    gone = [one for one, _, _ in before[:40:2]]
    await client.delete(gone)
    await client.patch_where({}, set={"moment": "later"})
    await client.update_vector(before[41][0], [9.0] * 8)
    await client.insert("d000a", [1.0] * 8)
    while cursor is not None:
        last = cursor
        page = await client.scan_page(limit=30, with_vectors=True, cursor=cursor)
        found, cursor = found + page.documents, page.cursor
    assert shown(found) == before
    with pytest.raises(needle.ScanEnded):
        while True:  # until the replica that is asked has applied the end
            await client.scan_page(limit=30, with_vectors=True, cursor=last)
    table = client.scan(consistent=True, slice=(1, 2))
    some = [document.id async for document in table]
    assert some == [document.id async for document in client.scan(slice=(1, 2))]
    await left.aclose()
    plain = (await client.scan_page(limit=3)).cursor
    with pytest.raises(InvalidArgument, match="consistent"):
        await client.scan_page(limit=3, cursor=plain, consistent=True)
    with pytest.raises(InvalidArgument, match="consistent"):
        await client.scan_page(consistent=1)  # type: ignore[arg-type]
    await client.delete("d000a")
    rows = {name: (row, metadata) for name, row, metadata in before}
    for name in [*gone, before[41][0]]:
        row, metadata = rows[name]
        await client.insert(name, np.frombuffer(row, np.float32), json.loads(metadata))
    await client.patch_where({}, unset=["moment"])
    assert await whole(client) == before


def shown(documents: list[Any]) -> list[tuple[str, bytes, str]]:
    return [(one.id, one.vector.tobytes(), json.dumps(one.metadata)) for one in documents]


async def whole(client: Client) -> list[tuple[str, bytes, str]]:
    return shown([document async for document in client.scan(with_vectors=True, timeout=30)])


async def searches(client: Client) -> None:
    """Of COUNT - 50 documents, whose vectors differ in one number."""
    near = await client.search(vector(7), 5, fields=["in.side", "absent"])
    assert near[0].id == "d007" and all(hit.metadata == {"in": {"side": "x"}} for hit in near if hit.id != "d008")
    assert await client.search(vector(7), 2, offset=3, fields=["in.side", "absent"]) == near[3:]
    assert await client.search(vector(7), 5, max_distance=near[2].distance, fields=["in.side", "absent"]) == near[:3]
    assert await client.search(vector(7), 5, min_score=near[1].score, fields=["in.side", "absent"]) == near[:2]
    like = await client.search(like="d007", k=4, offset=1)
    assert [hit.id for hit in like] == [hit.id for hit in near[2:]] + [like[-1].id] and "d007" not in str(like)
    queries = [vector(n) for n in range(40)]
    many = await client.search_many(queries, 3, {"odd": True}, fields=["n"])
    alone = [await client.search(query, 3, {"odd": True}, fields=["n"]) for query in queries]
    assert many == alone and many[9][0].id == "d009" and many[9][0].metadata == {"n": 9}
    for mode in ("leased", "eventual"):
        assert await client.search_many(queries, 3, {"odd": True}, fields=["n"], mode=mode) == alone
    found = await client.get("d009", fields=["tags"])
    assert found is not None and found.metadata == {"tags": ["a"]}
    assert [one.metadata async for one in client.scan({"n": 9}, fields=[])] == [{}]
    with pytest.raises(DocumentNotFound, match="absent"):
        await client.search(like="absent")
    with pytest.raises(InvalidArgument, match="offset"):
        await client.search(vector(1), 10, offset=9_999)
    with pytest.raises(InvalidArgument, match="1001 vectors"):
        await client.search_many([vector(1)] * 1001, 1)
    with pytest.raises(InvalidArgument, match="vector"):
        await client.search_many([[1.0, 2.0]], 1)


async def new_vectors(client: Client) -> None:
    before = await client.get("d010")
    done = await client.update_vector("d010", [0, 0, 0, 5, 0, 0, 0, 0])
    after = await client.get("d010")
    assert before is not None and after is not None and (done.count, after.version) == (1, done.version)
    assert after.metadata == before.metadata
    assert (await client.search([0, 0, 0, 1, 0, 0, 0, 0], 1))[0].id == "d010"
    many = await client.update_vectors(["d010", "absent", "d011"], [vector(10), vector(0), vector(11)])
    assert many.count == 2 and (await client.search(vector(10), 1))[0].id == "d010"
    assert (await client.update_vector("absent", vector(1))).count == 0
    with pytest.raises(VersionMismatch):
        await client.update_vector("d010", vector(1), if_version=done.version)
    with pytest.raises(ConditionFailed):
        await client.update_vector("d010", vector(1), if_matches={"n": 11})
    with pytest.raises(InvalidArgument, match="vector"):
        await client.update_vector("d010", [1.0])
    with pytest.raises(InvalidArgument, match="2 rows"):
        await client.update_vectors(["d010"], [vector(1), vector(2)])
    assert (await client.search(vector(10), 1))[0].id == "d010"


async def bad_input(client: Client) -> None:
    everywhere: Any = client
    with pytest.raises(InvalidArgument, match="delete_where"):
        await everywhere.delete({"n": 1})
    with pytest.raises(InvalidArgument, match="`patch` and `delete`"):
        await everywhere.delete_where(["d001"])
    with pytest.raises(InvalidArgument, match="nothing"):
        await client.patch("d001")
    with pytest.raises(InvalidArgument, match="slice"):
        await client.scan_page(slice=(3, 3))
    with pytest.raises(InvalidArgument, match="not an array"):
        await client.patch("d001", append={"n": [1]})
    await client.patch("d001", append={"tags": ["x" * 40_000]})
    with pytest.raises(InvalidArgument, match="metadata would have"):
        await client.patch("d001", append={"tags": ["y" * 40_000]})


async def test_one_group(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path) as cluster, cluster.connect() as client:
        for part in (
            filled, changes, changes_by_filter, scans, ordered_scans, scans_of_one_moment, searches, new_vectors,
            bad_input,
        ):  # fmt: skip
            await part(client)
        await asyncio.to_thread(blocking, list(cluster.addresses.values()))
        await cluster.equal_digests()


async def test_shards_between_which_ranges_move(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client:
            assert isinstance(client, Client)
            await healthy(client)
            await client.create_collection("default", dimensions=8)
            await filled(client)
            await changes(client)
            shard_map = client.topology().map
            assert shard_map is not None
            before = await whole(client)
            first = await client.scan_page(limit=9, with_vectors=True, consistent=True)
            half = shard_map.ranges(0)[: len(shard_map.ranges(0)) // 2]
            moving = asyncio.create_task(client.change_catalog(StartMove(1, shard_map.epoch, half, 0, 1)))
            patched = 0
            while not moving.done() or client.topology().map == shard_map:
                patched += (
                    await client.patch(["d100", "d101", "d102", "d103"], append={"log": [patched]}, timeout=30)
                ).count
                assert await scanned(client, timeout=30) == [f"d{n:03}" for n in range(COUNT)]
                assert await scanned(client, order_by="n", timeout=30) == [f"d{n:03}" for n in range(COUNT)]
                assert await client.count({"odd": True}) == COUNT // 2
                hits = await client.search_many([vector(n) for n in range(5)], 1, {"odd": True}, offset=1, timeout=30)
                assert all(hits)
                await client.update_vectors(["d100", "d101"], [vector(100), vector(101)], timeout=30)
            await moving
            found, cursor = first.documents, first.cursor
            while cursor is not None:  # from where the documents were when it began
                page = await client.scan_page(limit=90, with_vectors=True, cursor=cursor)
                found, cursor = found + page.documents, page.cursor
            assert shown(found) == before
            log = [list(range(0, patched, 4))] * 4
            assert [one.metadata["log"] for one in await client.get(["d100", "d101", "d102", "d103"])] == log
            await changes_by_filter(client)
            await scans(client)
            await ordered_scans(client)
            await scans_of_one_moment(client)
            await searches(client)
            await new_vectors(client)
            await bad_input(client)


def blocking(addresses: list[str]) -> None:
    """The client without asyncio."""
    with needle.connect_sync(addresses) as client:
        client.insert_batch(ids=["x", "y", "z"], vectors=[vector(n) for n in range(3)])
        client.patch(["x", "z"], set={"s": 1})
        assert client.count({"s": 1}) == 2
        assert [document.id for document in client.scan({"s": 1})] == ["x", "z"]
        assert [document.id for document in client.scan({"s": 1}, order_by="s")] == ["x", "z"]
        scan = client.scan({"s": 1}, consistent=True)
        assert next(scan).id == "x"
        scan.close()
        assert list(scan) == []
        assert [len(hits) for hits in client.search_many([vector(1), vector(2)], 2, {"s": 1}, offset=1)] == [1, 1]
        assert client.update_vector("x", vector(3)).count == 1
        assert client.delete_where({"s": 1}).count == 2


async def test_a_consistent_scan_that_one_shard_refuses_keeps_nothing_in_the_others(tmp_path: Path) -> None:
    limits = {"pinned_scans_max": 2}
    async with ShardedProcesses(tmp_path, nodes=1, limits=limits) as cluster:
        await cluster.create(2, 1, ShardStrategy.custom("tenant"))
        async with cluster.connect() as client:
            await client.create_collection("docs", dimensions=8, metric="l2")
            names = [f"t{n}" for n in range(20)]
            rows = [(f"{name}-{n}", vector(n), {"tenant": name}) for name in names for n in range(3)]
            await client.insert_batch(rows, collection="docs")
            held = client.topology().map
            assert held is not None
            of = {held.owner(routing_key(held.strategy, 2, "", {"tenant": name})): name for name in names}
            for _ in range(2):
                await client.scan_page({"tenant": of[0]}, limit=1, consistent=True, collection="docs")
            for _ in range(3):
                with pytest.raises(needle.Overloaded):
                    await client.scan_page(limit=1, consistent=True, collection="docs", timeout=1)
            for _ in range(2):
                page = await client.scan_page({"tenant": of[1]}, limit=1, consistent=True, collection="docs", timeout=2)
                assert page.cursor is not None
