"""Clients and nodes of two clusters with one cluster_id: neither takes the other for its own."""

from __future__ import annotations

import pytest

from needle.base.errors import ConnectionLost, WrongCluster


async def test_a_client_is_sent_away_by_a_node_of_another_founding(net, recorder):
    server = await net.server(recorder)
    server.of_founding(2)
    client = net.client()
    client.of_founding(1)
    with pytest.raises(WrongCluster, match="founding"):
        await client.call(server.address, "echo", b"", 20.0)
    client.of_founding(2)
    client.forget(server.address)
    assert bytes(await client.call(server.address, "echo", b"x", 20.0)) == b"x"


async def test_a_node_that_founds_a_cluster_sends_clients_of_another_one_away(net, recorder):
    """It belonged to none when they connected."""
    server = await net.server(recorder)
    other, same = net.client(), net.client()
    other.of_founding(1)
    for client in (other, same):
        await client.call(server.address, "echo", b"", 20.0)
    server.of_founding(2)
    with pytest.raises((ConnectionLost, WrongCluster), match="founding"):
        await other.call(server.address, "echo", b"", 20.0)
    await same.call(server.address, "echo", b"", 20.0)  # it works with no cluster yet


async def test_a_client_that_learns_its_cluster_leaves_nodes_that_belonged_to_none(net, recorder):
    none, its = await net.server(recorder), await net.server(recorder)
    its.of_founding(1)
    client = net.client()
    for server in (none, its):
        await client.call(server.address, "echo", b"", 20.0)
    client.of_founding(1)
    assert client.connected(its.address) and not client.connected(none.address)
    none.of_founding(2)
    with pytest.raises(WrongCluster):
        await client.call(none.address, "echo", b"", 20.0)
