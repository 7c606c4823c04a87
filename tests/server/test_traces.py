"""Traces of a small real cluster: client, router, shards and segments are spans of one trace, over both doors."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import needle
from needle.base.config import SegmentConfig, ShardingConfig
from needle.base.request import Request, current
from needle.client.changes import ChangeMethods
from needle.client.counting import CountMethods
from needle.client.documents import DocumentMethods
from needle.client.router.counting import Counting
from needle.client.router.router import Router
from needle.client.searches import SearchMethods
from needle.client.traced import CALLS, ROUTED
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.tracing import spans

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ABOVE = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def configs(directory: Path) -> list[RaftConfig]:
    ports, names = free_ports(6), [f"node-{n + 1}" for n in range(3)]
    return [
        RaftConfig(
            node_id=name,
            cluster_nodes=[f"{peer}=127.0.0.1:{port}" for peer, port in zip(names, ports[:3], strict=True)],
            data_dir=str(directory / name),
            http_address=f"127.0.0.1:{ports[3 + at]}",
            dimensions=4,
            election_timeout=3.0,
            heartbeat_interval=0.05,
            disk_reserve_bytes=64 << 20,
            sharding=ShardingConfig(shards=2, replicas=3),
            segments=SegmentConfig(seal_rows=200),
        )
        for at, name in enumerate(names)
    ]


def search_by_http(address: str) -> None:
    headers = {"content-type": "application/json", "traceparent": ABOVE, "x-request-id": "r-1"}
    body = json.dumps({"vector": [1.0] * 4, "k": 3, "filter": {"n": {"$gte": 0}}}).encode()
    url = f"http://{address}/v1/collections/default/search"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
        assert "explain" not in json.loads(answer.read())  # what is made for the trace is not told the caller


def tree(found: list[ReadableSpan]) -> dict[str, list[str]]:
    """The names below each name."""
    names = {span.context.span_id: span.name for span in found if span.context is not None}
    below: dict[str, list[str]] = {}
    for span in found:
        above = names.get(span.parent.span_id, "outside") if span.parent is not None else "nothing"
        below.setdefault(above, []).append(span.name)
    return below


async def test_a_search_is_one_trace_through_client_router_shards_and_segments(
    tmp_path: Path, exported: InMemorySpanExporter
) -> None:
    made = configs(tmp_path)
    async with AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(RaftCluster(config)) for config in made]
        await asyncio.gather(*(cluster.wait_ready() for cluster in clusters))
        client = await stack.enter_async_context(needle.connect([config.address for config in made]))
        rows = np.random.default_rng(1).normal(size=(1000, 4)).astype(np.float32)
        await client.insert_batch(
            ids=[f"d{n}" for n in range(1000)], vectors=rows, metadatas=[{"n": n} for n in range(1000)]
        )

        shards = client.topology().shards

        async def preferred() -> bool:
            return [await client.leader(one.shard) for one in shards] == [one.replicas[0] for one in shards]

        await wait_for(preferred, 60, "the leaders that stay")
        await client.search([1.0] * 4, 3)  # by now it knows who leads
        exported.clear()
        with trace.get_tracer("mine").start_as_current_span("mine"):
            hits = await client.search([1.0] * 4, 3, {"n": {"$gte": 5}})
        assert len(hits) == 3 and hits.explained == []
        found = list(exported.get_finished_spans())
        assert len({span.context.trace_id for span in found if span.context is not None}) == 1
        below = tree(found)
        assert below["nothing"] == ["mine"] and below["mine"] == ["needle.search"]
        assert below["needle.search"] == ["needle.route.search"]
        assert below["needle.route.search"] == ["needle.shard_search"] * 2
        assert sorted(below["needle.shard_search"]) == sorted(
            ["needle.documents", "needle.filter", "needle.vectors"] * 2
        )
        assert set(below["needle.vectors"]) == {"needle.segment"}
        shards = [span for span in found if span.name == "needle.shard_search"]
        assert {dict(span.attributes or {})["needle.shard"] for span in shards} == {0, 1}
        assert {span.kind for span in shards} == {SpanKind.SERVER}
        segments = [dict(span.attributes or {}) for span in found if span.name == "needle.segment"]
        assert sum(int(str(one["needle.rows"])) for one in segments) == 1000
        assert all(dict(span.attributes or {}).get("needle.collection") == "default" for span in shards)

        exported.clear()
        await client.insert("w", [1.0] * 4)
        names = [span.name for span in exported.get_finished_spans()]
        assert sorted(names) == ["needle.insert", "needle.route.insert", "needle.shard_write"]

        exported.clear()
        with pytest.raises(needle.CollectionNotFound):
            await client.search([1.0] * 4, 3, collection="nothing")
        failed = [span for span in exported.get_finished_spans() if span.name == "needle.search"]
        assert failed[0].status.status_code is StatusCode.ERROR
        assert dict(failed[0].attributes or {})["error.type"] == "collection_not_found"

        await asyncio.to_thread(search_by_http, str(made[0].http_address))
        exported.clear()
        await asyncio.to_thread(search_by_http, str(made[0].http_address))
        found = list(exported.get_finished_spans())
        assert {f"{span.context.trace_id:032x}" for span in found if span.context is not None} == {TRACE}
        below = tree(found)
        assert below["outside"] == ["needle.http_search"] and below["needle.http_search"] == ["needle.route.search"]
        assert below["needle.route.search"] == ["needle.shard_search"] * 2

        exported.clear()
        token = current.set(Request("r", ABOVE[:-1] + "0"))  # who calls has decided that this is not recorded
        await client.search([1.0] * 4, 3)
        current.reset(token)
        assert exported.get_finished_spans() == ()


def test_every_call_about_documents_has_a_span() -> None:
    for kind in (DocumentMethods, ChangeMethods, SearchMethods, CountMethods):
        calls = {name for name, call in vars(kind).items() if inspect.iscoroutinefunction(call) and name[0] != "_"}
        assert calls <= {*CALLS}, kind
    routed = {
        name
        for kind in (Router, Counting)
        for name, call in vars(kind).items()
        if inspect.iscoroutinefunction(call) and name[0] != "_"
    }
    assert routed <= {*ROUTED}


def test_without_a_tracer_nothing_is_made_and_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spans() is None  # the API is there, and nobody takes spans
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert spans() is None and "opentelemetry.trace" not in sys.modules
