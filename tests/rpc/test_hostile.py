"""Slow, silent and hostile peers: memory stays bounded and everybody else goes on."""

import asyncio
import contextlib
import gc
import itertools
import socket
import threading

import pytest

from needle.base.errors import ConnectionLost, FrameTooLarge, Overloaded, ProtocolError
from needle.rpc.codec import Hello, decode_error, encode, request_head
from needle.rpc.frame import ERROR, HEADER, HELLO, HELLO_ACK, ONEWAY, REQUEST, RESPONSE, FrameDecoder, encode_frame
from needle.rpc.server_connection import ServerConnection
from needle.rpc.turns import TURN_SECONDS

HELLO_FRAME = encode_frame(HELLO, 0, (encode(Hello(version=1, cluster_id="red")),))


async def read_error(reader):
    async with asyncio.timeout(30.0):
        frames = FrameDecoder(1 << 20).feed(await reader.read())
    assert frames[-1][0] == ERROR
    return decode_error(frames[-1][2])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 500_000, FrameTooLarge),
        (encode_frame(REQUEST, 1, (request_head("m"),)), ProtocolError),
        (encode_frame(HELLO, 0, (b"\xc1",)), ProtocolError),
        (HELLO_FRAME + HELLO_FRAME, ProtocolError),
        (HELLO_FRAME + encode_frame(REQUEST, 1, (b"\x00",)), ProtocolError),
        (HELLO_FRAME + b"\x09\x00\x00\x00\xff" + b"\x00" * 8, ProtocolError),
    ],
)
async def test_garbage_is_answered_by_name_and_closed_while_others_continue(net, recorder, data, kind):
    server = await net.server(recorder)
    client = net.client()
    await client.call(server.address, "echo", b"", 5.0)
    reader, writer = await net.raw(server.port)
    writer.write(data)
    assert type(await read_error(reader)) is kind
    assert server.stats.protocol_errors == 1
    assert await client.call(server.address, "echo", b"on", 5.0) == b"on"
    assert client.stats.connects == 1


async def test_a_silent_client_is_closed_after_the_hello_timeout(net, recorder):
    server = await net.server(recorder, hello_timeout=0.02)
    reader, _ = await net.raw(server.port)
    assert "no hello" in str(await read_error(reader))


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_came_just_before_the_stop_ends_with_it(net, recorder, turns):
    """The loop had accepted it and told of it behind the stop: it went on, and a loop that waits for all connections of
    a server before it has closed (Python 3.12) waited for good."""
    server = await net.server(recorder)
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", server.port)) as late:
        late.setblocking(False)
        late.send(HELLO_FRAME)
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.stop()
        await asyncio.sleep(0)
        gc.collect()  # of one that it had only begun to accept asyncio itself keeps the socket until then
        async with asyncio.timeout(30.0):
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(late, 1 << 16):
                    pass
    assert not server.connections


async def test_a_silent_server_ends_the_attempt(net):
    accepted = []
    silent = await asyncio.start_server(lambda reader, writer: accepted.append(writer), "127.0.0.1", 0)
    address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    client = net.client(hello_timeout=0.02)
    with pytest.raises(ConnectionLost, match="hello"):
        await client.call(address, "echo", b"", 5.0)
    assert client.stats.connect_failures == 1
    for writer in accepted:
        writer.close()
    silent.close()


async def test_a_server_that_sends_garbage_ends_the_attempt_by_name(net):
    async def shout(reader, writer):
        writer.write(b"\xff" * 100)
        await reader.read()
        writer.close()

    rude = await asyncio.start_server(shout, "127.0.0.1", 0)
    client = net.client()
    with pytest.raises(FrameTooLarge):
        await client.call(f"127.0.0.1:{rude.sockets[0].getsockname()[1]}", "echo", b"", 5.0)
    rude.close()


async def test_a_reader_that_does_not_read_stops_the_server_reading(net, recorder, until):
    server = await net.server(recorder, write_buffer_bytes=1 << 16)
    reader, writer = await net.raw(server.port)
    writer.write(HELLO_FRAME)
    request = encode_frame(REQUEST, 1, (request_head("big"), b"100000"))
    writer.write(request * 20_000)
    await until(lambda: any(not c._reading for c in server.connections))
    connection = next(iter(server.connections))
    # 2 GB of answers were asked for; a few megabytes are held (the transport's buffer may exceed its mark by one
    # joined write), and the requests not yet served stay requests.
    assert connection.transport.get_write_buffer_size() < 8 << 20
    assert server.stats.frames_out < 1000
    # The peer reads again: the rest is served. 1000 more answers prove that the flow restarts.
    sent = server.stats.frames_out
    async with asyncio.timeout(30.0):
        while server.stats.frames_out < sent + 1000:
            await reader.read(1 << 20)


async def test_requests_in_flight_are_bounded(net, recorder, until):
    server = await net.server(recorder, inflight_requests_max=10)
    client = net.client()
    calls = [asyncio.create_task(client.call(server.address, "wait", b"%d" % n, 20.0)) for n in range(100)]
    await until(lambda: server.stats.frames_in == 101)
    connection = next(iter(server.connections))
    # On a busy machine the turn may have been over before the tenth.
    await until(lambda: connection.inflight >= 10 and not server.turns.more())
    assert recorder.entered <= 10
    assert connection.inflight == 10
    recorder.gate.set()
    assert await asyncio.gather(*calls) == [b"%d" % n for n in range(100)]


async def test_requests_that_wait_are_looked_at_once_each(net, recorder, until, monkeypatch):
    """However many wait behind the one that ends: thousands of small ones fit into one chunk."""
    server = await net.server(recorder, inflight_requests_max=1)
    _, writer = await hello(net, server)
    many = 1000
    writer.write(b"".join(encode_frame(REQUEST, n + 1, (request_head("task"), b"x")) for n in range(many)))
    keeps = []
    keep = ServerConnection._keep
    monkeypatch.setattr(ServerConnection, "_keep", lambda self, frames: (keeps.append(len(frames)), keep(self, frames)))
    await until(lambda: recorder.finished == many)
    assert sum(keeps) <= many


async def test_request_bytes_in_flight_are_bounded(net, recorder, until):
    server = await net.server(recorder, inflight_bytes_max=250_000)
    client = net.client()
    calls = [asyncio.create_task(client.call(server.address, "wait", b"x" * 100_000, 20.0)) for _ in range(20)]
    await until(lambda: recorder.entered == 3)
    assert next(iter(server.connections)).inflight == 3
    recorder.gate.set()
    assert len(await asyncio.gather(*calls)) == 20


async def test_one_way_frames_arrive_in_order_and_a_failing_one_is_logged(net, recorder, until, caplog):
    server = await net.server(recorder)
    client = net.client(node_id="n1")
    await client.connect(server.address, 5.0)
    for body in (b"1", b"boom", b"2", b"x" * 50_000):
        assert client.send(server.address, body)
    await until(lambda: len(recorder.oneways) == 3)
    assert recorder.oneways == [("n1", b"1"), ("n1", b"2"), ("n1", b"x" * 50_000)]
    assert "one-way boom" in caplog.text
    assert client.stats.dropped_frames == 0


async def test_frames_sent_while_connecting_arrive_in_order_once_connected(net, recorder, until):
    server = await net.server(recorder)
    client = net.client(node_id="n1")
    assert client.send(server.address, b"vote")
    assert client.send(server.address, b"again")
    await until(lambda: len(recorder.oneways) == 2)
    assert recorder.oneways == [("n1", b"vote"), ("n1", b"again")]
    assert client.stats.dropped_frames == 0


async def test_frames_held_for_a_connection_that_fails_are_dropped_and_counted(net, until):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    client = net.client()
    assert client.send(address, b"four")
    await until(lambda: client.stats.dropped_frames == 1)
    assert client.stats.dropped_bytes == 4
    assert not client.send(address, b"within the backoff")


async def test_a_full_one_way_queue_drops_the_newest_and_memory_stays_bounded(net, until):
    async def deaf(reader, writer):
        await reader.readexactly(len(HELLO_FRAME))
        writer.write(encode_frame(HELLO_ACK, 0, (encode(Hello(version=1, cluster_id="red", node_id="d")),)))
        writer.transport.pause_reading()
        kept.append(writer)

    kept = []
    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = net.client(oneway_bytes_max=1 << 20, write_buffer_bytes=1 << 16)
    await client.connect(address, 5.0)
    body = b"x" * 10_000

    async def fill():
        async with asyncio.timeout(30.0):
            while client.send(address, body):  # noqa: ASYNC110 - each turn sends one more frame
                await asyncio.sleep(0)

    await fill()
    sent = client.stats.frames_out
    for _ in range(50):
        assert not client.send(address, body)
    assert client.stats.dropped_frames == 51
    assert client.stats.dropped_bytes == 51 * 10_000
    assert client.stats.frames_out == sent
    assert client._links[address, ""].connection.unsent_bytes() <= (1 << 20)
    # A call on a peer that does not read waits for room, not forever.
    with pytest.raises(Exception, match="too slowly"):
        await client.call(address, "echo", b"", 0.02)
    for writer in kept:
        writer.transport.abort()
    server.close()


async def test_one_loop_turn_is_one_socket_write(net, recorder, monkeypatch):
    server = await net.server(recorder)
    client = net.client()
    await client.connect(server.address, 5.0)
    connection = client._links[server.address, ""].connection
    writes = []
    flush = connection.transport.write
    monkeypatch.setattr(connection, "transport", Spy(connection.transport, writes, flush))
    calls = [asyncio.create_task(client.call(server.address, "echo", b"x", 5.0)) for _ in range(50)]
    await asyncio.gather(*calls)
    assert len(writes) == 1


class Spy:
    """A transport that notes its writes."""

    def __init__(self, transport, writes, write):
        self._transport, self._writes, self._write = transport, writes, write

    def write(self, data):
        self._writes.append(len(data))
        self._write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)


async def hello(net, server, *, answered=True):
    """A raw connection that has said its hello. answered: the answer is read."""
    reader, writer = await net.raw(server.port)
    writer.write(HELLO_FRAME)
    if not answered:
        return reader, writer
    async with asyncio.timeout(30.0):
        await reader.read(1 << 16)
    return reader, writer


async def test_no_large_frame_is_taken_before_the_hello(net, recorder):
    server = await net.server(recorder)
    reader, writer = await net.raw(server.port)
    writer.write(HEADER.pack(1 << 20, HELLO, 0) + b"\0" * 100)
    assert type(await read_error(reader)) is FrameTooLarge


async def test_a_frame_that_does_not_get_finished_is_refused(net, recorder, monkeypatch):
    monkeypatch.setattr("needle.rpc.server.SWEEP_SECONDS", 0.01)
    server = await net.server(recorder, frame_timeout=0.05, frame_bytes_per_second=1 << 40)
    reader, writer = await hello(net, server)
    writer.write(HEADER.pack(1 << 20, REQUEST, 1) + b"\0" * 5000)
    assert "was not complete after" in str(await read_error(reader))
    assert server.held == 0


async def test_time_in_which_the_server_does_not_read_is_not_held_against_a_frame(net, recorder, until, monkeypatch):
    monkeypatch.setattr("needle.rpc.server.SWEEP_SECONDS", 0.001)
    server = await net.server(recorder, frame_timeout=0.0, frame_bytes_per_second=1 << 40, inflight_requests_max=1)
    _, writer = await hello(net, server)
    whole = encode_frame(REQUEST, 1, (request_head("wait"), b"x"))
    writer.write(whole + whole[:-1])
    connection = next(iter(server.connections))
    await until(lambda: connection.decoder.buffered)
    since = connection._frame_since
    await until(lambda: connection._frame_since > since)  # looked at, and let off
    writer.write(whole[-1:])
    recorder.gate.set()
    await until(lambda: recorder.finished == 2)


async def test_unfinished_frames_of_all_connections_share_one_bound(net, recorder, until):
    """Twelve peers begin a frame of 2 MB each, where 8 MB may be held: some are refused, the others served."""
    server = await net.server(recorder, held_bytes_max=8 << 20)
    part = HEADER.pack(2 << 20, REQUEST, 1) + b"\x04echo" + b"\0" * ((2 << 20) - 1000)
    peers = [await hello(net, server) for _ in range(12)]
    for _, writer in peers:
        writer.write(part)
    await until(lambda: server.stats.bytes_in >= 12 * len(part))
    held = sum(connection.decoder.buffered for connection in server.connections)
    assert 2 << 20 <= held <= server.held <= 8 << 20
    assert server.stats.protocol_errors >= 8
    # One that holds little is not refused for it.
    assert await net.client().call(server.address, "echo", b"on", 5.0) == b"on"
    for _, writer in peers:
        writer.transport.abort()
    await until(lambda: server.held == 0)


async def test_many_that_hold_little_are_bounded_together(net, recorder, until):
    """Forty peers begin a frame and send 0.9 MB of it, where 4 MB may be held."""
    server = await net.server(recorder, held_bytes_max=4 << 20)
    part = HEADER.pack(2 << 20, REQUEST, 1) + b"\x04echo" + b"\0" * 900_000
    peers = [await hello(net, server) for _ in range(40)]
    most = 0
    for number, (_, writer) in enumerate(peers, 1):
        writer.write(part)
        due = number * len(part)
        await until(lambda due=due: server.stats.bytes_in >= due)
        most = max(most, server.held)
    assert most <= 3 * (4 << 20)
    assert await net.client().call(server.address, "echo", b"on", 5.0) == b"on"
    for _, writer in peers:
        writer.transport.abort()
    await until(lambda: server.held == 0)


async def test_a_chunk_beyond_the_bound_does_not_cost_a_look_at_every_connection(net, recorder, until, monkeypatch):
    """Others hold all that may be held; 100 chunks of one more frame arrive."""
    server = await net.server(recorder, held_bytes_max=1 << 20)
    part = HEADER.pack(2 << 20, REQUEST, 1) + b"\x04echo" + b"\0" * 30_000
    peers = [await hello(net, server) for _ in range(50)]
    for _, writer in peers:
        writer.write(part)
    await until(lambda: server.held >= 50 * 30_000)
    looks = []
    inner = ServerConnection.account
    monkeypatch.setattr(ServerConnection, "account", lambda self: (looks.append(1), inner(self)))
    connection = next(iter(server.connections))
    for _ in range(100):
        connection.data_received(b"\0" * 100)
    assert len(looks) <= 100 + 5 * 50


async def test_answers_that_were_read_take_no_room(net, recorder, until, monkeypatch):
    """An answer of 16 MB, counted while it was unread, has left; a frame of 8 MB comes, where 20 MB may be held."""
    monkeypatch.setattr("needle.rpc.server.SWEEP_SECONDS", 3600.0)
    server = await net.server(recorder, held_bytes_max=20 << 20)
    reader, writer = await hello(net, server)
    one = next(iter(server.connections))
    writer.write(encode_frame(REQUEST, 1, (request_head("echo"), b"x" * (16 << 20))))
    await until(lambda: one.unsent_bytes() > 8 << 20)
    writer.write(HEADER.pack(1 << 20, REQUEST, 2)[:4])
    await until(lambda: server.held > 8 << 20)
    before = server.held
    async with asyncio.timeout(30.0):
        while one.unsent_bytes():
            await reader.read(1 << 20)
    assert server.held == before  # it left without a word
    others = [await hello(net, server) for _ in range(3)]
    others[0][1].write(HEADER.pack(13 << 20, REQUEST, 1) + b"\x04echo" + b"\0" * (12 << 20))
    sent = server.stats.bytes_in + (12 << 20)
    await until(lambda: server.stats.bytes_in >= sent or server.stats.protocol_errors)
    assert not server.stats.protocol_errors


async def test_answers_that_nobody_reads_are_refused_at_a_bound(net, recorder, until):
    """200 answers of 1 MB are asked for at once, and none is read."""
    server = await net.server(recorder, answers_bytes_max=8 << 20)
    reader, writer = await hello(net, server)
    body = (1 << 20) * b"x"
    for number in range(60):
        writer.write(encode_frame(REQUEST, number + 1, (request_head("wait"), body)))
    await until(lambda: recorder.entered == 60)
    recorder.gate.set()
    connection = next(iter(server.connections))
    await until(lambda: recorder.finished == 60 and connection.inflight == 0)
    held = connection._out_bytes + connection.transport.get_write_buffer_size()
    assert held < 12 << 20
    decoder, kinds = FrameDecoder(4 << 20), []
    async with asyncio.timeout(30.0):
        while len(kinds) < 60:
            kinds.extend(frame[0] for frame in decoder.feed(await reader.read(1 << 20)))
    assert kinds.count(ERROR) > 30 and kinds.count(RESPONSE) > 4


async def test_reads_of_a_caller_that_is_gone_are_dropped_and_other_work_finishes(net, recorder, until):
    server = await net.server(recorder)
    _, writer = await hello(net, server)
    for number, method in enumerate(("read", "read", "wait"), 1):
        writer.write(encode_frame(REQUEST, number, (request_head(method), b"")))
    await until(lambda: recorder.entered == 3)
    writer.transport.abort()
    await until(lambda: recorder.cancelled == 2)
    recorder.gate.set()
    await until(lambda: recorder.finished == 1 and not server.tasks)
    assert server.held == 0


async def test_connections_over_the_limit_are_told_and_a_flood_of_them_is_cut_off(net, recorder, until):
    server = await net.server(recorder, connections_max=2)
    client = net.client()
    await client.call(server.address, "echo", b"", 5.0)
    peers = [await net.raw(server.port) for _ in range(60)]
    for _, writer in peers:
        writer.write(HELLO_FRAME)
    await until(lambda: server.stats.connections <= 2 + 16)
    answers = [await answer_of(reader) for reader, _ in peers[1:]]
    assert sum(bool(answer) for answer in answers) <= 17 + server.known
    assert any(b"overloaded" in answer for answer in answers)
    assert await client.call(server.address, "echo", b"on", 5.0) == b"on"


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """What was said first; nothing where the connection was cut off."""
    try:
        async with asyncio.timeout(30.0):
            return await reader.read(1 << 16)
    except ConnectionError:
        return b""


async def test_clients_that_take_all_connections_do_not_keep_the_members_of_a_cluster_apart(net, recorder, until):
    server = await net.server(recorder, connections_max=8)
    told = [await answer_of((await hello(net, server, answered=False))[0]) for _ in range(20)]
    assert [b"overloaded" in answer for answer in told] == [False] * 6 + [True] * 14
    silent = [await net.raw(server.port) for _ in range(40)]
    assert await net.client(node_id="n2").call(server.address, "echo", b"a", 5.0) == b"a"
    assert await net.client(node_id="n3").call(server.address, "echo", b"b", 5.0) == b"b"
    with pytest.raises(Overloaded, match="its limit is 8, 2 of them for other nodes"):
        await net.client(node_id="n4").call(server.address, "echo", b"c", 5.0)
    assert server.stats.connections <= 8 + 16
    for _, writer in silent:
        writer.close()
    await until(lambda: server.stats.connections == server.known == 8)


def ticking(seconds):
    """Both clocks of a server's turns, which show `seconds` more whenever one of them is asked."""
    ticks = itertools.count()
    return dict.fromkeys(("computed", "passed"), lambda: next(ticks) * seconds)


async def test_thousands_of_requests_in_one_chunk_do_not_hold_the_event_loop(net, recorder, until):
    """256 kB of small requests took a quarter of a second in which no heartbeat left; ten such clients, ten times as
    much. The clock here says that each request takes half a millisecond."""
    server = await net.server(recorder, clocks=ticking(1 / 2000))
    clients = [await hello(net, server) for _ in range(10)]
    count, served, most = 500, 0, 0
    answer = recorder.on_request

    def counting(peer, method, body):
        nonlocal served
        served += 1
        return answer(peer, method, body)

    recorder.on_request = counting
    for _, writer in clients:
        for number in range(1, count + 1):
            writer.write(encode_frame(REQUEST, number, (request_head("echo"), b"x")))
    while served < 10 * count:
        before = served
        await asyncio.sleep(0)
        most = max(most, served - before)
    assert 1 < most <= 2 * TURN_SECONDS * 2000  # two turns may lie between two looks
    for reader, _ in clients:
        decoder, answers = FrameDecoder(1 << 20), []
        while len(answers) < count:
            answers.extend(decoder.feed(await reader.read(1 << 20)))
        assert [(kind, at) for kind, at, _ in answers] == [(RESPONSE, number) for number in range(1, count + 1)]


async def test_time_in_which_others_have_the_processor_is_no_part_of_a_turn(net, recorder, until):
    """On a busy machine it cut writes that came together into many small appends of the log."""
    server = await net.server(recorder)
    _, writer = await hello(net, server)
    served, seen = 0, []

    def waiting(_peer, _method, body):
        nonlocal served
        threading.Event().wait(TURN_SECONDS / 4)  # the processor is elsewhere
        served += 1
        asyncio.get_running_loop().call_soon(lambda: seen.append(served))
        return bytes(body)

    recorder.on_request = waiting
    count = 16
    writer.write(b"".join(encode_frame(REQUEST, n + 1, (request_head("echo"), b"x")) for n in range(count)))
    await until(lambda: bool(seen))
    assert seen[0] == count


async def test_a_node_is_heard_before_the_clients_that_use_up_each_turn(net, recorder, until):
    """Its messages keep the cluster together: they do not wait until each client had its turn."""
    server = await net.server(recorder, clocks=ticking(1 / 2000))
    floods = [await hello(net, server) for _ in range(40)]
    node = net.client(node_id="n2")
    assert await node.call(server.address, "echo", b"a", 5.0) == b"a"
    order = []
    answer = recorder.on_request

    def noting(peer, method, body):
        order.append(peer.node_id)
        return answer(peer, method, body)

    recorder.on_request = noting
    for _, writer in floods:
        for number in range(1, 201):
            writer.write(encode_frame(REQUEST, number, (request_head("echo"), b"x")))
    await until(lambda: bool(order))
    before = len(order)
    assert await node.call(server.address, "echo", b"b", 5.0) == b"b"
    assert order.index("n2") < before + 20 * TURN_SECONDS * 2000


async def test_one_way_frames_that_are_refused_do_not_fill_the_log(net, recorder, until, caplog):
    """Fourteen bytes cost a line of it each: a stranger could fill the disk with them."""
    refused = 0

    def refuse(peer, body):
        nonlocal refused
        refused += 1
        raise ProtocolError(f"frame {refused} cannot be read")

    recorder.on_oneway = refuse
    server = await net.server(recorder)
    _, writer = await net.raw(server.port)
    writer.write(HELLO_FRAME + encode_frame(ONEWAY, 0, (b"\xc1",)) * 100)
    await until(lambda: refused == 100)
    assert server.stats.protocol_errors == 100
    assert [record.levelname for record in caplog.records if "one-way" in record.message].count("WARNING") == 1
