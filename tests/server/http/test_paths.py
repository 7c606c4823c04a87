"""Which route and which names a path means: no two names are one, and no path reaches what it does not name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from harness.door import ask, request, serving
from needle.server.http.bodies import GetDocument, Nothing
from needle.server.http.call import Call
from needle.server.http.listener import HttpServer
from needle.server.http.routes import Route

IN = "/v1/collections/{collection}"


async def dropped(call: Call) -> dict[str, Any]:
    return {"dropped": dict(call.path)}


async def deleted(call: Call) -> dict[str, Any]:
    return {"deleted": dict(call.path)}


async def found(call: Call) -> dict[str, Any]:
    return {"fields": call.body.fields}


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    routes = (
        Route("DELETE", IN + "/documents/{id:path}", deleted, "", Nothing, dict, "writer"),
        Route("GET", IN + "/documents/{id:path}", found, "", GetDocument, dict, "reader"),
        Route("DELETE", IN, dropped, "", Nothing, dict, "writer"),
    )
    async with serving(routes) as made:
        yield made


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("b/documents/a", b'{"deleted":{"collection":"b","id":"a"}}'),
        ("b/documents/a%0A", b'{"deleted":{"collection":"b","id":"a\\n"}}'),
        ("b/documents/x%0Ay", b'{"deleted":{"collection":"b","id":"x\\ny"}}'),
        ("b/documents/a/b", b'{"deleted":{"collection":"b","id":"a/b"}}'),
        ("b/documents/a%2Fb", b'{"deleted":{"collection":"b","id":"a/b"}}'),
        ("b/documents/%252F", b'{"deleted":{"collection":"b","id":"%2F"}}'),
        ("b/d%6Fcuments/a", b'{"deleted":{"collection":"b","id":"a"}}'),
        ("b%2Fdocuments%2Fc", b'{"dropped":{"collection":"b/documents/c"}}'),
        ("b%0A", b'{"dropped":{"collection":"b\\n"}}'),
        ("%C3%A9", '{"dropped":{"collection":"é"}}'.encode()),
    ],
)
async def test_names_are_decoded_after_the_path_is_divided(server: HttpServer, path: str, answer: bytes) -> None:
    status, got = await ask(server, request("DELETE", "/v1/collections/" + path))
    assert (status, got.partition(b"\r\n\r\n")[2]) == (200, answer)


@pytest.mark.parametrize("path", ["b/documents/%FF", "b/documents/%FE", "b/documents/%ED%A0%80", "%C3", "b%FF/x/y"])
async def test_what_is_not_utf_8_is_no_name(server: HttpServer, path: str) -> None:
    status, got = await ask(server, request("DELETE", "/v1/collections/" + path))
    assert status == 400
    assert b'"field":"path"' in got
    status, got = await ask(server, request("GET", "/v1/collections/b/documents/a?fields=" + path))
    assert (status, b'"field":"query"' in got) == (400, True)


async def test_what_no_route_has_is_not_served(server: HttpServer) -> None:
    for path in ("", "/", "/livez%0A", "/livez/", "/metrics%0a", "/v1/collections/", "/v1/collections/b/", "//livez"):
        assert (await ask(server, request("DELETE", path or "*")))[0] in (400, 404), path
    status, got = await ask(server, request("PUT", "/v1/collections/b%0A/documents/x%2Fy"))
    assert status == 405
    assert b"\r\nallow: DELETE, GET, HEAD\r\n" in got


@pytest.mark.parametrize(
    "body",
    ['content-length: 16\r\n\r\n{"if_version":3}', "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"],
)
@pytest.mark.parametrize("method", ["DELETE", "GET"])
async def test_a_body_is_refused_where_the_query_says_all(server: HttpServer, method: str, body: str) -> None:
    """A delete with a condition in its body was done without the condition."""
    head = f"{method} /v1/collections/b/documents/a HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    status, got = await ask(server, (head + "connection: close\r\n" + body).encode())
    assert status == 400
    assert b'"field":"body"' in got and b"stands in its query" in got
