"""Addresses that are none are refused; a cluster that is down is waited for by calls, and named at once for people."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import needle
from needle.base.config import parse_address
from needle.base.errors import ConfigError, ConnectionLost, InvalidArgument
from needle.client import Client
from needle.connecting import check_addresses, check_reachable
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.rpc.codec import parse_endpoint


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("http://host:5001", "without a scheme"),
        ("tcp://10.0.0.1:5001", "without a scheme"),
        ("a:1,b:2", "several"),
        ("host", "host:port"),
        ("host:", "host:port"),
        (":5001", "host:port"),
        ("host:port", "host:port"),
        ("host:70000", "65535"),
        ("host:\u0661", "host:port"),
        ("host:" + "9" * 10_000, "65535"),
        ("user@host:1", "host:port"),
        ("host:1/path", "host:port"),
        ("host/path:1", "host:port"),
        ("a b:1", "host:port"),
        ("::1:5001", "host:port"),
        ("[::1:5001", "host:port"),
        ("[]:5001", "host:port"),
    ],
)
def test_what_is_no_address(address: str, hint: str) -> None:
    for check in (lambda: parse_address("listen", address), lambda: parse_endpoint(address)):
        with pytest.raises(ConfigError, match=hint):
            check()
    with pytest.raises(ConfigError):
        check_addresses([address])


def test_addresses() -> None:
    assert parse_address("listen", "[::1]:5001") == ("::1", 5001)
    assert parse_endpoint("localhost:0") == ("localhost", 0)
    assert check_addresses("a:1, b:2") == check_addresses(["a:1", "b:2"]) == ["a:1", "b:2"]
    for nothing in ("", "a:1,", []):
        with pytest.raises(ConfigError):
            check_addresses(nothing)


@pytest.mark.parametrize("addresses", [None, 5001, b"a:1", {"node-1": "a:1"}, ["a:1", None], [("a", 1)], object()])
def test_what_are_no_addresses(addresses: object) -> None:
    for connect in (needle.connect, needle.connect_sync):
        with pytest.raises(ConfigError, match="addresses = "):
            connect(addresses)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "value"), [("cluster_id", None), ("cluster_id", ""), ("batch_bytes_max", "1"), ("batch_bytes_max", 0)]
)
def test_other_arguments_of_connect_are_checked_by_name(name: str, value: object) -> None:
    for connect in (needle.connect, needle.connect_sync):
        with pytest.raises(InvalidArgument, match=f"{name} = "):
            connect("a:1", **{name: value})  # type: ignore[operator]


async def test_a_cluster_that_refuses_is_named_at_once_and_waited_for_by_a_client(tmp_path: Path) -> None:
    ports = free_ports(2)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    with pytest.raises(ConnectionLost, match=f"no node of the cluster can be reached.*{ports[0]}.*{ports[1]}"):
        await asyncio.wait_for(check_reachable(addresses, "needle"), 30)

    async def connected() -> Client:
        return await needle.connect(addresses)

    connecting = asyncio.create_task(connected())
    config = RaftConfig(
        node_id="node-1", cluster_nodes=[f"node-1={addresses[0]}"], data_dir=str(tmp_path), dimensions=2
    )
    async with RaftCluster(config), await connecting as client:
        assert (await client.insert("a", [1.0, 0.0], timeout=60)).count == 1
        assert await client.get("b", timeout=60) is None
        await check_reachable(addresses, "needle")
