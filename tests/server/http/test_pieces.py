"""Large bodies are decoded in pieces: they mean the same, and what is wrong with them is said in the same words."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from harness.door import ask, request, serving
from needle.base.decoding import DECODE_ERRORS
from needle.client import values
from needle.server.http import app
from needle.server.http.bodies import InsertDocuments
from needle.server.http.call import Call, vectors_of
from needle.server.http.pieces import JSON_BYTES_MAX, PassedOver, insert_documents, large_decoder
from needle.server.http.routes import Route

WHOLE = msgspec.json.Decoder(InsertDocuments)
GOOD: list[dict[str, Any]] = [
    {"ids": ["a", "b"], "vectors": [[1, 2.5], [3, 1e300]]},
    {"ids": ["a"], "vectors": [[0.1]], "metadatas": [{"n": [1, {"x": "]}"}]}], "timeout": 3},
    {"metadatas": [None, 7], "vectors": [[1.0], [2.0]], "ids": ["a", "b"], "expires_at": ["never", None]},
    {"ids": ["a"], "vectors": "AACAPw==", "metadatas": None, "expires_at": "2100-01-01T00:00:00Z"},
    {"ids": ["a"], "vectors": "ADw=", "vector_type": "float16"},
]
BAD = [
    b'{"ids": ["a"], "vectors": [[1, "x"]]}',
    b'{"ids": ["a"], "vectors": [[1], 2]}',
    b'{"ids": ["a"], "vectors": {"a": 1}}',
    b'{"ids": ["a"], "vectors": [[NaN]]}',
    b'{"ids": ["a"], "vectors": [[1]], "metadatas": 7}',
    b'{"ids": ["a"], "vectors": [[1]], "metadatas": [{]}',
    b'{"ids": ["a"], "vectors": [[1]], "more": 1}',
    b'{"ids": ["a"], "vectors": [[1]',
    b"[]",
]


@pytest.mark.parametrize("body", GOOD)
def test_it_means_the_same(body: dict[str, Any]) -> None:
    data = msgspec.json.encode(body)
    found, whole = insert_documents(data), WHOLE.decode(data)
    for field in msgspec.structs.fields(InsertDocuments):
        if field.name != "vectors":
            assert getattr(found, field.name) == getattr(whole, field.name)
    if isinstance(whole.vectors, bytes):
        assert found.vectors == whole.vectors
        return
    with np.errstate(over="ignore"):
        assert np.array_equal(np.array(found.vectors), np.array(whole.vectors).astype(np.float32))


@pytest.mark.parametrize("data", BAD)
def test_what_is_wrong_is_said_in_the_same_words(data: bytes) -> None:
    with pytest.raises(DECODE_ERRORS) as whole:
        WHOLE.decode(data)
    with pytest.raises(DECODE_ERRORS) as found:
        insert_documents(data)
    assert str(found.value) == str(whole.value) and type(found.value) is type(whole.value)


def test_rows_of_different_lengths_and_numbers_that_are_too_large_are_refused_by_their_places() -> None:
    ragged = insert_documents(b'{"ids": ["a", "b"], "vectors": [[1, 2], [3]]}')
    with pytest.raises(values.InvalidArgument, match="vectors"):
        vectors_of(ragged.vectors, 2, "float32")
    large = insert_documents(b'{"ids": ["a", "b"], "vectors": [[1, 2], [3, 1e300]]}')
    with pytest.raises(values.InvalidArgument, match=r"vectors\[1, 1\]"):
        vectors_of(large.vectors, 2, "float32")


def test_what_is_passed_over_is_what_is_inserted() -> None:
    def told(kind: type[msgspec.Struct]) -> dict[str, Any]:
        return {one.name: (one.required, one.name in ("vectors", "metadatas") or one.type) for one in msgspec.structs.fields(kind)}  # fmt: skip # noqa: E501

    assert told(PassedOver) == told(InsertDocuments)


async def test_large_bodies_go_this_way_and_larger_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    async def take(call: Call) -> str:
        seen.append(call.body)
        return "taken"

    monkeypatch.setattr(app, "BESIDE_BYTES", 100)
    monkeypatch.setattr(app, "LARGE_BYTES", 200)
    body = msgspec.json.encode({"ids": ["a"], "vectors": [[1.0] * 100]})
    async with serving([Route("POST", "/v1/take", take, "", InsertDocuments, str, "writer")]) as server:
        assert (await ask(server, request("POST", "/v1/take", body)))[0] == 200
        status, refused = await ask(server, request("POST", "/v1/take", b"", f"content-length: {JSON_BYTES_MAX + 1}"))
    assert isinstance(seen[0].vectors[0], np.ndarray) and large_decoder(InsertDocuments) is insert_documents
    assert status == 413 and str(JSON_BYTES_MAX).encode() in refused
