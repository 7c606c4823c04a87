"""TLS between a client and a server of the binary protocol: what is let in, and what both sides say of the rest."""

import asyncio
import logging
import ssl
import time
from functools import partial

import pytest

from needle.base.errors import ConfigError, ConnectionLost, TlsFailed
from needle.connecting import check_tls
from needle.rpc.tls import Dial, Door, context

LATE = 10.0


def door(authority, made, *, required=True):
    one = context(
        server=True, ca=authority.ca, certificate=str(made.certificate), key=str(made.key), ask=ssl.CERT_OPTIONAL
    )
    return Door(context=lambda: one, required=required, shown=str(made.certificate))


def dial(authority, made=None, *, by_name=True, optional=False):
    shown, key = (str(made.certificate), str(made.key)) if made is not None else ("", "")
    one = context(
        server=False, ca=authority.ca, certificate=shown, key=key, ask=ssl.CERT_REQUIRED, hostname=not by_name
    )
    return Dial(context=lambda: one, by_name=by_name, optional=optional, shown=shown)


@pytest.fixture
def tls(net, recorder, authority):
    """server(...) and client(...) of two nodes, node-1 and node-2."""

    class Two:
        server = partial(net.server, recorder, node_id="node-1")
        client = partial(net.client, node_id="node-2")
        nodes = authority.nodes

    return Two


async def refused(client, server, match, **kinds):
    with pytest.raises((TlsFailed, ConnectionLost), match=match):
        await client.call(server.address, "echo", b"", LATE)


async def told(caplog, *words):
    """Until a line of the log has all these words."""
    end = time.monotonic() + LATE
    while not any(all(word in line for word in words) for line in caplog.messages):
        assert time.monotonic() < end, caplog.messages
        await asyncio.sleep(0.01)


async def test_two_nodes_with_certificates_of_their_names_talk(tls, authority):
    server = await tls.server(door=door(authority, tls.nodes["node-1"]))
    client = tls.client(dial=dial(authority, tls.nodes["node-2"]))
    assert await client.call(server.address, "echo", b"x" * 300_000, LATE, "node-1") == b"x" * 300_000


async def test_a_client_needs_no_certificate_and_checks_the_host(tls, net, authority):
    server = await tls.server(door=door(authority, tls.nodes["node-1"]))
    client = net.client(dial=dial(authority, by_name=False))
    assert await client.call(server.address, "echo", b"x", LATE) == b"x"
    elsewhere = server.address.replace("127.0.0.1", "localhost")
    with pytest.raises(TlsFailed, match=r"certificate of localhost.*localhost"):
        await net.client(dial=dial(authority, by_name=False)).call(elsewhere, "echo", b"x", LATE)


@pytest.mark.parametrize("which, why", [("expired", "expired"), ("foreign", "unknown ca|issuer")])
async def test_a_bad_certificate_of_a_caller_is_refused_by_name_on_both_sides(tls, authority, caplog, which, why):
    server = await tls.server(door=door(authority, tls.nodes["node-1"]))
    bad = getattr(authority, which)
    await refused(tls.client(dial=dial(authority, bad)), server, f"refuses.*{bad.certificate}.*({why})")
    await told(caplog, "the certificate of the caller is refused", "expired" if which == "expired" else "issuer")


@pytest.mark.parametrize("which, why", [("expired", "expired"), ("foreign", "issuer")])
async def test_a_bad_certificate_of_a_node_is_refused_by_name_on_both_sides(tls, authority, caplog, which, why):
    bad = getattr(authority, which)
    server = await tls.server(door=door(authority, bad))
    await refused(
        tls.client(dial=dial(authority, tls.nodes["node-2"])),
        server,
        f"certificate of {server.address} is refused.*{why}",
    )
    await told(caplog, "refuses TLS with the certificate of this side", str(bad.certificate))


async def test_a_node_needs_a_certificate_of_its_own_name(tls, authority, caplog):
    server = await tls.server(door=door(authority, tls.nodes["node-1"]))
    await refused(tls.client(dial=dial(authority)), server, "'node-2' and has shown no certificate")
    await refused(tls.client(dial=dial(authority, tls.nodes["node-3"])), server, "certificate is for 'node-3'")
    await refused(tls.client(dial=dial(authority, authority.client)), server, "certificate is for no name")
    await told(caplog, "'node-2'", "no certificate")
    for _ in range(3):  # it tries again all the time, each time from another port
        await refused(tls.client(dial=dial(authority, tls.nodes["node-3"])), server, "certificate is for 'node-3'")
    served = [one for one in caplog.records if vars(one).get("kind") == "connection_refused"]
    lines = [one for one in served if one.levelno >= logging.WARNING and "is for 'node-3'" in one.message]
    assert len(lines) == 1, lines


async def test_who_calls_a_node_by_name_refuses_another_nodes_certificate(tls, authority):
    server = await tls.server(door=door(authority, tls.nodes["node-3"]))
    await refused(
        tls.client(dial=dial(authority, tls.nodes["node-2"])), server, "'node-1'.*certificate is for 'node-3'"
    )


async def test_plain_where_tls_is_required_is_told_so(tls, net, authority, caplog):
    server = await tls.server(door=door(authority, tls.nodes["node-1"]))
    await refused(net.client(), server, "speaks TLS only")
    await told(caplog, "closing the connection from 127.0.0.1", "speaks TLS only")


async def test_tls_where_there_is_none_is_told_so(tls, net, authority, caplog):
    server = await tls.server()
    await refused(net.client(dial=dial(authority, by_name=False)), server, "does not speak TLS")
    await told(caplog, "closing the connection from 127.0.0.1", "the other side speaks TLS")


async def test_accepting_both_serves_both_and_speaks_without_where_there_is_none(tls, authority):
    accepting = await tls.server(door=door(authority, tls.nodes["node-1"], required=False))
    plain = await tls.server()
    for server in (accepting, plain):
        for how in (None, dial(authority, tls.nodes["node-2"], optional=True)):
            if server is plain or how is None or how.optional:
                assert await tls.client(dial=how).call(server.address, "echo", b"x", LATE, "node-1") == b"x"
    await refused(tls.client(dial=dial(authority, tls.nodes["node-3"], optional=True)), accepting, "for 'node-3'")


async def test_who_says_nothing_or_little_keeps_nobody_out(tls, net, authority):
    server = await tls.server(door=door(authority, tls.nodes["node-1"]), connections_max=4, hello_timeout=30.0)
    silent = [await net.raw(server.port) for _ in range(6)]
    for _, writer in silent[:3]:
        writer.write(b"\x16")
    client = tls.client(dial=dial(authority, tls.nodes["node-2"]))
    assert await client.call(server.address, "echo", b"x", LATE) == b"x"
    for reader, _ in silent[:2]:
        async with asyncio.timeout(LATE):
            assert await reader.read() == b""


async def test_who_waits_and_who_is_served_are_bounded_together(tls, net, authority):
    """Each holds a file: without that, half-open connections beside served ones take all that a node may open."""
    server = await tls.server(door=door(authority, tls.nodes["node-1"]), connections_max=12, hello_timeout=30.0)
    how = dial(authority, tls.nodes["node-2"])
    clients = [tls.client(dial=how) for _ in range(8)]
    for client in clients:
        assert await client.call(server.address, "echo", b"x", LATE) == b"x"
    silent = [await net.raw(server.port) for _ in range(12)]
    for reader, _ in silent[:8]:
        async with asyncio.timeout(LATE):
            assert await reader.read() == b""
    assert await clients[0].call(server.address, "echo", b"x", LATE) == b"x"


async def test_a_server_that_stops_ends_what_waits(tls, net, authority):
    server = await tls.server(door=door(authority, tls.nodes["node-1"]), hello_timeout=30.0)
    reader, _ = await net.raw(server.port)
    async with asyncio.timeout(LATE):
        await server.stop()
        assert await reader.read() == b""


async def test_certificates_that_were_replaced_are_used_by_the_next_connection(tls, net, authority):
    used = [door(authority, tls.nodes["node-3"]), door(authority, tls.nodes["node-1"])]

    def present():
        return used[0].context()

    server = await tls.server(door=Door(context=present, required=True))
    client = tls.client(dial=dial(authority, tls.nodes["node-2"]), backoff_min=0.001, backoff_max=0.001)
    await refused(client, server, "certificate is for 'node-3'")
    del used[0]
    end = time.monotonic() + LATE
    while True:
        try:
            assert await client.call(server.address, "echo", b"x", LATE) == b"x"
            break
        except (TlsFailed, ConnectionLost):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)


async def test_a_client_reads_its_authority_anew_when_the_file_has_changed(tls, net, authority, tmp_path):
    """So an authority is changed without an end of the programs that use the cluster."""
    file = tmp_path / "ca.crt"
    other = (authority.directory / "other" / "ca.crt").read_bytes()
    ours = (authority.directory / "ca" / "ca.crt").read_bytes()
    file.write_bytes(ours)
    dialled = check_tls(file)
    context = dialled.context()
    assert dialled.context() is context
    for content in (b"", b"half of a cert", None):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        assert dialled.context() is context  # what cannot be read does not end what works
    file.write_bytes(other)
    assert dialled.context() is not context
    server = await tls.server(door=door(authority, tls.nodes["node-1"]))
    client = net.client(dial=dialled, backoff_min=0.001, backoff_max=0.001)
    await refused(client, server, "certificate of 127.0.0.1.*is refused")
    file.write_bytes(other + ours)
    end = time.monotonic() + LATE
    while True:
        try:
            assert await client.call(server.address, "echo", b"x", LATE) == b"x"
            break
        except (TlsFailed, ConnectionLost):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
    with pytest.raises(ConfigError):
        check_tls(tmp_path / "nothing")


@pytest.fixture(autouse=True)
def loud(caplog):
    caplog.set_level(logging.DEBUG, "needle")
