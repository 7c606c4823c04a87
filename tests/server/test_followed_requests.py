"""A request is found in the logs of the node that routes it and of those that answer for shards; slow ones say why."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest

import needle
from harness.calm import CALM
from harness.door import Idle, ask, request, serving
from needle.base.errors import InvalidArgument
from needle.base.explain import ShardExplanation
from needle.base.filters.shape import PARSED_BYTES_MAX, SHAPE_MAX, shape
from needle.base.model import HitBatch
from needle.base.request import Request
from needle.client import values
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.server.http.bodies import Count
from needle.server.http.call import Call
from needle.server.http.routes import Route
from needle.server.service.served import JUDGED_BYTES_MAX
from needle.server.service.watched import Watch, noted

SHARDS = {"shards": 2, "replicas": 3}
SECRET = "rosebud"


def lines_of(cluster: ProcessCluster, kind: str) -> list[dict[str, Any]]:
    logs = [node.log.read_text() for node in cluster.nodes.values()]
    told = [json.loads(line) for log in logs for line in log.splitlines() if line.startswith("{")]
    return [line for line in told if line.get("kind") == kind]


def search_by_http(address: str, request: str) -> None:
    body = {"vector": [1.0] * 8, "k": 3, "filter": {"word": SECRET, "n": {"$gte": 4}}}
    asked = urllib.request.Request(
        f"http://{address}/v1/collections/default/search",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-request-id": request},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert answer.headers["x-request-id"] == request


def has_written(told: list[dict[str, Any]]) -> bool:
    """One large write to each shard, which are decoded after the call has begun, and a small one."""
    return sum(line["method"] == "shard_write" and line["collection"] == "default" for line in told) >= 3


def has_searched(told: list[dict[str, Any]]) -> bool:
    """A node tells of a search once its answer has left: the caller may read the log before."""
    at = {(line.get("request"), line["method"], line.get("shard")) for line in told}
    http = {("from-http", "http_search", None)} | {("from-http", "shard_search", shard) for shard in (0, 1)}
    shards = {(request, shard) for request, _, shard in at if request in ("from-python", "many")}
    return http <= at and shards >= {(request, shard) for request in ("from-python", "many") for shard in (0, 1)}


async def test_one_request_is_followed_through_router_and_shards(tmp_path: Path) -> None:
    log = {"format": "json", "slow_request_seconds": 0.000001}
    async with ProcessCluster(tmp_path, **CALM, log=log, sharding=SHARDS) as cluster, cluster.connect() as client:
        await client.insert_batch(
            ids=[f"d{n}" for n in range(40)],
            vectors=[[1.0 + n] * 8 for n in range(40)],
            metadatas=[{"word": SECRET, "n": n, "fill": "x" * (JUDGED_BYTES_MAX // 8)} for n in range(40)],
        )
        await client.insert("small", [1.0] * 8, {"n": -1})
        # By now: of many lines in a short time some are folded.
        await wait_for(lambda: has_written(lines_of(cluster, "slow_request")), 30, "the lines of writes")
        node = next(iter(cluster.nodes.values()))
        assert node.http is not None
        await asyncio.to_thread(search_by_http, node.http, "from-http")
        with needle.request_id("from-python"):
            await client.search([1.0] * 8, 3, {"word": SECRET}, explain=True)
        assert not (await client.search([1.0] * 8, 3)).explained, "nobody asked for it"
        with needle.request_id("many"):
            many = await client.search_many([[1.0] * 8, [2.0] * 8], 3, {"word": SECRET})
        assert len(many) == 2
        await wait_for(lambda: has_searched(lines_of(cluster, "slow_request")), 60, "the lines of searches")
        told = lines_of(cluster, "slow_request")
    http = [line for line in told if (line.get("request"), line["code"]) == ("from-http", "")]
    assert {line["method"] for line in http} == {"http_search", "shard_search"}
    by_shard = {line["shard"]: line for line in http if line["method"] == "shard_search"}
    assert set(by_shard) == {0, 1} and {line["node"] for line in by_shard.values()} <= set(cluster.nodes)
    assert all(line["term"] >= 1 for line in by_shard.values())
    for line in http:
        assert (line["collection"], line["filter"], line["k"]) == ("default", "word $eq and n $gte", 3)
        assert line["milliseconds"] > 0 and line["code"] == ""
    assert {"body", "handle", "answer"} == set(next(line["parts"] for line in http if line["method"] == "http_search"))
    assert all({"search", "confirm", "encode"} == set(line["parts"]) for line in by_shard.values())
    python = [line for line in told if (line.get("request"), line["code"]) == ("from-python", "")]
    assert {line["shard"] for line in python} == {0, 1}  # the client routes itself
    assert all(line["explain"][0]["allowed"] >= 1 for line in python)
    found = [line for line in told if line["method"] in ("shard_search", "shard_search_many") and not line["code"]]
    assert all(line["explain"][0]["documents"] >= 1 for line in found), "also where nobody asked for it"
    assert {line["shard"] for line in found if line.get("request") == "many"} == {0, 1}
    assert any("request" not in line and line["method"] == "shard_search" for line in told)
    assert SECRET not in json.dumps(told)


def test_a_request_is_called_by_printable_ascii() -> None:
    for bad in ("", "a\nb", "ä", "x" * 129, 7):
        with pytest.raises(InvalidArgument, match="request_id"), needle.request_id(bad):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "everything"),
        ({"a": 1}, "a $eq"),
        ({"a": {"$gte": 1, "$lt": 5}, "b.c": {"$in": [1, 2]}}, "a $gte and a $lt and b.c $in"),
        ({"$or": [{"a": 1}, {"$not": {"b": {"$exists": True}}}]}, "a $eq or not b $exists"),
        ({"$or": [{"a": 1}, {"b": 2, "c": 3}]}, "a $eq or (b $eq and c $eq)"),
        ({"$or": [{"a": n} for n in range(900)]}, "a $eq"),
    ],
)
def test_a_shape_has_fields_and_operators_and_no_values(given: dict[str, Any], told: str) -> None:
    assert shape(needle.Filter.parse(given).to_json()) == told


def test_a_shape_is_bounded() -> None:
    assert len(shape(json.dumps({"$or": [{f"field{n}": n} for n in range(500)]}).encode())) < SHAPE_MAX + 40
    size = PARSED_BYTES_MAX + 1
    assert shape(b" " * size) == f"a filter of {size} bytes"
    assert shape(b"{") == "no filter (invalid_argument)"


@pytest.mark.parametrize(("slow", "times"), [(0.0, 0), (60.0, 1)])
async def test_filters_are_read_for_lines_only_where_lines_are_wanted(
    slow: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once more for each request took 40 us, and up to 5 ms, of the event loop."""
    read = list[Any]()

    def noted(value: Any) -> bytes:
        read.append(value)
        return b"{}"

    async def none(call: Call) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(values, "filter_bytes", noted)
    node = Idle()
    node.service.watch = Watch(node, slow, None)
    async with serving([Route("POST", "/v1/count", none, "", Count, dict, "reader")], node) as server:
        assert (await ask(server, request("POST", "/v1/count", b'{"filter":{"a":1}}')))[0] == 200
    assert len(read) == times


def test_what_nobody_asked_for_goes_no_further_and_the_slowest_is_told() -> None:
    def batch(milliseconds: float) -> HitBatch:
        explained = ShardExplanation(
            shard=-1,
            applied_index=7,
            documents=3,
            allowed=2,
            together=1,
            filter_milliseconds=1.0,
            vectors_milliseconds=milliseconds,
            documents_milliseconds=0.5,
            segments=[],
        )
        return HitBatch(["a"], [0.5], [1], [], b"", 7, explained=[explained])

    about, batches = Request(), [batch(1.0), batch(9.0), batch(2.0)]
    assert [one.explained for one in noted(about, batches, asked=False)] == [[], [], []]
    assert about.explained == batches[1].explained
    assert noted(None, batches, asked=True) == batches
    assert noted(about, [], asked=False) == []


def test_what_nobody_asked_for_is_taken_out_of_each_of_several_answers() -> None:
    """The first of them may have been quick: how many documents there are is not for everybody."""
    plain = HitBatch([], [], [], [], b"", 5)
    slow = ShardExplanation(
        shard=0, applied_index=5, documents=40, allowed=40, together=1, filter_milliseconds=0.0,
        vectors_milliseconds=9.0, documents_milliseconds=0.0, segments=[],
    )  # fmt: skip
    batches = [plain, msgspec.structs.replace(plain, explained=[slow])]
    about = Request()
    assert noted(about, batches, asked=False) == [plain, plain]
    assert about.explained == [slow]
    assert noted(None, batches, asked=True) == batches
