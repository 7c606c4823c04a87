"""Messages go to the node that was meant, or nowhere."""

import pytest

from needle.base.errors import ConnectionLost, ProtocolError
from needle.rpc.peer_transport import PeerTransport


async def test_calls_and_sends_by_node_id(net, recorder, until):
    server = await net.server(recorder, node_id="n2")
    book = {"n2": server.address}
    peers = PeerTransport(net.client(node_id="n1"), book.get)
    assert await peers.call("n2", "echo", b"x", 5.0) == b"x"
    assert peers.send("n2", b"m")
    await until(lambda: recorder.oneways == [("n1", b"m")])


async def test_no_address_is_a_drop_or_a_named_error(net):
    peers = PeerTransport(net.client(node_id="n1"), {}.get)
    assert not peers.send("n9", b"m")
    with pytest.raises(ConnectionLost, match="'n9'"):
        await peers.call("n9", "echo", b"", 5.0)


async def test_another_node_at_the_address_is_refused_and_gets_nothing(net, recorder):
    server = await net.server(recorder, node_id="n3")
    peers = PeerTransport(net.client(node_id="n1"), {"n2": server.address}.get)
    with pytest.raises(ProtocolError, match=r"'n3'.*'n2'"):
        await peers.call("n2", "echo", b"", 5.0)
    assert not peers.send("n2", b"m")
    assert recorder.oneways == []


async def test_a_moved_node_is_followed_and_its_old_connection_closed(net, recorder, until):
    old, new = await net.server(recorder, node_id="n2"), await net.server(recorder, node_id="n2")
    book = {"n2": old.address}
    peers = PeerTransport(net.client(node_id="n1"), book.get)
    await peers.call("n2", "echo", b"", 5.0)
    book["n2"] = new.address
    await peers.call("n2", "echo", b"", 5.0)
    await until(lambda: old.stats.connections == 0)
    assert new.stats.connections == 1


async def test_update_drops_nodes_that_left_and_nodes_that_swapped(net, recorder, until):
    a, b = await net.server(recorder, node_id="a"), await net.server(recorder, node_id="b")
    book = {"a": a.address, "b": b.address}
    peers = PeerTransport(net.client(node_id="n1"), book.get)
    await peers.call("a", "echo", b"", 5.0)
    await peers.call("b", "echo", b"", 5.0)
    del book["a"]
    peers.update()
    await until(lambda: a.stats.connections == 0)
    assert b.stats.connections == 1
    book["b"], book["a"] = a.address, b.address
    peers.update()
    with pytest.raises(ProtocolError, match=r"'a'.*'b'"):
        await peers.call("b", "echo", b"", 5.0)


async def test_nodes_that_swap_addresses_are_both_checked_under_their_new_address(net, recorder):
    a, b = await net.server(recorder, node_id="a"), await net.server(recorder, node_id="b")
    book = {"a": a.address, "b": b.address}
    peers = PeerTransport(net.client(node_id="n1"), book.get)
    await peers.call("a", "echo", b"", 5.0)
    await peers.call("b", "echo", b"", 5.0)
    book["a"], book["b"] = b.address, a.address
    peers.update()
    for node in ("a", "b"):
        with pytest.raises(ProtocolError, match="expected was node"):
            await peers.call(node, "echo", b"", 5.0)


async def test_a_forgotten_node_is_still_checked_when_it_is_reached_again(net, recorder, until):
    server = await net.server(recorder, node_id="n2")
    peers = PeerTransport(net.client(node_id="n1"), {"n2": server.address}.get)
    await peers.call("n2", "echo", b"", 5.0)
    peers.forget("n2")
    await until(lambda: server.stats.connections == 0)
    await peers.call("n2", "echo", b"", 5.0)
    assert peers.client._links[server.address, "n2"].expected_node == "n2"


async def test_two_nodes_at_one_address_do_not_take_it_from_each_other(net, recorder, until):
    """As when a node whose disk was lost got a successor with a new name in its place, and is a member still."""
    server = await net.server(recorder, node_id="new")
    book = {"old": server.address, "new": server.address}
    peers = PeerTransport(net.client(node_id="n1"), book.get)
    for node in ("old", "new", "old"):  # in whatever order they are spoken to
        if node == "new":
            assert await peers.call(node, "echo", b"x", 5.0) == b"x"
        else:
            with pytest.raises(ProtocolError, match=r"'new'.*'old'"):
                await peers.call(node, "echo", b"", 5.0)
    assert peers.send("new", b"to new")
    peers.send("old", b"to old")
    await until(lambda: recorder.oneways)
    del book["old"]
    peers.update()
    assert await peers.call("new", "echo", b"y", 5.0) == b"y"
    assert recorder.oneways == [("n1", b"to new")]
    assert server.stats.connections == 1
