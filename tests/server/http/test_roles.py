"""Each role on each route of HTTP: one module decides for both doors, before anything of a request is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.door import Idle, serving
from needle.base.access import KeyInfo, Role, digest_of, rank_of
from needle.base.errors import Forbidden
from needle.routing.topology import AliasInfo, Topology
from needle.server.access import Access
from needle.server.http.aliases import list_aliases
from needle.server.http.app import _Endpoint
from needle.server.http.listener import HttpServer
from needle.server.http.message import Headers
from needle.server.http.routes import ROUTES, Route


class Node(Idle):
    """A node that is stopping: it says so to everybody whom it would have answered."""

    audit = None

    def __init__(self) -> None:
        super().__init__()
        self.access = Access(required=True)
        keys = [KeyInfo(role, digest_of(role), role) for role in Role]
        some = KeyInfo("some", digest_of("some"), Role.WRITER, ("a",))
        self.access.follow((*keys, some))

    def alive(self) -> bool:
        return False

    def not_ready(self) -> str:
        return "stopped"


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async with serving(ROUTES, Node()) as made:
        yield made


async def ask(server: HttpServer, method: str, path: str, *headers: str, host: str = "x") -> tuple[int, str]:
    """Status, and the whole answer."""
    reader, writer = await asyncio.open_connection(*server.address.split(":"))
    lines = [
        f"{method} {path} HTTP/1.1",
        f"host: {host}",
        "connection: close",
        "content-type: application/json",
        *headers,
    ]
    body = "" if method in ("GET", "DELETE") else "content-length: 2\r\n\r\n{}"
    writer.write(("\r\n".join(lines) + "\r\n" + (body or "\r\n")).encode())
    answer = (await asyncio.wait_for(reader.read(), 10)).decode()
    writer.close()
    return int(answer.split(" ", 2)[1]), answer


def path_of(route: Route, collection: str = "a") -> str:
    made = route.path.replace("{id:path}", "x").replace("{collection}", collection)
    return "/".join("1" if part.startswith("{") else part for part in made.split("/"))


async def test_each_role_reaches_the_routes_that_it_may_call(server: HttpServer) -> None:
    for route in ROUTES:
        needed = rank_of(Role(route.role))
        for role in Role:
            status, answer = await ask(server, route.method, path_of(route), f"authorization: Bearer {role}")
            assert status == (503 if rank_of(role) >= needed else 403), (route.name, role, answer)
            assert ("forbidden" in answer) == (status == 403)
        for headers in ([], ["authorization: Bearer wrong"], ["authorization: Basic reader"], ["api-key: "]):
            status, answer = await ask(server, route.method, path_of(route), *headers)
            assert status == 401, (route.name, headers)
            assert "www-authenticate: Bearer" in answer


async def test_a_key_for_some_collections_reaches_their_routes_only(server: HttpServer) -> None:
    for route in ROUTES:
        is_writers = rank_of(Role(route.role)) <= rank_of(Role.WRITER)
        about = "{collection}" in route.path
        for collection, allowed in (("a", about or route.filtered), ("b", route.filtered)):
            status, _ = await ask(server, route.method, path_of(route, collection), "api-key: some")
            assert status == (503 if allowed and is_writers else 403), (route.name, collection)


async def test_an_alias_is_what_it_was_when_it_was_judged(server: HttpServer) -> None:
    """It may lead elsewhere once a slow caller has sent its body."""
    shards = server.door.node.shards
    route = next(route for route in ROUTES if route.name == "search")
    endpoint = _Endpoint(server.door, route)
    headers = Headers("", False, False, "identity", False, 0, "", None, "some")
    for leads_to in ("a", "b"):
        shards.topology = lambda leads_to=leads_to: Topology(aliases=(AliasInfo("mine", leads_to),))
        scope: dict[str, Any] = {"path_params": {"collection": "mine"}}
        if leads_to == "a":
            assert endpoint._admitted(scope, headers).name == "some"
            assert scope["path_params"]["collection"] == "a"
        else:
            with pytest.raises(Forbidden):
                endpoint._admitted(scope, headers)


async def test_every_route_without_a_collection_refuses_such_keys_or_filters() -> None:
    filtered = [route.name for route in ROUTES if route.filtered]
    assert filtered == ["list_collections", "list_aliases"]


async def test_a_key_for_some_collections_hears_of_their_aliases_only() -> None:
    async def found(timeout: float) -> dict[str, str]:
        return {"of-b": "b", "of-a": "a"}

    for allowed, names in ((None, ["of-a", "of-b"]), (frozenset({"a"}), ["of-a"]), (frozenset[str](), [])):
        call: Any = SimpleNamespace(
            client=SimpleNamespace(aliases=found),
            body=SimpleNamespace(timeout=1.0),
            caller=SimpleNamespace(collections=allowed),
        )
        assert [one.alias for one in (await list_aliases(call)).aliases] == names


async def test_probes_ask_for_no_key_and_metrics_for_a_monitor_or_a_reader_of_all(server: HttpServer) -> None:
    for path, status in (("/livez", 503), ("/readyz", 503), ("/openapi.json", 200), ("/docs", 200)):
        assert (await ask(server, "GET", path))[0] == status
    assert (await ask(server, "GET", "/metrics"))[0] == 401
    assert (await ask(server, "GET", "/metrics", "api-key: some"))[0] == 403
    assert (await ask(server, "GET", "/metrics", "authorization: bearer  reader"))[0] == 200
    assert (await ask(server, "GET", "/metrics", "authorization: bearer monitor"))[0] == 200


async def test_a_revoked_key_is_refused_on_a_connection_that_is_open(server: HttpServer) -> None:
    reader, writer = await asyncio.open_connection(*server.address.split(":"))
    for status in (b"200", b"401"):
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\napi-key: reader\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.split(b" ", 2)[1] == status
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        await asyncio.wait_for(reader.readexactly(int(length.split(b":")[1])), 10)
        server.door.node.access.follow(())
    writer.close()
