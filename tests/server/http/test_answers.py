"""What handlers answer, where nodes behind them do not."""

from __future__ import annotations

import json
import weakref
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from harness.door import Idle, ask, request, serving
from needle.base.errors import InvalidArgument
from needle.base.filters import builder
from needle.base.model import CollectionSpec, WriteResult
from needle.client import values
from needle.protocol.calls import FacetAnswer
from needle.server.http.bodies import Body, Nothing
from needle.server.http.call import CONDITION_VALUES, takes_long
from needle.server.http.routes import ROUTES, Route
from needle.server.service.served import LARGE_ROWS


class MadeAndGone(SimpleNamespace):
    """The rest of a cluster: makes a collection, and answers nothing else."""

    made: CollectionSpec

    def __init__(self) -> None:
        super().__init__(seen={})

    async def create_collection(self, spec: CollectionSpec, if_absent: bool, timeout: float) -> WriteResult:
        self.made = spec
        return WriteResult(version=1, index=1, existed=False)

    def in_session(self, seen: Any) -> MadeAndGone:
        return self


async def test_a_collection_that_was_made_is_said_to_be(monkeypatch: Any) -> None:
    node = Idle()
    node.router = router = MadeAndGone()
    async with serving([route for route in ROUTES if route.name == "create_collection"], node) as server:
        body = {"name": "b", "dimensions": 4, "metric": "l2", "index": {"m": 8}, "ttl": 60}
        status, answer = await ask(server, request("POST", "/v1/collections", json.dumps(body).encode()))
    assert status == 200, answer
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert told["documents"] is None
    assert (told["name"], told["dimensions"], told["metric"], told["ttl"]) == ("b", 4, "l2", 60)
    assert told["index"] == {"m": 8, "ef_construction": 100, "ef_search": 64, "kind": "hnsw"}
    assert router.made.index.m == 8


async def test_an_index_may_be_named_in_a_word() -> None:
    node = Idle()
    node.router = router = MadeAndGone()
    async with serving([route for route in ROUTES if route.name == "create_collection"], node) as server:
        body = {"name": "b", "dimensions": 4, "index": "hnsw_sq8:high_recall"}
        status, answer = await ask(server, request("POST", "/v1/collections", json.dumps(body).encode()))
    assert status == 200, answer
    told = json.loads(answer.partition(b"\r\n\r\n")[2])["index"]
    assert told == {"m": 32, "ef_construction": 400, "ef_search": 200, "kind": "hnsw_sq8"}
    assert router.made.index.kind == "hnsw_sq8"


LONG = {"$in": ["x" * 100] * 1000}
PATH = "/v1/collections/b/"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "count", {"filter": {"a": LONG}}),
        ("POST", "scan", {"filter": {"a": LONG}}),
        ("POST", "delete", {"filter": {"a": LONG}}),
        ("POST", "delete", {"filter": {"a": LONG}, "dry_run": True}),
        ("POST", "delete", {"ids": ["a"], "if_matches": {"a": LONG}}),
        ("POST", "search", {"vector": [1], "filter": {"a": LONG}}),
        ("POST", "search_many", {"vectors": [[1]], "filter": {"a": LONG}}),
        ("POST", "patch", {"filter": {"a": LONG}, "set": {"a": LONG}}),
        ("POST", "patch", {"ids": ["a"], "set": {"a": LONG}}),
        ("PATCH", "documents/a", {"set": {"a": LONG}, "if_matches": {"a": LONG}}),
        ("PUT", "documents/a", {"vector": [1], "metadata": LONG}),
    ],
)
async def test_what_is_long_is_read_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: dict[str, Any]
) -> None:
    node, inside, seen = Idle(), [False], []

    async def blocking(fn: Any, *arguments: Any) -> Any:
        inside[0] = True
        try:
            return fn(*arguments)
        finally:
            inside[0] = False

    def watched(module: Any, name: str) -> None:
        true = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (seen.append(inside[0]), true(*a, **k))[1])

    watched(builder, "_parse")
    watched(builder, "_to_dict")
    watched(values, "metadata_bytes")
    monkeypatch.setattr(node, "blocking", blocking)
    node.router = MadeAndGone()
    async with serving(ROUTES, node) as server:
        status, _ = await ask(server, request(method, PATH + path, json.dumps(body).encode()))
    assert status == 500  # behind the door there is nothing
    assert seen
    assert all(seen)


class Answer(msgspec.Struct, weakref=True):
    """names: of what there is."""

    names: list[str]


class Given(Body, frozen=True, weakref=True):
    filter: dict[str, Any]


class Threads(Idle):
    there = False

    async def blocking(self, fn: Any, *arguments: Any) -> Any:
        self.there = True
        try:
            return fn(*arguments)
        finally:
            self.there = False


@pytest.mark.parametrize(("count", "beside"), [(10, False), (10_000, True)])
async def test_a_large_request_that_is_refused_is_given_back_beside_the_event_loop(count: int, beside: bool) -> None:
    """Of 400,000 conditions that held it for a tenth of a second."""
    gone, larger = list[bool](), list[bool]()

    async def read(call: Any) -> dict[str, int]:
        weakref.finalize(call.body, lambda: gone.append(node.there))
        larger.append(call.large)
        raise InvalidArgument("no", field="filter")

    node = Threads()
    async with serving([Route("POST", "/v1/read", read, "", Given, dict, "reader")], node) as server:
        body = json.dumps({"filter": {"$or": [{"n": n} for n in range(count)]}}).encode()
        status, _ = await ask(server, request("POST", "/v1/read", body))
    assert (status, gone, larger) == (400, [beside], [beside])


@pytest.mark.parametrize("name", ["filter", "if_matches"])
def test_a_filter_of_many_values_is_long_however_few_bytes_it_has(name: str) -> None:
    def of(value: Any) -> Any:
        return SimpleNamespace(**{name: value})

    assert not takes_long(of(None)) and not takes_long(SimpleNamespace(vector=[0.5] * 5000))
    assert not takes_long(of({"n": {"$in": list(range(CONDITION_VALUES - 3))}, "a": "text" * 5000}))
    assert takes_long(of({"n": {"$in": list(range(CONDITION_VALUES))}}))
    assert takes_long(of({"$or": [{"n": n} for n in range(CONDITION_VALUES // 2)]}))


@pytest.mark.parametrize(("count", "beside"), [(10, False), (10_000, True)])
async def test_what_a_large_answer_is_made_of_is_given_back_beside_the_event_loop(count: int, beside: bool) -> None:
    gone = list[bool]()

    async def read(call: Any) -> Answer:
        made = Answer([f"a name of some length {n}" for n in range(count)])
        call.share.take(20 * count)
        weakref.finalize(made, lambda: gone.append(node.there))
        return made

    node = Threads()
    async with serving([Route("GET", "/v1/read", read, "", Nothing, Answer, "reader")], node) as server:
        status, _ = await ask(server, request("GET", "/v1/read"))
    assert (status, gone) == (200, [beside])


@pytest.mark.parametrize(("count", "beside"), [(10, 0), (LARGE_ROWS, 3)])
async def test_many_values_are_told_beside_the_event_loop(count: int, beside: int) -> None:
    """Of eight shards of 20,000 values each they held it for 300 ms, and counted as nothing in the node's memory."""

    class Counting(Idle):
        ran = held = 0

        async def blocking(self, fn: Any, *arguments: Any) -> Any:
            self.ran += 1
            self.held = max(self.held, server.door.memory.held)
            return fn(*arguments)

    class Values(SimpleNamespace):
        async def facet(self, *_: Any, **__: Any) -> FacetAnswer:
            return FacetAnswer([f"v{n}" for n in range(count)], [1] * count, count, count, 0, 9)

    node = Counting()
    node.router = SimpleNamespace(in_session=lambda seen: Values(seen=seen))
    async with serving([route for route in ROUTES if route.name == "facet"], node) as server:
        body = json.dumps({"field": "a", "limit": count}).encode()
        status, answer = await ask(server, request("POST", "/v1/collections/c/facet", body))
    assert status == 200, answer
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["values"]) == count
    assert node.ran == beside
    assert node.held >= 100 * count or not beside
    assert server.door.memory.held == 0
