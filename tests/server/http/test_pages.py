"""What a browser shows, as it is served: from a table, with its ETag, under a policy that lets no script in."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from email.message import Message
from email.parser import BytesHeaderParser
from importlib import resources

import pytest

from harness.door import Idle, ask, serving
from needle.server.http import openapi, pages
from needle.server.http.listener import HttpServer
from needle.server.http.routes import ROUTES

FILES = sorted(file.name for file in (resources.files("needle.server.http") / "ui").iterdir())
PATHS = ["/ui", "/ui/", "/docs", "/docs.js", "/docs.css", *(f"/ui/{name}" for name in FILES if name != "index.html")]
BYTES_MAX = 200_000
"""Of all files of the dashboard together."""


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async with serving(ROUTES) as made:
        yield made


async def get(server: HttpServer, path: str, *headers: str, method: str = "GET") -> tuple[int, Message, bytes]:
    """Status, headers, body."""
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close", *headers]
    status, answer = await ask(server, "\r\n".join(lines).encode() + b"\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    return status, BytesHeaderParser().parsebytes(head.partition(b"\r\n")[2]), body


@pytest.mark.parametrize("path", PATHS)
async def test_each_page_is_kept_by_its_tag_under_a_strict_policy(server: HttpServer, path: str) -> None:
    status, told, body = await get(server, path)
    assert status == 200 and body
    policy = dict(part.split(" ", 1) for part in str(told["content-security-policy"]).split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert told["x-content-type-options"] == "nosniff"
    status, kept, body = await get(server, path, f"if-none-match: {told['etag']}")
    assert (status, body, kept["etag"]) == (304, b"", told["etag"])
    assert (await get(server, path, f'if-none-match: "other", W/{told["etag"]}'))[0] == 304
    assert (await get(server, path, 'if-none-match: "other"'))[0] == 200


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_loads_nothing_from_elsewhere_and_holds_no_script(server: HttpServer, path: str) -> None:
    _, told, body = await get(server, path)
    text = body.decode()
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")  # a name, which nobody asks for
    if str(told["content-type"]).startswith("text/html"):
        assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", text)
    if "javascript" in str(told["content-type"]):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


async def test_all_of_it_is_small() -> None:
    directory = resources.files("needle.server.http") / "ui"
    assert sum(len((directory / name).read_bytes()) for name in FILES) < BYTES_MAX
    assert {name.rpartition(".")[2] for name in FILES} <= pages._KINDS.keys(), "each file has a type"


@pytest.mark.parametrize(
    "path",
    [
        "/ui/../app.py",
        "/ui/..%2fapp.py",
        "/ui/%2e%2e/app.py",
        "/ui/..%5capp.py",
        "/ui//etc/passwd",
        "/ui/%2fetc%2fpasswd",
        "/ui/index.html%00.js",
        "/ui/nothing.js",
        "/ui/ui.css/",
    ],
)
async def test_no_path_leads_to_another_file(server: HttpServer, path: str) -> None:
    status, told, _ = await get(server, path)
    assert status == 404
    assert told["content-type"] == "application/problem+json"


async def test_pages_are_read_only(server: HttpServer) -> None:
    assert (await get(server, "/ui", method="POST"))[0] == 405
    status, told, body = await get(server, "/ui", method="HEAD")
    assert (status, body) == (200, b"") and int(str(told["content-length"])) > 0


async def test_without_the_api_there_is_no_page() -> None:
    node = Idle()
    server = HttpServer("127.0.0.1:1", node, node, node, api=False)
    server._port = 0
    await server.start()
    try:
        for path in PATHS:
            assert (await get(server, path))[0] == 404
    finally:
        await server.stop()


async def test_the_page_sends_each_kind_of_parameter_where_it_belongs(server: HttpServer) -> None:
    """A key of a request that is sent in the query of a write is a write without one."""
    operations = [one for path in openapi.document()["paths"].values() for one in path.values()]
    places = {parameter["in"] for one in operations for parameter in one["parameters"]}
    assert places == {"path", "header", "query"}
    script = (await get(server, "/docs.js"))[2].decode()
    for place in places - {"query"}:  # what is left
        assert f'parameter.in === "{place}"' in script
