"""The HTTP API of real nodes: each answers everything, in JSON and MessagePack, with errors that say what to do."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from harness.calm import CALM
from needle.base.config import RaftConfig
from needle.base.errors import InvalidArgument
from needle.client.client import Client
from needle.client.embedding import WORDLLAMA
from needle.distributed import RaftCluster
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.server.http import session

DIMENSIONS = 8
JSON, PACKED = "application/json", "application/msgpack"


class Answer(NamedTuple):
    """status, headers, body."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """One node's door."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """body: sent as JSON, unless it is bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            told.setdefault("content-type", JSON)
        return await asyncio.to_thread(self._ask, method, path, data, told)

    def _ask(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        request = urllib.request.Request(f"http://{self._address}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())


class World(NamedTuple):
    """Three nodes, the client of one, the doors of all."""

    cluster: ProcessCluster
    client: Any
    doors: list[Http]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_path: Path) -> AsyncIterator[World]:
    async with ProcessCluster(module_path, **CALM) as cluster, cluster.connect() as client:
        doors = [Http(node.http) for node in cluster.nodes.values()]
        yield World(cluster, client, doors)


pytestmark = pytest.mark.asyncio(loop_scope="module")
COUNTER = iter(range(1000))


async def made(world: World, **options: Any) -> str:
    """A new collection; its path."""
    name = f"c{next(COUNTER)}"
    answer = await world.doors[0]("POST", "/v1/collections", {"name": name, "dimensions": DIMENSIONS, **options})
    assert answer.status == 200, answer.body
    return f"/v1/collections/{name}"


def vectors(count: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((count, DIMENSIONS), dtype=np.float32)


async def test_a_document_lives_and_dies_through_any_node(world: World) -> None:
    path, (a, b, c) = await made(world), world.doors
    written = await a("PUT", f"{path}/documents/x", {"vector": [1.0] * DIMENSIONS, "metadata": {"n": 1, "tags": ["a"]}})
    assert written.status == 200
    assert written.json["existed"] is False
    for door in world.doors:
        found = (await door("GET", f"{path}/documents/x?with_vectors=false")).json
        assert found == {"id": "x", "version": written.json["version"], "metadata": {"n": 1, "tags": ["a"]}}
    change = {"set": {"n": 2}, "append": {"tags": ["b"]}, "if_version": written.json["version"]}
    assert (await b("PATCH", f"{path}/documents/x", change)).json["count"] == 1
    stale = await c("PATCH", f"{path}/documents/x", change)
    assert (stale.status, stale.json["code"]) == (412, "version_mismatch")
    assert (await c("GET", f"{path}/documents/x")).json["metadata"] == {"n": 2, "tags": ["a", "b"]}
    taken = await c("PUT", f"{path}/documents/x", {"vector": [1.0] * DIMENSIONS, "if_version": 0})
    assert (taken.status, taken.json["code"]) == (409, "already_exists")
    assert (await a("DELETE", f"{path}/documents/x")).json["existed"] is True
    gone = await b("GET", f"{path}/documents/x")
    assert (gone.status, gone.json["code"]) == (404, "document_not_found")


async def test_collections_say_how_large_they_are(world: World) -> None:
    path, (a, b, c) = await made(world), world.doors
    body = {"ids": ["x", "y"], "vectors": [[1.0] * DIMENSIONS] * 2, "metadatas": [{"n": 1}, {"n": 2}]}
    assert (await a("POST", f"{path}/insert", body)).json["written"] == 2
    one = (await b("GET", path)).json
    assert one["documents"] == {"0": 2} and one["size"] == one["sizes"]["0"]
    assert one["size"]["vector_bytes"] == 2 * 4 * DIMENSIONS and one["size"]["index_bytes"] == 0
    assert one["size"]["document_bytes"] > 2 * len('{"n":1}')
    listed = (await c("GET", "/v1/collections?sizes=true")).json["collections"]
    assert one in listed
    plain = (await c("GET", "/v1/collections")).json["collections"]
    assert [row["name"] for row in plain] == [row["name"] for row in listed]
    assert all(row["documents"] is None and row["size"] is None for row in plain)
    assert (await c("GET", "/v1/collections?sizes=perhaps")).status == 400


async def test_documents_expire_and_collections_have_a_time_to_live(world: World) -> None:
    path, (a, b, c) = await made(world, ttl=3600), world.doors
    row, far = [1.0] * DIMENSIONS, "2999-01-01T00:00:00Z"
    assert (await b("GET", path)).json["ttl"] == 3600
    assert (await a("PUT", f"{path}/documents/x", {"vector": row, "expires_at": far})).status == 200
    assert (await b("GET", f"{path}/documents/x")).json["expires_at"] == far
    body = {"ids": ["y", "z"], "vectors": [row, row], "expires_at": [None, "never"]}
    assert (await c("POST", f"{path}/insert", body)).json["written"] == 2
    listed = (await a("POST", f"{path}/scan", {})).json["documents"]
    assert listed[0]["expires_at"] == far and listed[1]["expires_at"] < far and "expires_at" not in listed[2]
    assert (await b("PATCH", f"{path}/documents/x", {"expires_at": "never"})).status == 200
    assert "expires_at" not in (await c("GET", f"{path}/documents/x")).json
    for wrong in ("2001-01-01T00:00:00Z", "soon", "2030-01-01"):
        refused = await b("PUT", f"{path}/documents/bad", {"vector": row, "expires_at": wrong})
        assert (refused.status, refused.json["field"]) == (400, "expires_at")
    assert (await c("PATCH", path, {"ttl": 0})).json["ttl"] is None
    for wrong_body in ({}, {"ttl": -1}, {"ttl": "x"}, {"ef_search": 0}):
        assert (await a("PATCH", path, wrong_body)).status == 400
    assert (await a("PUT", f"{path}/documents/w", {"vector": row})).status == 200
    assert "expires_at" not in (await b("GET", f"{path}/documents/w")).json


async def test_ids_may_be_any_text(world: World) -> None:
    path, (a, b, _) = await made(world), world.doors
    for name in ("a/b", "?x=1", "ä ö", "..", "%2F", "a#b", "documents/x"):
        where = f"{path}/documents/{urllib.parse.quote(name, safe='')}"
        assert (await a("PUT", where, {"vector": [1.0] * DIMENSIONS})).status == 200
        assert (await b("GET", where)).json["id"] == name
    listed = (await b("POST", f"{path}/scan", {})).json
    assert len(listed["documents"]) == 7
    assert listed["cursor"] is None


async def test_hits_are_those_of_the_client(world: World) -> None:
    path, rows = await made(world), vectors(300)
    name = path.rpartition("/")[2]
    ids = [f"d{n}" for n in range(300)]
    body = {"ids": ids, "vectors": rows.tolist(), "metadatas": [{"n": n, "odd": bool(n % 2)} for n in range(300)]}
    assert (await world.doors[1]("POST", f"{path}/insert", body)).json == {"written": 300, "failed": []}
    query = [0.5] * DIMENSIONS
    expected = await world.client.search(query, 7, {"odd": True}, collection=name, exact=True)
    asked = {"vector": query, "k": 7, "filter": {"odd": True}, "exact": True}
    for door in world.doors:
        found = (await door("POST", f"{path}/search", asked)).json
        assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected]
        assert [hit["distance"] for hit in found["hits"]] == [hit.distance for hit in expected]
        assert [hit["metadata"] for hit in found["hits"]] == [hit.metadata for hit in expected]
        assert found["applied_index"].keys() == {"0"}
        assert found["epoch"] >= 1
    asked_many = {"vectors": [query, rows[3].tolist()], "k": 7, "filter": {"odd": True}, "exact": True}
    many = (await world.doors[2]("POST", f"{path}/search_many", asked_many)).json
    assert [hit["id"] for hit in many["results"][0]] == [hit.id for hit in expected]
    assert "explained" not in many
    told = (await world.doors[2]("POST", f"{path}/search_many", {**asked_many, "explain": True})).json
    assert told["results"] == many["results"] and [len(shards) for shards in told["explained"]] == [1, 1]
    told = (
        await world.doors[0]("POST", f"{path}/search", {"like": "d3", "filter": {"odd": True}, "explain": True})
    ).json
    (shard,) = told["explained"]
    assert shard["segments"][0]["way"] == "growing" and shard["allowed"] < shard["documents"]
    assert shard["node"] in world.cluster.nodes
    like = (await world.doors[0]("POST", f"{path}/search", {"like": "d3", "k": 1, "with_metadata": False})).json
    assert like["hits"][0]["id"] != "d3"
    assert "metadata" not in like["hits"][0] or like["hits"][0]["metadata"] is None
    grouped = {"vector": query, "k": 2, "group_by": "odd", "group_size": 3, "exact": True}
    in_groups = await world.client.search(query, 2, collection=name, group_by="odd", group_size=3, exact=True)
    hits = (await world.doors[1]("POST", f"{path}/search", grouped)).json["hits"]
    assert [(hit["group"], hit["id"]) for hit in hits] == [(hit.group, hit.id) for hit in in_groups]
    assert sorted(hit.group for hit in in_groups) == [False] * 3 + [True] * 3
    assert "group" not in found["hits"][0]
    body = {"vector": query, "k": 7, "exact": True, "order_by": "n", "descending": True, "with_metadata": False}
    hits = (await world.doors[2]("POST", f"{path}/search", body)).json["hits"]
    plain = await world.client.search(query, 7, collection=name, exact=True)
    assert [hit["id"] for hit in hits] == [f"d{n}" for n in sorted((hit.metadata["n"] for hit in plain), reverse=True)]
    same = await world.client.search(query, 7, collection=name, exact=True, order_by="n", descending=True)
    assert [hit["id"] for hit in hits] == [hit.id for hit in same] and "metadata" not in hits[0]
    unlike = await world.client.search(query, 5, collection=name, diversify=0.8, pool=50, exact=True)
    body = {"vector": query, "k": 5, "diversify": 0.8, "pool": 50, "exact": True}
    hits = (await world.doors[1]("POST", f"{path}/search", body)).json["hits"]
    assert [hit["id"] for hit in hits] == [hit.id for hit in unlike] and unlike[0].vector is None
    assert [hit.distance for hit in unlike] != sorted(hit.distance for hit in unlike)
    queries = [query, rows[3].tolist(), rows[9].tolist()]
    for how in (
        {"k": 2, "group_by": "odd", "group_size": 3},
        {"k": 5, "diversify": 0.8, "pool": 50},
        {"k": 7, "order_by": "n", "descending": True},
    ):
        body = {"vectors": queries, "exact": True, **how}
        answer = (await world.doors[2]("POST", f"{path}/search_many", body)).json["results"]
        several = await world.client.search_many(np.array(queries, np.float32), collection=name, exact=True, **how)
        single = [await world.client.search(one, collection=name, exact=True, **how) for one in queries]
        assert [[(one.get("group"), one["id"]) for one in hits] for hits in answer] == [
            [(one.group, one.id) for one in hits] for hits in single
        ]
        assert [[(one.group, one.id, one.distance) for one in hits] for hits in several] == [
            [(one.group, one.id, one.distance) for one in hits] for hits in single
        ]
    wrong = await world.doors[1]("POST", f"{path}/search", {**grouped, "group_by": ""})
    assert wrong.status == 400 and wrong.json["field"] == "group_by"
    count = await world.doors[0]("POST", f"{path}/count", {"filter": {"odd": True}})
    assert count.json == {"count": 150}
    asked = {"field": "odd", "filter": {"n": {"$lt": 21}}, "limit": 1}
    by_value = (await world.doors[0]("POST", f"{path}/facet", asked)).json
    assert by_value == {"values": [{"value": False, "count": 11}], "distinct": 2, "documents": 21, "without": 0}
    same = await world.client.facet("odd", {"n": {"$lt": 21}}, limit=1, collection=name)
    assert msgspec.to_builtins(same) == by_value
    for wrong, field in (({"field": ""}, "field"), ({"field": "n", "limit": 0}, "limit"), ({"field": "$n"}, "field")):
        told = await world.doors[1]("POST", f"{path}/facet", wrong)
        assert told.status == 400 and field in told.json["field"]


async def test_vectors_travel_as_numbers_and_as_bytes(world: World) -> None:
    path, door = await made(world, metric="l2"), world.doors[0]
    row = vectors(1)[0]
    half = row.astype("<f2")
    as_text = [
        {"vector": row.tolist()},
        {"vector": base64.b64encode(row.tobytes()).decode()},
        {"vector": base64.b64encode(half.tobytes()).decode(), "vector_type": "float16"},
    ]
    for n, body in enumerate(as_text):
        assert (await door("PUT", f"{path}/documents/{n}", body)).status == 200
    packed = msgspec.msgpack.encode({"vector": row.tobytes(), "metadata": {"at": 3}})
    answer = await door("PUT", f"{path}/documents/3", packed, content_type=PACKED)
    assert msgspec.msgpack.decode(answer.body)["count"] == 1
    wanted = {0: row, 1: row, 2: half.astype(np.float32), 3: row}
    for n, expected in wanted.items():
        found = (await door("GET", f"{path}/documents/{n}")).json["vector"]
        assert np.array_equal(np.array(found, np.float32), expected)
        found = (await door("GET", f"{path}/documents/{n}?vector_format=float32")).json["vector"]
        assert base64.b64decode(found) == expected.tobytes()
    packed = msgspec.msgpack.encode({"vector": row.tobytes(), "with_vectors": True, "vector_format": "float32"})
    answer = await door("POST", f"{path}/search", packed, content_type=PACKED, accept=PACKED)
    found = {hit["id"]: hit for hit in msgspec.msgpack.decode(answer.body)["hits"]}
    assert found["3"]["vector"] == row.tobytes()
    assert found["3"]["metadata"] == {"at": 3}
    body = {"ids": ["x", "y"], "vectors": base64.b64encode(vectors(2).tobytes()).decode()}
    assert (await door("POST", f"{path}/insert", body)).json["written"] == 2


async def test_bits_travel_as_numbers_and_as_bytes(world: World) -> None:
    path, door = await made(world, dimensions=16, dtype="bit", metric="hamming"), world.doors[0]
    bits = [1, 0, 1, 0, 0, 0, 0, 1, *[0] * 8]
    packed = np.packbits(bits)
    as_bytes = base64.b64encode(packed.tobytes()).decode()
    bodies = [{"vector": bits}, {"vector": packed.tolist()}, {"vector": as_bytes, "vector_type": "uint8"}]
    for n, body in enumerate(bodies):
        assert (await door("PUT", f"{path}/documents/{n}", body)).status == 200
        assert (await door("GET", f"{path}/documents/{n}")).json["vector"] == packed.tolist()
        assert (await door("GET", f"{path}/documents/{n}?vector_format=uint8")).json["vector"] == as_bytes
        found = await door("POST", f"{path}/search", body | {"k": 3, "with_vectors": True, "vector_format": "uint8"})
        assert [(hit["distance"], hit["vector"]) for hit in found.json["hits"]] == [(0, as_bytes)] * (n + 1)
    told = await door("PUT", f"{path}/documents/x", {"vector": [2] * 16})
    assert told.status == 400 and "0 or 1" in told.json["detail"]
    described = (await door("GET", path)).json
    assert (described["dtype"], described["metric"]) == ("bit", "hamming")
    usual = (await door("POST", "/v1/collections", {"name": "usual-bits", "dimensions": 8, "dtype": "bit"})).json
    assert usual["metric"] == "hamming"
    assert (await door("PUT", f"{path}/vectors/code", {"dimensions": 8, "dtype": "bit"})).status == 200
    named = {"name": "of-bits", "dimensions": 2, "vectors": {"code": {"dimensions": 8, "dtype": "bit"}}}
    made_too = (await door("POST", "/v1/collections", named)).json
    for told in ((await door("GET", path)).json, made_too):
        assert told["vectors"]["code"]["metric"] == "hamming"
    odd = await made(world, metric="l2")
    await door("PUT", f"{odd}/documents/x", {"vector": [0.5] * len(vectors(1)[0])})
    told = await door("GET", f"{odd}/documents/x?vector_format=uint8")
    assert told.status == 400 and told.json["field"] == "vector_format"


async def test_gzip_both_ways(world: World) -> None:
    path, door, rows = await made(world), world.doors[0], vectors(200)
    body = {"ids": [f"d{n}" for n in range(200)], "vectors": rows.tolist()}
    data = gzip.compress(json.dumps(body).encode())
    answer = await door("POST", f"{path}/insert", data, content_encoding="gzip")
    assert answer.json["written"] == 200
    answer = await door("POST", f"{path}/get", {"ids": body["ids"]}, accept_encoding="gzip")
    assert answer.headers["content-encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(answer.body))["documents"]) == 200


async def test_a_session_is_handed_from_node_to_node(world: World) -> None:
    path = await made(world)
    token = ""
    for n in range(30):
        writer, reader = world.doors[n % 3], world.doors[(n + 1) % 3]
        body = {"vector": [1.0] * DIMENSIONS, "metadata": {"n": n}}
        token = (await writer("PUT", f"{path}/documents/x", body, needle_session=token)).headers["needle-session"]
        found = await reader("GET", f"{path}/documents/x?mode=eventual", needle_session=token)
        assert found.json["metadata"]["n"] == n
        token = found.headers["needle-session"]
    rows = {"ids": ["many"], "vectors": [[1.0] * DIMENSIONS]}
    many = await world.doors[0]("POST", f"{path}/insert", rows, needle_session="")
    founding = world.client.topology().founding
    assert session.decode(many.headers["needle-session"], founding)[0] > session.decode(token, founding)[0]
    search = {"vector": [1.0] * DIMENSIONS, "mode": "eventual", "partial": True, "k": 50}
    part = await world.doors[1]("POST", f"{path}/search", search, needle_session=many.headers["needle-session"])
    assert (part.status, "missing" in part.json, len(part.json["hits"])) == (200, False, 2)
    assert "needle-session" not in (await world.doors[0]("GET", f"{path}/documents/x")).headers
    wrong = await world.doors[0]("GET", f"{path}/documents/x", needle_session="no token")
    assert (wrong.status, wrong.json["field"]) == (400, "needle-session")


async def test_counts_and_pages_see_what_the_session_saw_and_are_as_new_as_is_asked(world: World) -> None:
    path = await made(world)
    token = ""
    for n in range(60):
        writer, reader = world.doors[n % 3], world.doors[(n + 1) % 3]
        body = {"vector": [1.0] * DIMENSIONS, "metadata": {"n": n}}
        token = (await writer("PUT", f"{path}/documents/x", body, needle_session=token)).headers["needle-session"]
        asked = {"filter": {"n": n}, "mode": "eventual"}
        if n % 2:
            assert (await reader("POST", f"{path}/count", asked, needle_session=token)).json["count"] == 1
        else:
            page = await reader("POST", f"{path}/scan", asked, needle_session=token)
            assert [one["metadata"] for one in page.json["documents"]] == [{"n": n}]
    founding = world.client.topology().founding
    for kind in ("count", "scan"):
        begun = await world.doors[0]("POST", f"{path}/{kind}", {}, needle_session="")
        assert session.decode(begun.headers["needle-session"], founding)[0] > 0, kind
    told = (await world.doors[0]("POST", f"{path}/count", {"max_staleness": 5.0})).json
    assert (told["code"], told["field"]) == ("invalid_argument", "max_staleness")
    new_enough = {"max_staleness": 5.0, "mode": "eventual"}
    assert (await world.doors[0]("POST", f"{path}/count", new_enough)).json["count"] == 1


async def test_what_is_exported_is_what_is_there(world: World) -> None:
    path, rows = await made(world, metric="l2"), vectors(2500)
    ids = [f"d{n:05d}" for n in range(2500)]
    for at in range(0, 2500, 500):
        body = {"ids": ids[at : at + 500], "vectors": rows[at : at + 500].tolist(), "metadatas": [{"n": n} for n in range(at, at + 500)]}  # fmt: skip # noqa: E501
        assert (await world.doors[0]("POST", f"{path}/insert", body)).json["written"] == 500
    answer = await world.doors[2]("POST", f"{path}/export", {})
    assert answer.headers["content-type"] == "application/x-ndjson"
    *lines, end = [json.loads(line) for line in answer.body.splitlines()]
    assert end == {"end": "complete", "documents": 2500}
    assert [line["id"] for line in lines] == ids
    assert np.array_equal(np.array([line["vector"] for line in lines], np.float32), rows)
    assert [line["metadata"]["n"] for line in lines] == list(range(2500))
    turned = await world.doors[1](
        "POST", f"{path}/export", {"order_by": "n", "descending": True, "with_vectors": False}
    )
    *lines, end = [json.loads(line) for line in turned.body.splitlines()]
    assert ([line["id"] for line in lines], end["documents"]) == (ids[::-1], 2500)
    part = await world.doors[1]("POST", f"{path}/export", {"filter": {"n": {"$lt": 3}}, "with_vectors": False})
    assert [json.loads(line)["id"] for line in part.body.splitlines()[:-1]] == ids[:3]
    pages, cursor, seen = 0, None, []
    while True:
        page = (await world.doors[pages % 3]("POST", f"{path}/scan", {"limit": 700, "cursor": cursor})).json
        seen += [document["id"] for document in page["documents"]]
        pages, cursor = pages + 1, page["cursor"]
        if cursor is None:
            break
    assert seen == ids
    changed = await world.doors[1]("POST", f"{path}/patch", {"filter": {"n": {"$gte": 2490}}, "set": {"late": True}, "return_ids": True})  # fmt: skip # noqa: E501
    assert sorted(changed.json["ids"]) == ids[2490:]
    dry = await world.doors[1]("POST", f"{path}/delete", {"filter": {"late": True}, "dry_run": True})
    assert dry.json["count"] == 10
    assert (await world.doors[1]("POST", f"{path}/delete", {"filter": {"late": True}})).json["count"] == 10
    assert (await world.doors[1]("POST", f"{path}/delete", {"ids": ids[:5]})).json["count"] == 5
    assert (await world.doors[2]("GET", path)).json["documents"] == {"0": 2485}


async def test_consistent_pages_are_of_one_moment(world: World) -> None:
    path, rows = await made(world, metric="l2"), vectors(300)
    ids = [f"d{n:03d}" for n in range(300)]
    body = {"ids": ids, "vectors": rows.tolist(), "metadatas": [{"n": n} for n in range(300)]}
    assert (await world.doors[0]("POST", f"{path}/insert", body)).json["written"] == 300
    asked: dict[str, Any] = {"limit": 70, "consistent": True}
    page = (await world.doors[0]("POST", f"{path}/scan", asked)).json
    changed = await world.doors[1]("POST", f"{path}/patch", {"filter": {}, "set": {"n": -1}})
    assert changed.json["count"] == 300
    assert (await world.doors[1]("POST", f"{path}/delete", {"ids": ids[100:200]})).json["count"] == 100
    by = {"order_by": "at", "limit": 70}
    first = (await world.doors[2]("POST", f"{path}/scan", by)).json
    assert [one["id"] for one in first["documents"]] == ids[:70]
    then = (await world.doors[1]("POST", f"{path}/scan", {**by, "cursor": first["cursor"]})).json
    assert [one["id"] for one in then["documents"]] == [*ids[70:100], *ids[200:240]]
    down = {"order_by": "n", "descending": True}
    back = (await world.doors[0]("POST", f"{path}/scan", {**down, "limit": 70})).json
    turned = await world.doors[0]("POST", f"{path}/scan", {"order_by": "n", "cursor": back["cursor"]})
    assert (turned.status, turned.json["field"]) == (400, "cursor")
    odd = await world.doors[0]("POST", f"{path}/export", {"descending": True})
    assert (odd.status, odd.json["field"]) == (400, "descending")
    odd = await world.doors[1]("POST", f"{path}/scan", {"order_by": "$id"})
    assert (odd.status, odd.json["code"]) == (400, "invalid_argument")
    seen, pages, cursor = page["documents"], 0, ""
    while page["cursor"] is not None:
        cursor, pages = page["cursor"], pages + 1
        page = (await world.doors[pages % 3]("POST", f"{path}/scan", {"limit": 70, "cursor": cursor})).json
        seen += page["documents"]
    assert [(one["id"], one["metadata"]) for one in seen] == [(name, {"n": n}) for n, name in enumerate(ids)]
    while (over := await world.doors[2]("POST", f"{path}/scan", {"limit": 70, "cursor": cursor})).status == 200:
        pass  # the replica that was asked has not applied the end yet
    assert (over.status, over.json["code"], over.json["retryable"]) == (410, "scan_ended", False)
    plain = (await world.doors[2]("POST", f"{path}/scan", {"limit": 70})).json["cursor"]
    refused = await world.doors[2]("POST", f"{path}/scan", {"cursor": plain, "consistent": True})
    assert (refused.status, refused.json["field"]) == (400, "consistent")
    lines = (await world.doors[1]("POST", f"{path}/export", {"consistent": True})).body.splitlines()
    assert [json.loads(line)["id"] for line in lines[:-1]] == ids[:100] + ids[200:]


async def test_a_cursor_of_an_alias_that_leads_elsewhere_is_refused(world: World) -> None:
    """Its text says of which collection it is."""
    one, other = await made(world), await made(world)
    names = [path.rpartition("/")[2] for path in (one, other)]
    for path in (one, other):
        body = {"ids": ["a", "b"], "vectors": [[1.0] * DIMENSIONS] * 2}
        assert (await world.doors[0]("POST", f"{path}/insert", body)).json["written"] == 2
    await world.doors[0]("PUT", "/v1/aliases/paged", {"collection": names[0]})
    page = (await world.doors[1]("POST", "/v1/collections/paged/scan", {"limit": 1})).json
    await world.doors[0]("PUT", "/v1/aliases/paged", {"collection": names[1]})
    refused = await world.doors[1]("POST", "/v1/collections/paged/scan", {"limit": 1, "cursor": page["cursor"]})
    assert (refused.status, refused.json["field"]) == (400, "cursor")
    await world.doors[0]("DELETE", "/v1/aliases/paged")


BAD: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/search", {"vector": [1.0] * 3}, 400, "vector"),
    ("POST", "/search", {"vector": [1.0] * DIMENSIONS, "k": 0}, 400, "k"),
    ("POST", "/search", {"vector": [1.0] * DIMENSIONS, "fliter": {}}, 400, "fliter"),
    ("POST", "/search", {"vector": "!"}, 400, "vector"),
    ("POST", "/search", {"vector": "AAA="}, 400, "vector"),
    ("POST", "/search", {}, 400, "vector"),
    ("POST", "/search", {"vector": [1.0] * DIMENSIONS, "filter": {"n": {"$near": 1}}}, 400, "$near"),
    ("POST", "/search", {"vector": [1.0] * DIMENSIONS, "mode": "weak"}, 400, "mode"),
    ("POST", "/search", {"vector": [1.0] * DIMENSIONS, "max_staleness": 1}, 400, "max_staleness"),
    ("POST", "/search", {"vector": [1.0] * DIMENSIONS, "timeout": 0}, 400, "timeout"),
    ("POST", "/search", b"[" * 100_000, 400, "body"),
    ("POST", "/search", b'{"k": 1' , 400, "body"),
    ("POST", "/search", b"\xff", 400, "body"),
    ("POST", "/search", b'{"vector": [NaN]}', 400, "body"),
    ("POST", "/search", {"vector": [1.0] * DIMENSIONS, "k": 2**64}, 400, "k"),
    ("POST", "/search", {"like": "nobody"}, 404, "nobody"),
    ("PUT", "/documents/x", {"vector": [0.0] * DIMENSIONS}, 400, "zero"),
    ("PUT", "/documents/x", {"vector": [1.0] * DIMENSIONS, "if_version": -1}, 400, "if_version"),
    ("PUT", f"/documents/{'x' * 3000}", {"vector": [1.0] * DIMENSIONS}, 400, "id"),
    ("POST", "/insert", {"ids": ["a"], "vectors": [[1.0], [2.0]]}, 400, "vectors"),
    ("POST", "/insert", {"ids": ["a", "b"], "vectors": "AAAAAA=="}, 400, "vectors"),
    ("POST", "/insert", {"ids": [], "vectors": "AAAAAA=="}, 400, "vectors"),
    ("POST", "/patch", {"ids": ["a"], "filter": {}, "set": {"x": 1}}, 400, "either"),
    ("POST", "/patch", {"ids": ["a"]}, 400, "nothing is to be changed"),
    ("POST", "/patch", {"ids": ["a"], "set": {"x": 1}, "dry_run": True}, 400, "dry_run"),
    ("POST", "/delete", {}, 400, "either"),
    ("POST", "/scan", {"cursor": "nonsense"}, 400, "cursor"),
    ("POST", "/scan", {"slice": [3, 2]}, 400, "slice"),
    ("POST", "/count", {"filter": {"$or": 1}}, 400, "$or"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "below", "body", "status", "text"), BAD, ids=lambda value: str(value)[:40])
async def test_bad_input_is_refused_by_name(
    world: World, method: str, below: str, body: Any, status: int, text: str
) -> None:
    path = await made(world)
    answer = await world.doors[1](method, path + below, body)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert problem["status"] == status
    assert text in problem["detail"] + problem.get("field", "")
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert (await world.doors[0]("POST", f"{path}/count", {})).json == {"count": 0}


async def test_conditions_are_asked_of_what_is_stored(world: World) -> None:
    path, door = await made(world), world.doors[1]
    vector = [1.0] * DIMENSIONS
    assert (await door("PUT", f"{path}/documents/x", {"vector": vector, "metadata": {"state": "new"}})).status == 200
    wrong = {"state": "old"}
    for method, below, body in (
        ("PUT", "/documents/x", {"vector": vector, "if_matches": wrong}),
        ("PATCH", "/documents/x", {"set": {"n": 1}, "if_matches": wrong}),
        ("POST", "/patch", {"ids": ["x"], "set": {"n": 1}, "if_matches": wrong}),
        ("POST", "/delete", {"ids": ["x"], "if_matches": wrong}),
    ):
        answer = await door(method, path + below, body)
        assert (answer.status, answer.json["code"]) == (412, "condition_failed"), (method, below)
    assert (await door("GET", f"{path}/documents/x")).json["metadata"] == {"state": "new"}
    done = await door("PATCH", f"{path}/documents/x", {"set": {"n": 1}, "if_matches": {"state": "new"}})
    assert done.json["count"] == 1


async def test_what_is_not_there_is_said(world: World) -> None:
    for method, path, body in (
        ("GET", "/v1/collections/none", None),
        ("DELETE", "/v1/collections/none", None),
        ("POST", "/v1/collections/none/search", {"vector": [1.0]}),
        ("GET", "/v1/collections/none/documents/x", None),
    ):
        answer = await world.doors[0](method, path, body)
        assert (answer.status, answer.json["code"]) == (404, "collection_not_found")
    path = await made(world)
    again = await world.doors[2]("POST", "/v1/collections", {"name": path.rpartition("/")[2], "dimensions": 3})
    assert (again.status, again.json["code"]) == (409, "collection_exists")
    assert (await world.doors[1]("DELETE", path)).status == 200
    assert (await world.doors[2]("GET", path)).status == 404


async def test_an_alias_is_set_used_listed_and_removed(world: World) -> None:
    a, b, c = world.doors
    path = await made(world)
    collection = path.rpartition("/")[2]
    assert (await a("PUT", "/v1/aliases/now", {"collection": collection})).json == {
        "alias": "now",
        "collection": collection,
    }
    assert (await b("PUT", "/v1/collections/now/documents/x", {"vector": [1.0] * 8})).status == 200
    assert (await c("GET", f"{path}/documents/x")).status == 200
    assert {"alias": "now", "collection": collection} in (await b("GET", "/v1/aliases")).json["aliases"]
    nowhere = await c("PUT", "/v1/aliases/then", {"collection": "nowhere"})
    assert (nowhere.status, nowhere.json["code"]) == (404, "collection_not_found")
    assert (await c("PUT", f"/v1/aliases/{collection}", {"collection": "default"})).json["code"] == "collection_exists"
    assert (await b("DELETE", "/v1/aliases/now")).json == {"alias": "now"}
    assert (await a("DELETE", "/v1/aliases/now")).status == 404
    assert (await c("GET", "/v1/collections/now/documents/x")).status == 404


async def test_shards_and_nodes_are_changed_by_hand(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        for n in range(20):
            await client.insert(f"{n}", [1.0, n] + [0.0] * 6)
        a, b, _ = [Http(node.http) for node in cluster.nodes.values()]
        names = list(cluster.nodes)
        zone = f"/v1/nodes/{names[0]}/zone"
        assert (await b("PUT", zone, {"zone": "z"})).status == 200
        assert {n["id"]: n["zone"] for n in (await a("GET", "/v1/nodes")).json["nodes"]}[names[0]] == "z"
        assert (await a("PUT", zone, {"zone": None})).status == 200
        assert "zone" in (await a("PUT", zone, {})).json["detail"]
        weight = f"/v1/nodes/{names[0]}/weight"
        assert (await b("PUT", weight, {"weight": 2})).status == 200
        assert {n["id"]: n["weight"] for n in (await a("GET", "/v1/nodes")).json["nodes"]}[names[0]] == 2.0
        assert (await a("PUT", weight, {"weight": None})).status == 200
        assert "weight" in (await a("PUT", weight, {"weight": -1})).json["detail"]
        for shard in ("0", "catalog"):
            moved = await a("POST", f"/v1/shards/{shard}/move", {"source": names[0], "target": "nobody"})
            assert (moved.status, "nobody" in moved.json["detail"]) == (400, True)
        drain = f"/v1/nodes/{names[0]}/drain"
        assert "throttle_rate" in (await a("PUT", drain, {"config": {"throttle_rate": -1}})).json["detail"]
        drained = await a("PUT", drain, {"config": {"throttle_rate": 0.5}})
        assert (drained.status, drained.json["code"]) == (503, "unavailable")  # nobody else can take its replica
        assert "target" in (await b("POST", "/v1/shards/0/move", {"source": names[0]})).json["detail"]
        replaced = await b("POST", f"/v1/nodes/{names[0]}/replace", {"by": names[1]})
        assert (replaced.status, replaced.json["code"]) == (400, "invalid_argument")
        assert (await a("POST", "/v1/shards/9/split", {})).json["field"] == "shard"
        started = (await a("POST", "/v1/shards/0/split", {"timeout": 60})).json["id"]

        async def over() -> bool:
            now = (await b("GET", "/v1/rebalance?timeout=60")).json["progress"]
            return bool(now["id"] == started and now["state"] == "done")

        await wait_for(over, 60, "the split")
        assert len((await a("GET", "/v1/shards?timeout=60")).json["shards"]) == 2
        new = cluster.add(sharding={"join": [cluster.addresses[names[0]]]})
        cluster.restart(new)
        await wait_for(lambda: _has_joined(client, new), 60, "the fourth node")
        asked = {"by": new, "timeout": 60, "config": {"throttle_rate": 0.0}}
        replace = f"/v1/nodes/{names[2]}/replace"
        began = (await a("POST", replace, {**asked, "wait": False})).json
        assert began == {"id": began["id"], "done": False} and began["id"] > started
        job = (await client.refresh_topology(confirmed=True)).rebalance
        assert job is not None and (job.id, job.config.throttle_rate) == (began["id"], 0.0)
        ended = (await a("POST", replace, asked)).json
        assert ended["done"] and ended["id"] in (began["id"], None)
        assert (await b("POST", replace, {**asked, "wait": False})).status == 400  # no node of that name any more
        assert await client.count() == 20


async def _has_joined(client: Client, node: str) -> bool:
    return node in (await client.refresh_topology(confirmed=True)).addresses()


async def test_the_cluster_is_seen_and_looked_after(world: World) -> None:
    a, b, _ = world.doors
    seen = (await a("GET", "/v1/cluster")).json
    assert seen["healthy"]
    names = [node["id"] for node in seen["nodes"]]
    assert len(names) == 3
    leader = seen["shards"][0]["leader"]
    target = next(name for name in names if name != leader)
    assert (await b("POST", "/v1/shards/0/step_down", {"to": target})).json == {"shard": 0, "leader": target}
    assert (await a("POST", "/v1/shards/0/force_election", {})).status == 200
    assert (await a("GET", "/v1/shards/0/leader")).json["shard"] == 0
    handed: Any = {"field": "to"}
    while handed.get("field") == "to":  # on a busy machine another one may have been elected since
        catalog = (await a("GET", "/v1/shards/catalog/leader")).json["leader"]
        other = next(name for name in names if name != catalog)
        handed = (await b("POST", "/v1/shards/catalog/step_down", {"to": other})).json
    assert handed == {"shard": "catalog", "leader": other}
    assert (await a("POST", "/v1/shards/catalog/force_election", {})).json["shard"] == "catalog"
    assert (await a("PUT", "/v1/shards/catalog/replicas", {"nodes": sorted(names)})).status == 200
    assert (await a("PUT", "/v1/shards/catalog/replicas", {"nodes": ["nobody"]})).status == 400
    assert (await a("GET", "/v1/shards/7/leader")).json["field"] == "shard"
    assert (await a("POST", "/v1/shards/7/step_down", {})).status == 400
    assert (await a("POST", "/v1/shards/x/step_down", {})).json["field"] == "shard"
    assert (await a("PUT", f"/v1/nodes/{target}/maintenance")).status == 200
    assert (await a("PUT", f"/v1/nodes/{target}/maintenance", {"force": True})).status == 200
    assert {n["id"] for n in (await b("GET", "/v1/nodes")).json["nodes"] if n["maintenance"]} == {target}
    assert (await b("DELETE", f"/v1/nodes/{target}/maintenance?timeout=60")).status == 200
    stranger = await a("PUT", "/v1/nodes/127.0.0.1:1/maintenance")
    assert (stranger.status, stranger.json["field"]) == (400, "node")
    assert (await a("DELETE", f"/v1/nodes/{target}")).status == 400
    planned = (await a("GET", "/v1/restart_plan")).json["nodes"]
    assert len(planned) == 3 and {one["node"] for one in planned} == set(names)
    assert all(set(one) == {"node", "address", "leads", "why_not", "seconds"} for one in planned)
    assert (await a("GET", "/v1/moves")).json == {"moves": []}
    assert (await a("GET", "/v1/rebalance")).json == {"progress": None}
    assert (await a("POST", "/v1/rebalance/plan", {})).json["moves"] == []
    assert (await a("POST", "/v1/rebalance/plan", {"wish": {"drain": ["nobody"]}})).status == 400
    planned = (await a("POST", "/v1/rebalance/plan", {"wish": {"shards": 2}, "config": {"throttle_rate": 3600}})).json
    assert [move["type"] for move in planned["details"]][:1] == ["found-shard"]
    assert len(planned["details"]) == len(planned["moves"]) and planned["details"][0]["shards"] == [1]
    for what in ("documents", "bytes"):
        assert planned[what] == sum(move[what] for move in planned["details"])
    assert planned["ratio"] >= 1 and planned["seconds"] > planned["documents"]
    assert (await a("POST", "/v1/rebalance/pause", {})).status == 400
    assert "shard_sizes" in (await a("GET", "/v1/rebalance/stats?timeout=60")).json


async def test_writes_go_on_when_the_leader_dies(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect():
        leader = await cluster.leader()
        doors = [Http(node.http) for name, node in cluster.nodes.items() if name != leader]
        path = "/v1/collections/default/documents"
        done = [asyncio.create_task(doors[n % 2]("PUT", f"{path}/{n}", {"vector": [1.0] * 8})) for n in range(20)]
        cluster.kill(leader)
        done += [
            asyncio.create_task(doors[n % 2]("PUT", f"{path}/{n}", {"vector": [1.0] * 8, "timeout": 60}))
            for n in range(20, 60)
        ]
        answers = await asyncio.gather(*done)
        acknowledged = [n for n, answer in enumerate(answers) if answer.status == 200]
        assert len(acknowledged) >= 40
        for answer in answers:
            assert answer.status in (200, 503, 504), answer.body
        found = (await doors[0]("POST", f"{path.removesuffix('/documents')}/get", {"ids": [str(n) for n in acknowledged], "timeout": 60})).json  # fmt: skip # noqa: E501
        assert len(found["documents"]) == len(acknowledged)


async def test_texts_become_vectors_on_the_node(world: World) -> None:
    """The same that the client makes of them; and one who has an old catalog asks for the newest first."""
    name, (a, b, c) = f"c{next(COUNTER)}", world.doors
    made = await a("POST", "/v1/collections", {"name": name, "model": "wordllama"})
    assert (made.status, made.json["model"], made.json["dimensions"]) == (200, "wordllama", 256)
    path = f"/v1/collections/{name}"
    assert (await b("GET", path)).json["model"] == "wordllama"
    fruit, sky = "a ripe red apple", "clouds above the mountains"
    assert (await b("PUT", f"{path}/documents/fruit", {"text": fruit, "metadata": {"n": 1}})).status == 200
    assert (await c("POST", f"{path}/insert", {"ids": ["sky"], "texts": [sky]})).json["written"] == 1
    for told in await world.client.search_many(texts=[fruit, sky], k=1, collection=name):
        assert abs(told[0].distance) < 1e-6
    found = await a("POST", f"{path}/search", {"text": "pears and bananas", "k": 1, "mode": "leased"})
    assert [hit["id"] for hit in found.json["hits"]] == ["fruit"]
    many = (await c("POST", f"{path}/search_many", {"texts": [fruit, sky], "k": 1})).json["results"]
    assert [[hit["id"] for hit in hits] for hits in many] == [["fruit"], ["sky"]]

    vector = [1.0] * 256
    for method, below, body, told in (
        ("PUT", "documents/x", {}, "give a vector, or a text"),
        ("PUT", "documents/x", {"vector": vector, "text": "a"}, "either a vector or a text"),
        ("POST", "insert", {"ids": ["x"]}, "either vectors or texts"),
        ("POST", "insert", {"ids": ["x", "y"], "texts": ["a"]}, "one row for each of the 2 ids"),
        ("POST", "search", {"text": "a", "like": "sky"}, "either a query, or the id"),
        ("POST", "search", {"text": ""}, "text = '', a str, is not"),
        ("POST", "search", {"text": "word " * 10_000}, "cut it into passages"),
        ("POST", "search_many", {"texts": ["word " * 5000] * 20}, "bytes together"),
        ("POST", "search_many", {"texts": ["a"] * 1001}, "1000"),
    ):
        refused = await a(method, f"{path}/{below}", body)
        assert refused.status == 400 and told in refused.json["detail"], refused.body

    assert (await a("DELETE", path)).status == 200
    plain = {"name": name, "dimensions": 256}
    assert (await a("POST", "/v1/collections", plain)).json["model"] is None
    for door in world.doors:
        refused = await door("POST", f"{path}/search", {"text": "a"})
        assert (refused.status, refused.json["field"]) == (400, "text") and "names no model" in refused.json["detail"]
    with pytest.raises(InvalidArgument, match="names no model"):
        await world.client.insert("x", text="a", collection=name)
    await a("DELETE", path)
    await a("POST", "/v1/collections", {**plain, "model": "another"})
    refused = await b("PUT", f"{path}/documents/x", {"text": "a"})
    assert (
        refused.status == 400 and "the model 'another', and texts become those of 'wordllama'" in refused.json["detail"]
    )
    wrong = await a("POST", "/v1/collections", {**plain, "name": "wrong", "dimensions": 3, "model": "wordllama"})
    assert wrong.status == 400 and "256, as the model 'wordllama' has" in wrong.json["detail"]


async def test_a_node_without_the_extra_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    monkeypatch.setattr(WORDLLAMA, "_model", None)
    (port, http) = free_ports(2)
    config = RaftConfig(
        node_id="n1",
        cluster_nodes=[f"n1=127.0.0.1:{port}"],
        data_dir=str(tmp_path),
        http_address=f"127.0.0.1:{http}",
    )
    async with RaftCluster(config) as node:
        await node.wait_ready()
        door = Http(f"127.0.0.1:{http}")
        assert (await door("POST", "/v1/collections", {"name": "a", "model": "wordllama"})).status == 200
        refused = await door("PUT", "/v1/collections/a/documents/x", {"text": "words"})
        assert (refused.status, refused.json["code"], refused.json["field"]) == (400, "invalid_config", "text")
        assert "this node makes no vectors of texts" in refused.json["detail"]
        assert (await door("PUT", "/v1/collections/a/documents/x", {"vector": [1.0] * 256})).status == 200


async def test_sparse_vectors_are_declared_written_and_searched_through_any_node(world: World) -> None:
    path, (a, b, c) = await made(world, sparse=["splade"], text="t"), world.doors
    few = [{"indices": [3, 7], "values": [0.5, 1.25]}, {"indices": [7], "values": [2]}]
    for at, one in enumerate(few):
        document = {"vector": [at + 1.0] * DIMENSIONS, "metadata": {"splade": one, "t": "fox", "n": at}}
        assert (await a("PUT", f"{path}/documents/{at}", document)).status == 200
    asked = {"splade": {"indices": [7, 3], "values": [1, 2]}}
    for door in world.doors:
        found = (await door("POST", f"{path}/search", {"sparse": asked, "fields": ["n"]})).json["hits"]
        assert [(hit["id"], hit["score"], hit["metadata"]) for hit in found] == [
            ("0", 2.25, {"n": 0}),
            ("1", 2.0, {"n": 1}),
        ]
        found = (await door("POST", f"{path}/hybrid_search", {"sparse": asked, "keywords": "fox"})).json["hits"]
        assert [(hit["id"], hit["ranks"]) for hit in found] == [("0", [1, 1]), ("1", [2, 2])]
        three = {"vector": [1.0] * DIMENSIONS, "sparse": asked, "keywords": "fox", "fusion": {"weights": [0, 0, 1]}}
        found = (await door("POST", f"{path}/hybrid_search", three)).json["hits"]
        assert [hit["id"] for hit in found] == ["0", "1"] and len(found[0]["ranks"]) == 3
    wrong = {"splade": {"indices": [7, 7], "values": [1, 2]}}
    for method, where, body, field in (
        ("POST", "search", {"sparse": wrong}, "sparse.splade.indices"),
        ("POST", "search", {"sparse": {"other": asked["splade"]}}, "sparse"),
        ("POST", "hybrid_search", {"sparse": asked}, "keywords"),
        ("PUT", "documents/x", {"vector": [1.0] * DIMENSIONS, "metadata": wrong}, "metadata of 'x': splade.indices"),
        ("PATCH", "documents/0", {"set": {"splade": 5}}, "change: splade"),
    ):
        answer = await b(method, f"{path}/{where}", body)
        assert (answer.status, answer.json["field"]) == (400, field), answer.body
    assert (await c("PUT", f"{path}/sparse/other")).json["existed"] is False
    assert set((await c("GET", path)).json["sparse"]) == {"other", "splade"}
    assert (await b("DELETE", f"{path}/sparse/splade")).status == 200
    for door in world.doors:
        refused = await door("POST", f"{path}/search", {"sparse": asked})
        assert (refused.status, refused.json["field"]) == (400, "sparse"), refused.body
    assert (await c("PUT", f"{path}/sparse/a.b")).status == 400
