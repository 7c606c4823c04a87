"""An error that was answered holds nothing: neither a view of all vectors nor the request, until a collector runs."""

from __future__ import annotations

import asyncio
import gc
import urllib.error
import urllib.request
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import needle
from needle.base.errors import InvalidArgument, NeedleError
from needle.base.tracebacks import release
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.shard import query


@pytest_asyncio.fixture
async def addresses(tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """Of a node: for clients, and of its HTTP."""
    address, http = (f"127.0.0.1:{port}" for port in free_ports(2))
    config = RaftConfig(
        node_id="one",
        listen=address,
        data_dir=str(tmp_path),
        cluster_nodes=[f"one={address}"],
        dimensions=8,
        http_address=http,
    )
    async with RaftCluster(config) as node:
        await node.insert("a", [1.0] * 8)
        yield address, http


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[NeedleError]]:
    """The errors of searches that a replica refuses."""
    errors: list[weakref.ref[NeedleError]] = []
    check = query.check_search

    def noted(*arguments: Any) -> Any:
        try:
            return check(*arguments)
        except NeedleError as error:
            errors.append(weakref.ref(error))
            raise

    monkeypatch.setattr(query, "check_search", noted)
    return errors


async def gone(made: list[weakref.ref[NeedleError]]) -> None:
    assert made
    await wait_for(lambda: all(one() is None for one in made), 10, "the end of all refusals")


@pytest.mark.parametrize("mode", ["strong", "leased", "eventual"])
async def test_of_a_refused_search(addresses: tuple[str, str], made: list[Any], mode: str) -> None:
    async with needle.connect(addresses[0]) as client:
        gc.disable()
        try:
            with pytest.raises(InvalidArgument):
                await client.search([1.0] * 3, 3, mode=mode)
            await gone(made)
        finally:
            gc.enable()


async def test_of_a_search_that_http_refuses(addresses: tuple[str, str], made: list[Any]) -> None:
    def ask() -> int:
        url = f"http://{addresses[1]}/v1/collections/default/search"
        body, headers = b'{"vector": [1, 2, 3], "k": 3}', {"content-type": "application/json"}
        try:
            urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    gc.disable()
    try:
        assert await asyncio.to_thread(ask) == 400
        await gone(made)
    finally:
        gc.enable()


def test_all_that_an_error_came_from_is_released() -> None:
    def outer() -> None:
        try:
            try:
                raise KeyError("inner")
            except KeyError as inner:
                raise InvalidArgument("outer") from inner
        except InvalidArgument as error:
            error.__cause__.__context__ = error  # type: ignore[union-attr]
            raise

    with pytest.raises(InvalidArgument) as told:
        outer()
    release(told.value)
    assert told.value.__traceback__ is None
    assert told.value.__cause__ is not None and told.value.__cause__.__traceback__ is None
    release(None)
