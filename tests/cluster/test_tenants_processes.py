"""API keys that are bound to a filter, on real nodes: every method of the client and every route of HTTP, tried by one
tenant on the documents of another. A method or a route without a row here fails the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

import needle
from harness import tenants
from harness.event_streams import events
from harness.tenants import HUSH, MINE, A, B, V, World, ask, ids, others
from needle import Client, Filter, Forbidden, InvalidArgument, NeedleError
from needle.client.documents import DocumentMethods
from needle.server.http.routes import ROUTES

pytestmark = pytest.mark.asyncio(loop_scope="module")
cluster, world, filled = tenants.cluster, tenants.world, tenants.filled


def table(**rows: Any) -> dict[str, Any]:
    return rows


REFUSED = (Forbidden,)
Row = tuple[Callable[[Client], Awaitable[Any]], Any]


async def drained(scan: Any) -> list[Any]:
    return [one async for one in scan]


async def pages(client: Client, **kw: Any) -> list[Any]:
    found, cursor = list[Any](), None
    while True:
        page = await client.scan_page(cursor=cursor, limit=2, **kw)
        found += page.documents
        cursor = page.cursor
        if cursor is None:
            return found


async def followed(client: Client) -> list[Any]:
    """What a feed tells there is."""
    async with client.changes(since="start") as feed:
        told = [await anext(feed)]
        while told[-1].kind != "ready":
            told.append(await anext(feed))
    return [one for one in told if one.kind == "insert"]


# Each: what is called, and what must come of it: a value, a function of the answer, or kinds of errors.
BATCH = {"ids": ["a0", "b1"], "vectors": [V, V], "metadatas": [A, A]}
READS: dict[str, list[Row]] = table(
    get=[
        (lambda c: c.get("b0"), None),
        (lambda c: c.get(["b0", "a0", "nobodys"]), lambda found: ids(found) == ["a0"]),
        (lambda c: c.get(["b0", "a1"], mode="eventual"), lambda found: ids(found) == ["a1"]),
    ],
    get_many=[(lambda c: c.get_many(["b0", "a0"], with_vectors=False, fields=["n"]), lambda f: ids(f) == ["a0"])],
    search=[
        (lambda c: c.search(V, 100), lambda f: ids(f) == MINE),
        (lambda c: c.search(V, 100, {"tenant": "b"}), lambda f: ids(f) == []),
        (lambda c: c.search(V, 100, {"$or": [B, A, {"tenant": {"$exists": False}}]}), lambda f: ids(f) == MINE),
        (lambda c: c.search(like="a0", k=100), lambda f: ids(f) == MINE[1:]),
        (lambda c: c.search(like="b0", k=100), (needle.DocumentNotFound,)),
        (lambda c: c.search(V, 100, explain=True), REFUSED),
        (lambda c: c.search(V, 100, exact=True, offset=2), lambda f: len(f) == 3),
        (lambda c: c.search(V, 100, Filter.ids(["a0", "b0"])), lambda f: ids(f) == ["a0"]),
        (lambda c: c.search(V, 100, group_by="tenant", group_size=100), lambda f: ids(f) == MINE),
        (lambda c: c.search(V, 100, diversify=0.5, pool=200), lambda f: ids(f) == MINE),
        (lambda c: c.search(V, 100, order_by="n"), lambda f: ids(f) == MINE),
        (lambda c: c.search(keywords=f"{HUSH} mine", k=100), lambda f: ids(f) == MINE),
        (lambda c: c.search(keywords=HUSH, k=100), lambda f: ids(f) == []),
    ],
    hybrid_search=[
        (lambda c: c.hybrid_search(V, f"{HUSH} mine", 100), lambda f: ids(f) == MINE),
        (lambda c: c.hybrid_search(V, HUSH, 100, filter=B), lambda f: ids(f) == []),
    ],
    changes=[(followed, lambda f: ids(f) == MINE)],
    search_many=[(lambda c: c.search_many([V, V], 100), lambda found: [ids(f) for f in found] == [MINE, MINE])],
    search_strong=[(lambda c: c.search_strong(V, 100), lambda f: ids(f) == MINE)],
    search_leased=[(lambda c: c.search_leased(V, 100), lambda f: ids(f) == MINE)],
    search_eventual=[(lambda c: c.search_eventual(V, 100, session=True), lambda f: ids(f) == MINE)],
    search_partial=[(lambda c: c.search_partial(V, 100), lambda f: ids(f.hits) == MINE)],
    count=[(lambda c: c.count(), 5), (lambda c: c.count(B), 0), (lambda c: c.count({"of": HUSH}), 0)],
    counts=[(lambda c: c.counts(), lambda f: sum(f.values()) == 5)],
    facet=[
        (lambda c: c.facet("tenant"), lambda f: [(one.value, one.count) for one in f.values] == [("a", 5)]),
        (lambda c: c.facet("of"), lambda f: HUSH not in repr(f)),
        (lambda c: c.facet("tenant", B), lambda f: (f.values, f.documents, f.distinct) == ([], 0, 0)),
    ],
    scan=[
        (lambda c: drained(c.scan()), lambda f: ids(f) == MINE),
        (lambda c: drained(c.scan(B, with_vectors=True)), lambda f: f == []),
        (lambda c: drained(c.scan(order_by="n")), lambda f: ids(f) == MINE),
        (lambda c: drained(c.scan(Filter.ids(["a1", "b1"]))), lambda f: ids(f) == ["a1"]),
    ],
    scan_page=[(pages, lambda f: ids(f) == MINE), (lambda c: pages(c, filter=B), lambda f: f == [])],
    describe_collection=[
        (lambda c: c.describe_collection(), lambda f: (f.documents, f.size, f.fields) == (5, None, {}))
    ],
    describe_collections=[(lambda c: c.describe_collections(), lambda f: [one.documents for one in f] == [5])],
    collections=[(lambda c: c.collections(), lambda f: [one.name for one in f] == ["default"])],
    aliases=[(lambda c: c.aliases(), {})],
)
WRITES: dict[str, list[Row]] = table(
    insert=[
        (lambda c: c.insert("b0", V, A), REFUSED),
        (lambda c: c.insert("b0", V, B), REFUSED),
        (lambda c: c.insert("nobodys", V, A), REFUSED),
        (lambda c: c.insert("new", V, B), REFUSED),
        (lambda c: c.insert("new", V), REFUSED),
        (lambda c: c.insert("a0", V, {"tenant": "b"}), REFUSED),
        (lambda c: c.insert("a0", V, A), lambda f: f.existed),
        (lambda c: c.insert("b0", V, A, if_matches=B), REFUSED),
    ],
    insert_if_absent=[(lambda c: c.insert_if_absent("b0", V, A), REFUSED)],
    compare_and_set=[(lambda c: c.compare_and_set("b0", 1, V, A), REFUSED)],
    insert_batch=[
        (lambda c: c.insert_batch(**BATCH), (NeedleError,)),
        (lambda c: c.insert_batch(ids=["a7", "a8"], vectors=[V, V], metadatas=[A, B]), (NeedleError,)),
        (
            lambda c: c.insert_batch(
                ids=[f"many{n}" for n in range(2500)], vectors=np.ones((2500, 8), "f4"), metadatas=[A] * 2500
            ),
            lambda f: sum(one.count for one in f) == 2500,
        ),
    ],
    insert_each=[(lambda c: c.insert_each(**BATCH), lambda f: isinstance(f["b1"], NeedleError))],
    patch=[
        (lambda c: c.patch("b0", set={"n": 9}), lambda f: (f.count, f.existed) == (0, False)),
        (lambda c: c.patch(["b0", "a0"], set={"n": 9}), lambda f: f.count == 1),
        (lambda c: c.patch("b0", set={"n": 9}, if_version=1), (needle.VersionMismatch,)),
        (lambda c: c.patch("b0", set={"n": 9}, if_matches={"tenant": "x"}), lambda f: f.count == 0),
        (lambda c: c.patch("a0", set={"tenant": "b"}), REFUSED),
        (lambda c: c.patch("a0", unset=["tenant"]), REFUSED),
        (lambda c: c.patch("a0", append={"tags": ["x"]}), lambda f: f.count == 1),
    ],
    replace_metadata=[
        (lambda c: c.replace_metadata("b0", A), lambda f: f.count == 0),
        (lambda c: c.replace_metadata("a0", B), REFUSED),
        (lambda c: c.replace_metadata("a0", A), lambda f: f.count == 1),
    ],
    update_vector=[
        (lambda c: c.update_vector("b0", V), lambda f: f.count == 0),
        (lambda c: c.update_vector("b0", V, if_version=1), (needle.VersionMismatch,)),
    ],
    update_vectors=[(lambda c: c.update_vectors(["b0", "a0"], [V, V]), lambda f: f.count == 1)],
    delete_vector=[(lambda c: c.delete_vector(["b0", "a0"], "title"), (InvalidArgument,))],  # it has none
    patch_where=[
        (lambda c: c.patch_where(B, set={"n": 9}, return_ids=True), lambda f: (f.count, f.ids) == (0, [])),
        (lambda c: c.patch_where({}, set={"n": 8}, dry_run=True), lambda f: f.count == 5),
        (lambda c: c.patch_where({}, set={"n": 8}, return_ids=True), lambda f: sorted(f.ids) == MINE),
        (lambda c: c.patch_where({}, set={"tenant": "b"}), REFUSED),
    ],
    delete=[
        (lambda c: c.delete(["b0", "nobodys"]), lambda f: (f.count, f.existed) == (0, False)),
        (lambda c: c.delete("b0", if_matches={"tenant": "x"}), lambda f: f.count == 0),
        (lambda c: c.delete(["b0", "a0"]), lambda f: f.count == 1),
    ],
    delete_where=[
        (lambda c: c.delete_where(B, return_ids=True), lambda f: (f.count, f.ids) == (0, [])),
        (lambda c: c.delete_where({}, dry_run=True), lambda f: f.count == 5),
        (lambda c: c.delete_where({}, return_ids=True), lambda f: sorted(f.ids) == MINE),
    ],
)
ADMINS: dict[str, list[Row]] = table(
    add_sparse=[(lambda c: c.add_sparse("default", "splade"), REFUSED)],
    drop_sparse=[(lambda c: c.drop_sparse("default", "splade"), REFUSED)],
    add_vector=[(lambda c: c.add_vector("default", "title", needle.VectorSpec(dimensions=2)), REFUSED)],
    drop_vector=[(lambda c: c.drop_vector("default", "title"), (InvalidArgument,))],  # it has none
    alter_collection=[(lambda c: c.alter_collection(ef_search=9), REFUSED)],
    create_collection=[(lambda c: c.create_collection("mine", dimensions=2), REFUSED)],
    create_field_index=[(lambda c: c.create_field_index("default", "n"), REFUSED)],
    drop_collection=[(lambda c: c.drop_collection("default"), REFUSED)],
    drop_field_index=[(lambda c: c.drop_field_index("default", "n"), REFUSED)],
    set_alias=[(lambda c: c.set_alias("other", "default"), REFUSED)],
    remove_alias=[(lambda c: c.remove_alias("other"), REFUSED)],
)
OF_THE_CLUSTER: dict[str, list[Row]] = table(
    status=[(lambda c: c.status(0), REFUSED)],
    digests=[(lambda c: c.digests(0), REFUSED)],
    node_status=[(lambda c: c.node_status("node-1", shard=0, digest=True), REFUSED)],
    catalog_status=[(lambda c: c.catalog_status(), REFUSED)],
    catalog_replicas=[(lambda c: c.catalog_replicas(), REFUSED)],
    plan_rebalance=[(lambda c: c.plan_rebalance(), REFUSED)],
    keys=[(lambda c: c.keys(), REFUSED)],
)


async def test_every_method_for_documents_is_tried() -> None:
    named = {name for name in dir(DocumentMethods) if not name.startswith("_")} - {"embedder"} | {"insert_batch"}
    assert named == READS.keys() | WRITES.keys() | ADMINS.keys() | {"watch"}


async def test_who_watches_is_told_of_documents_of_their_own(world: World, filled: dict[str, Any]) -> None:
    async with world.a.watch(query=V, max_distance=2.0) as near:
        told = asyncio.ensure_future(anext(near))
        while not told.done():  # until the feed has begun, nothing is told
            await world.b.insert("b1", V, B | {"of": HUSH})
            await world.admin.insert("nobodys", V, {"of": HUSH})
            await world.a.insert("a1", V, A | {"of": "mine"})
        assert {(await told).id, (await anext(near)).id} == {"a1"}


@pytest.mark.parametrize("method", [*READS, *WRITES, *ADMINS, *OF_THE_CLUSTER])
async def test_a_tenant_sees_and_changes_its_own_documents_only(
    world: World, filled: dict[str, Any], method: str
) -> None:
    for call, expected in (READS | WRITES | ADMINS | OF_THE_CLUSTER)[method]:
        try:
            answer = await call(world.a)
        except NeedleError as error:
            assert isinstance(expected, tuple), error
            assert isinstance(error, expected), error
            assert HUSH not in str(error) + repr(error.details)
            assert "version" not in error.details
            if "actual" in error.details:
                assert error.details["actual"] == 0
        else:
            assert HUSH not in repr(answer)
            assert expected(answer) if callable(expected) else answer == expected, answer
        assert await others(world) == filled


# --- HTTP ------------------------------------------------------------------------------------------------------------
C = "/v1/collections/default"
# Each: method, path, body, status, and what must be in the answer.
HTTP: dict[str, list[tuple[str, str, Any, int, str]]] = {
    "search": [
        ("POST", f"{C}/search", {"vector": V, "k": 100, "filter": B}, 200, '"hits":[]'),
        ("POST", f"{C}/search", {"vector": V, "k": 100}, 200, '"a4"'),
        ("POST", f"{C}/search", {"like": "b0"}, 404, ""),
        ("POST", f"{C}/search", {"vector": V, "explain": True}, 403, ""),
    ],
    "hybrid_search": [
        ("POST", f"{C}/hybrid_search", {"vector": V, "keywords": f"{HUSH} mine", "k": 100}, 200, '"a4"'),
        ("POST", f"{C}/hybrid_search", {"vector": V, "keywords": HUSH, "filter": B}, 200, '"hits":[]'),
    ],
    "search_many": [("POST", f"{C}/search_many", {"vectors": [V], "k": 100}, 200, '"a4"')],
    "put_document": [
        ("PUT", f"{C}/documents/b0", {"vector": V, "metadata": A}, 403, ""),
        ("PUT", f"{C}/documents/b0", {"vector": V, "metadata": A, "if_version": 0}, 403, ""),
        ("PUT", f"{C}/documents/new", {"vector": V, "metadata": B}, 403, ""),
        ("PUT", f"{C}/documents/a0", {"vector": V, "metadata": A}, 200, '"existed":true'),
    ],
    "get_document": [("GET", f"{C}/documents/b0", None, 404, ""), ("GET", f"{C}/documents/a0", None, 200, '"a0"')],
    "get_documents": [("POST", f"{C}/get", {"ids": ["b0", "a0", "nobodys"]}, 200, '"a0"')],
    "patch_document": [
        ("PATCH", f"{C}/documents/b0", {"set": {"n": 9}}, 200, '"count":0'),
        ("PATCH", f"{C}/documents/b0", {"set": {"n": 9}, "if_version": 1}, 412, "version 0"),
        ("PATCH", f"{C}/documents/a0", {"set": {"tenant": "b"}}, 403, ""),
    ],
    "update_vectors": [
        ("POST", f"{C}/update_vectors", {"ids": ["b0", "a0"], "vectors": [V, V]}, 200, '"count":1'),
    ],
    "patch_documents": [
        ("POST", f"{C}/patch", {"filter": {}, "set": {"n": 9}, "return_ids": True}, 200, '"count":5'),
        ("POST", f"{C}/patch", {"ids": ["b0", "a0"], "set": {"n": 9}}, 200, '"count":1'),
    ],
    "delete_document": [("DELETE", f"{C}/documents/b0", None, 200, '"count":0')],
    "delete_documents": [
        ("POST", f"{C}/delete", {"filter": B, "return_ids": True}, 200, '"count":0'),
        ("POST", f"{C}/delete", {"filter": {}, "dry_run": True}, 200, '"count":5'),
        ("POST", f"{C}/delete", {"ids": ["b0", "a0"]}, 200, '"count":1'),
    ],
    "insert_documents": [
        ("POST", f"{C}/insert", {"ids": ["a0", "b1"], "vectors": [V, V], "metadatas": [A, A]}, 200, '[{"ids":["b1"]'),
        ("POST", f"{C}/insert", {"ids": ["a0"], "vectors": [V], "metadatas": [A]}, 200, ""),
    ],
    "count": [("POST", f"{C}/count", {}, 200, '"count":5'), ("POST", f"{C}/count", {"filter": B}, 200, '"count":0')],
    "facet": [
        ("POST", f"{C}/facet", {"field": "tenant"}, 200, '"documents":5'),
        ("POST", f"{C}/facet", {"field": "tenant", "filter": B}, 200, '"documents":0'),
    ],
    "scan": [("POST", f"{C}/scan", {"limit": 100}, 200, '"a4"'), ("POST", f"{C}/scan", {"filter": B}, 200, ":[]")],
    "export": [("POST", f"{C}/export", {}, 200, '"a4"')],
    "list_collections": [("GET", "/v1/collections?sizes=true", None, 200, '"documents":{')],
    "describe_collection": [("GET", C, None, 200, '"size":null')],
    "list_aliases": [("GET", "/v1/aliases", None, 200, "")],
}


async def test_every_route_is_tried_or_is_about_the_whole_cluster() -> None:
    open_to_tenants = {
        route.name for route in ROUTES if route.role != "admin" and ("{collection}" in route.path or route.filtered)
    }
    assert open_to_tenants == HTTP.keys() | {"changes", "watch"}


async def test_the_changes_by_http_are_those_of_own_documents(world: World, filled: dict[str, Any]) -> None:
    for door in world.doors:
        async with events(door, "?since=start", f"authorization: Bearer {world.keys['a']}") as stream:
            told = await stream.some(len(MINE) + 2)
        assert [one.kind for one in told] == ["reset", *["insert"] * len(MINE), "ready"]
        assert sorted(one.data["id"] for one in told[1:-1]) == MINE
        assert HUSH not in repr(told)


async def test_what_comes_near_by_http_is_of_own_documents(world: World, filled: dict[str, Any]) -> None:
    for door in world.doors:
        near = {"vector": V, "max_distance": 100.0, "with_vectors": False}
        async with events(door, "", f"authorization: Bearer {world.keys['a']}", watch=near) as stream:
            await world.b.insert("b1", V, B | {"of": HUSH})
            await world.a.insert(MINE[0], V, {"tenant": "a"})
            told = await stream.some(1)
        assert [(one.kind, one.data["id"]) for one in told] == [("update", MINE[0])]


@pytest.mark.parametrize("route", sorted(HTTP))
async def test_by_http_it_is_the_same_through_each_node(world: World, filled: dict[str, Any], route: str) -> None:
    for door, (method, path, body, status, told) in enumerate(HTTP[route] * 3):
        got, answer = await ask(world, door % 3, method, path, body)
        if route == "delete_documents" and door >= 3 and status == 200 and "dry_run" not in str(body):
            continue  # what it deletes is gone by now
        if told != '"count":5':
            assert (got, told in answer) == (status, True), answer
        assert HUSH not in answer
        assert await others(world) == filled


async def test_what_is_about_all_is_refused(world: World) -> None:
    for route in ROUTES:
        if "{collection}" in route.path or route.filtered:
            continue
        path = "/".join("1" if part.startswith("{") else part for part in route.path.split("/"))
        status, answer = await ask(world, 0, route.method, path, {} if route.method not in ("GET", "DELETE") else None)
        assert status == 403, (route.name, answer)
    assert (await ask(world, 0, "GET", "/metrics"))[0] == 403
