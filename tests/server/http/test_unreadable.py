"""A body that is refused before it is a call: the refusal names the field, or shows what stands there."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument
from needle.server.http.bodies import GetDocument, InsertDocuments, PutDocument, Search
from needle.server.http.collection_bodies import CreateCollection
from needle.server.http.message import PIECE_BYTES
from needle.server.http.queries import from_query
from needle.server.http.unreadable import LOOKED_AT_BYTES, NEAR_BYTES, unreadable

DEEP = 20_000


@pytest.mark.parametrize(
    ("body", "field", "told"),
    [
        (b'{"vector":[1.0,NaN]}', "body", """near '{"vector":[1.0,NaN]}'; numbers have to be finite"""),
        (b'{"vector":[1.0],"metadata":{"weight":-Infinity}}', "body", '"weight":-Infinity}}\'; numbers have to be'),
        (b'{"vector":[1.0,1e400]}', "vector[1]", "Number out of range"),
        (b'{"vector":[1.0,"x"]}', "vector[1]", "Expected `float`"),
        (b'{"vector":[1.0] "metadata":1}', "body", 'near \'{"vector":[1.0] "metadata":1}\''),
        (b'{"vector":[1.0]', "body", "truncated"),
        (b'{"vector":[1.0],"metadata":"\xff"}', "body", "UTF-8"),
        (b'{"vector":[1.0],"metadata":' + b"[" * DEEP + b"]" * DEEP + b"}", "metadata", "in metadata at most 64 deep"),
        (b'{"metadata":"a:\\"[{","timeout":1,"if_matches" : ' + b'{"$not":' * DEEP, "if_matches", "filters less"),
        (b'{"metadata":{"if_matches":{"b":"[[["}},"if_matches":' + b'{"$not":' * DEEP, "if_matches", "too deep"),
        (b" " * LOOKED_AT_BYTES + b'{"metadata":' + b"[" * DEEP + b"]" * DEEP + b"}", "body", "too deep"),
    ],
)
def test_what_is_wrong_with_json_is_shown(body: bytes, field: str, told: str) -> None:
    with pytest.raises(DECODE_ERRORS) as failed:
        msgspec.json.decode(body, type=PutDocument)
    error = unreadable(failed.value, body, False)
    assert error.details["field"] == field
    # msgspec 0.22 says "utf-8" of a text that is not, 0.23 says "UTF-8".
    assert told in error.message.replace("utf-8", "UTF-8") and "as JSON" in error.message


def test_of_a_long_body_only_the_place_is_shown() -> None:
    body = b'{"vector":[' + b"1.0," * 100_000 + b"?" + b",1.0" * 100_000 + b"]}"
    with pytest.raises(DECODE_ERRORS) as failed:
        msgspec.json.decode(body, type=PutDocument)
    message = unreadable(failed.value, body, False).message
    assert "1.0,?,1.0" in message and len(message) < 150 + 2 * NEAR_BYTES


def test_of_message_pack_no_bytes_are_shown() -> None:
    body = msgspec.msgpack.encode({"vector": ["x"]})
    with pytest.raises(DECODE_ERRORS) as failed:
        msgspec.msgpack.decode(body, type=PutDocument)
    error = unreadable(failed.value, body, True)
    assert error.details["field"] == "vector[0]" and "as MessagePack" in error.message


@pytest.mark.parametrize(
    "filler",
    [
        b'"' + b'\\"' * PIECE_BYTES + b'"',
        b'"' + b"\\\\" * PIECE_BYTES + b'"',
        b'"x' + b'\\"' * PIECE_BYTES + b'"',
        b'"' + b"x" * PIECE_BYTES + b'"',
        b"[" + b'"",' * PIECE_BYTES + b'""]',
        b"[" + b"{}," * PIECE_BYTES + b"{}]",
        b'[""' + b" " * PIECE_BYTES + b"]",
    ],
    ids=["quotes", "backslashes", "odd", "text", "texts", "objects", "space"],
)
def test_what_is_wrong_with_a_long_body_is_seen_at_once(filler: bytes) -> None:
    """It is looked for on the event loop. (A text of quotes longer than what is looked at took half an hour.)"""
    body = b'{"metadata":' + filler + b',"if_matches":' + b'{"$not":' * DEEP
    with pytest.raises(RecursionError) as failed:
        msgspec.json.decode(body)
    began = time.thread_time()
    error = unreadable(failed.value, body, False)
    assert time.thread_time() - began < 0.1
    assert "too deep" in error.message


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "said", "field", "told"),
    [
        (Search, {"mode": "fast"}, "mode", "it may be strong, leased, eventual"),
        (Search, {"vector_type": "float64"}, "vector_type", "it may be float32, float16"),
        (CreateCollection, {"name": "a", "metric": 5}, "metric", "it may be cosine, l2, dot"),
        (Search, {"kk": 1}, "kk", "it may say descending, diversify, ef_search, exact, explain, fields, filter, "),
        (CreateCollection, {"index": {"n": 1}}, "index.n", "it may say ef_construction, ef_search, kind, m"),
        (Search, {"k": 0}, "k", "it is 0"),
        (InsertDocuments, {"ids": ["a"], "vectors": [["x"]]}, "vectors[0][0]", "Expected `float`, got `str`"),
    ],
)
def test_what_may_stand_there_is_told(packed: bool, kind: type, said: dict[str, Any], field: str, told: str) -> None:
    library = msgspec.msgpack if packed else msgspec.json
    body = library.encode(said)
    with pytest.raises(DECODE_ERRORS) as failed:
        library.decode(body, type=kind)
    error = unreadable(failed.value, body, packed, kind)
    assert error.details["field"] == field
    assert told in error.message


@pytest.mark.parametrize(
    ("query", "field", "told"),
    [(b"mode=fast", "mode", "it may be strong, leased, eventual"), (b"timeout=0", "timeout", "'0'"),
     (b"nope=1", "nope", "it may say fields, max_staleness, mode, timeout, vector_format, vectors, with_vectors")],
)  # fmt: skip
def test_a_query_is_refused_as_a_body_is(query: bytes, field: str, told: str) -> None:
    with pytest.raises(InvalidArgument) as failed:
        from_query(GetDocument, query)
    assert failed.value.details["field"] == field
    assert told in failed.value.message
