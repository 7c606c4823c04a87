"""Calls: answers, errors, many in flight, timeouts, reconnecting, refusals by name."""

import asyncio
import logging

import pytest

from needle.base.errors import (
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    FrameTooLarge,
    Internal,
    NotLeader,
    OutcomeUnknown,
    ProtocolError,
    Unavailable,
    UnsupportedVersion,
    WrongCluster,
)
from needle.rpc import transport
from needle.rpc.client_connection import ClientConnection


@pytest.mark.parametrize("method", ["sync", "future", "task"])
async def test_every_kind_of_answer(net, recorder, method):
    server = await net.server(recorder)
    assert await net.client().call(server.address, method, b"body", 5.0) == b"body"


async def test_parts_are_joined_and_large_bodies_arrive_whole(net, recorder):
    server = await net.server(recorder)
    client = net.client()
    body = bytes(range(256)) * 12_000
    assert await client.call(server.address, "parts", body, 5.0) == b"<" + body + b">"


async def test_a_thousand_in_flight_on_one_connection(net, recorder, until):
    server = await net.server(recorder)
    client = net.client()
    calls = [asyncio.create_task(client.call(server.address, "wait", b"%d" % n, 20.0)) for n in range(1000)]
    await until(lambda: recorder.entered == 1000)
    assert server.stats.connections == 1
    recorder.gate.set()
    assert await asyncio.gather(*calls) == [b"%d" % n for n in range(1000)]


@pytest.mark.parametrize("connected", [True, False])
async def test_in_another_event_loop_nothing_is_sent(net, recorder, connected):
    """It would be queued for the loop of the connection, and its caller told by asyncio that it failed."""
    server = await net.server(recorder)
    client = net.client()
    assert await client.call(server.address, "echo", b"1", 5.0) == b"1"
    if not connected:
        client.forget(server.address)
    for asked in (client.call(server.address, "echo", b"2", 5.0), client.connect(server.address, 5.0)):
        with pytest.raises(ClientClosed, match="another event loop"):
            await asyncio.to_thread(asyncio.run, asked)
    assert await client.call(server.address, "echo", b"3", 5.0) == b"3"
    assert client.stats.frames_out == (3 if connected else 4)  # the hello, and what was asked in its own loop


@pytest.mark.parametrize("method", ["raise", "raise_sync"])
async def test_a_needle_error_crosses_with_its_details(net, recorder, method):
    server = await net.server(recorder)
    recorder.boom = NotLeader("not me", leader="n2")
    with pytest.raises(NotLeader, match="not me") as caught:
        await net.client().call(server.address, method, b"", 5.0)
    assert caught.value.details == {"leader": "n2"}


@pytest.mark.parametrize("method", ["raise", "raise_sync"])
async def test_any_other_exception_is_internal_and_logged_and_the_connection_lives(net, recorder, method, caplog):
    server = await net.server(recorder)
    client = net.client()
    recorder.boom = KeyError("lost key")
    with caplog.at_level(logging.ERROR), pytest.raises(Internal, match=r"KeyError.*lost key"):
        await client.call(server.address, method, b"", 5.0)
    assert "KeyError" in caplog.text
    assert server.stats.handler_failures == 1
    assert await client.call(server.address, "echo", b"on", 5.0) == b"on"
    assert client.stats.connects == 1


async def test_a_call_times_out_and_its_late_answer_is_counted(net, recorder, until):
    server = await net.server(recorder)
    client = net.client()
    await client.connect(server.address, 5.0)
    with pytest.raises(DeadlineExceeded):
        await client.call(server.address, "wait", b"", 0.02)
    recorder.gate.set()
    await until(lambda: client.stats.late_answers == 1)
    assert client.stats.timeouts == 1
    assert await client.call(server.address, "echo", b"on", 5.0) == b"on"


async def test_a_shorter_timeout_is_not_delayed_by_a_longer_one(net, recorder, until):
    server = await net.server(recorder)
    client = net.client()
    long = asyncio.create_task(client.call(server.address, "wait", b"long", 30.0))
    await until(lambda: recorder.entered == 1)
    async with asyncio.timeout(30.0):
        with pytest.raises(DeadlineExceeded):
            await client.call(server.address, "wait", b"short", 0.02)
    assert not long.done()
    recorder.gate.set()
    assert await long == b"long"


async def test_a_server_that_restarts_is_reconnected(net, recorder, until):
    server = await net.server(recorder)
    client = net.client(backoff_min=0.001, backoff_max=0.002)
    address, port = server.address, server.port
    await client.call(address, "echo", b"1", 5.0)
    await server.stop()
    await until(lambda: client.stats.connections == 0)
    with pytest.raises(ConnectionLost, match=address):
        await client.call(address, "echo", b"2", 5.0)
    await net.server(recorder, port=port)
    async with asyncio.timeout(30.0):
        while True:
            try:
                answer = await client.call(address, "echo", b"3", 5.0)
            except ConnectionLost:
                await asyncio.sleep(0)
            else:
                break
    assert answer == b"3"
    assert client.stats.reconnects == 1


async def test_backoff_grows_with_jitter_and_calls_fail_at_once_inside_it(net, recorder):
    class Manual:
        now = 100.0

        def monotonic(self):
            return self.now

        def wall(self):
            return self.now

    server = await net.server(recorder)
    address = server.address
    await server.stop()
    clock = Manual()
    client = net.client(clock=clock, backoff_min=1.0, backoff_max=4.0)
    pauses = []
    for failures in range(1, 6):
        with pytest.raises(ConnectionLost):
            await client.call(address, "echo", b"", 5.0)
        assert client.stats.connect_failures == failures
        with pytest.raises(ConnectionLost):
            await client.call(address, "echo", b"", 5.0)
        assert client.stats.connect_failures == failures
        pauses.append(client._links[address, ""].retry_at - clock.now)
        clock.now = client._links[address, ""].retry_at
    for pause, full in zip(pauses, [1, 2, 4, 4, 4], strict=True):
        assert full / 2 <= pause <= full
    assert len(set(pauses)) == 5


async def test_addresses_that_nobody_answers_at_any_more_are_forgotten(net, recorder, monkeypatch):
    """A client kept whatever it knew of each address for as long as it lived; nodes that move come to many."""

    class Manual:
        now = 100.0

        def monotonic(self):
            return self.now

    server = await net.server(recorder)
    client, clock = net.client(backoff_min=1.0, backoff_max=4.0), Manual()
    monkeypatch.setattr(client, "_clock", clock)
    assert await client.call(server.address, "echo", b"1", 5.0) == b"1"
    inner = client._open

    async def refused(link):
        if link.address == server.address:
            return await inner(link)
        raise ConnectionRefusedError

    monkeypatch.setattr(client, "_open", refused)
    for number in range(1000):
        clock.now += 1.0
        with pytest.raises(ConnectionLost):
            await client.call(f"127.0.0.1:{10_000 + number}", "echo", b"", 5.0)
    assert len(client._links) <= 64
    assert await client.call(server.address, "echo", b"2", 5.0) == b"2"
    assert client.stats.connects == 1
    before = client.stats.connect_failures
    with pytest.raises(ConnectionLost):  # the last one is in its pause, which is remembered
        await client.call("127.0.0.1:10999", "echo", b"", 5.0)
    assert client.stats.connect_failures == before


@pytest.mark.parametrize("soon", [False, True])
async def test_a_connection_given_up_while_it_opens_does_not_count_for_ever(net, recorder, monkeypatch, soon):
    """uvloop closes it without a word if whoever opens it is cancelled between its beginning and being told of it."""
    server = await net.server(recorder)
    client, lost = net.client(), []

    class Cut(ClientConnection):
        def connection_made(self, transport):
            super().connection_made(transport)
            cut = client._links[server.address, ""].connecting.cancel
            asyncio.get_running_loop().call_soon(cut) if soon else cut()

        def on_lost(self, error):
            lost.append(error)
            super().on_lost(error)

    monkeypatch.setattr(transport, "ClientConnection", Cut)
    with pytest.raises(ConnectionLost):
        await client.call(server.address, "echo", b"", 5.0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert client.stats.connections == 0
    assert len(lost) == 1
    monkeypatch.undo()
    assert await client.call(server.address, "echo", b"1", 5.0) == b"1"
    assert client.stats.connections == 1


async def test_calls_in_flight_end_with_connection_lost_when_forgotten(net, recorder, until):
    server = await net.server(recorder)
    client = net.client()
    call = asyncio.create_task(client.call(server.address, "wait", b"", 20.0))
    await until(lambda: recorder.entered == 1)
    client.forget(server.address)
    with pytest.raises(ConnectionLost):
        await call
    # The handler's work goes on without its caller, and its answer is dropped.
    recorder.gate.set()
    await until(lambda: recorder.finished == 1)


async def test_the_handler_hears_that_a_connection_ended(net, recorder, until):
    server = await net.server(recorder)
    client = net.client(node_id="n1")
    await client.call(server.address, "echo", b"x", 5)
    assert recorder.gone == []
    await client.close()
    await until(lambda: recorder.gone == ["n1"])
    _, writer = await net.raw(server.port)
    writer.close()  # one that never said its hello
    await until(lambda: not server.stats.connections)
    assert recorder.gone == ["n1"]


async def test_stopping_lets_running_requests_finish(net, recorder, until):
    server = await net.server(recorder)
    call = asyncio.create_task(net.client().call(server.address, "wait", b"kept", 20.0))
    await until(lambda: recorder.entered == 1)
    stop = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    recorder.gate.set()
    await stop
    assert await call == b"kept"


async def test_a_promise_is_answered_when_it_is_settled(net, recorder, until):
    server = await net.server(recorder)
    client = net.client()
    calls = [asyncio.create_task(client.call(server.address, "promise", b"", 20.0)) for _ in range(2)]
    await until(lambda: len(recorder.promises) == 2)
    recorder.promises[1].set_result(b"second")
    assert await calls[1] == b"second"
    recorder.promises[0].set_exception(Unavailable("first"))
    with pytest.raises(Unavailable, match="first"):
        await calls[0]


async def test_stopping_waits_for_promised_answers(net, recorder, until):
    server = await net.server(recorder)
    call = asyncio.create_task(net.client().call(server.address, "promise", b"", 20.0))
    await until(lambda: recorder.promises)
    stop = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    assert not stop.done()
    recorder.promises[0].set_result(b"kept")
    await stop
    assert await call == b"kept"


async def test_promised_requests_count_as_in_flight(net, recorder, until):
    server = await net.server(recorder, inflight_requests_max=2)
    client = net.client()
    calls = [asyncio.create_task(client.call(server.address, "promise", b"", 20.0)) for _ in range(5)]
    await until(lambda: len(recorder.promises) == 2)
    assert await net.client().call(server.address, "echo", b"another connection", 20.0) == b"another connection"
    assert len(recorder.promises) == 2, "the connection is at its bound: nothing more is read from it"
    for n in range(5):
        await until(lambda n=n: len(recorder.promises) > n)
        recorder.promises[n].set_result(b"%d" % n)
    assert await asyncio.gather(*calls) == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(("method", "told"), [("read", Unavailable), ("wait", OutcomeUnknown)])
async def test_stopping_cancels_what_does_not_finish(net, recorder, until, method, told):
    """Of what is no read nobody knows then whether it took effect: `Unavailable` would say that it did not."""
    server = await net.server(recorder, stop_timeout=0.02)
    call = asyncio.create_task(net.client().call(server.address, method, b"", 20.0))
    await until(lambda: recorder.entered == 1)
    await server.stop()
    with pytest.raises(told, match="stopping"):
        await call
    assert not server.tasks


async def test_version_mismatch_is_refused_by_name(net, recorder):
    server = await net.server(recorder, version=2)
    with pytest.raises(UnsupportedVersion, match=r"version 1.*speaks 2"):
        await net.client().call(server.address, "echo", b"", 5.0)


async def test_a_wrong_cluster_is_named_on_both_sides(net, recorder, caplog):
    server = await net.server(recorder, cluster_id="blue")
    with caplog.at_level(logging.WARNING), pytest.raises(WrongCluster) as told:
        await net.client().call(server.address, "echo", b"", 5.0)
    assert "the caller belongs to cluster 'red', the node to 'blue'" in told.value.message
    assert told.value.message in caplog.text
    assert recorder.entered == 0


async def test_a_refusal_that_is_repeated_fills_no_log(net, recorder, caplog):
    server = await net.server(recorder, cluster_id="blue")
    with caplog.at_level(logging.WARNING):
        for name in ["red"] * 5 + ["green"]:
            with pytest.raises(WrongCluster):
                await net.client(cluster_id=name).call(server.address, "echo", b"", 5.0)
    assert caplog.text.count("'red'") == caplog.text.count("'green'") == 1


async def test_a_wrong_node_is_refused(net, recorder):
    server = await net.server(recorder, node_id="n3")
    client = net.client()
    with pytest.raises(ProtocolError, match=r"'n3'.*'n2'"):
        await client.call(server.address, "echo", b"", 5.0, "n2")


async def test_oversize_is_refused_on_either_side_and_the_connection_lives(net, recorder):
    server = await net.server(recorder, frame_bytes_max=2000)
    client = net.client(frame_bytes_max=2000)
    with pytest.raises(FrameTooLarge, match="request"):
        await client.call(server.address, "echo", b"x" * 2000, 5.0)
    with pytest.raises(FrameTooLarge, match="answer"):
        await client.call(server.address, "big", b"3000", 5.0)
    assert await client.call(server.address, "echo", b"on", 5.0) == b"on"
    assert client.stats.connects == 1


async def test_a_closed_client_refuses(net, recorder):
    server = await net.server(recorder)
    client = net.client()
    await client.call(server.address, "echo", b"", 5.0)
    await client.close()
    with pytest.raises(ConnectionLost, match="closed"):
        await client.call(server.address, "echo", b"", 5.0)
    assert not client.send(server.address, b"")


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "a\0b"])
async def test_an_address_that_can_be_no_hosts_says_so_and_is_left_alone_for_a_while(net, host):
    """Python refuses such a name itself, with another error than the system's."""
    client = net.client(backoff_min=60.0, backoff_max=60.0)
    address = f"{host}:7000"
    assert client.send(address, b"held")
    with pytest.raises(ConnectionLost, match="cannot connect to") as caught:
        await client.call(address, "echo", b"", 5.0)
    assert caught.value.details["refused"]
    assert client.stats.connect_failures == client.stats.dropped_frames == 1
    assert not client.send(address, b"in the pause")
