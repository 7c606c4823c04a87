"""What callers get wrong, over the wire: a named error, nothing changed, and the connection goes on working."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from needle.base.errors import (
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    InvalidArgument,
    NeedleError,
    UnknownMethod,
)
from needle.base.model import ReadMode, SearchRequest
from needle.client import Client
from needle.local.process_cluster import ProcessCluster
from needle.protocol import calls
from needle.protocol.calls import Freshness, SearchCall, WriteCall
from needle.protocol.commands import Insert, OpenSession, PublishSegment, Session, encode

GOOD = np.ones(8, dtype=np.float32)
Call = Callable[[Client], Awaitable[object]]

CALLS: dict[str, tuple[type[NeedleError], str, Call]] = {
    "short vector": (InvalidArgument, "vector", lambda c: c.insert("a", [1.0] * 7)),
    "long vector": (InvalidArgument, "vector", lambda c: c.insert("a", [1.0] * 9)),
    "empty vector": (InvalidArgument, "vector", lambda c: c.insert("a", [])),
    "2-d vector": (InvalidArgument, "vector", lambda c: c.insert("a", [[1.0] * 8])),
    "text for a vector": (InvalidArgument, "vector", lambda c: c.insert("a", "vector")),
    "NaN": (InvalidArgument, r"vector\[7\]", lambda c: c.insert("a", [1.0] * 7 + [float("nan")])),
    "too large for float32": (InvalidArgument, "vector", lambda c: c.insert("a", [1e39] * 8)),
    "zero vector, cosine": (InvalidArgument, "zero", lambda c: c.insert("a", [0.0] * 8)),
    "empty id": (InvalidArgument, "id", lambda c: c.insert("", GOOD)),
    "id of 513 bytes": (InvalidArgument, "512", lambda c: c.insert("x" * 513, GOOD)),
    "surrogate in id": (InvalidArgument, "id", lambda c: c.insert("\ud800", GOOD)),
    "number as id": (InvalidArgument, "id", lambda c: c.insert(7, GOOD)),  # type: ignore[arg-type]
    "metadata of 64 KiB and more": (InvalidArgument, "metadata", lambda c: c.insert("a", GOOD, {"t": "x" * 65536})),
    "metadata that JSON cannot hold": (InvalidArgument, "metadata", lambda c: c.insert("a", GOOD, {"o": object()})),
    "NaN in metadata": (InvalidArgument, "metadata", lambda c: c.insert("a", GOOD, {"n": [float("nan")]})),
    "no such collection": (CollectionNotFound, "nowhere", lambda c: c.insert("a", GOOD, collection="nowhere")),
    "rows and ids that differ": (InvalidArgument, "vectors", lambda c: c.insert_batch(ids=["a"], vectors=[GOOD, GOOD])),
    "one bad vector in a batch": (
        InvalidArgument,
        r"documents\[1\]",
        lambda c: c.insert_batch([("a", GOOD), ("b", [1.0])]),
    ),
    "k of 0": (InvalidArgument, "k = 0", lambda c: c.search(GOOD, 0)),
    "k of 10001": (InvalidArgument, "k = 10001", lambda c: c.search(GOOD, 10_001)),
    "short query": (InvalidArgument, "vector", lambda c: c.search([1.0], 1)),
    "unknown mode": (InvalidArgument, "mode", lambda c: c.search(GOOD, 1, mode="fresh")),
    "unknown filter operator": (InvalidArgument, r"\$near", lambda c: c.search(GOOD, 1, {"a": {"$near": 1}})),
    "session on a strong read": (InvalidArgument, "session", lambda c: c.search(GOOD, 1, session=True)),
    "negative timeout": (InvalidArgument, "timeout", lambda c: c.search(GOOD, 1, timeout=-1)),
    "no id to delete": (InvalidArgument, "ids", lambda c: c.delete([])),
    "dimensions of 0": (InvalidArgument, "dimensions", lambda c: c.create_collection("x", dimensions=0)),
    "dimensions of 8193": (InvalidArgument, "8192", lambda c: c.create_collection("x", dimensions=8193)),
    "unknown metric": (InvalidArgument, "metric", lambda c: c.create_collection("x", dimensions=2, metric="hamming")),
    "a collection there is": (CollectionExists, "default", lambda c: c.create_collection("default", dimensions=3)),
    "a collection there is not": (CollectionNotFound, "nowhere", lambda c: c.drop_collection("nowhere")),
    "an unknown node": (InvalidArgument, "node-9", lambda c: c.enter_maintenance_mode("node-9")),
}


def _raw(method: str, body: object) -> Call:
    async def call(client: Client) -> object:
        data = body if isinstance(body, bytes) else calls.encode(body)
        # What no well-behaved client sends; the node must stand it all the same.
        return await client._caller.call(next(iter(client.nodes().values())), method, data, 5.0)

    return call


def _search(**changes: object) -> Call:
    request = msgspec.structs.replace(SearchRequest(collection="default", vector=GOOD.tobytes(), k=1), **changes)
    return _raw(calls.SEARCH, SearchCall(1, request, Freshness(ReadMode.STRONG, 0, 0.0, 5.0)))


def _insert(*, vectors: bytes = GOOD.tobytes(), metadata: bytes = b"", session: Session | None = None) -> Call:
    command = Insert("default", ["raw"], vectors, [metadata], None, session or Session())
    return _raw(calls.WRITE, WriteCall(1, encode(command), 5.0))


RAW: dict[str, tuple[type[NeedleError], str, Call]] = {
    "unknown method": (UnknownMethod, "no_such", _raw("no_such", b"")),
    "garbage for a body": (InvalidArgument, "write", _raw(calls.WRITE, b"\xc1\xff")),
    "no body": (InvalidArgument, "search", _raw(calls.SEARCH, b"")),
    "command of another format": (InvalidArgument, "format", _raw(calls.WRITE, WriteCall(1, b"\x09abc", 5.0))),
    "command that does not decode": (InvalidArgument, "decode", _raw(calls.WRITE, WriteCall(1, b"\x01\xc1", 5.0))),
    "a segment from a client": (
        InvalidArgument,
        "segments",
        _raw(calls.WRITE, WriteCall(1, encode(PublishSegment(1, 0, 1, 2, 3, "x")), 5.0)),
    ),
    "vector bytes that are no floats": (InvalidArgument, "vector", _insert(vectors=b"abc")),
    "NaN bytes": (InvalidArgument, "vector", _insert(vectors=np.full(8, np.nan, "<f4").tobytes())),
    "metadata that is not JSON": (InvalidArgument, "metadata", _insert(metadata=b"{")),
    "metadata nested too deep": (InvalidArgument, "metadata", _insert(metadata=b"[" * 100 + b"]" * 100)),
    "filter that is not JSON": (InvalidArgument, "filter", _search(filter=b"{")),
    "query of NaN": (InvalidArgument, "vector", _search(vector=np.full(8, np.nan, "<f4").tobytes())),
    "negative ef_search": (InvalidArgument, "ef_search", _search(ef_search=-1)),
    "timeout that is over": (
        DeadlineExceeded,
        "nothing was done",
        _raw(calls.STEP_DOWN, calls.StepDownCall(1, None, -0.02)),
    ),
    "timeout of NaN": (
        InvalidArgument,
        "timeout",
        _raw(calls.STEP_DOWN, calls.StepDownCall(1, None, float("nan"))),
    ),
    "timeout of two days": (
        InvalidArgument,
        "timeout",
        _raw(calls.STEP_DOWN, calls.StepDownCall(1, None, 172_800.0)),
    ),
}


async def test_bad_input_is_refused_by_name_and_changes_nothing(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster, cluster.connect() as client:
        await client.insert("kept", GOOD, {"n": 1})
        before = (await client.digests())["node-1"].digest
        for name, (kind, says, call) in {**CALLS, **RAW}.items():
            with pytest.raises(kind, match=says) as refused:
                await call(client)
            assert type(refused.value) is kind, name
            assert (await client.digests())["node-1"].digest == before, name
            assert [hit.id for hit in await client.search(GOOD, 3)] == ["kept"], name
        assert "Traceback" not in cluster.nodes["node-1"].output()


async def test_what_a_command_holds_beyond_its_fields_does_not_get_into_the_log(tmp_path: Path) -> None:
    """Were it skipped where it is read, it would be if the stack has room for it: more where a request is checked than
    where an entry is applied, so one such entry would end each node, again at each start."""
    opened = encode(OpenSession(1))
    padding = b"\xc6" + (70_000).to_bytes(4, "big") + bytes(70_000)  # so large that a thread checks it
    async with ProcessCluster(tmp_path, nodes=1) as cluster, cluster.connect() as client:
        for size in (b"", padding):
            behind = opened[:1] + bytes((opened[1] + 1 + bool(size),)) + opened[2:] + size
            for depth in range(1_000, 940, -1):
                call = WriteCall(1, behind + b"\x91" * depth + b"\xc0", 3.0)
                with pytest.raises(InvalidArgument, match="does not decode"):
                    await _raw(calls.WRITE, call)(client)
        await client.insert("kept", GOOD, {"n": 1})
        cluster.kill("node-1")
        cluster.restart("node-1")
        await cluster.ready()
        assert await client.count() == 1
