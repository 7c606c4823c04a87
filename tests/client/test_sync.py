"""The two faces of the client: the same methods, signatures, docstrings and types."""

import ast
import inspect
from pathlib import Path

import pytest

from needle.base.errors import InvalidArgument, Unavailable
from needle.client import Client, SyncClient, sync, sync_stub
from needle.connecting import cluster_client
from needle.routing.topology import Topology


def test_both_faces_have_the_same_methods() -> None:
    for kind in (inspect.isfunction, inspect.isdatadescriptor):
        public = {name for name, _ in inspect.getmembers(Client, kind) if not name.startswith("_")}
        mirrored = {name for name, _ in inspect.getmembers(SyncClient, kind) if not name.startswith("_")}
        assert public == mirrored
    assert sync.method_names()
    for name in sync.method_names():
        mine, theirs = getattr(SyncClient, name), getattr(Client, name)
        assert inspect.signature(mine) == inspect.signature(theirs)
        assert mine.__doc__ == theirs.__doc__
        assert mine.__doc__, f"{name} has no docstring"
        assert not inspect.iscoroutinefunction(mine)


def test_the_stub_is_up_to_date() -> None:
    there = Path(str(sync.__file__)).with_suffix(".pyi").read_text()
    # Compared as syntax, since the formatter arranges lines.
    assert ast.dump(ast.parse(there)) == ast.dump(ast.parse(sync_stub.generate())), (
        "run python -m needle.client.sync_stub"
    )


class _Nobody:
    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        raise AssertionError("nothing is sent")

    def connected(self, address: str) -> bool:
        return False

    async def connect(self, address: str, timeout: float) -> None:
        raise AssertionError("nothing is connected")

    async def close(self) -> None:
        return


async def _make() -> Client:
    return cluster_client(_Nobody(), ["h:1"], Topology())


def test_errors_cross_the_thread_and_a_closed_client_says_so() -> None:
    with sync.sync_client(_make) as client:
        assert type(client) is SyncClient
        with pytest.raises(InvalidArgument, match="query"):
            client.search([[1.0]], 1)
        assert client.nodes() == {}
    with pytest.raises(Unavailable, match="closed"):
        client.search([1.0], 1)
    client.close()
