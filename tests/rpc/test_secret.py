"""The hello of nodes: both sides show that they know the cluster's secret, and neither says it."""

import asyncio

import msgspec
import pytest

from needle.base import access
from needle.base.access import ADMIN, READER, Identity
from needle.base.errors import NeedleError, ProtocolError, Unauthenticated
from needle.rpc.codec import Hello, decode_error, encode
from needle.rpc.frame import ERROR, HELLO, HELLO_ACK, REQUEST, FrameDecoder, encode_frame
from needle.rpc.proof import CALLER, NODE, NONCE_BYTES, Exchange, new_nonce

SECRET, OTHER = "s" * 32, "t" * 32
FRAME_BYTES_MAX = 1 << 20


class Raw:
    """A connection, frame by frame."""

    def __init__(self, streams):
        self.reader, self.writer = streams
        self.decoder = FrameDecoder(FRAME_BYTES_MAX)
        self.frames = []
        self.heard = b""

    def hello(self, **fields):
        self.send(HELLO, 0, encode(Hello(version=1, cluster_id="red", **fields)))

    def send(self, kind, number, *parts):
        self.writer.write(encode_frame(kind, number, parts))

    async def next(self):
        while not self.frames:
            data = await asyncio.wait_for(self.reader.read(65536), 10)
            assert data, "closed"
            self.heard += data
            self.frames += self.decoder.feed(data)
        kind, _, payload = self.frames.pop(0)
        return kind, bytes(payload)

    async def refusal(self):
        kind, payload = await self.next()
        assert kind == ERROR
        return decode_error(payload)


async def raw(net, server):
    return Raw(await net.raw(server.port))


async def asked(net, server, node_id="n2"):
    """A connection to a node that has asked for a proof; what its proof would be about."""
    wire, nonce = await raw(net, server), new_nonce()
    wire.hello(node_id=node_id, nonce=nonce)
    kind, payload = await wire.next()
    assert kind == HELLO_ACK
    theirs = msgspec.msgpack.decode(payload, type=Hello)
    made = Exchange("red", node_id, theirs.node_id, nonce, theirs.nonce)
    made.proven([SECRET], NODE, theirs.proof)
    return wire, made


@pytest.mark.parametrize(
    ("ours", "theirs", "proven"), [(SECRET, SECRET, True), ("", SECRET, False), (SECRET, "", False)]
)
async def test_who_has_no_secret_yet_is_let_in_unproven(net, recorder, ours, theirs, proven):
    handler = recorder
    server = await net.server(handler, secret=ours)
    client = net.client(node_id="n2", secret=theirs)
    assert client.send(server.address, b"first")  # waits for the hello, and comes after the proof
    assert await client.call(server.address, "echo", b"x", 5.0) == b"x"
    assert handler.admitted == [("n2", "", proven)]
    assert handler.oneways == [("n2", b"first")]


async def test_different_secrets_are_refused_by_name_on_both_sides(net, recorder):
    handler = recorder
    server = await net.server(handler, secret=SECRET)
    with pytest.raises(Unauthenticated, match="cluster_secret must be the same"):
        await net.client(node_id="n2", secret=OTHER).call(server.address, "echo", b"x", 5.0)
    wire, made = await asked(net, server)
    wire.hello(node_id="n2", proof=made.proof(OTHER, CALLER))
    assert isinstance(await wire.refusal(), Unauthenticated)
    assert handler.admitted == []


async def test_a_proof_is_good_for_its_connection_and_its_side_only(net, recorder):
    handler = recorder
    server = await net.server(handler, secret=SECRET)
    _, overheard = await asked(net, server)
    for wrong in (
        lambda made: overheard.proof(SECRET, CALLER),
        lambda made: made.proof(SECRET, NODE),
        lambda made: msgspec.structs.replace(made, caller="n3").proof(SECRET, CALLER),
        lambda made: made.proof(SECRET, CALLER)[:16],
        lambda made: b"",
    ):
        wire, made = await asked(net, server)
        wire.hello(node_id="n2", proof=wrong(made))
        assert isinstance(await wire.refusal(), Unauthenticated)
    wire, made = await asked(net, server)
    wire.hello(node_id="n3", proof=made.proof(SECRET, CALLER))  # another name than that of the proof
    assert isinstance(await wire.refusal(), Unauthenticated)
    wire, made = await asked(net, server)
    wire.hello(node_id="n2", proof=made.proof(SECRET, CALLER))
    wire.send(REQUEST, 1, b"\x04echo", b"x")
    assert (await wire.next())[1] == b"x"
    assert handler.admitted == [("n2", "", True)]
    assert SECRET.encode() not in wire.heard


@pytest.mark.parametrize("size", [1, NONCE_BYTES - 1, NONCE_BYTES + 1])
async def test_a_nonce_is_long_enough(net, recorder, size):
    server = await net.server(recorder, secret=SECRET)
    wire = await raw(net, server)
    wire.hello(node_id="n2", nonce=b"n" * size)
    theirs = msgspec.msgpack.decode((await wire.next())[1], type=Hello)
    made = Exchange("red", "n2", theirs.node_id, b"n" * size, theirs.nonce)
    wire.hello(node_id="n2", proof=made.proof(SECRET, CALLER))
    assert isinstance(await wire.refusal(), Unauthenticated)


async def test_nothing_is_served_before_the_proof(net, recorder):
    handler = recorder
    server = await net.server(handler, secret=SECRET)
    wire, _ = await asked(net, server)
    wire.send(REQUEST, 1, b"\x04echo", b"x")
    assert isinstance(await wire.refusal(), ProtocolError)
    assert handler.admitted == [] == handler.oneways


async def test_what_the_handler_refuses_is_told_and_nothing_is_served(net, recorder):
    handler = recorder
    handler.refuses = Unauthenticated("who are you?")
    server = await net.server(handler)
    client = net.client(key="a-key")
    with pytest.raises(NeedleError, match="who are you") as told:
        await client.call(server.address, "echo", b"x", 5.0)
    assert type(told.value) is Unauthenticated
    assert handler.admitted == [("", "a-key", False)]


@pytest.mark.parametrize(("rank", "name"), [(READER, ""), (ADMIN, ""), (access.NODE, "n2")])
async def test_who_may_not_do_what_nodes_may_has_no_name_of_a_node(net, recorder, monkeypatch, rank, name):
    """With an API key anybody could say to be the leader, and have followers vote when the connection ends."""
    monkeypatch.setattr(recorder, "admit", lambda *_: Identity("k", rank))
    gone = asyncio.Queue()
    monkeypatch.setattr(recorder, "on_gone", lambda peer: gone.put_nowait(peer.node_id))
    server = await net.server(recorder)
    client = net.client(node_id="n2", key="a-key")
    await client.call(server.address, "echo", b"x", 5.0)
    await client.close()
    assert await gone.get() == name


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((OTHER, SECRET), (SECRET, OTHER)), ((SECRET,), (OTHER, SECRET)), ((SECRET, OTHER), (SECRET,))],
)
async def test_the_secret_is_changed_while_nodes_take_two(net, recorder, ours, theirs):
    """First all take the next one too, then all prove that, then they forget the former one."""
    server = await net.server(recorder, secret=ours)
    assert await net.client(node_id="n2", secret=theirs).call(server.address, "echo", b"x", 5.0) == b"x"
    assert recorder.admitted == [("n2", "", True)]
