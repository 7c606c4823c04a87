"""A browser that was led to this machine under another site's name gets nothing from a node without keys."""

from __future__ import annotations

import pytest

from harness.door import Idle, serving
from needle.server.access import Access
from needle.server.http.routes import ROUTES
from server.http.test_roles import Node, ask

OF_A_PAGE = "sec-fetch-site: same-origin"


def open_node() -> Idle:
    """Callers need no key; it is stopping, and says so to everybody whom it would have answered."""
    node = Node()
    node.access = Access(required=False)
    return node


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("rebound.example", 403),
        ("rebound.example:6001", 403),
        ("127.0.0.1.rebound.example", 403),
        ("localhost.rebound.example", 403),
        ("", 403),
        ("127.0.0.1:6001", 503),
        ("localhost:6001", 503),
        ("LOCALHOST.", 503),
        ("[::1]:6001", 503),
        ("10.0.0.7", 503),
        ("vectors.internal", 503),
        ("Vectors.Internal:80", 503),
    ],
)
@pytest.mark.parametrize(
    "said",
    [
        OF_A_PAGE,
        "origin: http://rebound.example",
        # Chromium tells nothing else of a GET over plain HTTP; a page can change their values in some browsers.
        "user-agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/130.0.0.0",
        "accept-language: ",
    ],
)
async def test_browsers_are_answered_under_names_of_this_node_only(host: str, said: str, status: int) -> None:
    async with serving(ROUTES, open_node(), hosts=["vectors.internal"]) as server:
        for method, path in (("GET", "/v1/collections"), ("POST", "/v1/collections/a/search")):
            found, answer = await ask(server, method, path, said, host=host)
            assert found == status, answer
            assert ("http_hosts" in answer) == (status == 403)


async def test_programs_and_whoever_needs_a_key_ask_under_any_name() -> None:
    async with serving(ROUTES, open_node()) as server:
        assert (await ask(server, "GET", "/v1/collections", host="rebound.example"))[0] == 503
        assert (await ask(server, "GET", "/v1/collections", OF_A_PAGE, host="rebound.example"))[0] == 403
    async with serving(ROUTES, Node()) as server:
        assert (await ask(server, "GET", "/v1/collections", OF_A_PAGE, host="rebound.example"))[0] == 401
        key = "authorization: Bearer admin"
        assert (await ask(server, "GET", "/v1/collections", OF_A_PAGE, key, host="rebound.example"))[0] == 503
